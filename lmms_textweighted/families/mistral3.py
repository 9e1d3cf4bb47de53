"""Mistral 3, with Pixtral's tower: a break or end token behind every row of a picture, which is text and stays."""

from __future__ import annotations

from typing import ClassVar

from lmms_textweighted.families.processor_family import ProcessorFamily


class Mistral3Family(ProcessorFamily):
    """`mistral3` of transformers, one feature list a picture."""

    models: ClassVar[dict[str, str]] = {"mistral3": "Mistral3ForConditionalGeneration"}
    max_new_tokens = 4096  # lmms-eval's `huggingface`

    @property
    def shows_image_lengths(self) -> bool:
        return False  # breaks stand between a picture's tokens
