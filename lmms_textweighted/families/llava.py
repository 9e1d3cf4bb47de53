"""Load a LLaVA in transformers' format."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from typing import Any

from transformers import (
    BatchFeature,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionForConditionalGeneration,
    LlavaProcessor,
)

from lmms_textweighted.errors import InputError
from lmms_textweighted.families.base import IMAGE_TAG_ID, Pieces
from lmms_textweighted.families.downsample import smaller_pictures, smaller_processor
from lmms_textweighted.families.images import LlavaImageProcessor, plain_image_processor
from lmms_textweighted.families.liuhaotian.checkpoint import VOCABULARY_KEY, trained_template
from lmms_textweighted.families.llava_pictures import llava_pictures
from lmms_textweighted.families.loading import Loaded, LoadOptions
from lmms_textweighted.families.pictured import Pictured
from lmms_textweighted.families.pieces import check_offsets, llava_pieces, padded
from lmms_textweighted.families.transformers_family import TransformersFamily, load_transformers
from lmms_textweighted.prompts import DEFAULT_TEMPLATE, IMAGE_TAG

# model_type -> class: LLaVA-1.5, LLaVA-NeXT (1.6), LLaVA-OneVision.
MODELS: dict[str, Any] = {
    "llava": LlavaForConditionalGeneration,
    "llava_next": LlavaNextForConditionalGeneration,
    "llava_onevision": LlavaOnevisionForConditionalGeneration,
}


def load(pretrained: str, folder: str, config: dict[str, Any], options: LoadOptions) -> Loaded:
    """Load a checkpoint by transformers, of one of MODELS. Raises CheckpointError when it cannot be loaded."""
    model, processor = load_transformers(MODELS[config["model_type"]], pretrained, folder, options)
    # A converted checkpoint remembers how its pictures were prepared; transformers has no place for that.
    ratio = options.image_aspect_ratio or config.get("image_aspect_ratio")
    return Loaded(options.place(model), with_aspect_ratio(processor, ratio) if ratio else processor)


class LlavaFamily(TransformersFamily):
    """LLaVA-1.5, LLaVA-NeXT (1.6) and LLaVA-OneVision of transformers."""

    kinds = tuple(MODELS)

    @classmethod
    def knows(cls, model: Any) -> bool:
        return hasattr(model, "config") and getattr(model.config, "model_type", None) in MODELS

    @property
    def vocabulary(self) -> int | None:
        """Without the row that a conversion gave to the image token."""
        return getattr(self.model.config, VOCABULARY_KEY, None)

    def default_template(self) -> str:
        """As in liuhaotian format for what was converted from it, vicuna_v1 for a LLaVA-1.5, and the checkpoint's chat
        template for later ones."""
        if self.vocabulary is not None:
            return trained_template(self.model, self.processor)
        later = self.model.config.model_type in ("llava_next", "llava_onevision")
        return "hf" if later and getattr(self.processor, "chat_template", None) else DEFAULT_TEMPLATE

    def with_aspect_ratio(self, name: str) -> Any:
        return with_aspect_ratio(self.processor, name)

    def smaller_processor(self, processor: Any, tokens: int) -> Any:
        return smaller_processor(self.model, processor, tokens)

    def smaller_pictures(self, tokens: int) -> AbstractContextManager[None]:
        return smaller_pictures(self.model, tokens)

    def pictured(self, processor: Any, inputs: BatchFeature, sizes: Sequence[tuple[int, int]]) -> list[Pictured]:
        return llava_pictures(self.model.config, processor, inputs, sizes) if sizes else []

    def encode(
        self, processor: Any, prompts: Sequence[str], images: Sequence[Sequence[Any]], template: str
    ) -> BatchFeature:
        """Prompts of LLaVA's own templates are cut at their tags, those of a checkpoint's own are not.

        It makes a difference for sentencepiece tokenizers, which begin every piece with a space.
        """
        if template == "hf":
            return super().encode(processor, prompts, images, template)
        # The processor says how many tokens each picture becomes; the text between them is tokenized as LLaVA does.
        inputs = self.call(processor, ["|".join([IMAGE_TAG] * len(pictures)) or "|" for pictures in images], images)
        token = processor.tokenizer.convert_tokens_to_ids(IMAGE_TAG)
        rows = []
        for prompt, skeleton in zip(prompts, inputs["input_ids"].tolist(), strict=True):
            runs = iter([len(list(group)) for is_image, group in groupby(skeleton, lambda i: i == token) if is_image])
            ids, _ = llava_pieces(processor.tokenizer, prompt)
            rows.append([i for piece in ids for i in ([token] * next(runs) if piece == IMAGE_TAG_ID else [piece])])
        return BatchFeature({**inputs, **padded(rows, processor.tokenizer)})

    def pieces(self, prompt: str, template: str, *, offsets: bool = False) -> Pieces:
        if template == "hf":
            return super().pieces(prompt, template, offsets=offsets)
        if offsets:
            check_offsets(self.processor.tokenizer)
        return llava_pieces(self.processor.tokenizer, prompt, offsets=offsets)


def with_aspect_ratio(processor: Any, aspect_ratio: str) -> Any:
    """A copy of the processor that prepares pictures as LLaVA does under this name.

    Raises InputError where the model cannot take such pictures.
    """
    if isinstance(processor, LlavaProcessor) and "anyres" not in aspect_ratio:
        image_processor = LlavaImageProcessor(plain_image_processor(processor.image_processor), aspect_ratio, None)
    elif isinstance(processor, LlavaNextProcessor) and "anyres" in aspect_ratio:
        pinpoints = [[width, height] for height, width in processor.image_processor.image_grid_pinpoints]
        image_processor = LlavaImageProcessor(plain_image_processor(processor.image_processor), aspect_ratio, pinpoints)
    else:
        takes = "pad or square" if isinstance(processor, LlavaProcessor) else "anyres"
        takes = "its own preparation only: leave it out" if "Onevision" in type(processor).__name__ else takes
        raise InputError(f"image_aspect_ratio is {aspect_ratio!r}, but this checkpoint takes {takes}")
    changed = copy.copy(processor)
    changed.image_processor = image_processor
    changed.image_aspect_ratio = aspect_ratio
    return changed
