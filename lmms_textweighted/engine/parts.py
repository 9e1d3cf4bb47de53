"""How a stage divides a prompt's image tokens: which may be chosen, within which group, and which stay anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lmms_textweighted.engine.grids import NEWLINE, Grid, patches_of, places_of
from lmms_textweighted.engine.plan import Stage
from lmms_textweighted.engine.scoring import Choice, Merged


@dataclass(frozen=True)
class Parts:
    """Indices are into the image tokens that are there, in the prompt's order.

    order: [E] those that may be chosen, group after group, ascending in each. sizes: of the groups. keeps: how many of
    each group stay, or with `keep_scope` "prompt" of all together. always: [X] those that stay whatever is chosen.
    picture: [A] each one's picture. pictures: how many there are.
    """

    order: torch.Tensor
    sizes: tuple[int, ...]
    keeps: tuple[int, ...]
    keep_scope: str
    always: torch.Tensor
    picture: torch.Tensor
    pictures: int

    def joined(self, choice: Choice) -> Choice:
        """A choice among `order` as one among all tokens that are there.

        What stays is in the prompt's order, through all groups, where the choice has each group in order; else it is
        group after group as it was chosen. Tokens that stay anyway keep their places between the others.
        """
        device = choice.kept.device
        order, always = self.order.to(device), self.always.to(device)
        kept = order[choice.kept]
        groups = torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes, dtype=torch.int64))
        same = groups.to(device)[choice.kept].diff() == 0
        turn = torch.arange(len(kept), device=device)
        if not bool((same & (choice.kept.diff() < 0)).any()):
            turn = kept.argsort()
        out = torch.cat([kept, always]).sort().values
        free = (~torch.isin(out, always)).nonzero().flatten()
        out[free] = kept[turn]
        slots = free[turn.argsort()].tolist() if choice.merged else []
        merged = tuple(Merged(slots[part.slot], part.vector, order[part.sources]) for part in choice.merged)
        sizes = torch.bincount(self.picture.to(device)[out], minlength=self.pictures)
        return Choice(out, tuple(sizes.tolist()), merged, choice.flops)


def divided(stage: Stage, keep_scope: str, grids: Sequence[Grid], there: torch.Tensor) -> Parts:
    """The parts of one prompt at a stage. there: [A] which of all its image tokens have not left, ascending."""
    picture, number = places_of(grids)[:, 0], patches_of(grids)
    eligible = torch.ones_like(number, dtype=torch.bool) if stage.newlines_rule == "eligible" else number != NEWLINE
    per_crop = stage.grid_rule == "per_crop"
    # Over all, a group is a picture; of newlines that are eligible the picture is known, the crop is not.
    group = number // grids[0].patches if per_crop else picture
    groups = sum(grid.views for grid in grids) if per_crop else len(grids)
    may = eligible[there].nonzero().flatten()
    order = may[group[there][may].argsort(stable=True)]
    sizes = torch.bincount(group[there][may], minlength=groups).tolist()

    def of_pictures(tokens: torch.Tensor) -> list[int]:
        return torch.bincount(picture[tokens], minlength=len(grids)).tolist()

    now, once = of_pictures(there[may]), of_pictures(eligible.nonzero().flatten())
    if keep_scope == "prompt":
        keeps = [stage.keep(sum(now), sum(once))]
        keeps = shares(keeps[0], sizes) if per_crop else keeps
    else:
        keeps = [stage.keep(size, whole) for size, whole in zip(now, once, strict=True)]
        if per_crop:
            views = iter(sizes)
            keeps = [
                share
                for keep, grid in zip(keeps, grids, strict=True)
                for share in shares(keep, [next(views) for _ in range(grid.views)])
            ]
    always = (~eligible[there]).nonzero().flatten() if stage.newlines_rule == "keep" else may[:0]
    scope = "image" if per_crop else keep_scope
    return Parts(order, tuple(sizes), tuple(keeps), scope, always, picture[there], len(grids))


def shares(keep: int, sizes: Sequence[int]) -> list[int]:
    """A budget in equal parts: floor(keep / groups) of each group, all of one that has fewer; what these leave over,
    and the remainder, is shared out among the others in the same way, at last one by one from the first group on."""
    given = [0] * len(sizes)
    left = min(keep, sum(sizes))
    while left:
        free = [number for number, size in enumerate(sizes) if given[number] < size]
        each = max(1, left // len(free))
        for number in free:
            more = min(each, sizes[number] - given[number], left)
            given[number] += more
            left -= more
    return given
