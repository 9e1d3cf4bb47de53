"""One conversation under several plans: answered, and seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.errors import InputError
from lmms_textweighted.inference import Decoding, PrunedLlava, geometry_of
from lmms_textweighted.inference.memory import alone
from lmms_textweighted.methods import find_method, label_of, make_plan
from lmms_textweighted.methods.budget import Geometry
from lmms_textweighted.prompts import Message
from lmms_textweighted.show.shown import Canvases, Shown
from lmms_textweighted.view.build import answer_view, given_for
from lmms_textweighted.view.record import DocumentView, StrategyView


@dataclass(frozen=True)
class Asked:
    """A strategy with its plan for a budget. budget None: it takes none."""

    strategy: str
    plan: Plan
    budget: float | None
    budget_unit: str
    pruning_layer: int | None

    @property
    def label(self) -> str:
        return label_of(self.strategy)


def plans_for(
    strategies: Sequence[str],
    budget: float,
    budget_unit: str = "keep_tokens",
    *,
    pruning_layer: int | None = None,
    text_scope: str = "after",
    geometry: Geometry | None = None,
) -> list[Asked]:
    """Each strategy once, behind the unpruned model. Raises PlanError as `make_plan` does.

    Without a geometry what must be solved for a model is solved for LLaVA-1.5-7B: enough to find an unknown name.
    """
    asked = []
    for name in dict.fromkeys(["none", *strategies]):
        method = find_method(name)
        takes = method.takes_budget
        given: dict[str, Any] = {budget_unit: budget} if takes else {}
        plan = make_plan(
            method,
            pruning_layer=pruning_layer if method.removes and method.layer is None else None,
            text_scope=text_scope,
            geometry=geometry,
            **given,
        )
        asked.append(Asked(name, plan, budget if takes else None, budget_unit, pruning_layer if takes else None))
    return asked


def look(
    llava: PrunedLlava,
    messages: Sequence[Message],
    asked: Sequence[Asked],
    decoding: Decoding,
    document: DocumentView,
    *,
    judge: Callable[[str], tuple[float | None, bool | None]] = lambda answer: (None, None),
    rounds: int = 1,
) -> Shown:
    """Answer a conversation under each plan. document: what else is known of it, still without what is seen here.

    judge: answer -> (its score, whether it is right). rounds: how often every plan runs, one after the other in each
    round; times are the medians, behind a run that is not counted. Raises InputError for a conversation without
    pictures.
    """
    if not any(message.images for message in messages):
        raise InputError("the prompt has no picture: there is nothing to see")
    given = given_for(llava, messages)
    strategies = []
    smaller: dict[tuple, Canvases] = {}
    alone(partial(llava.generate, [messages], replace(decoding, max_new_tokens=1)))
    for one in asked:
        pruned = replace(llava, plan=one.plan)
        (answer,) = alone(partial(pruned.generate, [messages], decoding))
        score, right = judge(answer.text)
        made = answer_view(
            llava,
            messages,
            given,
            answer,
            one.strategy,
            one.label,
            budget=one.budget,
            budget_unit=one.budget_unit,
            pruning_layer=one.pruning_layer,
            score=score,
            right=right,
        )
        strategies.append(made)
        if made.pictures is not None:
            smaller[made.key] = given_for(pruned, messages).images()
    strategies = _timed(llava, messages, asked, decoding, strategies, rounds - 1)
    view = replace(
        document,
        pictures=tuple(picture.geometry for picture in given.pictures),
        pieces=given.pieces,
        after=given.after,
        strategies=tuple(strategies),
    )
    return Shown(view, given.images(), smaller)


def _timed(
    llava: PrunedLlava,
    messages: Sequence[Message],
    asked: Sequence[Asked],
    decoding: Decoding,
    strategies: list[StrategyView],
    more: int,
) -> list[StrategyView]:
    """The same views with the medians of their times over so many more rounds."""
    names = ("prefill_seconds", "decode_seconds")
    seconds = [{name: [view.figures[name]] for name in names} for view in strategies]
    for _ in range(more):
        for one, found in zip(asked, seconds, strict=True):
            (answer,) = alone(partial(replace(llava, plan=one.plan).generate, [messages], decoding))
            found["prefill_seconds"].append(answer.timing.prefill)
            found["decode_seconds"].append(answer.timing.decode)
    return [
        replace(view, figures={**view.figures, **{name: median(found[name]) for name in names}})
        for view, found in zip(strategies, seconds, strict=True)
    ]


def unseen(
    uid: str, question: str, choices: Sequence[str] = (), target: str | None = None, **reference: object
) -> DocumentView:
    """A document of which nothing is seen yet."""
    return DocumentView(uid, question, tuple(choices), target, (), (), 0, (), dict(reference))


__all__ = ["Asked", "geometry_of", "look", "plans_for", "unseen"]
