"""Small random LLaVAs and their inputs, shared by the tests of the engine.

`small_llava` and `small_anyres` are fixtures; `build_llava`, `make_inputs`, `one_row`, `build_anyres`,
`make_anyres_inputs` and `IMAGE` can also be imported from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers import (
    BatchFeature,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from lmms_textweighted.families.attach import prune
from lmms_textweighted.methods import SCORERS
from tests.browser import started
from tests.oracles import (
    ExpectedStage,
    anyres_grid,
    anyres_tokens,
    expected_ranks,
    masked_logits,
    removed_by,
)

# What hypothesis draws of each property: 100 examples in `make test`, 1,000 in `make test-slow`, the same each time.
for _name, _examples in (("test", 100), ("nightly", 1000)):
    settings.register_profile(
        _name,
        max_examples=_examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )

IMAGE = "image"
VOCABULARY = 64
IMAGE_TOKEN = VOCABULARY - 1
WEIGHT_STD = 0.25

Prompt = Sequence[int | str]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--nightly", action="store_true", help="also the tests marked nightly, and 1,000 examples of each property"
    )


def pytest_configure(config: pytest.Config) -> None:
    # Before any test module is imported: `settings(...)` there takes what it does not say from the profile in force.
    settings.load_profile("nightly" if config.getoption("--nightly") else "test")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Files with slow tests first: those at the end of the alphabet would hold one process while the others wait.
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("nightly")}
    items.sort(key=lambda item: item.path not in slow)
    if config.getoption("--nightly"):
        return
    skip = pytest.mark.skip(reason="takes too long for `make test`: pytest --nightly, or `make test-slow`")
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser; see tests/browser.py."""
    with started() as browser:
        yield browser


# The scorers of whose decoder rows alone the best stay, in their order. Others choose sets, or look at the tower.
BY_SCORE = [name for name, scorer in SCORERS.items() if scorer.keeps_the_best and scorer.tower_reads is None]

# Anyres: pictures are cut into tiles of 42 px, 3 x 3 features each. The last grid has more than OneVision's nine tiles.
FAMILIES = ("llava_next", "llava_onevision")
TILE, PATCH = 42, 14
PINPOINTS = [[42, 84], [84, 42], [84, 84], [42, 126], [126, 42], [126, 168]]
AnyresPrompt = Sequence[int | tuple[int, int]]


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
    tower_layers: int = 2,
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
            num_hidden_layers=tower_layers,
            num_attention_heads=2,
            image_size=image_size,
            patch_size=patch,
        ),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=tokens,
        attn_implementation=attn,
    )
    model = LlavaForConditionalGeneration(config).eval().requires_grad_(False)
    fill_weights(model, seed)
    return model


