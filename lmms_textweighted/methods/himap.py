"""HiMAP (Yin et al., CVPR 2025, arXiv 2503.13108): first what the text looks at, later what the image looks at.

    stage 1, after layer 1:   s_k = sum_{i in T} A[i, k]        T = the text behind the image
    stage 2, after layer 7:   s_k = sum_{i in I} A[i, k]        I = the image tokens that are left

`A` is the attention of the layer after which tokens leave, mean over heads, on the sequence that this layer runs on.
288 of 576 tokens stay, then 72, at their original positions. In stage 2 rows i >= k alone see token k, and they are
softmaxed over all they see: nothing corrects for the number of rows, so that the top of the picture has a head start.

The paper counts layers from 1 and speaks of ranks at layer K; the code takes the attention of the layer below, and so
do we. The authors' evaluation has no KV cache and chooses again at every new token; here the prompt's choice holds.

`cut_off` is not the authors' but of a fork (YangXu-03/Himap-based): all image tokens leave after one more layer. There
its layer C leaves before C, and is passed over in silence where it equals a pruning layer.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from lmms_textweighted.engine.plan import Stage
from lmms_textweighted.engine.scoring import Rows, Scorer, Seen, given_attention
from lmms_textweighted.errors import PlanError
from lmms_textweighted.methods.staged import Staged, relative_layers
from lmms_textweighted.methods.uniform import UNIFORM


@dataclass(frozen=True)
class ImageColumnSums(Scorer):
    """s_k = sum_{i in I} A[i, k]: what an image token receives from the image tokens, those of all images alike."""

    name: str = "image_column_sums"
    reads: Rows = Rows.IMAGE

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        attention = given_attention(self, seen)
        return attention[:, seen.image].sum(dim=0), attention.new_ones(len(seen.rows))


@dataclass(frozen=True)
class CutOff(Scorer):
    """For a stage that keeps nothing: every score is 0, no attention is read."""

    name: str = "cut_off"
    reads: Rows = Rows.NONE

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.zeros(len(seen.image), dtype=torch.float32, device=seen.image.device)
        return scores, scores[:0]


@dataclass(frozen=True)
class HiMAP(Staged):
    """The two stages, and with `cut_off` a third that keeps nothing after that layer; a budget is then the second's.

    Raises PlanError for a cut-off that is not above the last pruning layer.
    """

    cut_off: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cut_off is not None and self.cut_off <= self.layers[-1]:
            raise PlanError(
                f"cut_off is {self.cut_off}, but {self.name} still chooses after layer {self.layers[-1]}: give a later "
                f"one"
            )

    def fitted(self, num_layers: int, image_tokens: int | None = None) -> Staged:
        if self.cut_off is None:
            return super().fitted(num_layers, image_tokens)
        layers = relative_layers(self.name, (*self.layers, self.cut_off), self.depth, num_layers)
        return dataclasses.replace(
            self,
            layers=layers[:-1],
            cut_off=layers[-1],
            depth=num_layers,
            image_tokens=self.image_tokens if image_tokens is None else image_tokens,
        )

    def stages(self, layer: int, keep_tokens: int | None, keep_ratio: float | None) -> tuple[Stage, ...]:
        stages = super().stages(layer, keep_tokens, keep_ratio)
        return stages if self.cut_off is None else (*stages, Stage(CutOff(), self.cut_off, keep_tokens=0))


HIMAP = HiMAP(
    "himap",
    "HiMAP",
    "HiMAP, Yin et al., CVPR 2025, arXiv 2503.13108",
    (UNIFORM, ImageColumnSums()),
    (1, 7),
    (288, 72),
)
