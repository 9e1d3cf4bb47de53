"""VScan (Zhang et al., TMLR 2026, arXiv 2505.22654): two looks at the picture before the model, one in its middle.

Before the model, of T tokens: the picture's s x s patches are cut into 4 x 4 windows, window i of an axis from floor(i
s / 4) on. Of each, int(T / 2) // 16 patches stay, those with the highest attention of the class token (mean over heads)
in layer 5 of the vision tower's 24, the one at its relative depth in others. The rest of the T are the highest of all
others in the layer that makes the features. Every patch that leaves is merged into the one that stays whose embedding
(after the projector) is nearest by cosine: what stays is the mean of itself and all that went to it.

In the model, tokens leave after layer 15, as PyramidDrop's do: for the last prompt token's attention under the norm,
the queries and the keys of layer 16, which has not run. Positions are counted anew both times.

The authors' released setting is T = 96, then 32, a mean of 64 over 32 layers; a budget here is what stays at the end,
and T three times that, at most all: 288 and 96 have a mean of 192, 192 and 64 one of 128. In their code fewer than T
stay where int(T / 2) is no multiple of 16; here the second look fills up. A T of all tokens leaves the first stage out,
as in their code. Their second stage misreads a picture of several crops; the method here is for pictures of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from lmms_textweighted.engine.groups import as_choice, by_number, groups_by_image
from lmms_textweighted.engine.scoring import Choice, Leaving, Merged, Rows, Scorer, Seen, given_tower, top_tokens
from lmms_textweighted.engine.tower import FEATURES, TowerLayer, TowerReads
from lmms_textweighted.methods.composed import Composed
from lmms_textweighted.methods.placed import BeforeTheModel
from lmms_textweighted.methods.pyramiddrop import PyramidDrop
from lmms_textweighted.methods.uniform import LAST_ROW

SHALLOW = TowerLayer(5, of=24)
WINDOWS = 4  # on each axis


def window_of(patch: torch.Tensor, side: int) -> torch.Tensor:
    """The number of the window that each patch of a picture of `side` x `side` is in."""
    starts = torch.tensor([cell * side // WINDOWS for cell in range(WINDOWS)], device=patch.device)
    row, column = (torch.bucketize(axis, starts, right=True) - 1 for axis in (patch // side, patch % side))
    return row * WINDOWS + column


@dataclass(frozen=True)
class LocalAndGlobal(Scorer):
    """VScan's choice before the model, with its merging. Scores are the attention in the layer of the features."""

    name: str = "vscan"
    reads: Rows = Rows.NONE

    @property
    def tower_reads(self) -> TowerReads:
        return TowerReads(class_rows=(SHALLOW, FEATURES))

    @property
    def newlines_rule(self) -> str:
        return "keep"

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        scores = given_tower(self, seen).class_row()
        return scores, scores[:0]

    @property
    def merges(self) -> bool:
        return True

    def choose(self, leaving: Leaving) -> Choice:
        tower = given_tower(self, leaving)
        shallow, window = tower.class_row(SHALLOW), window_of(tower.patch, math.isqrt(tower.patches))
        window = window + tower.index // tower.patches * WINDOWS**2
        vectors = leaving.hidden[leaving.image]
        units = normalize(vectors.float(), dim=-1)
        kept: list[torch.Tensor] = []
        merged: list[Merged] = []
        flops = 0
        for group in groups_by_image(leaving):
            index = group.index
            first_view, last_view = (
                (int(end) // WINDOWS**2 for end in window[index].aminmax()) if len(index) else (0, 0)
            )
            windows = range(first_view * WINDOWS**2, (last_view + 1) * WINDOWS**2)
            each = int(group.keep / 2) // len(windows)
            scores = leaving.scores[index]
            for number in windows if each else ():
                local = shallow[index].masked_fill(window[index] != number, float("-inf"))
                first = top_tokens(local, each)
                scores = scores.index_fill(0, first[torch.isfinite(local[first])], float("inf"))
            stay = top_tokens(scores, group.keep)
            if group.keep and group.keep < len(index):
                gone = index[torch.ones_like(index, dtype=torch.bool).index_fill(0, stay, False)]
                nearest = (units[gone] @ units[index[stay]].T).argmax(dim=1)
                flops += 2 * len(gone) * len(stay) * units.shape[1]
                before = sum(map(len, kept))
                for place, went in enumerate(by_number(gone, nearest, len(stay))):
                    if not len(went):
                        continue
                    sources = torch.cat([index[stay[place : place + 1]], went])
                    mean = vectors[sources].float().mean(dim=0).to(vectors.dtype)
                    merged.append(Merged(before + place, mean, sources))
            kept.append(index[stay])
        return as_choice(leaving, kept, merged, flops=flops)


SOURCE = "VScan, Zhang et al., TMLR 2026, arXiv 2505.22654"

LOCAL_AND_GLOBAL = LocalAndGlobal()
FIRST = BeforeTheModel("vscan_first", "VScan's first stage", SOURCE, LOCAL_AND_GLOBAL)
SECOND = PyramidDrop("vscan_second", "VScan's second stage", SOURCE, (LAST_ROW,), (15,), (32,), "renumber")
VSCAN = Composed(FIRST, SECOND, "vscan", "VScan", SOURCE)
