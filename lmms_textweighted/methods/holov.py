"""HoloV (Zou et al., NeurIPS 2025): every part of the picture has its quota, by attention and by how varied it is.

The N tokens in raster order are cut into 16 runs of floor(N / 16), the first N mod 16 of them one longer. In a run of m
tokens, with C the cosines of the embeddings (after the projector), its diagonal 0,

    mu_i = sum_j C_ij / (m - 1)        v_i = sum_j (C_ij - mu_i)^2 / (m - 1)        a_i = 1000 c_i
    score of the run = mean_i (a_i + 0.09 v_i mean|a| / (mean|v| + 1e-6)),    or c_i where m = 1

`c` is the attention of the vision tower's class token, mean over heads, in the layer that makes the features. Of K
tokens a run gets floor(K w), w = score / (sum of scores + 1e-6), and what is left goes one by one to the largest w. In
a run its quota of tokens with the highest c stays. A budget of all tokens changes nothing.

Code and paper. This is the code: it cuts runs of the raster, tokens stand run by run and in each by falling c, and a
quota above a run's size is lost, for which the result is *padded with zero vectors* at the end (surplus="zeros"; in a
trace they stand at the first places that left, made of no image token). `holov_paper` has the paper's crops, 4 x 4 of
the picture (parts="crops"; crop i of an axis of s patches begins at floor(i s / 4)), the picture's order, and no zeros:
with surplus="spread" what a part cannot use goes one by one to the largest w that can. Positions count from 0. The text
has no say, though the paper's title speaks of context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.functional import normalize

from lmms_textweighted.engine.groups import as_choice, groups_by_image
from lmms_textweighted.engine.scoring import Choice, Leaving, Merged, given_tower
from lmms_textweighted.errors import PlanError, unknown
from lmms_textweighted.methods.fastervlm import ClassAttention
from lmms_textweighted.methods.placed import BeforeTheModel
from lmms_textweighted.methods.vscan import WINDOWS, window_of

RUNS = 16
ALPHA = 0.09
SURPLUS = ("zeros", "spread")
PARTS = ("runs", "crops")


def run_sizes(tokens: int) -> list[int]:
    """Sizes of the runs that are not empty."""
    each, more = divmod(tokens, RUNS)
    return [size for run in range(RUNS) if (size := each + (run < more))]


def run_score(vectors: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """The score of one run, see above. vectors: [m, W] float, attention: [m], the c."""
    count = len(vectors)
    if count == 1:
        return attention[0]
    units = normalize(vectors, dim=-1)
    alike = (units @ units.T).fill_diagonal_(0)
    mean = alike.sum(dim=1) / (count - 1)
    varied = (alike - mean[:, None]).square().sum(dim=1) / (count - 1)
    looked = 1000 * attention
    return (looked + ALPHA * varied * looked.abs().mean() / (varied.abs().mean() + 1e-6)).mean()


def quotas(scores: torch.Tensor, sizes: list[int], keep: int, spread: bool) -> list[int]:
    """Tokens that stay of each run. Without `spread` their sum is below `keep` by what the runs cannot use."""
    weights = scores / (scores.sum() + 1e-6)
    given = (weights * keep).floor().long().tolist()
    order = torch.sort(weights, descending=True, stable=True).indices.tolist()
    for run in order[: keep - sum(given)]:
        given[run] += 1
    kept = [min(size, quota) for size, quota in zip(sizes, given, strict=True)]
    while spread and sum(kept) < keep:
        for run in [run for run in order if kept[run] < sizes[run]][: keep - sum(kept)]:
            kept[run] += 1
    return kept


@dataclass(frozen=True)
class QuotaOfRuns(ClassAttention):
    """HoloV's choice; scores are c. surplus: what becomes of quotas above a part's size. parts: what has a quota.

    Raises PlanError for other names than those of SURPLUS and PARTS.
    """

    surplus: str = "zeros"
    parts: str = "runs"
    name: str = field(init=False)

    def __post_init__(self) -> None:
        if self.surplus not in SURPLUS:
            raise PlanError(unknown("surplus", self.surplus, SURPLUS))
        if self.parts not in PARTS:
            raise PlanError(unknown("parts", self.parts, PARTS))
        names = {"runs": {"zeros": "holov", "spread": "holov_spread"}}
        names["crops"] = {"zeros": "holov_crops", "spread": "holov_paper"}
        object.__setattr__(self, "name", names[self.parts][self.surplus])

    @property
    def grid_rule(self) -> str:
        return "over_all"

    @property
    def merges(self) -> bool:
        return self.surplus == "zeros"

    def choose(self, leaving: Leaving) -> Choice:
        vectors = leaving.hidden[leaving.image].float()
        kept: list[torch.Tensor] = []
        merged: list[Merged] = []
        flops = 0
        for group in groups_by_image(leaving):
            if group.keep in (0, len(group.index)):
                kept.append(group.index[: group.keep])
                continue
            runs = self._parts(group.index, leaving)
            flops += sum(2 * len(run) ** 2 * vectors.shape[1] for run in runs if len(run) > 1)
            scores = torch.stack([run_score(vectors[run], leaving.scores[run]) for run in runs])
            counts = quotas(scores.double(), list(map(len, runs)), group.keep, self.surplus == "spread")
            chosen = []
            for run, count in zip(runs, counts, strict=True):
                order = torch.sort(leaving.scores[run], descending=True, stable=True).indices
                chosen.append(run if count == len(run) else run[order[:count]])
            stay = torch.cat(chosen)
            kept.append(stay if self.parts == "runs" else stay.sort().values)
            if missing := group.keep - sum(counts):
                empty = group.index[~torch.isin(group.index, stay)][:missing]
                before = sum(map(len, kept))
                zero = torch.zeros_like(leaving.hidden[0])
                merged += [Merged(before + place, zero, empty[:0]) for place in range(missing)]
                kept.append(empty)
        return as_choice(leaving, kept, merged, flops=flops)

    def _parts(self, index: torch.Tensor, leaving: Leaving) -> Sequence[torch.Tensor]:
        """The tokens of each part that is not empty, each in the picture's order."""
        if self.parts == "runs":
            return index.split(run_sizes(len(index)))
        tower = given_tower(self, leaving)
        view = tower.index[index] // tower.patches
        window = view * WINDOWS**2 + window_of(tower.patch[index], math.isqrt(tower.patches))
        return [index[window == number] for number in window.unique()]


HOLOV = BeforeTheModel("holov", "HoloV", "HoloV, Zou et al., NeurIPS 2025", QuotaOfRuns())
HOLOV_PAPER = BeforeTheModel("holov_paper", "HoloV (paper)", HOLOV.source, QuotaOfRuns(surplus="spread", parts="crops"))
