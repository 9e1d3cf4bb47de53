"""What a verification found."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from lmms_textweighted.errors import InputError


@dataclass
class Verdict:
    """differences: a line each; none: the result holds. unchecked: what was not or could not be checked.

    documents, answers: how many were answered again, of how many documents.
    """

    total: int = 0
    documents: int = 0
    answers: int = 0
    differences: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.differences


def draw(numbers: Sequence[int], share: float, seed: int) -> list[int]:
    """A share of the documents' numbers at random, at least one, in order. Raises InputError for a share outside (0, 1]
    and where there are none."""
    if not 0 < share <= 1:
        raise InputError(f"share is {share:g}: give a share of the documents in (0, 1], as 0.05")
    if not numbers:
        raise InputError("the result has no documents: there is nothing to answer again")
    return sorted(random.Random(seed).sample(sorted(numbers), max(1, round(share * len(numbers)))))
