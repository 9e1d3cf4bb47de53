"""LLaVA-PruMerge (Shang et al., ICCV 2025, arXiv 2403.15388): the class token's favourites, each with its neighbours.

    a_k = softmax(q_0 K^T / sqrt(W))[k]        NN(i) = the 32 others whose keys are nearest to i's, by cosine

`q` and `K` are those of the vision tower's layer behind the one that makes the features v (of CLIP's 24 layers the
last), of all its heads as one, W wide. The K - 1 patches with the highest a stay, merged with their neighbours, which
may be others that stay; one more token is made of all that leave. They go through the projector in this order:

    v_i + sum_{j in NN(i)} a_j v_j   by falling a_i,    and last   sum_{j left} a_j v_j

`prumerge_plus` keeps a grid beside the favourites: every s-th patch of the first N - 1, behind them and merged alike.

Code and paper. The authors' code, as above, sums without dividing, has the extra token, and hands the language model
what stays by falling attention, not in the picture's order; the last patch is never on the grid. The paper has a
cluster's weighted mean, and no extra token: `prumerge_paper` and `prumerge_plus_paper` keep K patches in the picture's
order, each the mean of v_i and its neighbours' v_j, weighted by a_i and a_j. Positions count from 0 in all of them.

The count. Here a budget decides, so that methods are compared at equal ones, as in others' tables. The authors' is the
picture's own: as many favourites n as have an a above Q3 + 1.5 (Q3 - Q1), 32 on average by their paper. A plan's file
gets it with `options: {adaptive: true}`: the budget is then a limit, which all costs that are known before count with.
The plus variant's s is int(int(N / n) / 3), so about 4 n tokens in all. For a budget, s is the smallest of these at
which its n, the grid and the extra token fit, and favourites fill up what is left; where no grid fits there is none.
The authors' plus variant stops with an error for n = 0 and for n > N / 3; here n and s are then at least 1. Their
quartiles are those of a whole batch, here each picture's. A budget of all tokens changes nothing.

In a trace the extra token stands at the place of the first patch that left, made of all of these.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn.functional import normalize

from lmms_textweighted.engine.groups import as_choice, groups_by_image
from lmms_textweighted.engine.scoring import Choice, Leaving, Merged, Rows, Scorer, Seen, given_tower
from lmms_textweighted.engine.tower import TowerLayer, TowerReads
from lmms_textweighted.methods.placed import BeforeTheModel

BEHIND = TowerLayer(1)
NEIGHBOURS = 32


def outliers(scores: torch.Tensor) -> int:
    """How many scores are above Q3 + 1.5 (Q3 - Q1), quartiles by linear interpolation. [N], at least one."""
    first, third = torch.quantile(scores.float(), torch.tensor([0.25, 0.75], device=scores.device))
    return int((scores > third + 1.5 * (third - first)).sum())


def with_grid(order: torch.Tensor, step: int, favourites: int) -> torch.Tensor:
    """The first favourites of `order` [N], and behind them each `step`-th of the first N - 1 that is none."""
    grid = torch.arange(0, len(order) - 1, step, device=order.device)
    return torch.cat([order[:favourites], grid[~torch.isin(grid, order[:favourites])]])


def grid_of_budget(order: torch.Tensor, keep: int) -> torch.Tensor:
    """Favourites and grid, `keep` of them in all. order: [N], all patches by falling attention; keep < N."""
    tokens = len(order)
    steps = torch.arange(1, tokens // 3 + 1, device=order.device)
    # The smallest n that has this step; with a few tokens some steps are no n's.
    least = tokens // (3 * steps + 3) + 1
    place = torch.arange(tokens, device=order.device)
    on_grid = (place % steps[:, None] == 0) & (place < tokens - 1)
    rank = torch.empty_like(order).scatter(0, order, place)
    favourite = rank < least[:, None]
    fits = ((on_grid | favourite).sum(dim=1) <= keep) & (tokens // least // 3 == steps)
    if not bool(fits.any()):
        return order[:keep]
    step = int(fits.int().argmax()) + 1
    others = (~on_grid[step - 1])[order].cumsum(dim=0)  # of the first favourites, how many are beside the grid
    wanted = keep - int(on_grid[step - 1].sum())
    reached = int((others < wanted).sum()) + 1 if wanted else 0
    return with_grid(order, step, max(int(least[step - 1]), reached))


@dataclass(frozen=True)
class PrunedAndMerged(Scorer):
    """PruMerge's choice, with its merging; scores are a. grid: the plus variant. mean: as the paper has it. adaptive:
    the count is the picture's, and the budget its limit."""

    grid: bool = False
    mean: bool = False
    adaptive: bool = False
    name: str = field(init=False)
    reads: Rows = Rows.NONE

    def __post_init__(self) -> None:
        parts = {"_plus": self.grid, "_paper": self.mean, "_adaptive": self.adaptive}
        object.__setattr__(self, "name", "prumerge" + "".join(part for part, chosen in parts.items() if chosen))

    @property
    def tower_reads(self) -> TowerReads:
        return TowerReads(wide_class_rows=(BEHIND,), keys=(BEHIND,), vectors=True)

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        scores = given_tower(self, seen).wide_class_row(BEHIND)
        return scores, scores[:0]

    @property
    def merges(self) -> bool:
        return True

    def choose(self, leaving: Leaving) -> Choice:
        tower = given_tower(self, leaving)
        vectors, keys = tower.vectors, normalize(tower.keys(BEHIND).flatten(1), dim=-1)
        kept: list[torch.Tensor] = []
        merged: list[Merged] = []
        flops = 0
        for group in groups_by_image(leaving):
            index = group.index
            if group.keep == 0 or (group.keep == len(index) and not self.adaptive):
                kept.append(index[: group.keep])
                continue
            scores = leaving.scores[index]
            stay = self._stay(scores, group.keep)
            gone = torch.ones_like(index, dtype=torch.bool).index_fill(0, stay, False).nonzero().flatten()
            near, weights = _neighbours(keys[index], scores, stay)
            features = vectors[index].float()
            if self.mean:
                weights = weights.scatter(1, stay[:, None], scores[stay, None])
                made = weights @ features / weights.sum(dim=1, keepdim=True)
            else:
                made = features[stay] + weights @ features
                made = torch.cat([made, (scores[gone] @ features[gone])[None]])
            flops += 2 * len(stay) * len(index) * (keys.shape[1] + features.shape[1])
            flops += 0 if self.mean else 2 * len(gone) * features.shape[1]
            before = sum(map(len, kept))
            new = tower.project(made.to(vectors.dtype))
            sources = torch.cat([stay[:, None], near], dim=1)
            merged += [Merged(before + slot, new[slot], index[row]) for slot, row in enumerate(sources)]
            order = index[stay]
            if not self.mean:
                merged.append(Merged(before + len(stay), new[-1], index[gone]))
                order = torch.cat([order, index[gone[:1]]])
            kept.append(order)
        return as_choice(leaving, kept, merged, flops=flops)

    def _stay(self, scores: torch.Tensor, keep: int) -> torch.Tensor:
        """The patches that stay, in their new order, without the extra token."""
        order = torch.sort(scores, descending=True, stable=True).indices
        keep = keep if self.mean else keep - 1
        stay = None
        if self.adaptive:
            count = outliers(scores)
            stay = order[:count]
            if self.grid:
                count = max(1, count)
                stay = with_grid(order, max(1, len(order) // count // 3), count)
        if stay is None or len(stay) > keep:
            stay = grid_of_budget(order, keep) if self.grid else order[:keep]
        return stay.sort().values if self.mean else stay


def _neighbours(keys: torch.Tensor, scores: torch.Tensor, stay: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(nearest others of each that stays [K, up to 32], their scores at their places [K, N]). keys: [N, W], units."""
    alike = (keys[stay] @ keys.T).scatter(1, stay[:, None], float("-inf"))
    count = min(NEIGHBOURS, len(keys) - 1)
    near = torch.sort(alike, dim=1, descending=True, stable=True).indices[:, :count]
    return near, torch.zeros_like(alike).scatter(1, near, scores[near])


SOURCE = "LLaVA-PruMerge, Shang et al., ICCV 2025, arXiv 2403.15388"

PRUMERGE = BeforeTheModel("prumerge", "PruMerge", SOURCE, PrunedAndMerged())
PRUMERGE_PLUS = BeforeTheModel("prumerge_plus", "PruMerge+", SOURCE, PrunedAndMerged(grid=True))
PRUMERGE_PAPER = BeforeTheModel("prumerge_paper", "PruMerge (paper)", SOURCE, PrunedAndMerged(mean=True))
PRUMERGE_PLUS_PAPER = BeforeTheModel(
    "prumerge_plus_paper", "PruMerge+ (paper)", SOURCE, PrunedAndMerged(grid=True, mean=True)
)
