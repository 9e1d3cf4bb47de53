"""What every point of a sweep chooses in one prompt, what it scores there and which words it weighs, without answers.

Points that remove once share a prefill or an entrance as in the sweep; each other plan runs by itself, up to its first
token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from lmms_textweighted.bias.places import Places, places_of
from lmms_textweighted.engine.entrance import can_enter, enter
from lmms_textweighted.engine.fanout import Prefix, can_share
from lmms_textweighted.engine.layers import EMBEDDINGS
from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.engine.scoring import Rows, Scorer
from lmms_textweighted.engine.trace import StageTrace
from lmms_textweighted.errors import InputError
from lmms_textweighted.experiment.grid import Point
from lmms_textweighted.families.attach import run_entrance, run_prefix
from lmms_textweighted.inference import Decoding, PrunedLlava
from lmms_textweighted.inference.memory import alone
from lmms_textweighted.inference.pruned import Encoded
from lmms_textweighted.methods import find_method
from lmms_textweighted.prompts import Message
from lmms_textweighted.view.build import given_to

# Why a choice cannot be measured, by what is missing: kept tokens, scores, words.
SMALLER = "its picture is smaller, no token is chosen"
NOTHING_LEAVES = "nothing is removed"
NOTHING_STAYS = "no token stays"
MERGES = "it merges tokens, so what stays is no set of places"
DRAWN = "its order is drawn, it scores nothing"
UNSCORED = "it scores nothing"
SIGNED = "its scores can be negative, so they have no shares"
NO_TEXT = "it reads no rows of text"
KEYS_ONLY = "it reads keys, and weighs no words"
IMAGE_ROWS = "it reads rows of image tokens, too"
NOT_A_WORD = "the row that it reads is none of the text that votes"
WEIGHTLESS = "its weights of words are no shares"


@dataclass(frozen=True)
class Look:
    """One point in one prompt. kept: int [K], the image tokens that the last layer sees, ascending, numbered from 0 in
    the prompt's order. scores: float64 [I], the first stage's. words: float64 [T], the weights of the text tokens that
    vote, summing to 1, of the first stage that reads some. why: of each of these three that is None, the reason."""

    kept: np.ndarray | None = None
    scores: np.ndarray | None = None
    words: np.ndarray | None = None
    why: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Looks:
    """All points in one prompt, in their order. places: where its image tokens lie; None where nobody knows, and
    `nowhere` says why. words: the text tokens that vote, as the first point's plan has it. before: how many tokens
    stand in front of the first of them. sizes: its pictures' numbers of image tokens."""

    sizes: tuple[int, ...]
    looks: list[Look]
    places: Places | None = None
    nowhere: str = ""
    words: tuple[str, ...] = ()
    before: int = 0


def look_at(
    llava: PrunedLlava, message: Message, points: Sequence[Point], known: Mapping[int, Look] | None = None
) -> Looks:
    """What each point does with a question to one or more pictures. known: of points, by their places, that need not be
    run. Raises as `PrunedLlava.encode` and `prune` do."""
    known = known or {}
    plans = [replace(point.plan, name="") for point in points]
    asked = any(plan.text_scope == "question" for plan in plans)
    encoded = llava.encode([[message]], question=asked)
    first = next((plan.stages[0].layer for plan in plans if plan.stages and can_share(plan)), 0)
    groups: dict[tuple[int, str], set[Scorer]] = {(first, plans[0].text_scope if plans else "after"): set()}
    for plan in plans:
        if plan.stages and can_share(plan):
            groups.setdefault((plan.stages[0].layer, plan.text_scope), set()).add(plan.stages[0].scorer)
        elif not any(scope == plan.text_scope for _, scope in groups):
            groups[first, plan.text_scope] = set()
    prefixes: dict[tuple[int, str], Prefix] = {}
    with torch.inference_mode():
        for (layer, scope), scorers in groups.items():
            run = partial(
                run_prefix, llava.model, encoded.inputs, layer, list(scorers), seed=llava.seed, text_scope=scope
            )
            prefixes[layer, scope] = alone(partial(run, question=encoded.question[0], image_sizes=encoded.image_sizes))
    found: dict[Plan, Look] = {plans[place]: look for place, look in known.items()}
    entering = list(dict.fromkeys(plan for plan in plans if can_enter(plan) and plan not in found))
    found.update(_entering(llava, encoded, entering, prefixes))
    for plan in plans:
        if plan not in found:
            if not plan.stages:
                reason = NOTHING_LEAVES if plan.picture is None else SMALLER
                found[plan] = Look(why=dict.fromkeys(("kept", "scores", "words"), reason))
            elif can_share(plan):
                found[plan] = _of_prefix(plan, prefixes[plan.stages[0].layer, plan.text_scope])
            else:
                generate = replace(llava, plan=plan).generate
                (answer,) = alone(partial(generate, [[message]], Decoding(max_new_tokens=1)))
                found[plan] = _of_trace(plan, answer.trace.stages, _of_scope(prefixes, plan))
    prefix = prefixes[next(iter(groups))]
    places, nowhere = None, ""
    words: tuple[str, ...] = ()
    try:
        sizes = [picture.size for picture in message.images]
        (given,) = given_to(llava.family, llava.processor_for(None), encoded.inputs, [sizes])
        places = places_of([picture.geometry for picture in given.pictures])
        pieces = dict(zip(given.text, given.pieces, strict=True))
        words = tuple(pieces[position] for position in _text(prefix).tolist())
    except InputError as error:  # a kind of model whose places nobody has written down
        nowhere = str(error)
    return Looks(
        sizes=prefix.layout.image_sizes[0],
        looks=[found[plan] for plan in plans],
        places=places,
        nowhere=nowhere,
        words=words,
        before=int(_text(prefix).min()),
    )


