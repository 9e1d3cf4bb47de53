"""SCOPE (Deng et al., NeurIPS 2025, arXiv 2510.24214): what covers most, weighted by the class token's look.

    g_k = a_k sum_j max(0, C_jk - m_j),    a_k = c_k^alpha,    c_k = 1/H sum_h B[h, 0, k]

`B` is the attention of the vision tower's layer that makes the features v, C_jk = cos(v_j, v_k) before the projector,
and m_j = max_{s chosen} C_js how well patch j is covered, at first 0. Token after token, the one with the largest g
stays (`selectors.FacilityLocation`). alpha is 1. What stays is in its order, its positions count from 0; the text has
no say.

The authors compute in half precision, sums over 576 terms too, and take the sum over heads for c, which orders alike.
Their code can also add c instead of multiplying (COMBINED=add); their script for LLaVA-NeXT calls options that are not
in what they released.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from lmms_textweighted.engine.scoring import Leaving, Rows, Seen, given_tower
from lmms_textweighted.engine.selecting import Selector, SetScorer
from lmms_textweighted.engine.tower import FEATURES, TowerReads
from lmms_textweighted.errors import PlanError
from lmms_textweighted.methods.placed import BeforeTheModel
from lmms_textweighted.methods.selectors import FacilityLocation


@dataclass(frozen=True)
class Coverage(SetScorer):
    """SCOPE's choice; scores are a. alpha: at least 0. Raises PlanError for another."""

    alpha: float = 1.0
    name: str = field(init=False)
    reads: Rows = Rows.NONE

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise PlanError(f"alpha is {self.alpha!r}: give a number of at least 0")
        object.__setattr__(self, "name", "scope" if self.alpha == 1 else f"scope_{self.alpha:g}")

    @property
    def tower_reads(self) -> TowerReads:
        return TowerReads(class_rows=(FEATURES,), vectors=True)

    @property
    def selector(self) -> Selector:
        return FacilityLocation()

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        scores = given_tower(self, seen).class_row() ** self.alpha
        return scores, scores[:0]

    def features(self, leaving: Leaving) -> torch.Tensor:
        return given_tower(self, leaving).vectors


SCOPE = BeforeTheModel("scope", "SCOPE", "SCOPE, Deng et al., NeurIPS 2025, arXiv 2510.24214", Coverage())
