"""What transformers and torch accept, and pruning was never made for: each is refused in one line that names it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from transformers import GenerationConfig

from lmms_textweighted import load, make_plan, prune
from lmms_textweighted.errors import InputError, PlanError
from lmms_textweighted.families import LoadOptions
from lmms_textweighted.families.attach import run_prefix
from tests.conftest import IMAGE, build_llava, make_inputs
from tests.oracles import removed_by, run_masked

PLAN = make_plan("text_weighted", keep_tokens=5)


@pytest.fixture
def llava():
    """A model of its own: these tests change it."""
    return build_llava()


def generate(model, given, **options):
    with prune(given, PLAN):
        return model.generate(**make_inputs(model, [(3, IMAGE, 6)]), max_new_tokens=3, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"attn_implementation": "flex_attention"},
        {"attn_implementation": "sdpa_paged"},
        {"attn_implementation": "kernels-community/flash-attn3"},
        {"dtype": "float8_e4m3fn"},
        {"dtype": "float64"},
        {"device": "meta"},
        {"device_map": "meta"},
        {"loader": "transformers"},
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_load_takes_only_what_pruning_was_made_for(options):
    """One place for lmms-eval, the sweep, `regress` and `load`: they all make these options."""
    (name, value), *_ = options.items()
    with pytest.raises(InputError) as refused:
        load("tiny", LoadOptions(**options))
    assert value in str(refused.value)
    assert name.removesuffix("_map") in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kernel", ["flex_attention", "sdpa_paged"])
def test_a_model_with_another_attention_is_refused(llava, kernel):
    llava.get_decoder().config._attn_implementation_internal = kernel
    with pytest.raises(PlanError, match=f"attn_implementation is '{kernel}'.*sdpa, eager or flash_attention_2"):
        generate(llava, llava)
    with pytest.raises(PlanError, match="attn_implementation is"):
        run_prefix(llava, make_inputs(llava, [(3, IMAGE, 6)]), 2, [PLAN.stages[0].scorer])


def test_a_compiled_model_is_refused_and_the_model_inside_taken(llava):
    twin, compiled = copy.deepcopy(llava), torch.compile(llava)
    with pytest.raises(PlanError, match=r"torch\.compile.*prune\(model\._orig_mod, …\)"):
        generate(compiled, compiled)
    assert torch.equal(generate(compiled._orig_mod, compiled._orig_mod), generate(twin, twin))


@pytest.mark.parametrize("part", ["model", "model.language_model", "model.language_model.layers.3"])
def test_a_model_compiled_in_place_is_refused(llava, part):
    llava.get_submodule(part).compile()
    with pytest.raises(PlanError, match=r"compiled in place"):
        generate(llava, llava)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prefill_chunk_size": 10}, "chunked prefill is not supported"),
        ({"generation_config": GenerationConfig(prefill_chunk_size=10, eos_token_id=None)}, "chunked prefill"),
        ({"prompt_lookup_num_tokens": 2}, "prompt lookup is not supported"),
        ({"assistant_model": torch.nn.Linear(1, 1)}, "assisted decoding is not supported"),
    ],
)
def test_generate_says_what_it_cannot_do_with_a_pruned_prefill(llava, options, words):
    with pytest.raises(PlanError, match=words):
        generate(llava, llava, **options)
    llava.generation_config.prefill_chunk_size = 10
    with pytest.raises(PlanError, match="chunked prefill"):
        generate(llava, llava)
    llava.generation_config.prefill_chunk_size = None
    assert generate(llava, llava).shape[1] == 3 + 16 + 6 + 3
    assert "generate" not in vars(llava)


@pytest.mark.parametrize("part", ["model", "model.language_model"])
def test_a_part_of_the_model_called_by_itself_is_named(llava, part):
    inputs = make_inputs(llava, [(3, IMAGE, 6)])
    with pytest.raises(PlanError, match="call that one inside the block"), prune(llava, PLAN):
        llava.get_submodule(part)(input_ids=inputs["input_ids"][:, :3])


def refused(model, words):
    """Both ways through the decoder say it, in one line."""
    inputs = make_inputs(model, [(3, IMAGE, 6)])
    for run in (lambda: generate(model, model), lambda: run_prefix(model, inputs, 1, [PLAN.stages[0].scorer])):
        with pytest.raises(PlanError, match=words) as found:
            run()
        assert "\n" not in str(found.value)


def test_attention_that_is_not_causal_is_refused(llava):
    """PaliGemma's: SDPA lets the whole prompt see itself, and scores and masks would not know it."""
    llava.get_decoder().layers[3].self_attn.is_causal = False
    refused(llava, r"decoder layer 3 is not causal \(is_causal is False")


