"""VisionZip (Yang et al., CVPR 2025, arXiv 2412.04467): the class token's favourites, and the rest by its nearest keys.

    c_k = 1/H sum_h B[h, 0, k]

`B` is the attention of the vision tower's layer that makes the features v. A budget K is d + c tokens: the *dominant*
ones are the class token itself and the d - 1 patches with the highest c_k. Of the n patches that are left, in raster
order, every max(1, n // c)-th is a *contextual* target, c of them; each other goes to the target whose key is nearest,
by the cosine of the keys of that layer, mean over heads. A contextual token is

    v_target + mean of the v that went to it        (nothing is added where none did)

a sum of target and mean, with about twice the norm of either. Then comes the projector. The language model gets the
class token, the dominant patches in their order, and the contextual tokens in the order of their targets, at positions
from 0.

Code and paper. This is the authors' code. The paper selects dominant patches and merges the others by similarity, as a
mean: `visionzip_paper` has d dominant patches, no class token among them, and contextual tokens that are the mean of
the target and all that went to it.

The authors' settings are d + c = 54 + 10, 108 + 20 and 162 + 30, the class token being one of the d. Other budgets have
c = round(10/64 K), halves up; below 4 tokens there is no contextual one. A budget of all tokens changes nothing.

In a trace the class token stands at the place of the first patch that does not stay itself, made of no image token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn.functional import normalize

from lmms_textweighted.engine.groups import as_choice, by_number, groups_by_image
from lmms_textweighted.engine.scoring import Choice, Leaving, Merged, given_tower, top_tokens
from lmms_textweighted.engine.tower import FEATURES, TowerReads
from lmms_textweighted.methods.fastervlm import ClassAttention
from lmms_textweighted.methods.placed import BeforeTheModel


def contextual_count(budget: int) -> int:
    """How many of a budget's tokens are contextual: 30 of 192, 20 of 128, 10 of 64."""
    return (20 * budget + 64) // 128


@dataclass(frozen=True)
class DominantAndContextual(ClassAttention):
    """VisionZip's choice, with its merging. mean: as the paper has it."""

    mean: bool = False
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", "visionzip_paper" if self.mean else "visionzip")

    @property
    def tower_reads(self) -> TowerReads:
        return TowerReads(class_rows=(FEATURES,), keys=(FEATURES,), vectors=True, class_vector=not self.mean)

    @property
    def merges(self) -> bool:
        return True

    def choose(self, leaving: Leaving) -> Choice:
        tower = given_tower(self, leaving)
        vectors, keys = tower.vectors, normalize(tower.keys().mean(dim=1), dim=-1)
        kept: list[torch.Tensor] = []
        merged: list[Merged] = []
        flops = 0
        for group in groups_by_image(leaving):
            if group.keep in (0, len(group.index)):
                kept.append(group.index[: group.keep])
                continue
            count = contextual_count(group.keep)
            dominant = top_tokens(leaving.scores[group.index], group.keep - count - (not self.mean))
            left = _without(group.index, dominant)
            step = max(1, len(left) // count) if count else 1
            places = torch.arange(len(left), device=left.device)[::step][:count]
            targets, others = left[places], _without(left, places)
            made, order = [], torch.cat([group.index[dominant], targets])
            if not self.mean:
                made.append((others[:1], tower.class_vector(others[:1])[0].float(), left[:0]))
                order = torch.cat([others[:1], order])
            if count:
                means, belongs = _means(vectors, keys, others, targets)
                flops += 2 * len(others) * count * keys.shape[1]
                for number, went in enumerate(by_number(others, belongs, count)):
                    if len(went):
                        target = targets[number : number + 1]
                        own = vectors[target][0].float()
                        vector = own + means[number]
                        if self.mean:
                            vector = (own + len(went) * means[number]) / (1 + len(went))
                        made.append((target, vector, torch.cat([target, went])))
            before = sum(map(len, kept))
            kept.append(order)
            if not made:
                continue
            new = tower.project(torch.stack([vector for _, vector, _ in made]).to(vectors.dtype))
            slots = (order == torch.stack([token for token, _, _ in made])).int().argmax(dim=1).tolist()
            for slot, vector, (_, _, sources) in zip(slots, new, made, strict=True):
                merged.append(Merged(before + slot, vector, sources))
        return as_choice(leaving, kept, merged, flops=flops)


def _without(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The values that do not stand at these places, in their order."""
    return values[torch.ones_like(values, dtype=torch.bool).index_fill(0, places, False)]


def _means(
    vectors: torch.Tensor, keys: torch.Tensor, others: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean vector of those nearest to each target [c, W], 0 where there are none; whose each is [O])."""
    belongs = (keys[others] @ keys[targets].T).argmax(dim=1)
    sums = vectors.new_zeros(len(targets), vectors.shape[1], dtype=torch.float32)
    sums = sums.index_add(0, belongs, vectors[others].float())
    counts = torch.bincount(belongs, minlength=len(targets)).clamp(min=1)
    return sums / counts[:, None], belongs


SOURCE = "VisionZip, Yang et al., CVPR 2025, arXiv 2412.04467"

VISIONZIP = BeforeTheModel("visionzip", "VisionZip", SOURCE, DominantAndContextual())
VISIONZIP_PAPER = BeforeTheModel("visionzip_paper", "VisionZip (paper)", SOURCE, DominantAndContextual(mean=True))
