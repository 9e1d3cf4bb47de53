"""VisPruner (Zhang et al., ICCV 2025, arXiv 2412.01818 v2): what the class token looks at, and no duplicates beside it.

    c_k = 1/H sum_h B[h, 0, k]

`B` is the attention of the vision tower's layer that makes the features. Of K tokens a = int(rho K) stay for the
highest c. Of the others, in falling order of c, tokens leave in rounds of 8 until K - a are left: the list is split
into every first and every second, and of the firsts those leave that have the nearest double among the seconds, by the
cosine of the features before the projector (see `selectors.WithoutDuplicates`; the firsts that stay are sorted by how
near their double is, so that every round pairs others). What stays is in its order, its positions count from 0.

rho is 1/2; the authors also use 3/4, for MME at 64 tokens. rho = 1 is FasterVLM, which the paper's first version was.
Their code stops with an error where the rest is of odd length; here the last of the firsts has no partner of its own.

One swap of two nearly equal values changes all pairs from there on, so the choice hangs on rounding: on 20 pictures of
the embedded model at 192, 128 and 64 tokens, the authors' function in float64 and in float32 keeps the same set 7 times
of 60, with 59 to 76 % of the tokens the same. In float64 this one and theirs are equal 60 times of 60.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from lmms_textweighted.engine.scoring import Leaving, Rows, Seen, given_tower
from lmms_textweighted.engine.selecting import Selector, SetScorer
from lmms_textweighted.engine.tower import FEATURES, TowerReads
from lmms_textweighted.errors import PlanError
from lmms_textweighted.methods.placed import BeforeTheModel
from lmms_textweighted.methods.selectors import WithoutDuplicates


@dataclass(frozen=True)
class ImportantAndDiverse(SetScorer):
    """VisPruner's choice. important: rho, from 0 to 1. Raises PlanError for another."""

    important: float = 0.5
    name: str = field(init=False)
    reads: Rows = Rows.NONE

    def __post_init__(self) -> None:
        if not 0 <= self.important <= 1:
            raise PlanError(f"important is {self.important!r}: give a share from 0 to 1")
        object.__setattr__(self, "name", "vispruner" if self.important == 0.5 else f"vispruner_{self.important:g}")

    @property
    def tower_reads(self) -> TowerReads:
        return TowerReads(class_rows=(FEATURES,), vectors=True)

    @property
    def selector(self) -> Selector:
        return WithoutDuplicates(self.important)

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        scores = given_tower(self, seen).class_row()
        return scores, scores[:0]

    def features(self, leaving: Leaving) -> torch.Tensor:
        return given_tower(self, leaving).vectors


VISPRUNER = BeforeTheModel(
    "vispruner", "VisPruner", "VisPruner, Zhang et al., ICCV 2025, arXiv 2412.01818 v2", ImportantAndDiverse()
)
