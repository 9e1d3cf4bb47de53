"""The original `llava` package's own models in `prune`: pictures are spliced in where a tag of -200 stands.

The oracle lets the package make the embeddings and masks columns of its decoder, which it is itself, in float64.
"""

from __future__ import annotations

import copy
import importlib
import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from lmms_textweighted.engine.fanout import continue_prefix
from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.errors import PlanError
from lmms_textweighted.families.attach import prune, run_prefix
from lmms_textweighted.families.liuhaotian.splice import take_cache_by_its_name
from lmms_textweighted.methods import SCORERS, make_plan
from tests.conftest import (
    PATCH,
    TILE,
    assert_batch_equals_rows,
    assert_equals_masked_model,
    assert_removal_matters,
    assert_same_trace,
    assert_stages,
    fill_weights,
)
from tests.oracles import (
    expected_stages,
    find_places,
    masked_generate,
    masked_logits,
    removed_by,
    run_masked,
    spliced_embeddings,
)
from tests.test_pruner import plan_of

TAG = -200
LAYERS, VOCABULARY = 5, 64
SIDE = TILE // PATCH
# The package writes [width, height].
GRID = [[84, 42], [42, 84], [84, 84], [126, 42], [42, 126], [168, 126]]
KINDS = ("flat", "anyres")

# Pictures (width, height), as the package has it, and their tokens when cut into a grid.
STRIP, TOWER, SQUARE, SMALL, LARGE = (200, 30), (30, 200), (50, 50), (47, 33), (90, 60)
TOKENS = {STRIP: 22, TOWER: 27, SQUARE: 51, SMALL: 24, LARGE: 126}

PROMPTS = {
    "large": (3, LARGE, 6),
    "tall": (2, TOWER, 9),
    "image_first": (SQUARE, 5),
    "apart": (2, STRIP, 3, SQUARE, 5),
    "touching": (2, SMALL, SQUARE, STRIP, 6),
    "equals_touching": (1, SQUARE, SQUARE, 4),
    "interleaved": (1, SQUARE, 2, STRIP, TOWER, 1, SMALL, 4),
}
PLANS = {
    "text_weighted": [("text_weighted", 1, 7, 1)],
    "staged": [("uniform", 0, 8, 0), ("last_row", 2, 5, 1)],
    "ratios": [("text_weighted_debiased", 0, 0.4, 0), ("text_weighted", 2, 0.5, 2)],
}
BATCHES = {
    "sizes": [(3, LARGE, 6), (8, STRIP, 11), (1, SQUARE, 2)],
    "text_only_rows": [(7,), (3, SQUARE, 6), (90,), (2, STRIP, 3, TOWER, 14)],
    "numbers_of_images": [(3, SMALL, 6), (2, SQUARE, STRIP, 4), (9,), (1, SMALL, 2, TOWER, SMALL, 3)],
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_attention = pytest.mark.parametrize("attn", ["eager", "sdpa"])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """`models(kind, attn=…)`: small random models, flat (1.5) or with grids of tiles and newlines (1.6)."""
    # Imported here: it takes seconds. On the package index `llava` is an empty placeholder.
    llama, mistral = (
        importlib.import_module(f"llava.model.language_model.llava_{name}") for name in ("llama", "mistral")
    )
    classes = {
        "llama": (llama.LlavaLlamaForCausalLM, llama.LlavaConfig),
        "mistral": (mistral.LlavaMistralForCausalLM, mistral.LlavaMistralConfig),
    }
    tower = tmp_path_factory.mktemp("tower")
    CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=TILE,
            patch_size=PATCH,
        )
    ).save_pretrained(tower)
    CLIPImageProcessor(size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}).save_pretrained(tower)
    made = {}

    def build(kind: str, attn: str = "sdpa", decoder: str = "llama", *, ours: bool = True, **changes):
        key = (kind, attn, decoder, ours, *sorted(changes.items()))
        if key in made:
            return made[key]
        anyres = {
            "mm_patch_merge_type": "spatial_unpad",
            "image_aspect_ratio": "anyres",
            "image_grid_pinpoints": GRID,
        }
        config = {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": None,
            "mm_vision_tower": str(tower),
            "mm_hidden_size": 16,
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch",
            "image_aspect_ratio": "pad",
            "tokenizer_padding_side": "left",
            "attn_implementation": attn,
            **(anyres if kind == "anyres" else {}),
            **changes,
        }
        model_class, config_class = classes[decoder]
        model = model_class(config_class(**config))
        model.get_vision_tower().load_model()
        model.eval().requires_grad_(False)
        fill_weights(model, seed=0, vectors=True, never=(0,))
        if ours:  # as our loader leaves a model, so that it generates outside of a `prune`, too
            take_cache_by_its_name(model)
        made[key] = model
        return model

    return build


