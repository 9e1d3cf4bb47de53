"""LLaVAs with random weights in a stated geometry: only their language model is timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import BatchFeature, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

IMAGE_TOKENS, SYSTEM_TOKENS, TEXT_TOKENS = 576, 35, 64
VOCABULARY, IMAGE_TOKEN = 32064, 32000

GEOMETRIES: dict[str, dict[str, int]] = {
    # LLaVA-1.5-7B's decoder.
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    # TinyLlama's, at about a billion parameters, with as many key-value heads as query heads.
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
    # For trying the benchmarks themselves.
    "small": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4},
}


@dataclass
class Subject:
    """A model, and one batch of prompts with picture features already made: no vision tower runs."""

    model: Any
    features: torch.Tensor
    inputs: BatchFeature

    def prefill(self, **changes: Any) -> Any:
        """One forward over the prompts with an empty cache; the last position's logits only. changes: arguments."""
        # A new output each time: transformers takes it apart.
        made = BaseModelOutputWithPooling(pooler_output=list(self.features))
        arguments = {"use_cache": True, "logits_to_keep": 1, **changes}
        return self.model(**self.inputs, mm_encoder_outputs={"image": made}, **arguments)


def build(geometry: str, batch: int = 1, *, dtype: torch.dtype = torch.bfloat16, device: str | None = None) -> Subject:
    """A LLaVA of this geometry with small random weights, and `batch` random prompts of one picture each."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    text = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=4096, **GEOMETRIES[geometry])
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, image_size=336, patch_size=14
    )
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE_TOKEN, image_seq_length=IMAGE_TOKENS
    )
    config.text_config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlavaForConditionalGeneration(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)
    generator = torch.Generator().manual_seed(1)
    before = torch.randint(3, IMAGE_TOKEN, (batch, SYSTEM_TOKENS), generator=generator)
    after = torch.randint(3, IMAGE_TOKEN, (batch, TEXT_TOKENS), generator=generator)
    ids = torch.cat([before, torch.full((batch, IMAGE_TOKENS), IMAGE_TOKEN), after], dim=1)
    features = torch.randn(batch, IMAGE_TOKENS, text.hidden_size, generator=generator) * 0.02
    inputs = BatchFeature({"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)})
    return Subject(model, features.to(device, dtype), inputs)
