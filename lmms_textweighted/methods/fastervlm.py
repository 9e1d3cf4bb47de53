"""FasterVLM (Zhang et al., 2024, arXiv 2412.01818 v1): what the vision tower's class token looks at.

    s_k = 1/H sum_h B[h, 0, k]

`B` is the attention of the tower's layer that makes the features (of CLIP's 24 layers the last but one), over the class
token and all patches. The K highest stay, in their order, before the language model, whose positions count from 0. The
text has no say. The authors' code is per crop; it keeps exactly K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lmms_textweighted.engine.scoring import Rows, Scorer, Seen, given_tower
from lmms_textweighted.engine.tower import FEATURES, TowerReads
from lmms_textweighted.methods.placed import BeforeTheModel


@dataclass(frozen=True)
class ClassAttention(Scorer):
    """The attention that the tower's class token gives to a patch, mean over heads."""

    name: str = "class_attention"
    reads: Rows = Rows.NONE

    @property
    def tower_reads(self) -> TowerReads:
        return TowerReads(class_rows=(FEATURES,))

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        scores = given_tower(self, seen).class_row()
        return scores, scores[:0]


FASTERVLM = BeforeTheModel(
    "fastervlm", "FasterVLM", "FasterVLM, Zhang et al., 2024, arXiv 2412.01818 v1", ClassAttention()
)