def sizes_of(kind: str, prompt) -> list[int]:
    """Tokens of each of a prompt's pictures."""
    return [TOKENS[part] if kind == "anyres" else SIDE**2 for part in prompt if not isinstance(part, int)]


def places_of(kind: str, prompt):
    return find_places(prompt, sizes_of(kind, prompt))


def make_inputs(model, prompts, seed: int = 0, *, first: int = 0) -> dict:
    """A batch as the package's users make it: tags in the ids, the pictures in one list or tensor, their sizes.

    A prompt lists its parts: a number of random text tokens, or a picture's (width, height). A row's content depends on
    its place, counted from `first`, and the seed. A row without pictures brings one that the package leaves out again.
    """
    anyres = model.config.image_aspect_ratio == "anyres"
    rows, pixels, sizes = [], [], []
    for place, prompt in enumerate(prompts, start=first):
        generator = torch.Generator().manual_seed(1000 * seed + place)
        ids: list[int] = []
        pictures = [part for part in prompt if not isinstance(part, int)]
        for part in prompt:
            ids += (
                torch.randint(1, VOCABULARY, (part,), generator=generator).tolist() if isinstance(part, int) else [TAG]
            )
        for picture in pictures or [SQUARE]:
            tiles = 1 + _tiles(picture) if anyres else 1
            pixels.append(torch.randn(tiles, 3, TILE, TILE, generator=generator))
            sizes.append(picture)
        rows.append(ids)
    longest = max(map(len, rows))
    data = {
        "input_ids": torch.tensor([[0] * (longest - len(ids)) + ids for ids in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows]),
    }
    if any(TAG in ids for ids in rows):
        data["images"] = pixels if anyres else torch.cat(pixels)
        data["image_sizes"] = sizes
    return data


def _tiles(picture) -> int:
    from llava.mm_utils import get_anyres_image_grid_shape

    wide, tall = get_anyres_image_grid_shape(picture, GRID, TILE)
    return wide * tall


def answers(model, inputs, count: int = 4, **kwargs) -> list[list[int]]:
    """What the package's `generate` returns: new tokens only."""
    inputs = dict(inputs)
    ids = inputs.pop("input_ids")
    return model.generate(ids, **inputs, max_new_tokens=count, **kwargs).tolist()


# Removal is masking.


@pytest.mark.parametrize(("picture", "tokens"), TOKENS.items())
def test_the_package_makes_as_many_tokens_as_the_traces_say(models, picture, tokens):
    model = models("anyres")
    inputs = make_inputs(model, [(3, picture, 4)])
    assert spliced_embeddings(model, inputs).shape[1] == tokens + 7
    with prune(model, make_plan("none")) as trace:
        model(**inputs)
    assert (trace.documents[0].image_tokens, trace.documents[0].full_length) == (tokens, tokens + 7)


@every_attention
@every_kind
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("name", PLANS)
def test_choices_and_logits_equal_those_of_the_masked_model(models, kind, attn, prompt, name):
    model = models(kind, attn)
    inputs = make_inputs(model, [prompt], seed=1)
    places = places_of(kind, prompt)
    expected, _ = expected_stages(model, inputs, PLANS[name], places)
    with prune(model, plan_of(PLANS[name]), ranks=True) as trace:
        out = model(**inputs, use_cache=True)

    (document,) = trace.documents
    assert_stages(document, expected)
    assert document.image_tokens == len(places.image_tokens)
    assert document.full_length == len(places.image_tokens) + sum(part for part in prompt if isinstance(part, int))
    assert document.kept_tokens == len(expected[-1].kept)
    assert_equals_masked_model(model, inputs, out, document)


