"""Strategies that draw at random, each with several seeds in one run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.engine.scoring import Choice, Leaving, Rows, Scorer, Seen
from lmms_textweighted.engine.tower import TowerReads


@dataclass(frozen=True)
class Drawn(Scorer):
    """A scorer that draws from a seed of its own, whatever the run's is; else it is `scorer`."""

    scorer: Scorer
    seed: int
    name: str = field(init=False)
    reads: Rows = field(init=False)
    per_head: bool = field(init=False)  # type: ignore[misc]
    needs_keys: bool = field(init=False)  # type: ignore[misc]
    needs_embeddings: bool = field(init=False)  # type: ignore[misc]
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("name", "reads", "per_head", "needs_keys", "needs_embeddings"):
            object.__setattr__(self, name, getattr(self.scorer, name))

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scorer.score(replace(seen, seed=self.seed))

    def choose(self, leaving: Leaving) -> Choice:
        return self.scorer.choose(leaving)

    @property
    def keeps_the_best(self) -> bool:
        return self.scorer.keeps_the_best

    @property
    def nested(self) -> bool:
        return self.scorer.nested

    @property
    def merges(self) -> bool:
        return self.scorer.merges

    @property
    def tower_reads(self) -> TowerReads | None:
        return self.scorer.tower_reads


def draws(plan: Plan) -> bool:
    """Whether another seed may give another choice."""
    return any(stage.scorer.draws for stage in plan.stages)


def seeded_plan(plan: Plan, seed: int) -> Plan:
    """The plan with this seed in place of the run's, where it draws."""
    stages = tuple(
        replace(stage, scorer=Drawn(stage.scorer, seed)) if stage.scorer.draws else stage for stage in plan.stages
    )
    return replace(plan, stages=stages)
