"""CLIP's text tower, as far as a plan may ask it: a prompt's text and a picture's patches in the space that compares
them. Who loads it, and from where, is not known here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from lmms_textweighted.errors import PlanError


@dataclass(frozen=True)
class TextReads:
    """How a prompt's text is made ready. without: strings that are taken out of it wherever they stand.

    segments: a text longer than the tower's context is cut into pieces of that length, each with an embedding of its
    own; else what is behind the context is left out.
    """

    without: tuple[str, ...] = ()
    segments: bool = False


class TextTower(ABC):
    """name: where it is from, for errors and results. fingerprint: what tells it from another one of that name."""

    name: str

    @property
    @abstractmethod
    def fingerprint(self) -> str: ...

    @abstractmethod
    def texts(self, text: str, reads: TextReads) -> torch.Tensor:
        """[M, P] float32, not normalised: a text's embeddings, one of each segment."""

    @abstractmethod
    def patches(self, vectors: torch.Tensor) -> torch.Tensor:
        """[…, W] features in front of a model's projector -> [..., P] float32, not normalised."""


def no_text_tower(plan_name: str) -> PlanError:
    """What is raised where a plan reads the text and nobody said with what."""
    return PlanError(
        f"{plan_name} compares patches with the question as CLIP does, for which a LLaVA has no weights: give "
        f"text_tower, a folder or hub name of the CLIP that its vision tower is of (of LLaVA-1.5 "
        f"openai/clip-vit-large-patch14-336)"
    )