@every_kind
def test_masking_moves_the_logits_far_more_than_the_tolerance(models, kind):
    """The oracle is worth something only where removal matters."""
    model, prompt = models(kind), PROMPTS["interleaved"]
    inputs = make_inputs(model, [prompt], seed=1)
    expected, removed = expected_stages(model, inputs, PLANS["text_weighted"], places_of(kind, prompt))
    assert_removal_matters(model, inputs, expected, removed)


@every_attention
@every_kind
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_generation_equals_the_masked_model_token_for_token(models, kind, attn, prompt):
    model = models(kind, attn)
    inputs = make_inputs(model, [prompt], seed=2)
    with prune(model, plan_of(PLANS["staged"])) as trace:
        tokens = answers(model, inputs, 6)
    assert len(trace.documents) == 1
    assert tokens == [masked_generate(model, inputs, removed_by(trace.documents[0]), 6)]


# How else the package merges tiles: (config, tokens of a picture cut into `tiles`).
MERGES = {
    "flat_tiles": ({"mm_patch_merge_type": "flat"}, lambda tiles: (1 + tiles) * SIDE**2),
    "spatial": ({"mm_patch_merge_type": "spatial"}, lambda tiles: (1 + tiles) * SIDE**2),
    "one_tile": ({"mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "pad"}, lambda tiles: SIDE**2 + 1),
}


@pytest.mark.parametrize("name", MERGES)
@pytest.mark.parametrize("prompt", [PROMPTS["apart"], PROMPTS["touching"], PROMPTS["interleaved"]])
def test_other_ways_of_merging_tiles(models, name, prompt):
    changes, tokens = MERGES[name]
    model = models("anyres", **changes)
    inputs = make_inputs(model, [prompt], seed=18)
    if name == "one_tile":
        inputs["images"] = list(inputs["images"])
    pictures = [part for part in prompt if not isinstance(part, int)]
    places = find_places(prompt, [tokens(_tiles(picture)) for picture in pictures])
    expected, removed = expected_stages(model, inputs, PLANS["staged"], places)
    with prune(model, plan_of(PLANS["staged"])) as trace:
        logits = model(**inputs).logits[0, -1]
    assert_stages(trace.documents[0], expected)
    torch.testing.assert_close(logits.double(), masked_logits(model, inputs, removed), atol=1e-4, rtol=0)


def test_pictures_of_one_grid_in_one_tensor(models):
    """The package's own preparation stacks them where it can."""
    model = models("anyres")
    inputs = make_inputs(model, [PROMPTS["equals_touching"], (2, SQUARE, 9), (7,)], seed=19)
    stacked = {**inputs, "images": torch.stack(inputs["images"])}
    assert stacked["images"].ndim == 5
    with prune(model, plan_of(PLANS["staged"])) as trace:
        logits = [model(**given).logits[:, -1] for given in (inputs, stacked)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)
    for row in range(3):
        assert_same_trace(trace.documents[row], trace.documents[3 + row])


def test_the_packages_mistral(models):
    """The other decoder that released checkpoints have."""
    model = models("anyres", decoder="mistral", sliding_window=None)
    prompt = PROMPTS["interleaved"]
    inputs = make_inputs(model, [prompt], seed=20)
    expected, removed = expected_stages(model, inputs, PLANS["staged"], places_of("anyres", prompt))
    with prune(model, plan_of(PLANS["staged"])) as trace:
        tokens = answers(model, inputs, 4)
    assert_stages(trace.documents[0], expected)
    assert tokens == [masked_generate(model, inputs, removed, 4)]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_random_choice_is_that_of_transformers_llava_for_the_same_prompt(models, small_llava, seed):
    """A prompt's key is its ids, with the same stand-in for every image token in both formats."""
    model, other = models("flat"), small_llava(image_size=TILE)
    inputs = make_inputs(model, [(3, SQUARE, 6)], seed)
    ids = inputs["input_ids"][0].tolist()
    there = torch.tensor([ids[:3] + [other.config.image_token_id] * SIDE**2 + ids[4:]])
    kept = []
    with prune(model, make_plan("random", keep_tokens=4)) as trace:
        model(**inputs)
    kept.append(trace.documents[0].stages[0].kept.tolist())
    with prune(other, make_plan("random", keep_tokens=4)) as trace:
        other(there, pixel_values=torch.zeros(1, 3, TILE, TILE))
    kept.append(trace.documents[0].stages[0].kept.tolist())
    assert kept[0] == kept[1]


@every_kind
@pytest.mark.parametrize("with_mask", [True, False])
def test_the_usual_call_with_ids_first_and_without_a_mask(models, kind, with_mask):
    """As in the package's own evaluation: `model.generate(input_ids, images=…, image_sizes=…)`."""
    model = models(kind)
    inputs = make_inputs(model, [PROMPTS["touching"]], seed=3)
    more = {"attention_mask": inputs["attention_mask"]} if with_mask else {}
    with prune(model, plan_of(PLANS["staged"])) as trace:
        tokens = model.generate(
            inputs["input_ids"],
            images=inputs["images"],
            image_sizes=inputs["image_sizes"],
            do_sample=False,
            max_new_tokens=5,
            use_cache=True,
            **more,
        )
        logits = model(inputs["input_ids"], images=inputs["images"], image_sizes=inputs["image_sizes"], **more).logits
    removed = removed_by(trace.documents[0])
    assert tokens.tolist() == [masked_generate(model, inputs, removed, 5)]
    torch.testing.assert_close(logits[0, -1].double(), masked_logits(model, inputs, removed), atol=1e-4, rtol=0)
    assert_same_trace(*trace.documents)


@every_attention
@every_kind
def test_several_tokens_at_once_on_top_of_the_pruned_cache(models, kind, attn):
    model = models(kind, attn)
    inputs = make_inputs(model, [PROMPTS["apart"]], seed=4)
    with prune(model, plan_of(PLANS["staged"])) as trace:
        cache = model(**inputs, use_cache=True).past_key_values
        more = torch.tensor([[5, 9, 13]])
        logits = model(more, past_key_values=cache).logits[0]
    (document,) = trace.documents
    expected = run_masked(model, inputs, removed_by(document), [5, 9, 13]).logits[0, -3:]
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=0)


@every_kind
@pytest.mark.parametrize("keep_scope", ["image", "prompt"])
@pytest.mark.parametrize("text_scope", ["all", "question"])
def test_scopes(models, kind, keep_scope, text_scope):
    model, prompt = models(kind), (3, SQUARE, 4, STRIP, SMALL, 6)
    inputs = make_inputs(model, [prompt], seed=5)
    asked = torch.arange(13) % 3 == 1
    places = find_places(prompt, sizes_of(kind, prompt), text_scope, asked.tolist())
    stages = [("text_weighted", 0, 9, 0), ("last_row", 2, 4, 2)]
    expected, removed = expected_stages(model, inputs, stages, places, keep_scope)
    plan = Plan("scoped", plan_of(stages).stages, text_scope, keep_scope)
    with prune(model, plan, question=[asked]) as trace:
        tokens = answers(model, inputs, 4)
    assert_stages(trace.documents[0], expected)
    assert tokens == [masked_generate(model, inputs, removed, 4)]


prompts = st.lists(st.one_of(st.integers(1, 6), st.sampled_from([*TOKENS])), min_size=1, max_size=5)


@given(
    kind=st.sampled_from(KINDS),
    batch=st.lists(prompts.map(lambda parts: (*parts, 3)), min_size=1, max_size=3),
    keep=st.one_of(st.integers(0, SIDE**2), st.sampled_from([0.1, 0.5, 1.0])),
    seed=st.integers(0, 50),
)
def test_any_layout_of_images_and_text_in_any_batch(models, kind, batch, keep, seed):
    model, stages = models(kind), [("text_weighted", 1, keep, 1)]
    with prune(model, plan_of(stages)) as trace:
        logits = model(**make_inputs(model, batch, seed)).logits[:, -1]
    for row, prompt in enumerate(batch):
        single, document = make_inputs(model, [prompt], seed, first=row), trace.documents[row]
        places = places_of(kind, prompt)
        assert document.image_tokens == len(places.image_tokens)
        if places.images:
            assert_stages(document, expected_stages(model, single, stages, places)[0])
        expected = masked_logits(model, single, removed_by(document))
        torch.testing.assert_close(logits[row].double(), expected, atol=1e-4, rtol=0)


# Batches.


def assert_equals_one_by_one(model, prompts, plan, count: int = 4, seed: int = 0):
    batch = make_inputs(model, prompts, seed)
    rows = [make_inputs(model, [prompt], seed, first=row) for row, prompt in enumerate(prompts)]
    assert_batch_equals_rows(model, batch, rows, plan, answers, count)


@every_attention
@every_kind
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("name", PLANS)
def test_a_padded_batch_equals_its_rows_one_by_one(models, kind, attn, batch, name):
    assert_equals_one_by_one(models(kind, attn), batch, plan_of(PLANS[name]), seed=6)


@every_kind
def test_random_choice_does_not_depend_on_the_batch(models, kind):
    plan = make_plan("random", pruning_layer=1, keep_tokens=6)
    assert_equals_one_by_one(models(kind), BATCHES["numbers_of_images"], plan, seed=7)


@every_kind
def test_a_padded_batch_equals_the_masked_model(models, kind):
    model, batch = models(kind), BATCHES["numbers_of_images"]
    with prune(model, plan_of(PLANS["staged"])) as trace:
        together = answers(model, make_inputs(model, batch, 8), 5)
    for row, (tokens, document) in enumerate(zip(together, trace.documents, strict=True)):
        single = make_inputs(model, batch[row : row + 1], 8, first=row)
        if any(not isinstance(part, int) for part in batch[row]):
            expected, _ = expected_stages(model, single, PLANS["staged"], places_of(kind, batch[row]))
            assert_stages(document, expected)
        assert tokens == masked_generate(model, single, removed_by(document), 5)


@every_attention
@every_kind
def test_beam_search_over_a_batch_equals_its_rows_one_by_one(models, kind, attn):
    """transformers repeats rows after the package has spliced."""
    model = models(kind, attn)
    batch = [(3, SMALL, 6), (5,), (2, SQUARE, STRIP, 4)]
    questions = [torch.arange(9) % 2 == 0, None, torch.arange(6) % 2 == 0]
    plan = Plan("asked", plan_of(PLANS["staged"]).stages, "question")
    with prune(model, plan, question=questions) as batched:
        together = answers(model, make_inputs(model, batch, 9), 5, num_beams=2)
    assert len(batched.documents) == 6
    for row in range(3):
        single = make_inputs(model, batch[row : row + 1], 9, first=row)
        with prune(model, plan, question=questions[row : row + 1]) as alone:
            assert answers(model, single, 5, num_beams=2) == [together[row]]
        for beam in range(2):
            assert_same_trace(batched.documents[2 * row + beam], alone.documents[beam])


@every_kind
def test_text_alone_is_left_alone(models, kind):
    """Without pictures the package splices nothing; direct calls then give the decoder ids instead of embeddings."""
    model = models(kind)
    inputs = make_inputs(model, [(9,), (6,)])
    assert "images" not in inputs
    plain, tokens = model(**inputs).logits, answers(model, inputs)
    with prune(model, plan_of(PLANS["staged"]), ranks=True) as trace:
        assert torch.equal(model(**inputs).logits, plain)
        assert answers(model, inputs) == tokens
    assert [document.lengths for document in trace.documents] == [[9] * LAYERS, [6] * LAYERS] * 2
    assert all(document.image_tokens == 0 and document.ranks is None for document in trace.documents)


@every_kind
def test_text_alone_with_a_picture_that_the_package_leaves_out(models, kind):
    model = models(kind)
    inputs = make_inputs(model, [(2, SQUARE, 7), (9,)], seed=10)
    only = {
        "input_ids": inputs["input_ids"][1:],
        "attention_mask": inputs["attention_mask"][1:],
        "images": inputs["images"][1:],
        "image_sizes": inputs["image_sizes"][1:],
    }
    only["input_ids"], only["attention_mask"] = only["input_ids"][:, -9:], only["attention_mask"][:, -9:]
    plain = model(**only).logits
    with prune(model, plan_of(PLANS["staged"])) as trace:
        assert torch.equal(model(**only).logits, plain)
    assert trace.documents[0].lengths == [9] * LAYERS


@every_attention
@every_kind
def test_keeping_every_token_changes_nothing(models, kind, attn):
    model = models(kind, attn)
    inputs = make_inputs(model, BATCHES["sizes"])
    plain, tokens = model(**inputs).logits, answers(model, inputs)
    with prune(model, make_plan(pruning_layer=1, keep_ratio=1.0), ranks=True) as trace:
        assert torch.equal(model(**inputs).logits, plain)
        assert answers(model, inputs) == tokens
    assert all(document.flops_ratio == 1 for document in trace.documents)


def test_padding_on_the_right_as_the_package_has_it_by_default(models):
    """The rows come out right-aligned; each is that of the row alone."""
    model, batch = models("anyres", tokenizer_padding_side="right"), [(3, LARGE, 6), (8, STRIP, 11)]
    with prune(model, plan_of(PLANS["staged"])) as trace:
        logits = model(**make_inputs(model, batch, 11)).logits[:, -1]
    for row, document in enumerate(trace.documents):
        single = make_inputs(model, batch[row : row + 1], 11, first=row)
        expected, removed = expected_stages(model, single, PLANS["staged"], places_of("anyres", batch[row]))
        assert_stages(document, expected)
        torch.testing.assert_close(logits[row].double(), masked_logits(model, single, removed), atol=1e-4, rtol=0)


def test_flat_pictures_given_one_by_one(models):
    """The package takes a list of single pictures for a 1.5, too, and makes the same of it."""
    model = models("flat")
    inputs = make_inputs(model, BATCHES["numbers_of_images"], 12)
    listed = {**inputs, "images": list(inputs["images"])}
    with prune(model, plan_of(PLANS["staged"])) as trace:
        logits = [model(**given).logits[:, -1] for given in (inputs, listed)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)
    for row in range(4):
        assert_same_trace(trace.documents[row], trace.documents[4 + row])


# The fan-out.


@every_kind
@pytest.mark.parametrize("prompt", [PROMPTS["touching"], PROMPTS["large"], (9,)], ids=["touching", "large", "text"])
def test_a_prefix_chooses_and_goes_on_as_prune_does(models, kind, prompt):
    model = models(kind)
    inputs = make_inputs(model, [prompt], seed=13)
    prefix = run_prefix(model, inputs, 1, [SCORERS["text_weighted"]])
    budgets = [9, 4, 0]
    kept = [prefix.keep(SCORERS["text_weighted"], keep) for keep in budgets]
    continuations = continue_prefix(model, prefix, kept, max_new_tokens=4, ranks=True)
    for keep, positions, continuation in zip(budgets, kept, continuations, strict=True):
        with prune(model, Plan("one", (Stage(SCORERS["text_weighted"], 1, keep_tokens=keep),))) as trace:
            assert answers(model, inputs, 4) == [continuation.tokens]
        assert positions.tolist() == trace.documents[0].stages[0].kept.tolist()


# Leaving the model as it was.


def state(model):
    """What hooks, attributes and attention configs a model has."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    hooks = {(name, kind): list(getattr(module, kind)) for name, module in model.named_modules() for kind in kinds}
    attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
    configs = [layer.self_attn.config for layer in model.model.layers]
    return hooks, attributes, [id(config) for config in configs], [copy.deepcopy(vars(config)) for config in configs]


@every_attention
@every_kind
def test_the_model_is_as_before_on_leaving(models, kind, attn):
    model = models(kind, attn)
    inputs = make_inputs(model, BATCHES["numbers_of_images"])
    logits, tokens = model(**inputs).logits, answers(model, inputs)
    before = state(model)
    with prune(model, plan_of(PLANS["staged"]), ranks=True):
        assert state(model) != before
        assert "prepare_inputs_labels_for_multimodal" in vars(model)
        answers(model, inputs)
    assert state(model) == before
    assert inspect.ismethod(model.prepare_inputs_labels_for_multimodal)
    assert torch.equal(model(**inputs).logits, logits)
    assert answers(model, inputs) == tokens


def test_a_model_that_the_package_itself_loaded_is_pruned_and_then_as_before(models):
    inputs = make_inputs(models("flat"), BATCHES["sizes"])
    model, ours = models("flat", ours=False), models("flat")
    model(**inputs)
    before = state(model)
    with prune(model, plan_of(PLANS["staged"])) as trace:
        tokens = answers(model, inputs)
    assert state(model) == before
    with prune(ours, plan_of(PLANS["staged"])) as expected:
        assert answers(ours, inputs) == tokens
    for document, plain in zip(trace.documents, expected.documents, strict=True):
        assert_same_trace(document, plain)


class Boom(Exception):
    pass


@pytest.mark.parametrize("where", ["body", "vision", "decoder"])
def test_the_model_is_as_before_after_an_exception(models, where):
    model = models("anyres")
    inputs = make_inputs(model, BATCHES["sizes"])
    logits, before = model(**inputs).logits, state(model)

    def fail(*_):
        raise Boom

    place = {"vision": model.model.mm_projector, "decoder": model.model.layers[3].mlp}.get(where)
    with pytest.raises(Boom), prune(model, plan_of(PLANS["staged"]), ranks=True):  # noqa: PT012
        if place is None:
            raise Boom
        handle = place.register_forward_pre_hook(fail)
        try:
            answers(model, inputs)
        finally:
            handle.remove()
    assert state(model) == before
    assert torch.equal(model(**inputs).logits, logits)


def test_a_splicer_of_the_callers_own_is_put_back(models, monkeypatch):
    model = models("flat")
    original = model.prepare_inputs_labels_for_multimodal

    def mine(input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes=None):
        return original(input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes)

    monkeypatch.setattr(model, "prepare_inputs_labels_for_multimodal", mine)
    with prune(model, plan_of(PLANS["staged"])) as trace:
        answers(model, make_inputs(model, [PROMPTS["touching"]]))
    assert vars(model)["prepare_inputs_labels_for_multimodal"] is mine
    assert trace.documents[0].image_tokens == 27


@every_kind
@pytest.mark.parametrize("same_length", [False, True])
def test_a_call_that_failed_leaves_nothing_behind_for_the_next(models, kind, same_length):
    """Pictures are spliced before `generate` checks its arguments: the next prompt must not be taken for that one."""
    model = models(kind)
    first, again = make_inputs(model, [(3, SQUARE, 6)], 14), make_inputs(model, [PROMPTS["touching"]], 16)
    length = 9 + sum(sizes_of(kind, [SQUARE])) if same_length else 9
    text = make_inputs(model, [(length,)], 15)
    tokens = answers(model, text)
    with prune(model, plan_of(PLANS["staged"])) as trace:
        with pytest.raises(ValueError, match="not_there"):
            answers(model, first, not_there=1)
        assert answers(model, text) == tokens
        whole = answers(model, again)
    assert [document.image_tokens for document in trace.documents] == [0, sum(sizes_of(kind, PROMPTS["touching"]))]
    assert trace.documents[0].lengths == [length] * LAYERS
    assert whole == [masked_generate(model, again, removed_by(trace.documents[1]), 4)]


def test_a_call_that_failed_leaves_no_pictures_for_a_step(models):
    """After a failed splice, a decoding step on an earlier cache brings no image."""
    model = models("flat")
    inputs, step = make_inputs(model, [(3, SQUARE, 6)], 17), torch.tensor([[5]])
    with prune(model, plan_of(PLANS["staged"])) as trace:
        cache = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="not_there"):
            answers(model, inputs, not_there=1)
        logits = model(step, past_key_values=cache).logits[0, -1]
    expected = run_masked(model, inputs, removed_by(trace.documents[0]), [5]).logits[0, -1]
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=0)


# What does not fit is an error.


def test_a_prompt_whose_end_was_cut_off(models):
    """The package cuts silently, and then answers another question."""
    model = models("flat", tokenizer_model_max_length=14)
    short, long = make_inputs(model, [(1, SQUARE, 4)]), make_inputs(model, [(1, SQUARE, 5)])
    with prune(model, plan_of(PLANS["text_weighted"])) as trace:
        answers(model, short)
        for call in (lambda: answers(model, long), lambda: model(**long)):
            with pytest.raises(PlanError, match="longer than the checkpoint's tokenizer_model_max_length of 14"):
                call()
        with pytest.raises(PlanError, match="tokenizer_model_max_length of 14"):
            answers(model, make_inputs(model, [(1, SQUARE, 4), (15,)]))
    assert trace.documents[0].full_length == 14


def test_labels(models):
    model = models("flat")
    inputs = make_inputs(model, [(3, SQUARE, 6)])
    with prune(model, plan_of(PLANS["text_weighted"])), pytest.raises(PlanError, match="labels do not fit"):
        model(**inputs, labels=inputs["input_ids"])


@every_kind
def test_pictures_on_top_of_a_cache(models, kind):
    model = models(kind)
    inputs = make_inputs(model, [(3, SQUARE, 6)])
    late = make_inputs(model, [(2, SMALL, 3)], 1)
    with prune(model, plan_of(PLANS["text_weighted"])):
        cache = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(PlanError, match="image tokens arrive on top of a KV cache"):
            model(late["input_ids"], images=late["images"], image_sizes=late["image_sizes"], past_key_values=cache)


def test_rows_of_different_lengths_without_a_mask(models):
    model = models("anyres")
    inputs = make_inputs(model, [(3, SQUARE, 6), (3, STRIP, 6)])
    del inputs["attention_mask"]
    with prune(model, plan_of(PLANS["text_weighted"])), pytest.raises(PlanError, match="need an attention_mask"):
        model(**inputs)


@every_kind
def test_an_image_at_the_end_of_the_prompt(models, kind):
    model = models(kind)
    with pytest.raises(PlanError, match="ends with its image"), prune(model, plan_of(PLANS["text_weighted"])):
        model(**make_inputs(model, [(3, SQUARE, 6), (3, SMALL)]))


@pytest.mark.parametrize("keep", [SIDE**2, SIDE**2 + 1, 20])
def test_a_budget_above_a_pictures_tokens(models, keep):
    """A mistake where every picture has nine tokens; where the count is the picture's, the picture stays whole."""
    flat, anyres = models("flat"), models("anyres")
    prompt = (2, SMALL, SQUARE, 6)
    with prune(anyres, make_plan(keep_tokens=keep + 20, pruning_layer=1)) as trace:
        anyres(**make_inputs(anyres, [prompt]))
    assert trace.documents[0].kept_tokens == min(keep + 20, 24) + keep + 20
    with prune(flat, make_plan(keep_tokens=keep, pruning_layer=1)) as trace:
        if keep <= SIDE**2:
            flat(**make_inputs(flat, [prompt]))
            assert trace.documents[0].kept_tokens == 2 * SIDE**2
        else:
            with pytest.raises(PlanError, match=f"keep_tokens is {keep}, but the image has 9 tokens"):
                flat(**make_inputs(flat, [prompt]))


def test_the_question_of_a_prompt_counts_its_text_without_tags(models):
    model = models("anyres")
    inputs = make_inputs(model, [(3, SQUARE, 6)])
    plan = Plan("asked", (Stage(SCORERS["uniform"], 1, keep_tokens=4),), "question")
    with prune(model, plan, question=[torch.ones(10, dtype=torch.bool)]), pytest.raises(PlanError, match="9 text"):
        model(**inputs)
    with prune(model, plan), pytest.raises(PlanError, match="where the question is"):
        model(**inputs)


@every_kind
def test_embeddings_that_were_spliced_elsewhere_are_refused(models, kind):
    model = models(kind)
    inputs = make_inputs(model, [PROMPTS["large"]])
    embeddings = spliced_embeddings(model, inputs).float()
    with prune(model, make_plan(keep_tokens=3)), pytest.raises(PlanError, match="give input_ids and images"):
        model(inputs_embeds=embeddings)
