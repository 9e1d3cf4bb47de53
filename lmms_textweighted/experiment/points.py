"""The experiment: accuracy and ranks of every strategy at every budget, each document prefilled once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lmms_textweighted.engine.cost import DecoderShape, equivalent_tokens, prefill_flops
from lmms_textweighted.engine.decoder import find_decoder
from lmms_textweighted.engine.fanout import Continuation, Prefix, continue_prefix, row_lengths
from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.errors import PlanError
from lmms_textweighted.families.attach import run_prefix
from lmms_textweighted.inference import Decoding, PrunedLlava, cut
from lmms_textweighted.methods import Method, find_method
from lmms_textweighted.prompts import Message

TOKENS_A_BATCH = 1 << 13  # rows x length of one fan-out batch


@dataclass(frozen=True)
class Point:
    """One strategy at one budget. budget None: nothing is removed."""

    strategy: str
    budget: int | None
    plan: Plan

    @property
    def stage(self) -> Stage | None:
        """The plan's one stage, if it removes anything."""
        return self.plan.stages[0] if self.plan.stages else None


@dataclass
class Outcome:
    """What one point did with one document."""

    answer: str
    score: float
    exact: bool
    numeric_rank: float | None
    effective_rank: float | None
    image_tokens: int
    kept_tokens: int
    equivalent_tokens: float
    flops_ratio: float


@dataclass
class Curve:
    """One strategy's outcomes: for each budget, largest first, one outcome a document."""

    strategy: str
    budgets: list[int | None]
    outcomes: list[list[Outcome]] = field(default_factory=list)


def make_points(
    strategies: Sequence[str | Method],
    budgets: Sequence[int],
    pruning_layer: int | None,
    *,
    text_scope: str = "after",
    keep_scope: str = "image",
) -> list[Point]:
    """All points of a sweep, strategy by strategy. strategies: as for `find_method`.

    Raises PlanError as `find_method` and `Method.plan` do, without a strategy, and for two of one name.
    """
    if not strategies:
        raise PlanError("strategies is empty: name at least one, as in text_weighted,fastv,random,none")
    points: list[Point] = []
    for strategy in strategies:
        method = find_method(strategy)
        if any(point.strategy == method.name for point in points):
            raise PlanError(f"strategies names {method.name!r} twice: give each method a name of its own")
        layer = pruning_layer if method.layer is None else None
        for budget in budgets if method.takes_budget else (None,):
            plan = method.plan(pruning_layer=layer, keep_tokens=budget, text_scope=text_scope, keep_scope=keep_scope)
            points.append(Point(method.name, budget, plan))
    return points


def check_points(points: Sequence[Point], llava: PrunedLlava) -> None:
    """Raise PlanError when a point does not fit the model, or the fan-out: it removes once, where it scores."""
    layers = llava.model.config.get_text_config().num_hidden_layers
    for point in points:
        once = len(point.plan.stages) <= 1 and all(
            stage.scored_at == stage.layer and stage.keep_tokens is not None for stage in point.plan.stages
        )
        if not once:
            raise PlanError(
                f"strategy {point.strategy!r} removes more than once, scores elsewhere or keeps a share: the sweep "
                f"runs plans of one stage, use lmms-eval"
            )
        point.plan.check(layers, llava.tokens_per_image if point.plan.keep_scope == "image" else None)


def run_document(
    llava: PrunedLlava,
    message: Message,
    points: Sequence[Point],
    *,
    decoding: Decoding,
    ranks: bool,
    judge: Callable[[str], tuple[float, bool]],
) -> list[Outcome]:
    """One document at every point, decoded greedily. judge: answer -> (task's score, whole answer is the target)."""
    encoded = llava.encode([[message]], question=any(point.plan.text_scope == "question" for point in points))
    decoding = llava.stopping(decoding)
    shape = DecoderShape.from_config(find_decoder(llava.model).config)
    outcomes: list[Outcome | None] = [None] * len(points)
    default_layer = next((point.stage.layer for point in points if point.stage), 0)
    default_scope = next((point.plan.text_scope for point in points if point.stage), "after")
    groups: dict[tuple[int, str], list[int]] = {}
    for place, point in enumerate(points):
        where = (point.stage.layer, point.plan.text_scope) if point.stage else (default_layer, default_scope)
        groups.setdefault(where, []).append(place)
    with torch.inference_mode():
        for (layer, scope), here in sorted(groups.items()):
            scorers = list(dict.fromkeys(point.stage.scorer for place in here if (point := points[place]).stage))
            prefix = run_prefix(
                llava.model,
                encoded.inputs,
                layer,
                scorers,
                seed=llava.seed,
                text_scope=scope,
                question=encoded.question[0],
            )
            for place, done, kept in _continue(llava, prefix, points, here, decoding, ranks):
                lengths, images = row_lengths(prefix, shape, kept)
                whole = [prefix.layout.lengths[0]] * shape.layers
                text = cut(llava.processor.tokenizer.decode(done.tokens, skip_special_tokens=True), decoding.until)
                score, exact = judge(text)
                outcomes[place] = Outcome(
                    answer=text,
                    score=score,
                    exact=exact,
                    numeric_rank=done.ranks.numeric_mean if done.ranks else None,
                    effective_rank=done.ranks.effective_mean if done.ranks else None,
                    image_tokens=sum(prefix.layout.image_sizes[0]),
                    kept_tokens=kept,
                    equivalent_tokens=equivalent_tokens(images),
                    flops_ratio=prefill_flops(shape, lengths) / prefill_flops(shape, whole),
                )
    return [outcome for outcome in outcomes if outcome is not None]


def _continue(
    llava: PrunedLlava, prefix: Prefix, points: Sequence[Point], here: list[int], decoding: Decoding, ranks: bool
) -> Iterator[tuple[int, Continuation, int]]:
    """(point, outcome, image tokens kept) of all points of one layer; equal kept sets run once."""
    sizes = prefix.layout.image_sizes[0]
    rows: dict[Any, list[int]] = {}
    kept: dict[Any, torch.Tensor] = {}
    for place in here:
        stage = points[place].stage
        images = prefix.image
        if stage is not None and stage.keep_tokens is not None:
            images = prefix.keep(stage.scorer, stage.keep_tokens, points[place].plan.keep_scope)
        scope = points[place].plan.keep_scope
        key: Any = None if stage is None or len(images) == sum(sizes) else (stage.scorer, stage.keep_tokens, scope)
        kept[key] = images
        rows.setdefault(key, []).append(place)
    # Rows of similar length share a batch, so that little of it is filler.
    order = sorted(rows, key=lambda key: len(kept[key]), reverse=True)
    text = prefix.layout.lengths[0] - sum(sizes)
    while order:
        size = max(1, TOKENS_A_BATCH // (len(kept[order[0]]) + text))
        batch, order = order[:size], order[size:]
        done = continue_prefix(
            llava.model, prefix, [kept[key] for key in batch], max_new_tokens=decoding.max_new_tokens, ranks=ranks
        )
        for key, outcome in zip(batch, done, strict=True):
            for place in rows[key]:
                yield place, outcome, len(kept[key])


def collect(points: Sequence[Point], documents: Sequence[Sequence[Outcome]]) -> list[Curve]:
    """Turn outcomes by document into curves by strategy."""
    curves: dict[str, Curve] = {}
    for place, point in enumerate(points):
        curve = curves.setdefault(point.strategy, Curve(point.strategy, []))
        curve.budgets.append(point.budget)
        curve.outcomes.append([outcomes[place] for outcomes in documents])
    return list(curves.values())
