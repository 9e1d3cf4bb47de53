"""The shorter sequence that the layers after a stage see, and what their arguments become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lmms_textweighted.engine.caches import given_cache
from lmms_textweighted.engine.layout import Layout
from lmms_textweighted.engine.masks import decoding_mask, prefill_mask
from lmms_textweighted.errors import PlanError


@dataclass(frozen=True)
class Renumbered:
    """Rotary positions that are not the prompt's own.

    positions: [B, L]. shift: [B], how many tokens a row had lost when it was renumbered, which a decoding step's
    position loses, too. phases: (hidden states, positions) -> rotary phases, the decoder's own.
    """

    positions: torch.Tensor
    shift: torch.Tensor
    phases: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]


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
    removed: torch.Tensor  # [B], how many tokens each row has lost
    renumbered: Renumbered | None = None  # where this stage does, or one in front of it
    # (what a layer was given for the whole sequence, what was made of it): kinds of layers may have different phases.
    rotary: list[tuple[Any, tuple[torch.Tensor, ...]]] = field(default_factory=list)
    mask: torch.Tensor | None = None
    mask_made: bool = False
    _step: tuple[Any, tuple[torch.Tensor, ...]] | None = None

    def phases(self, hidden: torch.Tensor, kwargs: dict) -> tuple[torch.Tensor, ...]:
        """The rotary phases of this sequence, made once for all layers that are given the same ones.

        kwargs: a layer's arguments for the whole sequence. Raises PlanError where positions are renumbered and layers
        have different phases: the decoder makes one kind of them.
        """
        given = kwargs["position_embeddings"]
        for known, made in self.rotary:
            if known is given:
                return made
        if self.renumbered is None:
            rows = self.index.shape[0]
            made = tuple(take(part.expand(rows, -1, -1), self.index) for part in given)
        elif not self.rotary:
            made = tuple(self.renumbered.phases(hidden, self.renumbered.positions))
        else:  # with device_map a layer is given a copy
            first, made = self.rotary[0]
            pairs = zip(given, first, strict=True)
            if not all(torch.equal(a, b.to(a.device)) for a, b in pairs):
                raise PlanError(
                    "positions=renumber: this decoder's layers have different rotary phases: use positions=keep"
                )
        self.rotary.append((given, made))
        return made

    def fill(self, hidden: torch.Tensor, kwargs: dict, implementation: str, dtype: torch.dtype) -> None:
        """Replace a layer's arguments by those of the shorter sequence; they are made once for all its layers."""
        rotary = self.phases(hidden, kwargs)
        if not self.mask_made:
            whole = kwargs.get("attention_mask") is None and self.even
            self.mask = None if whole else prefill_mask(self.present, implementation, dtype)
            self.mask_made = True
        kwargs["position_embeddings"] = rotary
        kwargs["attention_mask"] = self.mask
        if kwargs.get("position_ids") is not None:
            # Without gaps: flash attention reads gaps as packed sequences. The rotary phases are already chosen.
            kwargs["position_ids"] = self.position_ids

    def step_phases(self, hidden: torch.Tensor, kwargs: dict) -> None:
        """Replace a decoding step's rotary phases where positions are renumbered: the layer counts on from its own.

        Raises PlanError where the model does not tell its layers the step's position.
        """
        if self.renumbered is None:
            return
        given = kwargs["position_embeddings"]
        if self._step is None or self._step[0] is not given:
            positions = kwargs.get("position_ids")
            if positions is None:
                raise PlanError("positions=renumber: this decoder does not tell its layers a step's position")
            counted = positions - self.renumbered.shift[:, None]
            self._step = (given, tuple(self.renumbered.phases(hidden, counted)))
        kwargs["position_embeddings"] = self._step[1]

    def own_decoding_mask(self, cached: int, new: int, implementation: str, dtype: torch.dtype) -> torch.Tensor | None:
        """The mask of `new` tokens over these layers' cache of `cached` tokens, where the given one cannot be used."""
        rows, behind = self.present.shape[0], cached - self.present.shape[1] + new
        if self.even and new == 1:
            return None
        seen = torch.cat([self.present, self.present.new_ones(rows, behind)], dim=1)
        mask = decoding_mask(seen, implementation, dtype)
        if new == 1 or "flash" in implementation:
            return mask
        hidden = torch.ones(new, cached + new, dtype=torch.bool, device=seen.device).triu(cached + 1)
        return _hide(mask.expand(-1, -1, new, -1), hidden)

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
    layout: Layout,
    stays: torch.Tensor,
    sizes: tuple[tuple[int, ...], ...],
    previous: Shortened | None,
    *,
    order: torch.Tensor | None = None,
    renumber: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]] | None = None,
) -> Shortened:
    """The tokens `stays` (bool [B, S]) of the sequence `layout`, in order. sizes: what is left of each row's images.

    previous: the shortened sequence that `layout` is of; None for the original one. order: int [B, S], for each token
    that stays the place whose turn it takes; by default its own. renumber: `Renumbered.phases`, given where this
    stage renumbers; without it what stays has the positions that it had in `previous`.
    """
    counts = [
        length - sum(old) + sum(new) for length, old, new in zip(layout.lengths, layout.image_sizes, sizes, strict=True)
    ]
    longest = max(counts)
    # A stable sort puts what leaves in front, in order; the last `longest` columns hold all that stays.
    places = stays.int() if order is None else (order + 1) * stays
    inner = places.argsort(dim=1, stable=True)[:, -longest:]
    index = inner if previous is None else previous.index.gather(1, inner)
    present = stays.gather(1, inner)
    short = layout.select(inner, present, sizes)
    removed = layout.image.new_tensor([old - new for old, new in zip(layout.lengths, counts, strict=True)])
    removed = removed if previous is None else removed + previous.removed
    renumbered = None if previous is None else previous.renumbered
    if renumber is not None:
        starts = torch.tensor(short.starts, device=inner.device)
        positions = (torch.arange(longest, device=inner.device) - starts[:, None]).clamp(min=0)
        renumbered = Renumbered(positions, removed, renumber)
    elif renumbered is not None:
        renumbered = replace(renumbered, positions=renumbered.positions.gather(1, inner))
    return Shortened(
        inner=inner,
        index=index,
        present=present,
        layout=short,
        even=min(counts) == longest,
        position_ids=torch.arange(longest, device=inner.device).expand(len(counts), -1),
        removed=removed,
        renumbered=renumbered,
    )


def take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """values [B, S, D] at index [B, L] -> [B, L, D]."""
    index = index.to(values.device)
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def _hide(mask: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    if mask.dtype == torch.bool:
        return mask & ~hidden
    return mask.masked_fill(hidden, torch.finfo(mask.dtype).min)
