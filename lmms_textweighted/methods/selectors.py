"""Sets of tokens: max-min distance, facility location, determinants, and what is left when duplicates go.

Each takes features [N, W] and scores [N] and gives the indices that stay. Greedy ones add token after token without
asking the device for a number; of equal candidates the earlier token's turn comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import normalize

from lmms_textweighted.engine.selecting import Selector


def greedy(gain: torch.Tensor, keep: int, after: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Indices [keep], ascending: the largest gain again and again, of those not yet taken.

    gain: [N], at first. after: (gain, index [1] of the token just taken) -> the gain from there on.
    """
    free = torch.ones(len(gain), dtype=torch.bool, device=gain.device)
    taken = []
    for _ in range(keep):
        pick = gain.masked_fill(~free, float("-inf")).argmax(dim=0, keepdim=True)
        free = free.index_fill(0, pick, False)
        taken.append(pick)
        gain = after(gain, pick)
    return torch.cat([*taken, gain.new_zeros(0, dtype=torch.int64)]).sort().values


def cosines(features: torch.Tensor) -> torch.Tensor:
    """[N, W] -> [N, N]."""
    units = normalize(features, dim=-1)
    return units @ units.T


@dataclass(frozen=True)
class MaxMin(Selector):
    """The token furthest from all that are chosen, in cosine distance d = 1 - cos. Scores are not looked at.

    first = argmax_k min_{j != k} d(j, k),    next = argmax_k min_{s chosen} d(s, k)
    """

    nested: ClassVar[bool] = True

    def select(self, features: torch.Tensor, scores: torch.Tensor, keep: int) -> torch.Tensor:
        distance = 1 - cosines(features)
        itself = torch.eye(len(distance), dtype=torch.bool, device=distance.device)
        nearest = torch.full_like(distance[0], float("inf")) if len(distance) else distance.new_zeros(0)
        first = distance.masked_fill(itself, float("inf")).amin(dim=0) if len(distance) else nearest

        def after(_: torch.Tensor, pick: torch.Tensor) -> torch.Tensor:
            nonlocal nearest
            nearest = torch.minimum(nearest, distance.index_select(0, pick)[0])
            return nearest

        return greedy(first, keep, after)


@dataclass(frozen=True)
class FacilityLocation(Selector):
    """The token that covers the most of what is not covered yet, times its score: with C = cos and m_j = 0 at first,

    g_k = a_k sum_j max(0, C_jk - m_j),    then m_j = max(m_j, C_jk) of the one that was taken.
    """

    nested: ClassVar[bool] = True

    def select(self, features: torch.Tensor, scores: torch.Tensor, keep: int) -> torch.Tensor:
        alike = cosines(features)
        covered = torch.zeros_like(scores)

        def gain() -> torch.Tensor:
            return scores * (alike - covered).clamp(min=0).sum(dim=1)

        def after(_: torch.Tensor, pick: torch.Tensor) -> torch.Tensor:
            nonlocal covered
            covered = torch.maximum(covered, alike.index_select(0, pick)[0])
            return gain()

        return greedy(gain(), keep, after)


@dataclass(frozen=True)
class Determinantal(Selector):
    """The token that makes the determinant of what is chosen largest, in the kernel L = diag(a) C diag(a), C = cos:

    d2_i = L_ii;  take j = argmax d2;  e = (L_j - sum_t c_t[j] c_t) / sqrt(d2_j);  d2 = d2 - e^2

    Where nothing is left to span (d2 is rounding), the earlier token comes first.
    """

    nested: ClassVar[bool] = True

    def select(self, features: torch.Tensor, scores: torch.Tensor, keep: int) -> torch.Tensor:
        kernel = scores[:, None] * cosines(features) * scores[None, :]
        left = kernel.diagonal().clone()
        least = 1e-6 * left.amax() if len(left) else left.new_zeros(())
        rows = kernel.new_zeros(keep, len(left))
        step = 0

        def gain() -> torch.Tensor:
            return left.where(left > least, torch.zeros_like(left))

        def after(_: torch.Tensor, pick: torch.Tensor) -> torch.Tensor:
            nonlocal left, step
            spanned = rows[:step].index_select(1, pick).T @ rows[:step]
            length = left.index_select(0, pick)
            row = (kernel.index_select(0, pick) - spanned)[0] / length.clamp(min=1e-30).sqrt()
            row = row.where(length > least, torch.zeros_like(row))
            rows[step] = row
            step += 1
            left = left - row.square()
            return gain()

        return greedy(gain(), keep, after)

    def flops(self, tokens: int, width: int, keep: int) -> int:
        """2 N^2 W for all cosines, and 2 t N for what t tokens span of the next one's row: N K (K - 1) in all."""
        return super().flops(tokens, width, keep) + tokens * keep * max(0, keep - 1)


@dataclass(frozen=True)
class WithoutDuplicates(Selector):
    """The best-scored share of the budget stays, and of the rest what has the fewest doubles among the others.

    important: the share, of which int(share K) tokens stay by their score. The rest in falling order of score is R.
    While more are in R than shall stay, r = min(`at_once`, their surplus) leave: with E = R[0, 2, 4, …] and
    O = R[1, 3, 5, …], those r of E with the largest g_i = max_{o in O} cos(i, o). Then R = the rest of E by falling g,
    and behind it O, so that other pairs meet in the next round.
    """

    important: float = 0.5
    at_once: int = 8
    nested: ClassVar[bool] = False

    def select(self, features: torch.Tensor, scores: torch.Tensor, keep: int) -> torch.Tensor:
        order = torch.sort(scores, descending=True, stable=True).indices
        first = int(keep * self.important)
        rest, wanted = order[first:], keep - first
        if not wanted:
            return order[:first].sort().values
        alike = cosines(features)
        while len(rest) > wanted:
            even, odd = rest[::2], rest[1::2]
            double = alike[even[:, None], odd[None, :]].amax(dim=1)
            leave = min(self.at_once, len(rest) - wanted, len(even))
            even = even[torch.sort(double, descending=True, stable=True).indices[leave:]]
            rest = torch.cat([even, odd])
        return torch.cat([order[:first], rest]).sort().values

    def flops(self, tokens: int, width: int, keep: int) -> int:
        return super().flops(tokens, width, keep) if keep > int(keep * self.important) else 0
