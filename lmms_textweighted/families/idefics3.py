"""Idefics3 and SmolVLM: a picture is its tiles, each behind a tag of its own, and then the whole of it."""

from __future__ import annotations

from typing import Any, ClassVar

from lmms_textweighted.families.image_tokens import TiledSplice
from lmms_textweighted.families.processor_family import ProcessorFamily


class Idefics3Family(ProcessorFamily):
    """Features come a prompt; a picture ends with its whole view. Row and column tags are text, and stay.

    SmolVLM's processor needs the package `num2words`.
    """

    models: ClassVar[dict[str, str]] = {
        "idefics3": "Idefics3ForConditionalGeneration",
        "smolvlm": "SmolVLMForConditionalGeneration",
    }
    max_new_tokens = 4096  # lmms-eval's `huggingface`

    @classmethod
    def splice(cls, model: Any) -> TiledSplice:
        return TiledSplice(model)

    def options(self, processor: Any) -> dict[str, Any]:
        return {"return_tensors": None}  # Idefics3's would make tensors of what it wrote, too, and fail

    @property
    def shows_image_lengths(self) -> bool:
        return False  # tags stand between a picture's tokens
