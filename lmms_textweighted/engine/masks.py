"""Attention masks of sequences that hold fillers, in the form each attention implementation takes."""

from __future__ import annotations

import torch

from lmms_textweighted.errors import PlanError


def check_kernel(implementation: str | None) -> None:
    """Raise PlanError for an attention implementation whose masks are not known here: transformers has more of them."""
    if implementation not in ("sdpa", "eager") and "flash" not in str(implementation):
        raise PlanError(
            f"attn_implementation is {implementation!r}, for which pruning was not made: load the model with sdpa, "
            f"eager or flash_attention_2"
        )


def prefill_mask(present: torch.Tensor, implementation: str, dtype: torch.dtype) -> torch.Tensor:
    """The causal mask of a prefill in which only `present` [B, L] tokens are seen.

    flash: [B, L] itself. eager: additive [B, 1, L, L] of `dtype`. Anything else (SDPA): bool [B, 1, L, L], True where
    a row may look. A filler sees itself, so that its row of the softmax is not empty.
    """
    if "flash" in implementation:
        return present
    length = present.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=present.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=present.device)
    allowed = (causal & present[:, None, None, :]) | itself
    return additive(allowed, dtype) if implementation == "eager" else allowed


def decoding_mask(present: torch.Tensor, implementation: str, dtype: torch.dtype) -> torch.Tensor:
    """The mask of one new token over a cache of which only `present` [B, K] is seen, the new token included."""
    if "flash" in implementation:
        return present
    allowed = present[:, None, None, :]
    return additive(allowed, dtype) if implementation == "eager" else allowed


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where allowed, the smallest number of `dtype` elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)
