"""Tiny random models of every listed kind beyond LLaVA's, and inputs for them that no processor has made.

`MODELS` has one entry for each. A prompt lists its parts: a number of text tokens, or a picture in the kind's own
words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from transformers import AutoConfig, BatchFeature

VOCABULARY = 160
PAD, IMAGE_ID, VIDEO_ID, START, END, BREAK, TILE_TAG, WHOLE_TAG = 0, 150, 151, 152, 153, 154, 155, 156
SPECIAL = (PAD, *range(IMAGE_ID, WHOLE_TAG + 1))  # never an answer
LAYERS, WIDTH = 6, 64

Prompt = Sequence[Any]


@dataclass(frozen=True)
class Picture:
    """What one picture is to a model: its ids, its features, and the positions of its image tokens among the ids."""

    ids: list[int]
    pixels: torch.Tensor
    more: dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """build: a new model. picture: (its description, generator) -> Picture. join: pictures, row by row -> inputs.
    pictures: a few descriptions. sizes: the number of image tokens of each of them."""

    build: Callable[[], Any]
    picture: Callable[[Any, torch.Generator], Picture]
    join: Callable[[list[list[Picture]]], dict[str, Any]]
    pictures: tuple[Any, ...]
    sizes: tuple[int, ...]
    mrope: bool = False


def _text(model_type: str | None = None, **more: Any) -> dict[str, Any]:
    named = {} if model_type is None else {"model_type": model_type}
    return {
        **named,
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": None,
        **more,
    }


def filled(config: Any, name: str, seed: int = 0, never: Sequence[int] = SPECIAL) -> Any:
    """A model of transformers with weights large enough that its attention is far from uniform."""
    model = getattr(transformers, name)(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for key, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            value.copy_(noise if "embed_tokens" in key else noise * 1.4 / value[0].numel() ** 0.5)
        else:
            value.copy_(1 + noise / 10 if "norm" in key and key.endswith("weight") else noise / 20)
    with torch.no_grad():
        model.get_output_embeddings().weight[list(never)] = 0  # far below the largest of the others
    model.generation_config.update(do_sample=False, pad_token_id=PAD, eos_token_id=None, bos_token_id=None)
    return model


def _ids() -> dict[str, int]:
    return {
        "image_token_id": IMAGE_ID,
        "video_token_id": VIDEO_ID,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }


# Qwen-VL and GLM-V: a picture is (rows, columns) of tokens, each of 2 x 2 patches.

_QWEN_VISION = {
    "hidden_size": 32,
    "out_hidden_size": WIDTH,
    "num_heads": 2,
    "intermediate_size": 48,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}


def _rope(section: list[int], **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": section, **more}}


def _qwen2() -> Any:
    vision = {**_QWEN_VISION, "depth": 2, "embed_dim": 32, "hidden_size": WIDTH, "mlp_ratio": 2}
    del vision["out_hidden_size"], vision["intermediate_size"]
    text = _text(**_rope([2, 3, 3]))
    return filled(
        AutoConfig.for_model("qwen2_vl", text_config=text, vision_config=vision, **_ids()),
        "Qwen2VLForConditionalGeneration",
    )


def _qwen25() -> Any:
    vision = {**_QWEN_VISION, "depth": 2, "window_size": 16, "fullatt_block_indexes": [1]}
    text = _text(**_rope([2, 3, 3]))
    return filled(
        AutoConfig.for_model("qwen2_5_vl", text_config=text, vision_config=vision, **_ids()),
        "Qwen2_5_VLForConditionalGeneration",
    )


def _qwen3(kind: str = "qwen3_vl", name: str = "Qwen3VLForConditionalGeneration", **more: Any) -> Any:
    vision = {**_QWEN_VISION, "depth": 4, "deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 64}
    text = _text(head_dim=16, **_rope([4, 2, 2], mrope_interleaved=True), **more)
    config = AutoConfig.for_model(kind, text_config=text, vision_config=vision, tie_word_embeddings=False, **_ids())
    return filled(config, name)


def _qwen3_moe() -> Any:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [1]}
    return _qwen3("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", **experts)


def _glm(kind: str, name: str) -> Any:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": WIDTH,
        "num_heads": 2,
        "intermediate_size": 48,
        "patch_size": 4,
        "image_size": 64,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "in_channels": 3,
    }
    text = _text(**_rope([2, 3, 3], partial_rotary_factor=0.5))
    text["rope_parameters"]["mrope_section"] = [2, 1, 1]
    ids = {
        "image_token_id": IMAGE_ID,
        "video_token_id": VIDEO_ID,
        "image_start_token_id": START,
        "image_end_token_id": END,
        "video_start_token_id": BREAK,
        "video_end_token_id": TILE_TAG,
    }
    return filled(AutoConfig.for_model(kind, text_config=text, vision_config=vision, **ids), name)


def _grid_picture(size: tuple[int, int], generator: torch.Generator) -> Picture:
    rows, columns = size
    pixels = torch.randn(4 * rows * columns, 3 * 2 * 4 * 4, generator=generator)
    return Picture([START, *[IMAGE_ID] * (rows * columns), END], pixels, {"grid": [1, 2 * rows, 2 * columns]})


def _grid_join(rows: list[list[Picture]]) -> dict[str, Any]:
    pictures = [picture for row in rows for picture in row]
    return {
        "pixel_values": torch.cat([picture.pixels for picture in pictures]),
        "image_grid_thw": torch.tensor([picture.more["grid"] for picture in pictures]),
    }


# InternVL: a picture is a number of tiles of 16 tokens.


def _internvl() -> Any:
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "image_size": [16, 16],
        "patch_size": [2, 2],
    }
    config = AutoConfig.for_model(
        "internvl",
        text_config=_text("qwen3", head_dim=16),
        vision_config=vision,
        image_token_id=IMAGE_ID,
        image_seq_length=16,
        downsample_ratio=0.5,
    )
    return filled(config, "InternVLForConditionalGeneration")


def _tiles_picture(tiles: int, generator: torch.Generator) -> Picture:
    pixels = torch.randn(tiles, 3, 16, 16, generator=generator)
    return Picture([START, *[IMAGE_ID] * (16 * tiles), END], pixels, {})


def _tiles_join(rows: list[list[Picture]]) -> dict[str, Any]:
    return {"pixel_values": torch.cat([picture.pixels for row in rows for picture in row])}


# Idefics3 and SmolVLM: a picture is (rows, columns) of tiles behind tags of their own, and the whole of it.


def _idefics(kind: str, name: str) -> Any:
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "image_size": 16,
        "patch_size": 2,
    }
    config = AutoConfig.for_model(
        kind,
        text_config=_text("llama"),
        vision_config=vision,
        image_token_id=IMAGE_ID,
        scale_factor=2,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    return filled(config, name)


def _tagged_picture(grid: tuple[int, int], generator: torch.Generator) -> Picture:
    rows, columns = grid
    ids = []
    for _ in range(rows):
        ids += [START, TILE_TAG, *[IMAGE_ID] * 16] * columns + [BREAK]
    ids += [START, WHOLE_TAG, *[IMAGE_ID] * 16, START]
    return Picture(ids, torch.randn(rows * columns + 1, 3, 16, 16, generator=generator), {})


def _tagged_join(rows: list[list[Picture]]) -> dict[str, Any]:
    most = max(sum(len(picture.pixels) for picture in row) for row in rows)
    pixels, there = torch.zeros(len(rows), most, 3, 16, 16), torch.zeros(len(rows), most, 16, 16, dtype=torch.bool)
    for place, row in enumerate(rows):
        if row:
            tiles = torch.cat([picture.pixels for picture in row])
            pixels[place, : len(tiles)], there[place, : len(tiles)] = tiles, True
    return {"pixel_values": pixels, "pixel_attention_mask": there}


# Mistral 3: a picture is (rows, columns) of tokens, with a break behind every row and an end behind the last.


def _mistral3() -> Any:
    vision = {
        "model_type": "pixtral",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "image_size": 64,
        "patch_size": 4,
        "head_dim": 16,
    }
    config = AutoConfig.for_model(
        "mistral3",
        text_config=_text("mistral", head_dim=16, sliding_window=None),
        vision_config=vision,
        image_token_index=IMAGE_ID,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    return filled(config, "Mistral3ForConditionalGeneration")


def _rows_picture(size: tuple[int, int], generator: torch.Generator) -> Picture:
    rows, columns = size
    ids = ([IMAGE_ID] * columns + [BREAK]) * (rows - 1) + [IMAGE_ID] * columns + [END]
    return Picture(ids, torch.randn(3, 8 * rows, 8 * columns, generator=generator), {})


def _rows_join(rows: list[list[Picture]]) -> dict[str, Any]:
    pictures = [picture.pixels for row in rows for picture in row]
    sizes = [list(picture.shape[1:]) for picture in pictures]
    tall, wide = (max(size[axis] for size in sizes) for axis in (0, 1))
    pad = torch.nn.functional.pad
    pixels = [pad(picture, (0, wide - picture.shape[2], 0, tall - picture.shape[1])) for picture in pictures]
    return {"pixel_values": torch.stack(pixels), "image_sizes": torch.tensor(sizes)}


_GRID = {"picture": _grid_picture, "join": _grid_join, "pictures": ((3, 4), (2, 5), (2, 3)), "sizes": (12, 10, 6)}
_TILED = {
    "picture": _tagged_picture,
    "join": _tagged_join,
    "pictures": ((1, 2), (0, 0), (2, 1)),
    "sizes": (48, 16, 48),
}

MODELS: dict[str, Kind] = {
    "qwen2_5_vl": Kind(_qwen25, **_GRID, mrope=True),
    "qwen3_vl": Kind(_qwen3, **_GRID, mrope=True),
    "qwen3_vl_moe": Kind(_qwen3_moe, **_GRID, mrope=True),
    "qwen2_vl": Kind(_qwen2, **_GRID, mrope=True),
    "internvl": Kind(_internvl, _tiles_picture, _tiles_join, (3, 1, 2), (48, 16, 32)),
    "idefics3": Kind(lambda: _idefics("idefics3", "Idefics3ForConditionalGeneration"), **_TILED),
    "smolvlm": Kind(lambda: _idefics("smolvlm", "SmolVLMForConditionalGeneration"), **_TILED),
    "mistral3": Kind(_mistral3, _rows_picture, _rows_join, ((3, 4), (2, 5), (2, 3)), (12, 10, 6)),
    "glm4v": Kind(lambda: _glm("glm4v", "Glm4vForConditionalGeneration"), **_GRID, mrope=True),
    "glm46v": Kind(lambda: _glm("glm46v", "Glm46VForConditionalGeneration"), **_GRID, mrope=True),
}


@cache
def model_of(kind: str) -> Any:
    """The one model of a kind that tests share."""
    return MODELS[kind].build()


def inputs_of(kind: str, prompts: Sequence[Prompt], seed: int = 0, *, first: int = 0) -> BatchFeature:
    """A left-padded batch. A row's content depends on its place, counted from `first`, and the seed: row r alone is
    `inputs_of(kind, prompts[r : r + 1], seed, first=r)`."""
    made = MODELS[kind]
    rows, pictures = [], []
    for place, prompt in enumerate(prompts, start=first):
        generator = torch.Generator().manual_seed(1000 * seed + place)
        ids: list[int] = []
        mine = []
        for part in prompt:
            if part in made.pictures:  # before numbers: InternVL's are numbers, too, and below any text's length
                mine.append(made.picture(part, generator))
                ids += mine[-1].ids
            else:
                ids += torch.randint(5, IMAGE_ID - 5, (part,), generator=generator).tolist()
        rows.append(ids)
        pictures.append(mine)
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    data: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
    }
    if any(pictures):
        data.update(made.join(pictures))
    if made.mrope:
        data["mm_token_type_ids"] = (ids == IMAGE_ID).long()
    return BatchFeature(data)


def images_of(kind: str, prompt: Prompt, ids: torch.Tensor) -> list[list[int]]:
    """Positions of each picture's image tokens in one unpadded prompt, from the parts alone."""
    made = MODELS[kind]
    places = (ids[0] == IMAGE_ID).nonzero().flatten().tolist()
    found = []
    for part in prompt:
        if part in made.pictures:
            size = made.sizes[made.pictures.index(part)]
            found.append(places[:size])
            places = places[size:]
    assert not places
    return found


def prompts_of(kind: str) -> list[Prompt]:
    """A prompt with one picture, one with two, and one without."""
    a, b, c = MODELS[kind].pictures
    return [(7, a, 6), (9, b, 8, c, 10), (11,)]
