"""No method at all: a seeded random choice, the baseline that every other must beat."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import torch

from lmms_textweighted.engine.scoring import Rows, Scorer, Seen
from lmms_textweighted.methods.base import OneStage
from lmms_textweighted.methods.placed import BeforeTheModel


def random_scores(count: int, key: str, seed: int = 0) -> torch.Tensor:
    """Scores in a random order that depends on `key` and `seed` alone: [count] float32 on the CPU.

    The same key gives the same order at every budget, so a smaller budget keeps a subset of a larger one's tokens.
    """
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randperm(count, generator=generator).float()


@dataclass(frozen=True)
class RandomOrder(Scorer):
    """`random_scores` of the prompt's key and the run's seed; no attention is read."""

    name: str = "random"
    reads: Rows = Rows.NONE
    draws: ClassVar[bool] = True

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        scores = random_scores(len(seen.image), seen.key, seen.seed).to(seen.image.device)
        return scores, scores.new_zeros(0)


RANDOM_ORDER = RandomOrder()
RANDOM = OneStage("random", "random", "a seeded order", RANDOM_ORDER)
RANDOM_PRE = BeforeTheModel("random_pre", "random before the model", "a seeded order", RANDOM_ORDER)
