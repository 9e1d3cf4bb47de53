"""SparseVLM+ (Zhang et al., v2 of the code of arXiv 2410.04417): raters, the best heads, and no pull of near tokens.

    B[h, i, k] = A[h, i, k] / w(p_i - p_k),      w(x) = 2/sqrt(d) sum_{m < d/2} cos(x 10000^(-2m/d))
    s_k = mean over the best heads h and over i in R of B[h, i, k]

`A` is the attention of layer P head by head, on the sequence that P runs on, `p` are rotary positions, d is the width
of a head, and R the raters (`raters.py`). The best heads are the 14 with the largest sum of B over R and the image
tokens, all where there are fewer. Tokens leave after P = 2, 6, 15; they keep their positions, and nothing is merged.
Counts in the code: 300, 200, 118 ("192": the mean over layer inputs is 206.8), 238, 108, 60 ("128"), 66, 34, 20 ("64").

w is what RoPE makes of two vectors of ones: sqrt(d) at distance 0, and below 0 from about 2000 on (d = 128). So the
correction is not for prompts as long as LLaVA-NeXT's. The 14 is fixed in the code also for 32 heads. The authors
compute in half precision, here it is float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from lmms_textweighted.engine.scoring import Scorer, Seen, given_attention
from lmms_textweighted.methods.raters import seen_embeddings, weights_of_raters
from lmms_textweighted.methods.sparsevlm import SOURCE
from lmms_textweighted.methods.staged import Staged


def gravity(distance: torch.Tensor, head_width: int, base: float = 10000) -> torch.Tensor:
    """w of some distances: float32, of their shape. head_width: d. base: RoPE's, 10000 in the authors' code."""
    rate = base ** (-torch.arange(0, head_width, 2, device=distance.device, dtype=torch.float64) / head_width)
    return (2 / head_width**0.5 * torch.cos(distance[..., None] * rate).sum(dim=-1)).float()


@dataclass(frozen=True)
class Gravity(Scorer):
    """SparseVLM+'s scores. heads: how many of the layer's heads count.

    head_width: d; None for the embeddings' width over the number of heads.
    """

    heads: int = 14
    head_width: int | None = None
    name: str = field(init=False)
    per_head: ClassVar[bool] = True
    needs_embeddings: ClassVar[bool] = True

    def __post_init__(self) -> None:
        width = "" if self.head_width is None else f"_width_{self.head_width}"
        object.__setattr__(self, "name", f"sparsevlm_plus{'' if self.heads == 14 else f'_{self.heads}_heads'}{width}")

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        attention = given_attention(self, seen)
        if seen.positions is None:
            raise TypeError(f"scorer {self.name!r} was given no positions, but asks for them")
        weights = weights_of_raters(self, seen)
        width = self.head_width or seen_embeddings(self, seen)[0].shape[-1] // attention.shape[0]
        distance = seen.positions[seen.rows][:, None] - seen.positions[seen.image]
        by_head = torch.einsum("i,hik->hk", weights, attention[..., seen.image] / gravity(distance, width))
        best = torch.sort(by_head.sum(dim=-1), descending=True, stable=True).indices[: self.heads]
        return by_head[best].mean(dim=0), weights


SPARSEVLM_PLUS = Staged("sparsevlm_plus", "SparseVLM+", SOURCE, (Gravity(),) * 3, (2, 6, 15), (300, 200, 118))
