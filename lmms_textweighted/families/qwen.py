"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3-VL-MoE: M-RoPE, pictures of any size, one token for 2 x 2 patches.

Pictures are resized twice, as lmms-eval's own models do it: by `qwen-vl-utils` first, then (but for Qwen3-VL) by the
checkpoint's processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import BatchFeature

from lmms_textweighted.errors import InputError, first_line
from lmms_textweighted.families.pictured import Pictured, merged_pictures
from lmms_textweighted.families.processor_family import ProcessorFamily


class Qwen25VlFamily(ProcessorFamily):
    """lmms-eval's `qwen2_5_vl`, chat: no system prompt of its own; the limits act on the second resize."""

    models: ClassVar[dict[str, str]] = {"qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration"}
    limits: ClassVar[dict[str, int]] = {"min_pixels": 256 * 28 * 28, "max_pixels": 1605632}
    max_new_tokens = 128

    @classmethod
    def limit(cls, processor: Any, limits: dict[str, int]) -> None:
        size = {"shortest_edge": limits["min_pixels"], "longest_edge": limits["max_pixels"]}
        processor.image_processor.size = size

    def prepared(self, pictures: Sequence[Any]) -> list[Any]:
        return [self._resized(picture) for picture in pictures]

    def pictured(self, processor: Any, inputs: BatchFeature, sizes: Sequence[tuple[int, int]]) -> list[Pictured]:
        return merged_pictures(self.model.config.vision_config, inputs, sizes)

    def _resized(self, picture: Any, **limits: int) -> Any:
        from qwen_vl_utils import fetch_image  # torchvision comes with it

        patch = self.processor.image_processor.patch_size
        try:
            return fetch_image({"image": picture, **limits}, image_patch_size=patch)
        except (ValueError, AssertionError) as error:
            size = f"{picture.width} x {picture.height}"
            raise InputError(f"a picture of {size} pixels cannot be prepared: {first_line(error)}") from error


class Qwen2VlFamily(Qwen25VlFamily):
    """lmms-eval's `qwen2_vl`, which has a simple class only: the limits act on both resizes."""

    models: ClassVar[dict[str, str]] = {"qwen2_vl": "Qwen2VLForConditionalGeneration"}
    limits: ClassVar[dict[str, int]] = {"min_pixels": 3136, "max_pixels": 602112}
    system_prompt = "You are a helpful assistant."

    def prepared(self, pictures: Sequence[Any]) -> list[Any]:
        size = self.processor.image_processor.size
        limits = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
        return [self._resized(picture, **limits) for picture in pictures]


class Qwen3VlFamily(Qwen2VlFamily):
    """lmms-eval's `qwen3_vl`, chat: one resize, on which its own limits do not act; those of a user do."""

    models: ClassVar[dict[str, str]] = {
        "qwen3_vl": "Qwen3VLForConditionalGeneration",
        "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
    }
    limits: ClassVar[dict[str, int]] = {"min_pixels": 4 * 32 * 32, "max_pixels": 16384 * 32 * 32}

    def options(self, processor: Any) -> dict[str, Any]:
        return {"do_resize": False}