def fill_weights(model: Any, seed: int, *, vectors: bool = False, never: Sequence[int] = (IMAGE_TOKEN,)) -> None:
    """Random weights, and greedy decoding of any number of tokens.

    vectors: also biases, class and newline features; norms stay. never: tokens that are never the answer: their logit
    is 0, far below the largest of the others.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 or (vectors and "norm" not in name):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * WEIGHT_STD)
        elif "class_embedding" in name:  # else it is what the model drew when it was made, another one in every run
            own = torch.Generator().manual_seed(seed)
            parameter.copy_(torch.randn(parameter.shape, generator=own) * WEIGHT_STD)
    model.lm_head.weight[list(never)] = 0
    model.generation_config.update(do_sample=False, pad_token_id=0, eos_token_id=None, bos_token_id=None)


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


def build_anyres(
    family: str,
    layers: int = 5,
    heads: int = 4,
    kv_heads: int = 2,
    attn: str = "sdpa",
    seed: int = 0,
    vocabulary: int = VOCABULARY,
    image_token: int = IMAGE_TOKEN,
) -> Any:
    """A new LLaVA-NeXT (Llama, CLIP) or LLaVA-OneVision (Qwen2, SigLIP) with random float32 weights."""
    text = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": TILE,
        "patch_size": PATCH,
    }
    shared = {"image_token_index": image_token, "image_grid_pinpoints": PINPOINTS, "attn_implementation": attn}
    if family == "llava_next":
        model: Any = LlavaNextForConditionalGeneration(
            LlavaNextConfig(text_config=LlamaConfig(**text), vision_config=CLIPVisionConfig(**vision), **shared)
        )
    else:
        model = LlavaOnevisionForConditionalGeneration(
            LlavaOnevisionConfig(
                text_config=Qwen2Config(**text),
                vision_config=SiglipVisionConfig(**vision, vision_use_head=False),
                video_token_index=image_token - 1,
                **shared,
            )
        )
    model.eval().requires_grad_(False)
    fill_weights(model, seed, vectors=True, never=(0, image_token - 1, image_token))
    return model


def picture_sizes(model: Any, prompt: AnyresPrompt, *, cut_all: bool = False) -> list[int]:
    """Tokens of each of a prompt's pictures. OneVision cuts a prompt's only picture into a grid, but not several."""
    pictures = [part for part in prompt if not isinstance(part, int)]
    onevision = model.config.model_type == "llava_onevision"
    if onevision and len(pictures) > 1 and not cut_all:
        return [(TILE // PATCH) ** 2 + 1] * len(pictures)
    most = 9 if onevision else None
    return [anyres_tokens(size, tile=TILE, patch=PATCH, pinpoints=PINPOINTS, most_tiles=most) for size in pictures]


def make_anyres_inputs(
    model: Any,
    prompts: Sequence[AnyresPrompt],
    seed: int = 0,
    *,
    first: int = 0,
    pad_to: int = 0,
    cut_all: bool = False,
) -> BatchFeature:
    """A left-padded batch of random prompts with pictures of any size, at least `pad_to` long.

    A prompt lists its parts: a number of random text tokens, or a picture's (height, width). A row's content depends on
    its place in the batch, which counts from `first`, and the seed: so row r alone is
    `make_anyres_inputs(model, prompts[r : r + 1], seed, first=r)`. cut_all: leave `batch_num_images` away, so that
    OneVision cuts every picture.
    """
    rows, pixels, sizes, counts = [], [], [], []
    for place, prompt in enumerate(prompts, start=first):
        generator = torch.Generator().manual_seed(1000 * seed + place)
        ids: list[int] = []
        pictures = [part for part in prompt if not isinstance(part, int)]
        tokens = iter(picture_sizes(model, prompt, cut_all=cut_all))
        whole = model.config.model_type == "llava_onevision" and len(pictures) > 1 and not cut_all
        for part in prompt:
            if isinstance(part, int):
                ids += torch.randint(1, IMAGE_TOKEN - 1, (part,), generator=generator).tolist()
            else:
                ids += [model.config.image_token_id] * next(tokens)
                tall, wide = anyres_grid(part, tile=TILE, pinpoints=PINPOINTS)
                tiles = 1 if whole else 1 + tall * wide
                pixels.append(torch.randn(tiles, 3, TILE, TILE, generator=generator))
                sizes.append(part)
        rows.append(ids)
        if pictures:
            counts.append(len(pictures))
    longest = max(pad_to, *map(len, rows))
    data = {
        "input_ids": torch.tensor([[0] * (longest - len(ids)) + ids for ids in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows]),
    }
    if pixels:
        most = max(map(len, pixels))
        pad = torch.nn.functional.pad
        data["pixel_values"] = torch.stack([pad(tiles, (0, 0) * 3 + (0, most - len(tiles))) for tiles in pixels])
        data["image_sizes"] = torch.tensor(sizes)
        if model.config.model_type == "llava_onevision" and not cut_all:
            data["batch_num_images"] = torch.tensor(counts)
    return BatchFeature(data)


@pytest.fixture(scope="session")
def small_anyres() -> Callable[..., Any]:
    """`small_anyres(family, layers=…, attn=…, …)`: see `build_anyres`. The same arguments give the same model."""
    return cache(build_anyres)


TIE = 1e-6  # scores this close may be ordered by float32 noise


def assert_same_choice(kept: Sequence[int], expected: Sequence[int], scores: Mapping[int, float]) -> None:
    """Two kept sets are the same, but for tokens whose scores lie within TIE of each other."""
    assert list(kept) == sorted(set(kept))
    assert len(kept) == len(expected)
    apart = [scores[place] for place in set(kept) ^ set(expected)]
    assert not apart or max(apart) - min(apart) <= TIE


def assert_stages(document: Any, expected: Sequence[ExpectedStage]) -> None:
    """A trace's stages are those of the oracle: candidates, scores, voters, their weights, and what is kept."""
    assert [stage.layer for stage in document.stages] == [plain.layer for plain in expected]
    for stage, plain in zip(document.stages, expected, strict=True):
        assert stage.candidates.tolist() == list(plain.scores)
        if not plain.scores:  # no image token is left: nothing is scored
            assert stage.kept.tolist() == stage.scores.tolist() == []
            continue
        assert stage.text.tolist() == list(plain.weights)
        np.testing.assert_allclose(stage.scores.numpy(), list(plain.scores.values()), atol=1e-5, rtol=0)
        np.testing.assert_allclose(stage.text_weights.numpy(), list(plain.weights.values()), atol=1e-5, rtol=0)
        assert stage.scores.dtype == stage.text_weights.dtype == torch.float32
        assert_same_choice(stage.kept.tolist(), plain.kept, plain.scores)


