"""GLM-4V and GLM-4.6V: M-RoPE, pictures of any size, one token for 2 x 2 patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import BatchFeature

from lmms_textweighted.errors import PlanError
from lmms_textweighted.families.image_tokens import TransformersSplice
from lmms_textweighted.families.pictured import Pictured, merged_pictures
from lmms_textweighted.families.processor_family import ProcessorFamily


class GlmSplice(TransformersSplice):
    """Refuses beam search over several pictures a prompt, where transformers 5.24 mixes up the beams' features."""

    def _divided(self, ids: torch.Tensor, image: torch.Tensor) -> list[tuple[int, ...]]:
        features = self.made
        if features is not None and len(features) > len(ids) > 1 and torch.equal(ids[0], ids[1]):
            first, second = features[0], features[1]
            # Repeated picture by picture, not row by row: a prompt's second picture is its first again.
            if first.shape == second.shape and torch.equal(first, second):
                raise PlanError(
                    "beam search over several pictures a prompt: transformers gives this model's beams each other's "
                    "pictures: use num_beams=1"
                )
        return super()._divided(ids, image)


class Glm4vFamily(ProcessorFamily):
    """`glm4v` (GLM-4.1V) and `glm46v` of transformers. The mixtures of experts (`glm4v_moe`) are not among them."""

    models: ClassVar[dict[str, str]] = {
        "glm4v": "Glm4vForConditionalGeneration",
        "glm46v": "Glm46VForConditionalGeneration",
    }
    max_new_tokens = 4096  # lmms-eval's `huggingface`

    @classmethod
    def splice(cls, model: Any) -> GlmSplice:
        return GlmSplice(model)

    def pictured(self, processor: Any, inputs: BatchFeature, sizes: Sequence[tuple[int, int]]) -> list[Pictured]:
        return merged_pictures(self.model.config.vision_config, inputs, sizes)
