"""Load a LLaVA in transformers' format."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import (
    AutoProcessor,
    BatchFeature,
    CLIPImageProcessor,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionForConditionalGeneration,
    LlavaProcessor,
)

from lmms_textweighted.errors import CheckpointError, InputError, first_line
from lmms_textweighted.families.base import IMAGE_TAG_ID, Pieces
from lmms_textweighted.families.images import LlavaImageProcessor
from lmms_textweighted.families.liuhaotian.checkpoint import VOCABULARY_KEY, trained_template
from lmms_textweighted.families.loading import Loaded, LoadOptions, check_complete
from lmms_textweighted.families.pieces import check_offsets, llava_pieces, padded
from lmms_textweighted.families.transformers_family import TransformersFamily
from lmms_textweighted.families.weights import LOAD_ERRORS, notice_pickles
from lmms_textweighted.prompts import DEFAULT_TEMPLATE, IMAGE_TAG

# model_type -> class: LLaVA-1.5, LLaVA-NeXT (1.6), LLaVA-OneVision.
MODELS: dict[str, Any] = {
    "llava": LlavaForConditionalGeneration,
    "llava_next": LlavaNextForConditionalGeneration,
    "llava_onevision": LlavaOnevisionForConditionalGeneration,
}


def load(pretrained: str, folder: str, config: dict[str, Any], options: LoadOptions) -> Loaded:
    """Load a checkpoint by transformers. Raises CheckpointError when it is none of MODELS or cannot be loaded."""
    model_type = config.get("model_type")
    if model_type not in MODELS:
        raise CheckpointError(
            f"checkpoint {pretrained!r} is no LLaVA in transformers' format: its model_type is {model_type!r}, "
            f"needed is one of {', '.join(MODELS)}"
        )
    arguments = options.model_arguments()
    if Path(folder).is_dir():
        notice_pickles(Path(folder))
    try:
        model, info = MODELS[model_type].from_pretrained(
            folder, revision=options.revision, output_loading_info=True, **arguments
        )
        processor = AutoProcessor.from_pretrained(folder, revision=options.revision)
    except LOAD_ERRORS as error:
        raise CheckpointError(
            f"checkpoint {pretrained!r} cannot be loaded ({first_line(error)}): is the download whole?"
        ) from error
    check_complete(pretrained, info["missing_keys"])
    processor.tokenizer.padding_side = "left"
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


def plain_image_processor(image_processor: Any) -> Any:
    """CLIP's preparation of one square tile, with this processor's numbers."""
    if isinstance(image_processor, LlavaImageProcessor):
        return image_processor.image_processor
    if type(image_processor).__name__.startswith("CLIP"):
        return image_processor
    names = (
        "size",
        "crop_size",
        "image_mean",
        "image_std",
        "resample",
        "rescale_factor",
        "do_center_crop",
        "do_resize",
    )
    return CLIPImageProcessor(**{name: getattr(image_processor, name) for name in names})
