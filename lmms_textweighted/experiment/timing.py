"""What a point's prefill takes, measured beside the unpruned one: seconds, with the selection in them and apart."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from statistics import median

from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.experiment.grid import Point
from lmms_textweighted.inference import Decoding, PrunedLlava
from lmms_textweighted.methods import make_plan
from lmms_textweighted.prompts import Message


@dataclass(frozen=True)
class Prefill:
    """One document's prefill under one plan, or the medians of several documents': seconds to the first token, vision
    tower and selection in them; those of the selection, on the host; and the seconds over those of the same document
    unpruned."""

    seconds: float
    selection: float
    ratio: float

    @classmethod
    def median_of(cls, measured: Sequence[Prefill]) -> Prefill:
        return cls(*(median(getattr(one, item.name) for one in measured) for item in fields(cls)))


def time_points(llava: PrunedLlava, messages: Iterable[Message], points: Sequence[Point]) -> list[list[Prefill]]:
    """For each point, one measurement a message, at batch 1.

    A document runs under all plans and unpruned, in an order drawn anew for each document, so that what a machine does
    meanwhile hits all alike; the first document runs once more before, unmeasured. Equal plans run once. What is shared
    between the points of a sweep is not shared here: each prefill is the one that lmms-eval would run.
    """
    whole = make_plan("none")
    keys = [replace(point.plan, name="") for point in points]
    plans = list(dict.fromkeys([replace(whole, name=""), *keys]))
    order = random.Random(0)
    found: dict[Plan, list[Prefill]] = defaultdict(list)
    for number, message in enumerate(messages):
        for warm_up in (True, False) if number == 0 else (False,):
            seconds = {plan: _prefill(llava, message, plan) for plan in order.sample(plans, len(plans))}
            if not warm_up:
                for plan, (whole_prefill, selection) in seconds.items():
                    found[plan].append(Prefill(whole_prefill, selection, whole_prefill / seconds[plans[0]][0]))
    return [found[key] for key in keys]


def _prefill(llava: PrunedLlava, message: Message, plan: Plan) -> tuple[float, float]:
    (answer,) = replace(llava, plan=plan).generate([[message]], Decoding(max_new_tokens=1))
    return answer.timing.prefill, answer.trace.selection_seconds
