"""What models of transformers share: one id stands for every image token, and the processor writes the ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, BatchFeature

from lmms_textweighted.errors import CheckpointError, InputError, first_line
from lmms_textweighted.families.base import IMAGE_TAG_ID, Family, Pieces
from lmms_textweighted.families.image_tokens import TransformersSplice
from lmms_textweighted.families.loading import LoadOptions, check_complete
from lmms_textweighted.families.pieces import check_offsets
from lmms_textweighted.families.weights import LOAD_ERRORS, notice_pickles


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
        return self.call(processor, list(prompts), images, **special_tokens(processor, prompts[0]))

    def call(self, processor: Any, text: list[str], images: Sequence[Sequence[Any]], **options: Any) -> BatchFeature:
        """The processor's inputs of a batch."""
        # One list a prompt: OneVision cuts a prompt's only picture into a grid, but not several.
        given = [list(pictures) for pictures in images if pictures] or None
        return processor(text=text, images=given, padding=True, return_tensors="pt", **options)

    def pieces(self, prompt: str, template: str, *, offsets: bool = False) -> Pieces:
        tokenizer = self.processor.tokenizer
        if offsets:
            check_offsets(tokenizer)
        encoded = tokenizer(prompt, return_offsets_mapping=offsets, **special_tokens(self.processor, prompt))
        image = tokenizer.convert_tokens_to_ids(self.placeholder)
        ids = [IMAGE_TAG_ID if i == image else i for i in encoded["input_ids"]]
        return ids, list(encoded["offset_mapping"]) if offsets else [(0, 0)] * len(ids)

    def image_mask(self, ids: torch.Tensor) -> torch.Tensor:
        return ids == self.model.config.image_token_id


def special_tokens(processor: Any, prompt: str) -> dict[str, bool]:
    """A chat template may write the begin token itself; then the tokenizer must not add another."""
    begin = processor.tokenizer.bos_token
    return {"add_special_tokens": False} if begin and prompt.startswith(begin) else {}


def load_transformers(model_class: Any, pretrained: str, folder: str, options: LoadOptions) -> tuple[Any, Any]:
    """A checkpoint's model, not yet placed, and its processor. Raises CheckpointError when it cannot be loaded."""
    arguments = options.model_arguments()
    if Path(folder).is_dir():
        notice_pickles(Path(folder))
    try:
        model, info = model_class.from_pretrained(
            folder, revision=options.revision, output_loading_info=True, **arguments
        )
        processor = AutoProcessor.from_pretrained(folder, revision=options.revision)
    except LOAD_ERRORS as error:
        raise CheckpointError(f"checkpoint {pretrained!r} cannot be loaded: {first_line(error)}") from error
    check_complete(pretrained, info["missing_keys"])
    processor.tokenizer.padding_side = "left"
    return model, processor
