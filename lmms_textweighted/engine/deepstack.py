"""Visual features that a decoder adds again to the hidden states behind its first layers (DeepStack).

Meng et al., "DeepStack: Deeply Stacking Visual Tokens is Surprisingly Simple and Effective for LMMs" (NeurIPS 2024).
Such a decoder has a method under NAME and calls it behind each of these layers with a mask over the whole prompt and
one feature for each of the mask's tokens. A token that was removed before takes its later features with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

NAME = "_deepstack_process"  # (hidden states, mask, features) -> hidden states
MASK, FEATURES = "visual_pos_masks", "deepstack_visual_embeds"  # the decoder's arguments


@dataclass(frozen=True)
class Deepstack:
    """places: bool [B, S], the tokens that have features. features: one [N, W] a layer, from layer 0 on, in the order
    of the batch's rows and of their tokens; N is the number of True in `places`."""

    places: torch.Tensor
    features: list[torch.Tensor]

    @classmethod
    def given(cls, arguments: Any) -> Deepstack | None:
        """What a decoder is called with; None where there are no features."""
        features = arguments.get(FEATURES)
        return None if features is None else cls(arguments[MASK], list(features))

    def add(self, decoder: Any, layer: int, hidden: torch.Tensor, index: torch.Tensor, present: torch.Tensor) -> Any:
        """The hidden states behind `layer` with its features: of a prompt [1, S], for rows `index` [B, L] of it."""
        if layer >= len(self.features):
            return hidden
        rows = len(index)
        places = self.places.expand(rows, -1)
        numbers = running_numbers(self.places).expand(rows, -1)
        return getattr(decoder, NAME)(hidden, *taken(places, numbers, self.features[layer], index, present))


def running_numbers(places: torch.Tensor) -> torch.Tensor:
    """Which of the features is each token's: int [B, S]; of no meaning at tokens without one."""
    return (places.flatten().cumsum(0) - 1).view(places.shape)


def taken(
    places: torch.Tensor, numbers: torch.Tensor, features: torch.Tensor, index: torch.Tensor, present: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(mask [B, L], features [N', W]) of the shorter rows `index` [B, L], of which only `present` ones are real."""
    index, present = index.to(places.device), present.to(places.device)
    mask = places.gather(1, index) & present
    return mask, features[numbers.gather(1, index)[mask].to(features.device)]
