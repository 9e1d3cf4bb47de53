"""InternVL3 and 3.5 in transformers' format: a picture is several tiles and their thumbnail, in one run of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import BatchFeature
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from lmms_textweighted.families.image_tokens import RunSplice, runs
from lmms_textweighted.families.pictured import Pictured, tiled
from lmms_textweighted.families.processor_family import ProcessorFamily


class InternVlFamily(ProcessorFamily):
    """lmms-eval's `internvl_hf`: 1 to 12 tiles a picture. The model makes features a tile; a picture is its run."""

    models: ClassVar[dict[str, str]] = {"internvl": "InternVLForConditionalGeneration"}
    limits: ClassVar[dict[str, int]] = {"min_patches": 1, "max_patches": 12}

    @classmethod
    def splice(cls, model: Any) -> RunSplice:
        return RunSplice(model)

    def pictured(self, processor: Any, inputs: BatchFeature, sizes: Sequence[tuple[int, int]]) -> list[Pictured]:
        if not sizes:
            return []
        config, images = self.model.config, processor.image_processor
        image = (inputs["input_ids"] == config.image_token_id) & inputs["attention_mask"].bool()
        side = math.isqrt(config.image_seq_length)
        counts = [length // side**2 for row in image for _, length in runs(row)]
        limits = (images.min_patches, images.max_patches)
        made, tiles = [], inputs["pixel_values"]
        for size, count in zip(sizes, counts, strict=True):
            columns, rows = 1, 1
            if count > 1:
                tile = (images.size["height"], images.size["width"])
                columns, rows = get_optimal_tiled_canvas((size[1], size[0]), tile, *limits)
            made.append(tiled(size, tiles[:count], rows, columns, side))
            tiles = tiles[count:]
        return made

    def options(self, processor: Any) -> dict[str, Any]:
        return {"return_tensors": None}  # the processor would make tensors of what it wrote, too, and fail

    @classmethod
    def limit(cls, processor: Any, limits: dict[str, int]) -> None:
        images = processor.image_processor
        images.min_patches, images.max_patches = limits["min_patches"], limits["max_patches"]
