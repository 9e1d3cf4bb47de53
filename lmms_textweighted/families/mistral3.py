"""Mistral 3, with Pixtral's tower: a break or end token behind every row of a picture, which is text and stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import BatchFeature

from lmms_textweighted.families.pictured import Pictured, resized
from lmms_textweighted.families.processor_family import ProcessorFamily


class Mistral3Family(ProcessorFamily):
    """`mistral3` of transformers, one feature list a picture."""

    models: ClassVar[dict[str, str]] = {"mistral3": "Mistral3ForConditionalGeneration"}
    max_new_tokens = 4096  # lmms-eval's `huggingface`

    def pictured(self, processor: Any, inputs: BatchFeature, sizes: Sequence[tuple[int, int]]) -> list[Pictured]:
        config = self.model.config
        cell = config.vision_config.patch_size * config.spatial_merge_size
        made = zip(sizes, inputs["pixel_values"], inputs["image_sizes"].tolist(), strict=True) if sizes else ()
        return [resized(size, pixels[:, :tall, :wide], cell) for size, pixels, (tall, wide) in made]

    @property
    def shows_image_lengths(self) -> bool:
        return False  # breaks stand between a picture's tokens