def is_blind(point: Point) -> bool:
    """Whether a choice cannot depend on the text: it is made before the model, not drawn, and no method's that looks at
    the question."""
    stages = point.plan.stages
    before = all(stage.layer == EMBEDDINGS and not stage.scorer.draws for stage in stages)
    return before and not find_method(point.strategy).is_text_guided


def _of_prefix(plan: Plan, prefix: Prefix) -> Look:
    (stage,) = plan.stages
    kept = prefix.keep(stage.scorer, stage.keep_tokens or 0, plan.keep_scope)
    weighed = []
    if stage.scorer in prefix.read:
        rows, weights = prefix.read[stage.scorer]
        weighed = [(stage.scorer, _list(rows), _list(weights))]
    scores = [(stage.scorer, _list(prefix.scores[stage.scorer]))] if prefix.scores else []
    return _look(_numbers(kept, prefix), scores, weighed or [(stage.scorer, [], [])], _text(prefix), merges=False)


def _entering(
    llava: PrunedLlava, encoded: Encoded, plans: Sequence[Plan], prefixes: Mapping[tuple[int, str], Prefix]
) -> dict[Plan, Look]:
    """Plans that choose before the decoder: none of its layers is run."""
    if not plans:
        return {}
    run = partial(run_entrance, llava.model, encoded.inputs, plans, seed=llava.seed, question=encoded.question[0])
    run = partial(run, text_tower=llava.text_tower, texts=encoded.texts, image_sizes=encoded.image_sizes)
    with torch.inference_mode():
        entrance = alone(run)
        return {
            plan: _of_trace(plan, enter(llava.model, entrance, plan).stages, _of_scope(prefixes, plan))
            for plan in plans
        }


def _of_scope(prefixes: Mapping[tuple[int, str], Prefix], plan: Plan) -> Prefix:
    """A prefix in which the plan's text tokens vote."""
    return next(prefix for (_, scope), prefix in prefixes.items() if scope == plan.text_scope)


def _of_trace(plan: Plan, stages: Sequence[StageTrace], prefix: Prefix) -> Look:
    scores = [(plan.stages[0].scorer, _list(stages[0].scores))]
    weighed = [
        (stage.scorer, _list(trace.text), _list(trace.text_weights))
        for stage, trace in zip(plan.stages, stages, strict=True)
    ]
    merges = any(trace.sources for trace in stages)
    return _look(_numbers(stages[-1].kept, prefix), scores, weighed, _text(prefix), merges=merges)


def _look(
    kept: np.ndarray,
    scores: Iterable[tuple[Scorer, list[float]]],
    weighed: Sequence[tuple[Scorer, list[int], list[float]]],
    text: np.ndarray,
    *,
    merges: bool,
) -> Look:
    why: dict[str, str] = {}
    if merges or not len(kept):
        why["kept"] = MERGES if merges else NOTHING_STAYS
    found_scores = None
    for scorer, values in scores:
        found_scores = np.asarray(values)
        reason = DRAWN if scorer.draws else UNSCORED if not found_scores.any() else None
        reason = reason or (SIGNED if found_scores.min() < 0 else None)
        if reason:
            why["scores"], found_scores = reason, None
    words, reason = _words(weighed, text)
    if reason:
        why["words"] = reason
    return Look(None if "kept" in why else np.sort(kept), found_scores, words, why)


def _words(
    weighed: Sequence[tuple[Scorer, list[int], list[float]]], text: np.ndarray
) -> tuple[np.ndarray | None, str | None]:
    """The weights [T] of the first stage that reads text rows, or why there are none."""
    reasons = {Rows.KEYS: KEYS_ONLY, Rows.IMAGE: IMAGE_ROWS, Rows.ALL: IMAGE_ROWS}
    for scorer, rows, values in weighed:
        if scorer.reads not in (Rows.TEXT, Rows.LAST):
            continue
        if not np.isin(rows, text).all():
            return None, NOT_A_WORD
        weights = np.zeros(len(text))
        weights[np.searchsorted(text, rows)] = values
        if weights.min(initial=0) < 0 or weights.sum() <= 0:
            return None, WEIGHTLESS
        return weights / weights.sum(), None
    return None, next((reasons[scorer.reads] for scorer, _, _ in weighed if scorer.reads in reasons), NO_TEXT)


def _numbers(positions: torch.Tensor, prefix: Prefix) -> np.ndarray:
    """Positions of image tokens in the prompt -> their numbers among its image tokens."""
    return torch.searchsorted(prefix.image.cpu(), positions.cpu().sort().values).numpy()


def _text(prefix: Prefix) -> np.ndarray:
    return prefix.layout.text[0].nonzero().flatten().cpu().numpy()


def _list(values: torch.Tensor) -> list:
    return values.cpu().double().tolist() if values.is_floating_point() else values.cpu().tolist()
