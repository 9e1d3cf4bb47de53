"""HiPrune (Liu et al., 2025, arXiv 2508.00553): objects by a middle layer of the vision tower, the rest by a deep one.

    u^l_k = 1/(H S) sum_h sum_i B^l[h, i, k]

`B^l` is the attention of the tower's layer l over all S tokens, the class token's row among them: how much a patch is
looked at. Of K tokens, the k = round(alpha K / 5) patches with the highest u^8 are anchors, and stay with their four
neighbours, left and right, above and below, each by its number j - 1, j + 1, j - s, j + s in a picture of s x s, at
least 0 and at most the last. The other tokens are the highest of u^22, the layer that makes the features. Exactly K
stay, in their order, at positions from 0.

Code and paper. In the authors' code, as above, the neighbour of a row's end is the next row's start, and that of the
first row the first patch. The paper's buffer tokens are those next to an anchor in the picture: in `hiprune_paper`
neighbours beyond an edge are none.

alpha is 0.1: 4, 3 and 1 anchors of 192, 128 and 64 tokens (round takes halves to even). Layer 8 is that of a tower of
24, and the one at its relative depth in others. No class token is needed; the text has no say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from lmms_textweighted.engine.groups import as_choice, groups_by_image
from lmms_textweighted.engine.scoring import Choice, Leaving, Rows, Scorer, Seen, given_tower, top_tokens
from lmms_textweighted.engine.tower import FEATURES, TowerLayer, TowerReads
from lmms_textweighted.errors import PlanError
from lmms_textweighted.methods.placed import BeforeTheModel

OBJECTS = TowerLayer(8, of=24)


@dataclass(frozen=True)
class Hierarchy(Scorer):
    """HiPrune's choice; scores are u of the layer that makes the features. alpha: the share of the budget that anchors
    and their neighbours may have, from 0 to 1. wrap: neighbours by number, over the edges. Raises PlanError for another
    alpha."""

    alpha: float = 0.1
    wrap: bool = True
    name: str = field(init=False)
    reads: Rows = Rows.NONE

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise PlanError(f"alpha is {self.alpha!r}: give a share from 0 to 1")
        name = "hiprune" if self.wrap else "hiprune_paper"
        object.__setattr__(self, "name", name if self.alpha == 0.1 else f"{name}_{self.alpha:g}")

    @property
    def tower_reads(self) -> TowerReads:
        return TowerReads(column_means=(OBJECTS, FEATURES))

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        scores = given_tower(self, seen).column_mean(FEATURES)
        return scores, scores[:0]

    def choose(self, leaving: Leaving) -> Choice:
        tower = given_tower(self, leaving)
        objects, number = tower.column_mean(OBJECTS), tower.index  # of a patch among those of all views
        side, last = math.isqrt(tower.patches), tower.patches - 1
        kept = []
        for group in groups_by_image(leaving):
            anchors = number[group.index[top_tokens(objects[group.index], round(group.keep * self.alpha / 5))]]
            view, patch = anchors - anchors % tower.patches, anchors % tower.patches
            around = torch.cat([view + (patch + step).clamp(0, last) for step in (0, -1, 1, -side, side)])
            if not self.wrap:
                row, column = patch // side, patch % side
                inside = [row >= 0, column > 0, column < side - 1, row > 0, row < side - 1]
                around = around[torch.cat(inside)]
            first = torch.isin(number[group.index], around)
            scores = leaving.scores[group.index].masked_fill(first, float("inf"))
            kept.append(group.index[top_tokens(scores, group.keep)])
        return as_choice(leaving, kept)


SOURCE = "HiPrune, Liu et al., 2025, arXiv 2508.00553"

HIPRUNE = BeforeTheModel("hiprune", "HiPrune", SOURCE, Hierarchy())
HIPRUNE_PAPER = BeforeTheModel("hiprune_paper", "HiPrune (paper)", SOURCE, Hierarchy(wrap=False))
