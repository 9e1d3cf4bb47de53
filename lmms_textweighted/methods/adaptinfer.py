"""AdaptInfer (2025, arXiv 2508.06084): text rows weighted by text-to-text attention, head by head, at three depths.

    W = A_TT + A_TT^T - diag(A_TT),    m[h, t] = sum_i W[h, i, t],    s_k = sum_h sum_{t in T} m[h, t] A[h, t, k]

`A` is the attention of layer P head by head, on the sequence that P runs on, and T the text behind the image. So a text
token weighs what it receives from text plus what it gives to text; nothing is normalised, so heads that stay with the
text weigh more. Tokens leave after P = 1, 10, 20, and all is numbered anew from 0.

Counts in the code: 290, 72, 18 ("128"; the mean over layer inputs is 146.3), 133, 27, 3 ("64"). Its code computes
SparseVLM's raters and recycling without using them, and softmaxes in half precision. The paper calls m a soft prior; no
softmax is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lmms_textweighted.engine.scoring import Scorer, Seen, given_attention
from lmms_textweighted.methods.staged import Staged
from lmms_textweighted.methods.text_weighted import given_and_received


@dataclass(frozen=True)
class TextToText(Scorer):
    """AdaptInfer's scores. The weights in the trace are m, mean over heads."""

    name: str = "adaptinfer"
    per_head: ClassVar[bool] = True

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        attention = given_attention(self, seen)
        weights = given_and_received(attention[..., seen.rows])
        return torch.einsum("hi,hik->k", weights, attention[..., seen.image]), weights.mean(dim=0)


ADAPTINFER = Staged(
    "adaptinfer",
    "AdaptInfer",
    "AdaptInfer, 2025, arXiv 2508.06084",
    (TextToText(),) * 3,
    (1, 10, 20),
    (290, 72, 18),
    "renumber",
)
