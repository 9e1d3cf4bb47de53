"""What a kind of model must say of itself: everything in which kinds of models differ stands behind this interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from transformers import BatchFeature

from lmms_textweighted.engine.splice import Splice
from lmms_textweighted.errors import InputError
from lmms_textweighted.families.pictured import Pictured
from lmms_textweighted.families.written import Written
from lmms_textweighted.prompts import IMAGE_TAG

# Stands once for each picture in `Family.pieces`, whatever the model's own ids are (llava.constants.IMAGE_TOKEN_INDEX).
IMAGE_TAG_ID = -200

Pieces = tuple[list[int], list[tuple[int, int]]]


class Family(ABC):
    """A loaded model of one kind and its processor, whose tokenizer pads on the left.

    kinds: what errors call the models of this family. loader: what loaded it, as logs call it. placeholder: what a
    rendered prompt has once for each picture. max_new_tokens: of an answer where a task does not say it, as lmms-eval's
    own model of the kind has it.
    """

    kinds: ClassVar[tuple[str, ...]]
    loader: ClassVar[str]
    max_new_tokens: ClassVar[int] = 1024
    placeholder: ClassVar[str] = IMAGE_TAG

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self._others: dict[str, Any] = {}

    # Which models are this family's.

    @classmethod
    @abstractmethod
    def knows(cls, model: Any) -> bool:
        """Whether a model is of this kind."""

    @classmethod
    def prepares(cls, processor: Any) -> bool:
        """Whether a processor is one that this kind of model comes with."""
        return True

    @classmethod
    @abstractmethod
    def splice(cls, model: Any) -> Splice:
        """How the model is watched. Raises PlanError when it cannot be."""

    # What the model is like.

    @property
    def tokens_per_image(self) -> int | None:
        """The number of tokens of every image, where the checkpoint fixes it."""
        return self.splice(self.model).tokens_per_image

    @property
    def vocabulary(self) -> int | None:
        """The number of real tokens among the rows of its output; None where all of them are."""
        return None

    @property
    def shows_image_lengths(self) -> bool:
        """Whether the length of every image can be told before the model runs."""
        return True

    @abstractmethod
    def default_template(self) -> str:
        """The prompt template that the checkpoint was trained with, as far as its kind tells."""

    def check_template(self, name: str) -> None:
        """Raise InputError for a prompt template that cannot stand in front of this kind of model."""
        return None

    @property
    def default_system_prompt(self) -> str | None:
        """What stands in front of a conversation without a system message; None: only what the template writes."""
        return None

    # How its pictures are prepared.

    @property
    def image_aspect_ratio(self) -> str:
        """A name of LLaVA's, or `processor` for a checkpoint's own processor as it is."""
        return getattr(self.processor, "image_aspect_ratio", None) or "processor"

    @abstractmethod
    def with_aspect_ratio(self, name: str) -> Any:
        """A processor that prepares pictures in another way. Raises InputError where the model cannot take them."""

    @abstractmethod
    def takes(self, name: str) -> bool:
        """Whether the checkpoint was made for pictures that are prepared in this way."""

    def processor_for(self, name: str | None) -> Any:
        """The processor, or one for another preparation, made once. Raises InputError as `with_aspect_ratio` does."""
        if name is None or name == self.image_aspect_ratio:
            return self.processor
        if name not in self._others:
            self._others[name] = self.with_aspect_ratio(name)
        return self._others[name]

    def smaller_processor(self, processor: Any, tokens: int) -> Any:
        """A processor that prepares pictures as `processor` does, but so small that each gives `tokens` tokens.

        Raises InputError where the model cannot take them.
        """
        raise InputError(
            f"pictures cannot be downsampled for a {type(self.model).__name__}: only for a LLaVA-1.5 with a CLIP "
            f"tower, whose pictures have one size, run by transformers (loader=hf)"
        )

    def smaller_pictures(self, tokens: int) -> AbstractContextManager[None]:
        """While open, the model takes what such a processor prepares. Raises InputError likewise."""
        return nullcontext(self.smaller_processor(self.processor, tokens))

    def pictured(self, processor: Any, inputs: BatchFeature, sizes: Sequence[tuple[int, int]]) -> list[Pictured]:
        """Each picture of a batch as the tower is given it, and where its tokens lie, in the order of the prompts.

        processor, inputs: what prepared the batch, and what it made of it. sizes: (width, height) of the pictures that
        it was given. Raises InputError where that is not known.
        """
        raise InputError(f"where the image tokens of a {type(self.model).__name__} lie in the picture is not known")

    # How prompts become tokens.

    @abstractmethod
    def encode(
        self, processor: Any, prompts: Sequence[str], images: Sequence[Sequence[Any]], template: str
    ) -> BatchFeature:
        """Model inputs of a batch of prompts, padded on the left. images: of each prompt, in the order of its tags."""

    @abstractmethod
    def pieces(self, prompt: str, template: str, *, offsets: bool = False) -> Pieces:
        """A prompt's ids with IMAGE_TAG_ID once for each picture, and each id's range of characters, as `encode` has
        them. Raises InputError when ranges are asked of a tokenizer that does not know them."""

    def encode_written(
        self, processor: Any, prompts: Sequence[str], images: Sequence[Sequence[Any]], template: str
    ) -> tuple[BatchFeature, list[list[Written]] | None]:
        """`encode`, and for each prompt what its pictures became in it; None where the processor does not say so."""
        return self.encode(processor, prompts, images, template), None

    def picture_sizes(self, written: Sequence[Written]) -> tuple[int, ...]:
        """The number of image tokens of each of a prompt's pictures. written: as `encode_written` gives it."""
        raise NotImplementedError

    def expanded_pieces(self, prompt: str, template: str, written: Sequence[Written]) -> Pieces:
        """`pieces` with ranges of the prompt whose pictures became `written`: every image token is there."""
        return self.pieces(prompt, template, offsets=True)

    @abstractmethod
    def image_mask(self, ids: torch.Tensor) -> torch.Tensor:
        """Which tokens of one prompt are an image's, as the decoder will see them: bool [S']. ids: [S], unpadded.

        S' is S where the ids already have a place for every image token.
        """

    def new_tokens(self, output: torch.Tensor, prompt_length: int) -> torch.Tensor:
        """The generated tokens in what `generate` returns."""
        return output[:, prompt_length:]