def test_a_layer_without_self_attention_is_refused(llava):
    llava.get_decoder().config.layer_types = ["full_attention"] * 4 + ["linear_attention"] * 2
    del llava.get_decoder().layers[4].self_attn
    refused(llava, "decoder layer 4 is no self-attention but linear_attention")


def test_attention_of_an_unknown_kind_is_refused(llava):
    llava.get_decoder().config.layer_types = ["full_attention"] * 5 + ["chunked_attention"]
    refused(llava, "decoder layer 5 is chunked_attention, for which pruning was not made")


def test_a_window_is_refused_by_the_fan_out_too(llava):
    llava.get_decoder().layers[2].self_attn.sliding_window = 8
    refused(llava, "sliding-window attention")


def test_inputs_of_each_layer_are_refused(llava):
    llava.get_decoder().config.hidden_size_per_layer_input = 8
    refused(llava, "gives every layer inputs of its own")


def test_a_second_tensor_given_to_a_layer_is_refused(llava):
    """Gemma 3n's per-layer inputs come by position: nobody here would remove their rows."""

    def add(module, args, kwargs):
        return (*args, torch.zeros(1, 25, 4)), kwargs

    llava.get_decoder().layers[4].register_forward_pre_hook(add, with_kwargs=True)
    with pytest.raises(PlanError, match="decoder layer 4 is given a second tensor"):
        generate(llava, llava)


@pytest.mark.parametrize("kind", ["molmo2", "paligemma", "gemma3", "gemma4", "qwen3_5", "glm4v_moe", "qwen2_5_omni"])
def test_a_model_of_a_kind_that_is_not_listed_is_refused_whatever_it_has(llava, kind):
    """It has an image token and image features, as every model of transformers."""
    llava.config.model_type = kind
    with pytest.raises(
        PlanError, match=f"model_type '{kind}', which is of no known family: known are llava, "
    ) as found:
        generate(llava, llava)
    assert "\n" not in str(found.value)


def test_layers_of_different_rotary_phases_each_keep_their_own():
    """Decoders whose kinds of layers have different RoPE: what is gathered for one layer is not given to the next."""
    changed = {}

    def other(module, args, kwargs):
        given = kwargs["position_embeddings"]
        if changed.get("of") is not given:  # one object for all of these layers, as a model makes it
            changed.update(of=given, to=(given[0] * given[0] - given[1] * given[1], 2 * given[0] * given[1]))
        return args, {**kwargs, "position_embeddings": changed["to"]}  # twice the angle

    model = build_llava()
    for layer in model.get_decoder().layers[4:]:
        layer.register_forward_pre_hook(other, with_kwargs=True)
    inputs = make_inputs(model, [(3, IMAGE, 6)], seed=2)
    with prune(model, make_plan("text_weighted", pruning_layer=1, keep_tokens=5)) as trace:
        out = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True, output_logits=True)
    removed = removed_by(trace.documents[0])
    tokens = out.sequences[0, inputs["input_ids"].shape[1] :]
    whole = run_masked(model, inputs, removed, tokens[:-1].tolist()).logits[0, -4:]
    torch.testing.assert_close(torch.stack(out.logits, dim=1)[0].double(), whole, atol=1e-4, rtol=0)
    plan = replace(make_plan("text_weighted", pruning_layer=1, keep_tokens=5), positions="renumber")
    with pytest.raises(PlanError, match="this decoder's layers have different rotary phases"), prune(model, plan):
        model(**inputs)
