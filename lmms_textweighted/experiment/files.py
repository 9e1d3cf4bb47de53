"""The experiment's files: JSON with the published keys, per-document answers, and the picture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import IO, Any
from uuid import uuid4

from lmms_textweighted.experiment.points import Curve, Outcome, Point
from lmms_textweighted.statistics import mean_interval

MAIN_STRATEGY = "text_weighted"


def summarise(curve: Curve, image_tokens: int) -> dict[str, Any]:
    """One strategy's block: a list a figure, in the order of `tokens`. Ranks that were not measured are null."""
    intervals = [mean_interval([o.score for o in outcomes]) for outcomes in curve.outcomes]
    return {
        "tokens": [image_tokens if budget is None else budget for budget in curve.budgets],
        "accuracies": [fmean(o.score for o in outcomes) for outcomes in curve.outcomes],
        "accuracy_low": [low for low, _ in intervals],
        "accuracy_high": [high for _, high in intervals],
        "exact_equality": [fmean(o.exact for o in outcomes) for outcomes in curve.outcomes],
        "numeric_ranks": [_mean([o.numeric_rank for o in outcomes]) for outcomes in curve.outcomes],
        "effective_ranks": [_mean([o.effective_rank for o in outcomes]) for outcomes in curve.outcomes],
        "equivalent_tokens": [fmean(o.equivalent_tokens for o in outcomes) for outcomes in curve.outcomes],
        "flops_ratio": [fmean(o.flops_ratio for o in outcomes) for outcomes in curve.outcomes],
    }


def experiment_data(curves: Sequence[Curve], meta: dict[str, Any], *, layers: int, image_tokens: int) -> dict[str, Any]:
    """The whole result. The published keys stand at the top, for the text-weighted strategy where it was run."""
    blocks = {curve.strategy: summarise(curve, image_tokens) for curve in curves}
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


def scores_of(metric: str) -> dict[str, str]:
    """For the result's meta: which score each of its accuracies is."""
    return {
        "accuracies": f"the mean of the task's own score, {metric}, which may take an answer that only begins right; "
        "accuracy_low and accuracy_high are its 95 % interval",
        "exact_equality": "the share of answers that are the target as a whole, white space around them aside: the "
        "published experiment's accuracy",
    }


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside `path`, of this call's own, to write to. What is written there takes the place of `path` when the
    block ends well."""
    draft = path.with_name(f"{path.name}.{uuid4().hex[:8]}.draft")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def write_answers(
    file: IO[str], document: dict[str, Any], points: Sequence[Point], outcomes: Sequence[Outcome]
) -> None:
    """JSON lines, one a point of one document, written at once: a run that dies keeps what it has."""
    for point, outcome in zip(points, outcomes, strict=True):
        line = {"strategy": point.strategy, "tokens": point.budget, **document, **vars(outcome)}
        file.write(json.dumps(line) + "\n")
    file.flush()


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
