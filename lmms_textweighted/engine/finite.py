"""Numbers that say nothing: a NaN wins every argmax and every sort, and would be answered as if it were the best."""

from __future__ import annotations

import torch
from transformers import LogitsProcessor

from lmms_textweighted.errors import PlanError

ADVICE = "(NaN or infinity): use dtype=float32, or bfloat16 instead of float16; else the weights are broken"


def check_finite(values: torch.Tensor, what: str) -> None:
    """Raise PlanError where a value is NaN or infinite."""
    if not torch.isfinite(values).all():
        raise PlanError(f"{what} are not finite {ADVICE}")


class FiniteLogits(LogitsProcessor):
    """Notes for each row of a `generate` whether its best logit was finite at every step; waits for no device."""

    def __init__(self) -> None:
        self.bad: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        bad = ~torch.isfinite(scores.amax(dim=-1))
        self.bad = bad if self.bad is None else self.bad | bad
        return scores

    def rows(self) -> list[int]:
        """The rows in which it was not."""
        return [] if self.bad is None else self.bad.nonzero().flatten().tolist()
