"""A point by itself, through the model as lmms-eval asks it: for plans that cannot go on from a shared prefix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.engine.trace import DocumentTrace
from lmms_textweighted.experiment.outcomes import Outcome
from lmms_textweighted.inference import Decoding, PrunedLlava
from lmms_textweighted.inference.memory import alone
from lmms_textweighted.prompts import Message


def answer_alone(
    llava: PrunedLlava,
    message: Message,
    plan: Plan,
    *,
    decoding: Decoding,
    ranks: bool,
    judge: Callable[[str], tuple[float, bool]],
    traced: Callable[[DocumentTrace], None] | None = None,
) -> Outcome:
    """One document under any plan. judge: as for `points.run_document`. traced: is given the trace."""
    (answer,) = alone(partial(replace(llava, plan=plan).generate, [[message]], decoding, ranks=ranks))
    score, exact = judge(answer.text)
    if traced is not None:
        traced(answer.trace)
    return outcome_of(answer.text, score, exact, answer.trace)


def outcome_of(text: str, score: float, exact: bool, trace: DocumentTrace) -> Outcome:
    """What goes into the result of an answer and its prefill's trace."""
    return Outcome(
        answer=text,
        score=score,
        exact=exact,
        numeric_rank=trace.ranks.numeric_mean if trace.ranks else None,
        effective_rank=trace.ranks.effective_mean if trace.ranks else None,
        image_tokens=trace.image_tokens,
        kept_tokens=trace.kept_tokens,
        equivalent_tokens=trace.equivalent_tokens,
        flops_ratio=trace.flops_ratio,
    )