def assert_equals_masked_model(model: Any, inputs: Mapping[str, Any], out: Any, document: Any) -> None:
    """A pruned prefill of one prompt, with ranks, is that of the whole sequence with the removed tokens masked."""
    assert [layer.keys.shape[2] for layer in out.past_key_values.layers] == document.lengths
    removed = removed_by(document)
    torch.testing.assert_close(out.logits[0, -1].double(), masked_logits(model, inputs, removed), atol=1e-4, rtol=0)
    ranks = expected_ranks(model, inputs, removed, document.stages[-1].kept.tolist())
    assert document.ranks.effective == pytest.approx(ranks.effective, rel=1e-4)


def assert_removal_matters(
    model: Any, inputs: Mapping[str, Any], expected: Sequence[ExpectedStage], removed: dict[int, list[int]]
) -> None:
    """Masking moves the logits far more than a comparison's tolerance, and so does one token more after layer 1."""
    whole, masked = masked_logits(model, inputs, {}), masked_logits(model, inputs, removed)
    assert (masked - whole).abs().max() > 0.01
    one_less = {1: sorted([*removed[1], expected[0].kept[0]])}
    assert (masked - masked_logits(model, inputs, one_less)).abs().max() > 0.001


def assert_same_trace(a: Any, b: Any) -> None:
    """Two traces of the same prompt, up to float32 noise."""
    for name in ("full_length", "image_tokens", "lengths", "image_lengths"):
        assert getattr(a, name) == getattr(b, name)
    for x, y in zip(a.stages, b.stages, strict=True):
        assert x.layer == y.layer
        assert x.candidates.tolist() == y.candidates.tolist()
        assert x.text.tolist() == y.text.tolist()
        torch.testing.assert_close(x.scores, y.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(x.text_weights, y.text_weights, atol=1e-5, rtol=0)
        scores = dict(zip(x.candidates.tolist(), x.scores.tolist(), strict=True))
        assert_same_choice(x.kept.tolist(), y.kept.tolist(), scores)
    assert (a.ranks is None) == (b.ranks is None)
    if a.ranks is not None:
        assert a.ranks.effective == pytest.approx(b.ranks.effective, rel=1e-3)


def assert_batch_equals_rows(
    model: Any, batch: Any, rows: Sequence[Any], plan: Any, answers: Callable[..., list[list[int]]], count: int = 4
) -> None:
    """A batch gives every row the logits, the tokens and the trace of that row alone.

    rows: each row's own inputs. answers: (model, inputs, count) -> the tokens that are generated, row by row.
    """
    with prune(model, plan, ranks=True) as batched:
        logits = model(**batch).logits[:, -1]
        together = answers(model, batch, count)
    for row, single in enumerate(rows):
        with prune(model, plan, ranks=True) as alone:
            torch.testing.assert_close(logits[row], model(**single).logits[0, -1], atol=1e-4, rtol=0)
            assert answers(model, single, count) == [together[row]]
        for half in (0, 1):
            assert_same_trace(batched.documents[half * len(rows) + row], alone.documents[half])
