"""One document at every point of a sweep. Points that remove once share a prefill with all others of their layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from lmms_textweighted.engine.cost import DecoderShape, equivalent_tokens, prefill_flops
from lmms_textweighted.engine.decoder import find_decoder
from lmms_textweighted.engine.entrance import can_enter, continue_entrance
from lmms_textweighted.engine.fanout import Continuation, Prefix, can_share, continue_prefix, row_lengths
from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.engine.trace import DocumentTrace, StageTrace
from lmms_textweighted.experiment.alone import answer_alone, outcome_of
from lmms_textweighted.experiment.grid import Point, check_points, make_points
from lmms_textweighted.experiment.outcomes import Outcome
from lmms_textweighted.families.attach import run_entrance, run_prefix
from lmms_textweighted.inference import Decoding, PrunedLlava, cut
from lmms_textweighted.inference.memory import alone, in_halves
from lmms_textweighted.prompts import Message

__all__ = ["Outcome", "Point", "check_points", "make_points", "run_document"]

Record = Callable[[int, Sequence[StageTrace]], None]

TOKENS_A_BATCH = 1 << 13  # rows x length of one fan-out batch
TEXT_OF_A_PROMPT = 128  # tokens, about: only batches' sizes hang on it


def run_document(
    llava: PrunedLlava,
    message: Message,
    points: Sequence[Point],
    *,
    decoding: Decoding,
    ranks: bool,
    judge: Callable[[str], tuple[float, bool]],
    record: Record | None = None,
) -> list[Outcome]:
    """One document at every point, decoded greedily. judge: answer -> (task's score, whole answer is the target).
    record: is told each point's place and its stages.

    Points whose plan `can_share` go on from one prefill a layer and text scope, those whose plan `can_enter` from one
    entrance into the decoder; each other plan runs by itself, once.
    """
    outcomes: list[Outcome | None] = [None] * len(points)
    for some, test in ((_shared, can_share), (_entered, can_enter)):
        here = [place for place, point in enumerate(points) if test(point.plan)]
        for place, outcome in some(llava, message, points, here, decoding, ranks, judge, record).items():
            outcomes[place] = outcome
    alone: dict[Plan, Outcome] = {}
    traces: dict[Plan, DocumentTrace] = {}
    for place, point in enumerate(points):
        if outcomes[place] is None:
            plan = replace(point.plan, name="")
            if plan not in alone:
                alone[plan] = answer_alone(
                    llava,
                    message,
                    plan,
                    decoding=decoding,
                    ranks=ranks,
                    judge=judge,
                    traced=partial(traces.__setitem__, plan),
                )
            outcomes[place] = replace(alone[plan])
            if record is not None:
                record(place, traces[plan].stages)
    return [outcome for outcome in outcomes if outcome is not None]


def _shared(
    llava: PrunedLlava,
    message: Message,
    points: Sequence[Point],
    shared: Sequence[int],
    decoding: Decoding,
    ranks: bool,
    judge: Callable[[str], tuple[float, bool]],
    record: Record | None,
) -> dict[int, Outcome]:
    """The outcomes of the points that go on from a shared prefix, by their places."""
    outcomes: dict[int, Outcome] = {}
    if not shared:
        return outcomes
    asked = any(points[place].plan.text_scope == "question" for place in shared)
    encoded = llava.encode([[message]], question=asked)
    decoding = llava.stopping(decoding)
    shape = DecoderShape.from_config(find_decoder(llava.model).config)
    first = next((points[place] for place in shared if points[place].stage), None)
    anywhere = (first.stage.layer, first.plan.text_scope) if first and first.stage else (0, "after")
    groups: dict[tuple[int, str], list[int]] = {}
    for place in shared:
        stage = points[place].stage
        where = (stage.layer, points[place].plan.text_scope) if stage else anywhere
        groups.setdefault(where, []).append(place)
    with torch.inference_mode():
        for (layer, scope), here in sorted(groups.items()):
            scorers = list(dict.fromkeys(point.stage.scorer for place in here if (point := points[place]).stage))
            run = partial(run_prefix, llava.model, encoded.inputs, layer, scorers, seed=llava.seed, text_scope=scope)
            prefix = alone(partial(run, question=encoded.question[0], image_sizes=encoded.image_sizes))
            for place, done, kept in _continue(llava, prefix, points, here, decoding, ranks):
                lengths, images = row_lengths(prefix, shape, kept)
                whole = [prefix.layout.lengths[0]] * shape.layers
                text = cut(llava.processor.tokenizer.decode(done.tokens, skip_special_tokens=True), decoding.until)
                score, exact = judge(text)
                if record is not None:
                    record(place, _stages(prefix, points[place]))
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
    return outcomes


def _entered(
    llava: PrunedLlava,
    message: Message,
    points: Sequence[Point],
    here: Sequence[int],
    decoding: Decoding,
    ranks: bool,
    judge: Callable[[str], tuple[float, bool]],
    record: Record | None,
) -> dict[int, Outcome]:
    """The outcomes of the points that remove before the decoder, by their places; equal plans run once."""
    places: dict[Plan, list[int]] = {}
    for place in here:
        places.setdefault(replace(points[place].plan, name=""), []).append(place)
    if not places:
        return {}
    plans = [points[some[0]].plan for some in places.values()]
    asked = any(plan.text_scope == "question" for plan in plans)
    encoded = llava.encode([[message]], question=asked)
    decoding = llava.stopping(decoding)
    outcomes: dict[int, Outcome] = {}
    with torch.inference_mode():
        run = partial(run_entrance, llava.model, encoded.inputs, plans, seed=llava.seed)
        run = partial(run, question=encoded.question[0], text_tower=llava.text_tower, texts=encoded.texts)
        entrance = alone(partial(run, image_sizes=encoded.image_sizes))
        go_on = partial(continue_entrance, llava.model, entrance, max_new_tokens=decoding.max_new_tokens, ranks=ranks)
        for batch in _of_like_length(plans, entrance.hidden.shape[1]):
            done = in_halves(batch, go_on, "plans of one document")
            for plan, (made, trace) in zip(batch, done, strict=True):
                text = cut(llava.processor.tokenizer.decode(made.tokens, skip_special_tokens=True), decoding.until)
                score, exact = judge(text)
                for place in places[replace(plan, name="")]:
                    outcomes[place] = outcome_of(text, score, exact, trace)
                    if record is not None:
                        record(place, trace.stages)
    return outcomes


def _of_like_length(plans: Sequence[Plan], most: int) -> Iterator[list[Plan]]:
    """Batches of plans that keep about as many tokens, each at most TOKENS_A_BATCH in all. most: a row's length."""

    def kept(plan: Plan) -> int:
        count = plan.stages[0].keep_tokens
        return most if count is None else count

    order = sorted(plans, key=kept, reverse=True)
    while order:
        size = max(1, TOKENS_A_BATCH // min(most, kept(order[0]) + TEXT_OF_A_PROMPT))
        batch, order = order[:size], order[size:]
        yield batch


def _stages(prefix: Prefix, point: Point) -> list[StageTrace]:
    """What a point kept and why; nothing where it removes nothing, or there is nothing to remove."""
    stage = point.stage
    if stage is None or stage.keep_tokens is None or not len(prefix.image):
        return []
    return [prefix.stage(stage.scorer, stage.keep_tokens, point.plan.keep_scope)]


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
        key = "none stays" if sizes and not len(images) else key
        kept[key] = images
        rows.setdefault(key, []).append(place)
    # Rows of similar length share a batch, so that little of it is filler.
    order = sorted(rows, key=lambda key: len(kept[key]), reverse=True)
    text = prefix.layout.lengths[0] - sum(sizes)
    while order:
        size = max(1, TOKENS_A_BATCH // (len(kept[order[0]]) + text))
        batch, order = order[:size], order[size:]
        run = partial(continue_prefix, llava.model, prefix, max_new_tokens=decoding.max_new_tokens, ranks=ranks)
        done = in_halves([kept[key] for key in batch], run, "kept sets of one document")
        for key, outcome in zip(batch, done, strict=True):
            for place in rows[key]:
                yield place, outcome, len(kept[key])
