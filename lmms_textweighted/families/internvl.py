"""InternVL3 and 3.5 in transformers' format: a picture is several tiles and their thumbnail, in one run of tokens."""

from __future__ import annotations

from typing import Any, ClassVar

from lmms_textweighted.families.image_tokens import RunSplice
from lmms_textweighted.families.processor_family import ProcessorFamily


class InternVlFamily(ProcessorFamily):
    """lmms-eval's `internvl_hf`: 1 to 12 tiles a picture. The model makes features a tile; a picture is its run."""

    models: ClassVar[dict[str, str]] = {"internvl": "InternVLForConditionalGeneration"}
    limits: ClassVar[dict[str, int]] = {"min_patches": 1, "max_patches": 12}

    @classmethod
    def splice(cls, model: Any) -> RunSplice:
        return RunSplice(model)

    def options(self, processor: Any) -> dict[str, Any]:
        return {"return_tensors": None}  # the processor would make tensors of what it wrote, too, and fail

    @classmethod
    def limit(cls, processor: Any, limits: dict[str, int]) -> None:
        images = processor.image_processor
        images.min_patches, images.max_patches = limits["min_patches"], limits["max_patches"]
