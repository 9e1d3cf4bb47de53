"""Every listed kind of model against the same tokens masked in float64, by being listed: see `tests.vlms.MODELS`."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig

from lmms_textweighted.engine.cost import DecoderShape
from lmms_textweighted.engine.decoder import find_decoder
from lmms_textweighted.engine.fanout import continue_prefix, row_lengths
from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.errors import PlanError
from lmms_textweighted.families.attach import prune, run_prefix
from lmms_textweighted.families.known import FAMILIES, splice_of
from lmms_textweighted.families.processor_family import ProcessorFamily
from lmms_textweighted.inference import geometry_of
from lmms_textweighted.methods import SCORERS, make_plan
from tests.conftest import assert_batch_equals_rows, assert_stages
from tests.oracles import Places, expected_ranks, expected_stages, masked_logits, removed_by, run_masked
from tests.vlms import IMAGE_ID, MODELS, filled, images_of, inputs_of, model_of, prompts_of

STEPS = 4
TOLERANCE = 1e-4
# (scorer, layer it leaves after, tokens of each picture that stay, scored layer)
STAGES = {
    "layer_0": [("text_weighted", 0, 4, 0)],
    "layer_1": [("last_row", 1, 5, 1)],
    "layer_2": [("text_weighted", 2, 3, 2)],
    "two_stages": [("uniform", 1, 6, 1), ("last_row", 3, 2, 3)],
}


def plan_of(stages) -> Plan:
    parts = [Stage(SCORERS[name], layer, keep_tokens=keep, score_layer=scored) for name, layer, keep, scored in stages]
    return Plan("test", tuple(parts))


@pytest.fixture(params=MODELS)
def kind(request):
    return request.param


@pytest.fixture(params=["sdpa", "eager"])
def model(kind, request):
    """The kind's shared model under one attention."""
    found = model_of(kind)
    found.set_attn_implementation(request.param)
    yield found
    found.set_attn_implementation("sdpa")


def generated(model, inputs, **options):
    """(tokens [B, n], logits [B, n, V]) of a greedy generation."""
    out = model.generate(**inputs, max_new_tokens=STEPS, return_dict_in_generate=True, output_logits=True, **options)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, dim=1)


def places_of(kind, prompt, inputs) -> Places:
    images = images_of(kind, prompt, inputs["input_ids"])
    return Places(images, list(range(images[-1][-1] + 1, inputs["input_ids"].shape[1])))


def test_every_listed_kind_is_tested_here():
    listed = [kind for family in FAMILIES if issubclass(family, ProcessorFamily) for kind in family.kinds]
    assert sorted(listed) == sorted(MODELS)
    assert all(type(splice_of(model_of(kind))) for kind in MODELS)


