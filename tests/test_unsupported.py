"""What transformers and torch accept, and pruning was never made for: each is refused in one line that names it."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import GenerationConfig

from lmms_textweighted import load, make_plan, prune
from lmms_textweighted.errors import InputError, PlanError
from lmms_textweighted.families import LoadOptions
from lmms_textweighted.families.attach import run_prefix
from tests.conftest import IMAGE, build_llava, make_inputs

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
