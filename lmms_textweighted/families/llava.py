"""Load a LLaVA in transformers' format."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionForConditionalGeneration,
    LlavaProcessor,
)

from lmms_textweighted.errors import CheckpointError, InputError, first_line
from lmms_textweighted.families.images import LlavaImageProcessor
from lmms_textweighted.families.loading import Loaded, LoadOptions, check_complete
from lmms_textweighted.families.weights import LOAD_ERRORS, notice_pickles

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
        raise CheckpointError(f"checkpoint {pretrained!r} cannot be loaded: {first_line(error)}") from error
    check_complete(pretrained, info["missing_keys"])
    processor.tokenizer.padding_side = "left"
    # A converted checkpoint remembers how its pictures were prepared; transformers has no place for that.
    ratio = options.image_aspect_ratio or config.get("image_aspect_ratio")
    return Loaded(options.place(model), with_aspect_ratio(processor, ratio) if ratio else processor)


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
