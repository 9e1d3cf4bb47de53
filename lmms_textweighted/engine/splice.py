"""What every kind of LLaVA must tell the engine: where its image features stand in the decoder's sequence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lmms_textweighted.engine.layout import Prompts


@dataclass(frozen=True)
class Tower:
    """A model's vision tower, as far as a plan may look at it.

    name: what errors call it. class_token: whether one stands in front of its patches. layers: its layers, each with
    its attention as `self_attn`; empty where it is not known how the image's tokens come of its patches. feature: the
    layer whose output is what the projector is given. project: [..., W] of these -> [..., E] embeddings.
    """

    name: str
    class_token: bool
    layers: Sequence[nn.Module] = ()
    feature: int = 0
    project: Callable[[torch.Tensor], torch.Tensor] = lambda vectors: vectors


class Splice(ABC):
    """Watches one model put image features between its text embeddings.

    tokens_per_image: the number of tokens of every image where that is fixed (LLaVA-1.5: 576), None where it depends
    on the picture (anyres grids). stated: for each row of the next prefill the number of tokens of each of its images,
    from whom knows; None where the splice has to find out by itself.
    """

    tokens_per_image: int | None
    stated: Sequence[Sequence[int]] | None = None

    @abstractmethod
    def attach(self, stack: ExitStack) -> None:
        """Start watching; `stack` ends it."""

    @abstractmethod
    def prompts(self, rows: int) -> Prompts | None:
        """The batch that now enters the decoder, `rows` long; None when it has no images and nothing is known of it.

        To be asked once, at the start of a prefill. Raises PlanError when images and tokens do not fit.
        """

    @abstractmethod
    def tower(self) -> Tower:
        """The model's vision tower."""

    @abstractmethod
    def check_step(self) -> None:
        """Raise PlanError when a step on top of a KV cache brings images."""


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """While open, `owner.name` is `value`; afterwards it is what it was."""
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


@contextmanager
def removed_at_end(handle: Any) -> Iterator[None]:
    """Takes a torch hook off again."""
    try:
        yield
    finally:
        handle.remove()
