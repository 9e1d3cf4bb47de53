"""A picture's map of tokens, thinned out or pooled to a given number: baselines that look at nothing.

No paper owns them and no two codes agree, so they are defined here. `N` tokens in raster order are to become `n`:

- Two axes, where `N` is a square S x S and `n = a * b` with `a <= b <= min(S, 2a)`; of several such, that whose `a` is
  largest. `a` counts rows. 192 of 576 is 12 x 16, 128 is 8 x 16, 64 is 8 x 8, 32 is 4 x 8, 16 is 4 x 4.
- One axis, the tokens as a list, where there is no such `a`: so also where `N` is no square, and where a budget is for
  several images together.

On an axis of `S` places that becomes `a`, cell `i` spans the places from floor(i S / a) up to, not with,
ceil((i + 1) S / a): adaptive average pooling's, which overlap where `a` does not divide `S`. Its middle is
floor((i + 1/2) S / a).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lmms_textweighted.engine.groups import as_choice, groups_of
from lmms_textweighted.engine.scoring import Choice, Leaving, Merged, Rows, Scorer, Seen
from lmms_textweighted.methods.base import OneStage
from lmms_textweighted.methods.placed import BeforeTheModel


def grid_axes(tokens: int, keep: int, *, one_list: bool = False) -> tuple[tuple[int, int], ...]:
    """The axes that `tokens` places are thinned along to `keep`: (places, cells) of each, rows first."""
    side = math.isqrt(tokens)
    if not one_list and side * side == tokens and keep:
        for rows in range(math.isqrt(keep), 0, -1):
            columns = keep // rows
            if rows * columns == keep and columns <= min(side, 2 * rows):
                return (side, rows), (side, columns)
    return ((tokens, keep),)


def grid_cells(tokens: int, keep: int, *, one_list: bool = False) -> list[tuple[int, list[int]]]:
    """(middle, members) of each of the `keep` cells, in raster order. Indices into the tokens; see above."""
    axes = [_cells(places, cells) for places, cells in grid_axes(tokens, keep, one_list=one_list)]
    if len(axes) == 1:
        return axes[0]
    rows, columns = axes
    side = math.isqrt(tokens)
    return [
        (row * side + column, [r * side + c for r in tall for c in wide])
        for row, tall in rows
        for column, wide in columns
    ]


def _cells(places: int, cells: int) -> list[tuple[int, list[int]]]:
    return [
        ((2 * cell + 1) * places // (2 * cells), list(range(cell * places // cells, -(-(cell + 1) * places // cells))))
        for cell in range(cells)
    ]


@dataclass(frozen=True)
class UniformGrid(Scorer):
    """The middles of the map's cells stay. Not nested: 64 tokens are not among the 128. Scores are all 0."""

    name: str = "uniform_grid"
    reads: Rows = Rows.NONE

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        return _no_scores(seen)

    def choose(self, leaving: Leaving) -> Choice:
        groups = groups_of(leaving)
        kept = [
            group.index[[middle for middle, _ in grid_cells(len(group.index), group.keep, one_list=group.several)]]
            for group in groups
        ]
        return as_choice(leaving, kept)


@dataclass(frozen=True)
class Pool(Scorer):
    """The mean vector of each of the map's cells, in the place of the cell's middle. Scores are all 0."""

    name: str = "pool"
    reads: Rows = Rows.NONE

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        return _no_scores(seen)

    @property
    def merges(self) -> bool:
        return True

    def choose(self, leaving: Leaving) -> Choice:
        vectors = leaving.hidden[leaving.image]
        kept: list[torch.Tensor] = []
        merged = []
        for group in groups_of(leaving):
            for middle, members in grid_cells(len(group.index), group.keep, one_list=group.several):
                if len(members) > 1:
                    sources = group.index[[middle, *(member for member in members if member != middle)]]
                    merged.append(Merged(len(kept), vectors[sources].float().mean(dim=0).to(vectors.dtype), sources))
                kept.append(group.index[middle : middle + 1])
        return as_choice(leaving, kept, merged)


def _no_scores(seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
    scores = torch.zeros(len(seen.image), dtype=torch.float32, device=seen.image.device)
    return scores, scores[:0]


_SOURCE = "a baseline; defined in methods/grid.py"

UNIFORM_GRID = OneStage("uniform_grid", "uniform grid", _SOURCE, UniformGrid())
UNIFORM_GRID_PRE = BeforeTheModel("uniform_grid_pre", "uniform grid before the model", _SOURCE, UniformGrid())
POOL = OneStage("pool", "average pooling", _SOURCE, Pool())
POOL_PRE = BeforeTheModel("pool_pre", "average pooling before the model", _SOURCE, Pool())
