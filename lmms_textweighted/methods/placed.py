"""Methods that remove at the embeddings, before the model."""

from __future__ import annotations

from dataclasses import dataclass

from lmms_textweighted.methods.base import OneStage


@dataclass(frozen=True)
class BeforeTheModel(OneStage):
    """A method that removes once, at the embeddings: a shorter prompt, numbered from 0, that was never longer."""

    layer: int | None = -1
    default_positions: str = "renumber"
