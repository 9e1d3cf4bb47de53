"""Small random LLaVAs and their inputs, shared by the tests of the engine.

`small_llava` is a fixture; `build_llava`, `make_inputs`, `one_row` and `IMAGE` can also be imported from here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from transformers import (
    BatchFeature,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
)

IMAGE = "image"
VOCABULARY = 64
IMAGE_TOKEN = VOCABULARY - 1
WEIGHT_STD = 0.25

Prompt = Sequence[int | str]


def build_llava(
    layers: int = 6,
    heads: int = 4,
    kv_heads: int = 2,
    hidden: int = 32,
    image_size: int = 56,
    patch: int = 14,
    attn: str = "sdpa",
    seed: int = 0,
    decoder: type[PreTrainedConfig] = LlamaConfig,
) -> LlavaForConditionalGeneration:
    """A new LLaVA with random float32 weights, large enough that its attention is far from uniform."""
    tokens = (image_size // patch) ** 2
    config = LlavaConfig(
        text_config=decoder(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=1024,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=image_size,
            patch_size=patch,
        ),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=tokens,
        attn_implementation=attn,
    )
    model = LlavaForConditionalGeneration(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * WEIGHT_STD)
    # The image token is never the answer: its logit is 0, far below the largest of the others.
    model.lm_head.weight[IMAGE_TOKEN] = 0
    model.generation_config.update(do_sample=False, pad_token_id=0, eos_token_id=None, bos_token_id=None)
    return model


def make_inputs(
    model: LlavaForConditionalGeneration, prompts: Sequence[Prompt], seed: int = 0, *, pad_to: int = 0
) -> BatchFeature:
    """A left-padded batch of random prompts, at least `pad_to` long.

    A prompt lists its parts: a number of random text tokens, or IMAGE. (3, IMAGE, 5) is three text tokens, one random
    picture and five text tokens. A row's content depends on its place in the batch and the seed, not on its neighbours.
    """
    side = model.config.vision_config.image_size
    rows, pictures = [], []
    for place, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(1000 * seed + place)
        ids: list[int] = []
        for part in prompt:
            if part == IMAGE:
                ids += [IMAGE_TOKEN] * model.config.image_seq_length
                pictures.append(torch.randn(3, side, side, generator=generator))
            else:
                ids += torch.randint(1, IMAGE_TOKEN, (int(part),), generator=generator).tolist()
        rows.append(ids)
    longest = max(pad_to, *map(len, rows))
    data = {
        "input_ids": torch.tensor([[0] * (longest - len(ids)) + ids for ids in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows]),
    }
    if pictures:
        data["pixel_values"] = torch.stack(pictures)
    return BatchFeature(data)


def one_row(model: LlavaForConditionalGeneration, inputs: BatchFeature, row: int) -> BatchFeature:
    """Row `row` of a batch as an unpadded batch of its own."""
    size = model.config.image_seq_length
    images = [int((ids == IMAGE_TOKEN).sum()) // size for ids in inputs["input_ids"]]
    valid = inputs["attention_mask"][row].bool()
    data = {
        "input_ids": inputs["input_ids"][row][valid][None],
        "attention_mask": inputs["attention_mask"][row][valid][None],
    }
    if images[row]:
        start = sum(images[:row])
        data["pixel_values"] = inputs["pixel_values"][start : start + images[row]]
    return BatchFeature(data)


@pytest.fixture(scope="session")
def small_llava() -> Callable[..., LlavaForConditionalGeneration]:
    """`small_llava(layers=…, heads=…, …)`: see `build_llava`. The same arguments give the same, shared model."""
    return cache(build_llava)
