"""The shorter sequence that the layers after a stage see, and what their arguments become."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lmms_textweighted.engine.caches import given_cache
from lmms_textweighted.engine.layout import Layout
from lmms_textweighted.engine.masks import decoding_mask, prefill_mask


@dataclass
class Shortened:
    """The sequence that the layers after a stage see.

    inner: [B, L] positions in the sequence that the stage's layer saw, ascending, right-aligned. index: the same
    tokens' positions in the original sequence. present: bool [B, L], False at fillers in front of shorter rows.
    """

    inner: torch.Tensor
    index: torch.Tensor
    present: torch.Tensor
    layout: Layout
    even: bool  # every row is present throughout
    position_ids: torch.Tensor
    rotary: tuple[torch.Tensor, ...] | None = None
    mask: torch.Tensor | None = None
    mask_made: bool = False

    def fill(self, kwargs: dict, implementation: str, dtype: torch.dtype) -> None:
        """Replace a layer's arguments by those of the shorter sequence; they are made once for all its layers."""
        if self.rotary is None:
            rows = self.index.shape[0]
            self.rotary = tuple(take(part.expand(rows, -1, -1), self.index) for part in kwargs["position_embeddings"])
        if not self.mask_made:
            whole = kwargs.get("attention_mask") is None and self.even
            self.mask = None if whole else prefill_mask(self.present, implementation, dtype)
            self.mask_made = True
        kwargs["position_embeddings"] = self.rotary
        kwargs["attention_mask"] = self.mask
        if kwargs.get("position_ids") is not None:
            # Without gaps: flash attention reads gaps as packed sequences. The rotary phases are already chosen.
            kwargs["position_ids"] = self.position_ids

    def decoding_mask(
        self, kwargs: dict, full_length: int, implementation: str, dtype: torch.dtype
    ) -> torch.Tensor | None:
        """The mask of a decoding step over these layers' shorter cache. The given one is sized by layer 0's cache."""
        mask = kwargs.get("attention_mask")
        if mask is None and self.even:
            return None
        rows = self.index.shape[0]
        if mask is None:  # transformers leaves out a mask that hides nothing: one new token sees all
            length = given_cache(kwargs).get_seq_length()
            new = self.present.new_ones(rows, length - full_length)
            return decoding_mask(torch.cat([self.present, new], dim=1), implementation, dtype)
        length = mask.shape[-1]
        new = torch.arange(full_length, length, device=mask.device).expand(rows, -1)
        # With device_map the mask may live on another device than the input.
        keys = torch.cat([self.index.to(mask.device), new], dim=1)
        present = torch.cat([self.present.to(mask.device), torch.ones_like(new, dtype=torch.bool)], dim=1)
        if mask.ndim == 2:
            return mask.expand(rows, -1).gather(1, keys) * present.to(mask.dtype)
        mask = mask.expand(rows, -1, -1, -1)
        gathered = mask.gather(3, keys[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1))
        return _hide(gathered, ~present[:, None, None, :])


def shorten(
    layout: Layout, stays: torch.Tensor, sizes: tuple[tuple[int, ...], ...], previous: Shortened | None
) -> Shortened:
    """The tokens `stays` (bool [B, S]) of the sequence `layout`, in order. sizes: what is left of each row's images.

    previous: the shortened sequence that `layout` is of; None for the original one.
    """
    counts = [
        length - sum(old) + sum(new) for length, old, new in zip(layout.lengths, layout.image_sizes, sizes, strict=True)
    ]
    longest = max(counts)
    # A stable sort puts what leaves in front, in order; the last `longest` columns hold all that stays.
    inner = stays.int().argsort(dim=1, stable=True)[:, -longest:]
    index = inner if previous is None else previous.index.gather(1, inner)
    present = stays.gather(1, inner)
    return Shortened(
        inner=inner,
        index=index,
        present=present,
        layout=layout.select(inner, present, sizes),
        even=min(counts) == longest,
        position_ids=torch.arange(longest, device=inner.device).expand(len(counts), -1),
    )


def take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """values [B, S, D] at index [B, L] -> [B, L, D]."""
    index = index.to(values.device)
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def _hide(mask: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    if mask.dtype == torch.bool:
        return mask & ~hidden
    return mask.masked_fill(hidden, torch.finfo(mask.dtype).min)
