"""The project's own method: every text token's attention to the image counts, weighted by the attention it receives.

Prior art: AdaptInfer (arXiv 2508.06084, August 2025) weights text rows by text-to-text attention, too: there the
attention that a token receives plus the attention that it gives, head by head, at three layers. Here it is the received
part alone, of the mean over heads, once.
"""

from __future__ import annotations

import torch

from lmms_textweighted.engine.scoring import RowWeighting
from lmms_textweighted.methods.base import OneStage


def column_sum_weights(text_attention: torch.Tensor) -> torch.Tensor:
    """w_i = sum_j A[j, i] / sum_i sum_j A[j, i] over the text tokens: the attention a token receives.

    text_attention: [T, T], rows are queries. Returns [T], summing to 1. Source: the text-weighted method's formula
    (README: "Strategies"). Under a causal mask early tokens are seen by more rows and so weigh more; see
    `debiased_column_sum_weights`.
    """
    received = text_attention.sum(dim=0)
    return received / received.sum()


def debiased_column_sum_weights(text_attention: torch.Tensor) -> torch.Tensor:
    """`column_sum_weights` with each sum divided by the number of rows that can see the token, then normalised.

    Token i of T is seen by rows i … T-1, so its column sum has T - i terms. [T, T] -> [T], summing to 1.
    """
    count = text_attention.shape[0]
    seen_by = torch.arange(count, 0, -1, device=text_attention.device)
    received = text_attention.sum(dim=0) / seen_by
    return received / received.sum()


_SOURCE = "this project; compare AdaptInfer, 2025, arXiv 2508.06084"

TEXT_WEIGHTED = OneStage("text_weighted", "text-weighted", _SOURCE, RowWeighting("text_weighted", column_sum_weights))
TEXT_WEIGHTED_DEBIASED = OneStage(
    "text_weighted_debiased",
    "text-weighted, debiased",
    _SOURCE,
    RowWeighting("text_weighted_debiased", debiased_column_sum_weights),
)
