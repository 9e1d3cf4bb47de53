"""What models of transformers share: one id stands for every image token, and the processor writes the ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature

from lmms_textweighted.errors import InputError
from lmms_textweighted.families.base import IMAGE_TAG_ID, Family, Pieces
from lmms_textweighted.families.image_tokens import TransformersSplice
from lmms_textweighted.families.pieces import check_offsets


class TransformersFamily(Family):
    """A model of transformers with a processor of its own."""

    loader = "transformers"

    @classmethod
    def splice(cls, model: Any) -> TransformersSplice:
        return TransformersSplice(model)

    def default_template(self) -> str:
        return "hf"

    def with_aspect_ratio(self, name: str) -> Any:
        raise InputError(f"image_aspect_ratio is {name!r}, but this checkpoint takes its own preparation only")

    def takes(self, name: str) -> bool:
        try:
            self.processor_for(name)
        except InputError:
            return False
        return True

    def encode(
        self, processor: Any, prompts: Sequence[str], images: Sequence[Sequence[Any]], template: str
    ) -> BatchFeature:
        special = {"add_special_tokens": False} if _writes_begin(processor, prompts[0]) else {}
        return self.call(processor, list(prompts), images, **special)

    def call(self, processor: Any, text: list[str], images: Sequence[Sequence[Any]], **options: Any) -> BatchFeature:
        """The processor's inputs of a batch."""
        # One list a prompt: OneVision cuts a prompt's only picture into a grid, but not several.
        given = [list(pictures) for pictures in images if pictures] or None
        return processor(text=text, images=given, padding=True, return_tensors="pt", **options)

    def pieces(self, prompt: str, template: str, *, offsets: bool = False) -> Pieces:
        tokenizer = self.processor.tokenizer
        if offsets:
            check_offsets(tokenizer)
        special = not _writes_begin(self.processor, prompt)
        encoded = tokenizer(prompt, return_offsets_mapping=offsets, add_special_tokens=special)
        image = tokenizer.convert_tokens_to_ids(self.placeholder)
        ids = [IMAGE_TAG_ID if i == image else i for i in encoded["input_ids"]]
        return ids, list(encoded["offset_mapping"]) if offsets else [(0, 0)] * len(ids)

    def image_mask(self, ids: torch.Tensor) -> torch.Tensor:
        return ids == self.model.config.image_token_id


def _writes_begin(processor: Any, prompt: str) -> bool:
    """A chat template may write the begin token itself; then the tokenizer must not add another."""
    begin = processor.tokenizer.bos_token
    return bool(begin) and prompt.startswith(begin)
