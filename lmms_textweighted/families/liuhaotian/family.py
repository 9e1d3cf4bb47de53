"""Models in liuhaotian format: run by the original `llava` package, or converted to transformers' in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature

from lmms_textweighted.errors import InputError
from lmms_textweighted.families.base import IMAGE_TAG_ID, Family, Pieces
from lmms_textweighted.families.liuhaotian.checkpoint import trained_template
from lmms_textweighted.families.liuhaotian.processing import LiuhaotianProcessor, PlaceholderProcessor, TagProcessor
from lmms_textweighted.families.liuhaotian.splice import LlavaSplice, is_llava_package_model
from lmms_textweighted.families.llava import LlavaFamily
from lmms_textweighted.families.llava_pictures import package_pictures
from lmms_textweighted.families.pictured import Pictured
from lmms_textweighted.families.pieces import check_offsets, llava_pieces


class LiuhaotianFamily(Family):
    """What both share: LLaVA's prompts, cut at their tags in every template, and its pictures."""

    processor: LiuhaotianProcessor

    def default_template(self) -> str:
        return trained_template(self.model, self.processor)

    def with_aspect_ratio(self, name: str) -> LiuhaotianProcessor:
        return self.processor.with_aspect_ratio(name)

    def takes(self, name: str) -> bool:
        """A grid's preparation for anyres alone, others for everything else. (The llava package's models could be given
        both.)"""
        try:
            other = self.processor_for(name)
        except InputError:
            return False
        return ("anyres" in self.image_aspect_ratio) == ("anyres" in other.image_aspect_ratio)

    def encode(
        self, processor: Any, prompts: Sequence[str], images: Sequence[Sequence[Any]], template: str
    ) -> BatchFeature:
        return processor(images=[list(pictures) for pictures in images if pictures] or None, text=list(prompts))

    def pieces(self, prompt: str, template: str, *, offsets: bool = False) -> Pieces:
        if offsets:
            check_offsets(self.processor.tokenizer)
        return llava_pieces(self.processor.tokenizer, prompt, offsets=offsets)


class PackageFamily(LiuhaotianFamily):
    """A model of the `llava` package: one tag of -200 is a picture, and becomes its tokens inside the model."""

    kinds = ("the llava package's",)
    loader = "llava"

    @classmethod
    def knows(cls, model: Any) -> bool:
        return is_llava_package_model(model)

    @classmethod
    def prepares(cls, processor: Any) -> bool:
        return isinstance(processor, TagProcessor)

    @classmethod
    def splice(cls, model: Any) -> LlavaSplice:
        return LlavaSplice(model)

    @property
    def shows_image_lengths(self) -> bool:
        return self.tokens_per_image is not None

    def pictured(self, processor: Any, inputs: BatchFeature, sizes: Sequence[tuple[int, int]]) -> list[Pictured]:
        side = self.model.get_vision_tower().num_patches_per_side
        return package_pictures(self.model.config, side, processor, inputs, sizes) if sizes else []

    def image_mask(self, ids: torch.Tensor) -> torch.Tensor:
        tags = ids == IMAGE_TAG_ID
        return tags.repeat_interleave(torch.where(tags, self.tokens_per_image or 1, 1))

    def new_tokens(self, output: torch.Tensor, prompt_length: int) -> torch.Tensor:
        """All of them: the package splices before it generates, so that only new tokens come back."""
        return output


class ConvertedFamily(LiuhaotianFamily, LlavaFamily):
    """A checkpoint that became transformers' LLaVA or LLaVA-NeXT in memory."""

    loader = "in memory"

    @classmethod
    def prepares(cls, processor: Any) -> bool:
        return isinstance(processor, PlaceholderProcessor)
