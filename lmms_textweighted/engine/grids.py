"""Which patch of which view each of a picture's image tokens is, where a picture is cut into views and put together.

The view that shows the whole picture is crop 0, the others are counted from 1 on as the tower is given them. A newline
token is no patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

NEWLINE = -1


@dataclass(frozen=True, eq=False)
class Grid:
    """One picture.

    numbers: int64 [n], on the CPU: for each of its image tokens, in order, crop x patches + patch, or NEWLINE. A patch
    that is padding alone has no token where the model leaves it out. views: how many views the tower was given.
    patches: of a view, a square's, counted row by row.
    """

    numbers: torch.Tensor
    views: int
    patches: int

    @classmethod
    def whole(cls, patches: int) -> Grid:
        """A picture of one view, all of whose patches are image tokens."""
        return cls(torch.arange(patches), 1, patches)

    @property
    def is_whole(self) -> bool:
        """Whether it is one view and nothing else: then crops and newlines mean nothing."""
        return self.views == 1 and not bool((self.numbers == NEWLINE).any())

    @property
    def places(self) -> torch.Tensor:
        """int64 [n, 3]: crop, and row and column among the patches of that crop; three times NEWLINE at a newline."""
        columns = math.isqrt(self.patches)
        patch = self.numbers % self.patches
        found = torch.stack([self.numbers // self.patches, patch // columns, patch % columns], dim=1)
        return found.masked_fill((self.numbers == NEWLINE)[:, None], NEWLINE)


def places_of(grids: Sequence[Grid]) -> torch.Tensor:
    """int64 [N, 4] of a prompt's image tokens in order: the picture's number, and `Grid.places`."""
    parts = [torch.nn.functional.pad(grid.places, (1, 0), value=number) for number, grid in enumerate(grids)]
    return torch.cat([torch.zeros(0, 4, dtype=torch.int64), *parts])


def patches_of(grids: Sequence[Grid]) -> torch.Tensor:
    """int64 [N] of a prompt's image tokens in order: the number of its patch, counted on from picture to picture, or
    NEWLINE."""
    parts, first = [torch.zeros(0, dtype=torch.int64)], 0
    for grid in grids:
        parts.append(torch.where(grid.numbers == NEWLINE, NEWLINE, grid.numbers + first))
        first += grid.views * grid.patches
    return torch.cat(parts)
