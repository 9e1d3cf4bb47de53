"""How a set is chosen where scores alone do not decide: features of tokens, and scores, to those that stay."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from lmms_textweighted.engine.groups import as_choice, groups_of
from lmms_textweighted.engine.scoring import Choice, Leaving, Scorer


class Selector(ABC):
    """Chooses among a group of tokens: those of one picture, or of a whole prompt's.

    nested: whether what stays at one budget stays at every larger one, too.
    """

    nested: ClassVar[bool]

    @abstractmethod
    def select(self, features: torch.Tensor, scores: torch.Tensor, keep: int) -> torch.Tensor:
        """Indices [keep] of the tokens that stay, ascending. features: [N, W] float32. scores: [N]. keep: 0 … N."""

    def flops(self, tokens: int, width: int, keep: int) -> int:
        """FLOPs of its matrix products for N tokens: by default of all cosines, 2 N^2 W."""
        return 2 * tokens * tokens * width


class SetScorer(Scorer):
    """A scorer whose choice is a selector's, among the tokens of each image (or of the prompt, by the plan's scope).

    selector: which. Its scores are what `score` gives, its features what `features` does.
    """

    @property
    @abstractmethod
    def selector(self) -> Selector: ...

    @abstractmethod
    def features(self, leaving: Leaving) -> torch.Tensor:
        """[I, W], one vector an image token."""

    def choose(self, leaving: Leaving) -> Choice:
        features, selector = self.features(leaving).float(), self.selector
        kept, flops = [], 0
        for group in groups_of(leaving):
            index = group.index
            kept.append(index[selector.select(features[index], leaving.scores[index], group.keep)])
            flops += selector.flops(len(index), features.shape[1], group.keep)
        return as_choice(leaving, kept, flops=flops)

    @property
    def nested(self) -> bool:
        return self.selector.nested
