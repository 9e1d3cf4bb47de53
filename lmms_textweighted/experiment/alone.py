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
    found = answer.trace.ranks
    return Outcome(
        answer=answer.text,
        score=score,
        exact=exact,
        numeric_rank=found.numeric_mean if found else None,
        effective_rank=found.effective_mean if found else None,
        image_tokens=answer.trace.image_tokens,
        kept_tokens=answer.trace.kept_tokens,
        equivalent_tokens=answer.trace.equivalent_tokens,
        flops_ratio=answer.trace.flops_ratio,
    )
