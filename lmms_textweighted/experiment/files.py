"""The experiment's files: JSON with the published keys, per-document answers, and the picture."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, stdev
from typing import IO, Any
from uuid import uuid4

from lmms_textweighted.experiment.grid import Point
from lmms_textweighted.experiment.names import OWN_LAYERS
from lmms_textweighted.experiment.outcomes import Curve, Outcome
from lmms_textweighted.experiment.pairs import Pair, pair, paired_figures
from lmms_textweighted.experiment.timing import Prefill
from lmms_textweighted.statistics import mean_interval

MAIN_STRATEGY = "text_weighted"


def summarise(curve: Curve, image_tokens: int, pairs: Sequence[Pair] = ()) -> dict[str, Any]:
    """One curve's block: a list a figure, in the order of `tokens`. Ranks that were not measured are null; where they
    cannot be, `unranked` says why.

    image_tokens: of a picture, where nothing leaves. pairs: the result's paired tests; the curve's own stand in
    `paired`. Seconds stand in the block where prefills were timed.

    With several seeds every figure is the mean over documents and seeds. The interval is of the documents' means over
    the seeds: a document's answers hang together, the draws of two documents do not. `accuracy_spread` is the standard
    deviation of the seeds' accuracies.
    """
    intervals = [mean_interval(curve.document_scores(place)) for place in range(len(curve.budgets))]
    points = [curve.all_of(place) for place in range(len(curve.budgets))]
    return {
        "layer": curve.layer,
        "tokens": [_tokens(curve, place, image_tokens) for place in range(len(curve.budgets))],
        "accuracies": [fmean(o.score for o in outcomes) for outcomes in points],
        "accuracy_low": [low for low, _ in intervals],
        "accuracy_high": [high for _, high in intervals],
        "exact_equality": [fmean(o.exact for o in outcomes) for outcomes in points],
        "numeric_ranks": [_mean([o.numeric_rank for o in outcomes]) for outcomes in points],
        "effective_ranks": [_mean([o.effective_rank for o in outcomes]) for outcomes in points],
        **({"unranked": unranked} if (unranked := next(filter(None, (p.unranked for p in curve.plans)), "")) else {}),
        "equivalent_tokens": [fmean(o.equivalent_tokens for o in outcomes) for outcomes in points],
        "flops_ratio": [fmean(o.flops_ratio for o in outcomes) for outcomes in points],
        **(_by_seed(curve) if len(curve.seeds) > 1 else {}),
        **(_times(curve) if all(curve.prefills) else {}),
        **({"paired": paired} if (paired := paired_figures(curve, pairs)) else {}),
        "plans": [plan.to_dict() for plan in curve.plans],
    }


def experiment_data(
    curves: Sequence[Curve],
    meta: dict[str, Any],
    *,
    layers: int,
    image_tokens: int,
    against: Sequence[str] = (),
) -> dict[str, Any]:
    """The whole result. against: strategies that each point is tested against, see `pairs.pair`.

    Of one pruning layer: the published keys at the top, for the text-weighted strategy where it was run, and a block a
    strategy. Of several (`meta["pruning_layer"]` is a list): in each strategy's place a block for each layer.
    """
    pairs = [one for name in against for one in pair(curves, name)]
    meta = {**meta, "against": list(against)}
    if isinstance(meta["pruning_layer"], list):
        maps: dict[str, dict[str, Any]] = {}
        for curve in curves:
            key = OWN_LAYERS if curve.layer is None else str(curve.layer)
            maps.setdefault(curve.strategy, {})[key] = summarise(curve, image_tokens, pairs)
        return {"strategies": maps, "meta": meta}
    blocks = {curve.strategy: summarise(curve, image_tokens, pairs) for curve in curves}
    top: dict[str, Any] = {}
    if MAIN_STRATEGY in blocks:
        main = blocks[MAIN_STRATEGY]
        top = {
            "tokens": main["tokens"],
            "accuracies": main["accuracies"],
            "exact_equality": main["exact_equality"],
            f"layer{layers - 1}_numeric_ranks": main["numeric_ranks"],
            f"layer{layers - 1}_effective_ranks": main["effective_ranks"],
        }
    costs = {
        figure: {name: dict(zip(block["tokens"], block[figure], strict=True)) for name, block in blocks.items()}
        for figure in ("equivalent_tokens", "flops_ratio")
    }
    return {**top, "strategies": blocks, "meta": {**meta, **costs}}


def blocks_of(data: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(strategy, block) of every curve of a result, of one layer or of several."""
    several = isinstance(data["meta"]["pruning_layer"], list)
    return [
        (strategy, block)
        for strategy, found in data["strategies"].items()
        for block in (found.values() if several else [found])
    ]


def unranked(data: dict[str, Any]) -> dict[str, str]:
    """The strategies of a result whose ranks cannot be measured, and why."""
    return {strategy: block["unranked"] for strategy, block in blocks_of(data) if "unranked" in block}


def scores_of(metric: str) -> dict[str, str]:
    """For the result's meta: which score each of its accuracies is."""
    return {
        "accuracies": f"the mean of the task's own score, {metric}, which may take an answer that only begins right; "
        "accuracy_low and accuracy_high are its 95 % interval",
        "exact_equality": "the share of answers that are the target as a whole, white space around them aside: the "
        "published experiment's accuracy",
    }


DRAFT = ".draft"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside `path`, of this call's own, to write to. What is written there takes the place of `path` when the
    block ends well, and it is on the disk."""
    draft = path.with_name(f"{path.name}.{uuid4().hex[:8]}{DRAFT}")
    try:
        yield draft
        on_disk(draft)
        draft.replace(path)
        on_disk(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def on_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def write_answers(
    file: IO[str], document: dict[str, Any], points: Sequence[Point], outcomes: Sequence[Outcome]
) -> None:
    """JSON lines, one a point of one document, written at once: a run that dies keeps what it has."""
    for point, outcome in zip(points, outcomes, strict=True):
        line = {
            "strategy": point.strategy,
            "layer": point.layer,
            "tokens": point.budget,
            "seed": point.seed,
            **document,
            **vars(outcome),
        }
        file.write(json.dumps(line) + "\n")
    file.flush()


def _times(curve: Curve) -> dict[str, Any]:
    """Medians over the timed documents."""
    times = [Prefill.median_of(prefills) for prefills in curve.prefills]
    return {
        "prefill_seconds": [time.seconds for time in times],
        "prefill_ratio": [time.ratio for time in times],
        "selection_seconds": [time.selection for time in times],
    }


def _tokens(curve: Curve, place: int, image_tokens: int) -> float:
    """A point's budget. Where the method's name says it, what was kept; where nothing leaves, all image tokens."""
    budget = curve.budgets[place]
    if budget is None and curve.plans[place].stages:
        return round(fmean(o.kept_tokens for o in curve.all_of(place)))
    return image_tokens if budget is None else budget


def _by_seed(curve: Curve) -> dict[str, Any]:
    accuracies = [[fmean(o.score for o in documents) for documents in seeds] for seeds in curve.outcomes]
    return {
        "seeds": curve.seeds,
        "accuracies_by_seed": {
            str(s): list(row) for s, row in zip(curve.seeds, zip(*accuracies, strict=True), strict=True)
        },
        "accuracy_spread": [stdev(row) for row in accuracies],
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