def test_a_window_that_a_released_config_names_and_no_layer_uses_is_none():
    """Qwen2.5-VL's, flat as the hub has it: `sliding_window` beside `use_sliding_window: false`."""
    config = model_of("qwen2_5_vl").config.to_dict()
    text = {
        name: value for name, value in config.pop("text_config").items() if name not in ("model_type", "layer_types")
    }
    flat = {**config, **text, "use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 28}
    made = filled(AutoConfig.for_model(flat.pop("model_type"), **flat), "Qwen2_5_VLForConditionalGeneration")
    inputs = inputs_of("qwen2_5_vl", prompts_of("qwen2_5_vl")[:1])
    with prune(made, plan_of(STAGES["layer_1"])) as trace:
        logits = made(**inputs).logits
    assert trace.documents[0].lengths[-1] < trace.documents[0].lengths[0]
    with prune(model_of("qwen2_5_vl"), plan_of(STAGES["layer_1"])):
        torch.testing.assert_close(logits, model_of("qwen2_5_vl")(**inputs).logits)


@pytest.mark.parametrize("stages", STAGES.values(), ids=STAGES)
def test_removal_equals_masking_at_the_prefill_and_at_every_step(kind, model, stages, record_property):
    for row, prompt in enumerate(prompts_of(kind)[:2]):
        inputs = inputs_of(kind, [prompt], first=row)
        expected, removed = expected_stages(model, inputs, stages, places_of(kind, prompt, inputs))
        with prune(model, plan_of(stages)) as trace:
            tokens, logits = generated(model, inputs)
        (document,) = trace.documents
        assert_stages(document, expected)
        assert removed_by(document) == removed
        # One run of the whole sequence has every step's logits: what is behind a token does not change them.
        whole = run_masked(model, inputs, removed, tokens[0, :-1].tolist()).logits[0, -STEPS:]
        difference = (logits[0].double() - whole).abs().max().item()
        record_property("largest_difference", difference)
        assert difference < TOLERANCE
        assert tokens[0].tolist() == whole.argmax(dim=-1).tolist()
        unpruned = run_masked(model, inputs, {}, tokens[0, :-1].tolist()).logits[0, -STEPS:]
        assert (whole - unpruned).abs().max() > 0.01  # removal matters


def test_removal_before_the_first_layer_equals_masking(kind, model):
    """No layer sees them, and DeepStack's first features go with them."""
    prompt = prompts_of(kind)[1]
    inputs = inputs_of(kind, [prompt], first=1)
    with prune(model, Plan("test", (Stage(SCORERS["random"], -1, keep_tokens=4),))) as trace:
        tokens, logits = generated(model, inputs)
    removed = removed_by(trace.documents[0])
    assert len(removed[-1]) == trace.documents[0].image_tokens - 8
    whole = run_masked(model, inputs, removed, tokens[0, :-1].tolist()).logits[0, -STEPS:]
    torch.testing.assert_close(logits[0].double(), whole, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("strategy", ["random_pre", "pool", "dart", "pyramiddrop", "sparsevlm_plus"])
def test_other_methods_give_a_batch_its_rows_answers(kind, strategy):
    """Renumbered positions, merged tokens, keys and several stages."""
    model, prompts = model_of(kind), prompts_of(kind)
    staged = strategy in ("pyramiddrop", "sparsevlm_plus")
    budget = {"keep_ratio": 0.25} if staged else {"keep_tokens": 4}
    plan = make_plan(strategy, geometry=geometry_of(model), **budget)
    with prune(model, plan):
        together, _ = generated(model, inputs_of(kind, prompts))
    for row, prompt in enumerate(prompts):
        with prune(model, plan) as trace:
            alone, logits = generated(model, inputs_of(kind, [prompt], first=row))
        assert alone[0].tolist() == together[row].tolist()
        assert torch.isfinite(logits).all()
        (document,) = trace.documents
        assert document.kept_tokens < document.image_tokens or not document.image_tokens


def test_ranks_are_those_of_the_masked_models_last_layer(kind, model):
    stages = STAGES["layer_2"]
    prompt = prompts_of(kind)[1]
    inputs = inputs_of(kind, [prompt], first=1)
    with prune(model, plan_of(stages), ranks=True) as trace:
        logits = model(**inputs).logits
    (document,) = trace.documents
    removed = removed_by(document)
    torch.testing.assert_close(logits[0, -1].double(), masked_logits(model, inputs, removed), atol=TOLERANCE, rtol=0)
    ranks = expected_ranks(model, inputs, removed, document.stages[-1].kept.tolist())
    assert document.ranks.effective == pytest.approx(ranks.effective, rel=1e-4)
    for least, found, most in zip(ranks.numeric_at_least, document.ranks.numeric, ranks.numeric_at_most, strict=True):
        assert least <= found <= most


def test_a_left_padded_batch_equals_its_rows_alone(kind, model):
    prompts = prompts_of(kind)
    rows = [inputs_of(kind, [prompt], first=row) for row, prompt in enumerate(prompts)]

    def answers(given, inputs, count):
        return generated(given, inputs)[0][:, :count].tolist()

    assert_batch_equals_rows(model, inputs_of(kind, prompts), rows, plan_of(STAGES["two_stages"]), answers)


def test_keeping_all_tokens_changes_no_bit(kind, model):
    inputs = inputs_of(kind, prompts_of(kind))
    tokens, logits = generated(model, inputs)
    with prune(model, make_plan("text_weighted", pruning_layer=1, keep_tokens=1000)) as trace:
        same_tokens, same_logits = generated(model, inputs)
    assert torch.equal(logits, same_logits)
    assert torch.equal(tokens, same_tokens)
    assert [document.kept_tokens for document in trace.documents] == (inputs["input_ids"] == IMAGE_ID).sum(1).tolist()


def test_beams_have_the_masked_models_likelihood(kind, model):
    """The best beam's score is its mean log-likelihood in the masked model, in a batch as alone."""
    prompts, plan = prompts_of(kind)[:2], plan_of(STAGES["layer_0"])
    if kind.startswith("glm"):  # see the next test
        prompts = [prompts[0], (4, MODELS[kind].pictures[1], 9)]
    options = {"num_beams": 3, "max_new_tokens": STEPS, "return_dict_in_generate": True, "output_scores": True}
    batch = inputs_of(kind, prompts)
    with prune(model, plan) as trace:
        together = model.generate(**batch, **options)
    assert len(trace.documents) == 3 * len(prompts)
    for row, prompt in enumerate(prompts):
        inputs = inputs_of(kind, [prompt], first=row)
        tokens = together.sequences[row, batch["input_ids"].shape[1] :].tolist()
        removed = removed_by(trace.documents[3 * row])
        logits = run_masked(model, inputs, removed, tokens[:-1]).logits[0, -STEPS:]
        likely = logits.log_softmax(dim=-1).gather(1, torch.tensor(tokens)[:, None]).mean().item()
        assert together.sequences_scores[row].item() == pytest.approx(likely, abs=TOLERANCE)
        with prune(model, plan):
            alone = model.generate(**inputs, **options)
        assert alone.sequences[0, inputs["input_ids"].shape[1] :].tolist() == tokens


@pytest.mark.parametrize("sizes", [(0, 1), (0, 0)], ids=["two_sizes", "one_size"])
@pytest.mark.parametrize("kind", ["glm4v", "glm46v"])
def test_beams_that_transformers_itself_mixes_up_are_refused(kind, sizes):
    pictures = [MODELS[kind].pictures[place] for place in sizes]
    inputs = inputs_of(kind, [(7, pictures[0], 6, pictures[1], 8)])
    refused = pytest.raises(PlanError, match="beam search over several pictures")
    with refused, prune(model_of(kind), plan_of(STAGES["layer_0"])):
        model_of(kind).generate(**inputs, num_beams=2, max_new_tokens=2)


@pytest.mark.parametrize("layer", [0, 2])
def test_the_fan_out_gives_the_pruners_tokens(kind, model, layer):
    """Its own way through the later layers: M-RoPE's phases, the first token's position, and DeepStack's features."""
    scorer = SCORERS["text_weighted"]
    for row, prompt in enumerate(prompts_of(kind)[:2]):
        inputs = inputs_of(kind, [prompt], first=row)
        prefix = run_prefix(model, inputs, layer, [scorer])
        budgets = [1000, 5, 2, 0]
        kept = [prefix.keep(scorer, budget) for budget in budgets]
        done = continue_prefix(model, prefix, kept, max_new_tokens=STEPS, ranks=True)
        for budget, positions, continuation in zip(budgets, kept, done, strict=True):
            with prune(model, Plan("one", (Stage(scorer, layer, keep_tokens=budget),)), ranks=True) as trace:
                tokens, _ = generated(model, inputs)
            (document,) = trace.documents
            assert positions.tolist() == document.stages[0].kept.tolist()
            assert continuation.tokens == tokens[0].tolist()
            assert row_lengths(prefix, document.shape, len(positions)) == (document.lengths, document.image_lengths)
            if len(positions):
                assert continuation.ranks.effective == pytest.approx(document.ranks.effective, rel=1e-4)


@pytest.mark.parametrize("scope", ["image", "prompt"])
def test_a_budget_is_a_pictures_or_a_prompts_whatever_its_tiles(kind, scope):
    """Three pictures, two of them side by side: keep_tokens for each, or for all together."""
    a, b, c = MODELS[kind].pictures
    prompt = (9, a, 8, b, c, 10)
    inputs, model = inputs_of(kind, [prompt], seed=3), model_of(kind)
    images = images_of(kind, prompt, inputs["input_ids"])
    with prune(model, make_plan("text_weighted", pruning_layer=1, keep_tokens=5, keep_scope=scope)) as trace:
        model(**inputs)
    kept = trace.documents[0].stages[0].kept.tolist()
    of_each = [len(set(kept) & set(image)) for image in images]
    assert of_each == [5, 5, 5] if scope == "image" else sum(of_each) == 5


@pytest.mark.parametrize("scope", ["after", "all"])
def test_voters_are_the_text_of_the_scope(kind, scope):
    prompt = prompts_of(kind)[1]
    inputs, model = inputs_of(kind, [prompt], first=1), model_of(kind)
    places = places_of(kind, prompt, inputs)
    with prune(model, make_plan("text_weighted", pruning_layer=1, keep_tokens=5, text_scope=scope)) as trace:
        model(**inputs)
    everything = [place for place in range(inputs["input_ids"].shape[1]) if place not in set(places.image_tokens)]
    assert trace.documents[0].stages[0].text.tolist() == (places.text if scope == "after" else everything)


def test_costs_are_read_off_every_kind(kind):
    """The arithmetic of one layer, by hand; a mixture's token passes two of four experts and the router."""
    model = model_of(kind)
    shape = DecoderShape.from_config(find_decoder(model).config)
    with prune(model, make_plan("text_weighted", pruning_layer=1, keep_tokens=5)) as trace:
        model(**inputs_of(kind, prompts_of(kind)[:1]))
    (document,) = trace.documents
    dense = [6 * n * 64 * 96 for n in document.lengths]
    if kind == "qwen3_vl_moe":
        dense = [mlp if layer == 1 else 6 * n * 64 * 2 * 32 + 2 * n * 64 * 4 for layer, (n, mlp) in
                 enumerate(zip(document.lengths, dense, strict=True))]  # fmt: skip
    attention = [2 * n * 64 * (2 * 64 + 2 * 32) + 4 * n * n * 64 for n in document.lengths]
    assert document.flops == sum(dense) + sum(attention)
    assert (shape.layers, shape.head_dim, shape.kv_heads) == (6, 16, 2)
