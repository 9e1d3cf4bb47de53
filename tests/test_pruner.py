"""Physical removal against the same tokens masked in a float64 eager model, and what must not change."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from transformers import BatchFeature, DynamicCache, LlamaForCausalLM, MistralConfig, Qwen2Config, StaticCache

from lmms_textweighted.engine.decoder import find_decoder
from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.errors import PlanError
from lmms_textweighted.families.attach import prune
from lmms_textweighted.methods import SCORERS, make_plan
from tests.conftest import IMAGE, IMAGE_TOKEN, build_llava, make_inputs, one_row
from tests.oracles import (
    expected_ranks,
    expected_stages,
    masked_generate,
    masked_logits,
    removed_by,
    run_masked,
    svd_ranks,
)

# (scorer, layer it leaves after, tokens (int) or share (float) of each image that stay, scored layer)
PLANS = {
    "text_weighted": [("text_weighted", 2, 5, 2)],
    "debiased": [("text_weighted_debiased", 2, 5, 2)],
    "fastv": [("last_row", 1, 3, 1)],
    "uniform": [("uniform", 0, 7, 0)],
    "ratio": [("text_weighted", 1, 0.3, 1)],
    "scored_below": [("text_weighted", 3, 4, 1)],
    "staged": [("uniform", 1, 9, 1), ("last_row", 3, 4, 3)],
    "staged_ratios": [("last_row", 0, 0.5, 0), ("text_weighted", 2, 0.5, 1), ("uniform", 4, 0.5, 4)],
    "cut_off": [("text_weighted", 1, 6, 1), ("uniform", 3, 0, 3)],
    "nothing_kept": [("last_row", 2, 0, 2)],
}


def plan_of(stages, name: str = "test") -> Plan:
    return Plan(
        name,
        tuple(
            Stage(
                SCORERS[scorer],
                layer,
                **{"keep_tokens" if isinstance(keep, int) else "keep_ratio": keep},
                score_layer=scored,
            )
            for scorer, layer, keep, scored in stages
        ),
    )


def answers(model, inputs, count: int = 5, **kwargs) -> list[list[int]]:
    """The tokens that `generate` adds."""
    return model.generate(**inputs, max_new_tokens=count, **kwargs)[:, inputs["input_ids"].shape[1] :].tolist()


def assert_same_document(a, b):
    """Two traces of the same prompt, up to float32 noise."""
    assert (a.lengths, a.image_lengths, a.full_length, a.image_tokens) == (
        b.lengths,
        b.image_lengths,
        b.full_length,
        b.image_tokens,
    )
    assert len(a.stages) == len(b.stages)
    for x, y in zip(a.stages, b.stages, strict=True):
        assert x.layer == y.layer
        assert x.kept.tolist() == y.kept.tolist()
        assert x.candidates.tolist() == y.candidates.tolist()
        assert x.text.tolist() == y.text.tolist()
        torch.testing.assert_close(x.scores, y.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(x.text_weights, y.text_weights, atol=1e-5, rtol=0)
    assert (a.ranks is None) == (b.ranks is None)
    if a.ranks is not None:
        assert a.ranks.effective == pytest.approx(b.ranks.effective, rel=1e-3)


def assert_equals_one_by_one(model, inputs, plan, count: int = 4):
    """A batch gives every row the tokens and the trace of that row alone."""
    with prune(model, plan, ranks=True) as batched:
        together = answers(model, inputs, count)
    for row, tokens in enumerate(together):
        with prune(model, plan, ranks=True) as alone:
            assert answers(model, one_row(model, inputs, row), count) == [tokens]
        assert_same_document(batched.documents[row], alone.documents[0])


# Removal is masking.


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("stages", PLANS.values(), ids=PLANS)
def test_choices_and_logits_equal_those_of_the_masked_model(small_llava, attn, stages):
    model = small_llava(attn=attn)
    inputs = make_inputs(model, [(3, IMAGE, 6)], seed=1)
    expected, removed = expected_stages(model, inputs, stages)
    with prune(model, plan_of(stages), ranks=True) as trace:
        logits = model(**inputs).logits[0, -1]

    (document,) = trace.documents
    assert len(document.stages) == len(expected)
    for stage, plain in zip(document.stages, expected, strict=True):
        assert stage.layer == plain.layer
        assert stage.candidates.tolist() == list(plain.scores)
        assert stage.text.tolist() == list(plain.weights)
        np.testing.assert_allclose(stage.scores.numpy(), list(plain.scores.values()), atol=1e-5, rtol=0)
        np.testing.assert_allclose(stage.text_weights.numpy(), list(plain.weights.values()), atol=1e-5, rtol=0)
        assert stage.scores.dtype == stage.text_weights.dtype == torch.float32
        assert stage.kept.tolist() == plain.kept
    torch.testing.assert_close(logits.double(), masked_logits(model, inputs, removed), atol=1e-4, rtol=0)

    kept = expected[-1].kept
    if not kept:
        assert document.ranks is None
        return
    ranks = expected_ranks(model, inputs, removed, kept)
    assert document.ranks.effective == pytest.approx(ranks.effective, rel=1e-4)
    for low, got, high in zip(ranks.numeric_at_least, document.ranks.numeric, ranks.numeric_at_most, strict=True):
        assert low <= got <= high


def test_masking_moves_the_logits_far_more_than_the_tolerance(small_llava):
    """The oracle is worth something only where removal matters."""
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)], seed=1)
    _, removed = expected_stages(model, inputs, PLANS["text_weighted"])
    _, others = expected_stages(model, inputs, [("uniform", 2, 4, 2)])
    whole = masked_logits(model, inputs, {})
    assert (masked_logits(model, inputs, removed) - whole).abs().max() > 0.01
    assert (masked_logits(model, inputs, removed) - masked_logits(model, inputs, others)).abs().max() > 0.001


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["text_weighted", "fastv", "staged", "cut_off", "scored_below"])
def test_generation_equals_the_masked_model_token_for_token(small_llava, attn, name):
    model = small_llava(attn=attn)
    inputs = make_inputs(model, [(3, IMAGE, 6)], seed=2)
    _, removed = expected_stages(model, inputs, PLANS[name])
    with prune(model, plan_of(PLANS[name])):
        assert answers(model, inputs, 8) == [masked_generate(model, inputs, removed, 8)]


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 1), (8, 2)])
def test_multi_head_and_grouped_query_attention(small_llava, attn, heads, kv_heads):
    model = small_llava(layers=4, heads=heads, kv_heads=kv_heads, attn=attn)
    inputs = make_inputs(model, [(2, IMAGE, 5)], seed=3)
    stages = [("text_weighted", 1, 4, 1)]
    expected, removed = expected_stages(model, inputs, stages)
    with prune(model, plan_of(stages), ranks=True) as trace:
        logits = model(**inputs).logits[0, -1]
    (document,) = trace.documents
    assert document.stages[0].kept.tolist() == expected[0].kept
    torch.testing.assert_close(logits.double(), masked_logits(model, inputs, removed), atol=1e-4, rtol=0)
    assert len(document.ranks.effective) == heads
    ranks = expected_ranks(model, inputs, removed, expected[0].kept)
    assert document.ranks.effective == pytest.approx(ranks.effective, rel=1e-4)


@pytest.mark.parametrize("decoder", [MistralConfig, Qwen2Config])
def test_other_decoders(decoder):
    model = build_llava(layers=4, decoder=decoder)
    if decoder is MistralConfig:
        for layer in model.model.language_model.layers:
            layer.self_attn.sliding_window = None
        model.config.text_config.sliding_window = None
    inputs = make_inputs(model, [(3, IMAGE, 6), (1, IMAGE, 9)])
    stages = [("text_weighted", 1, 4, 1)]
    _, removed = expected_stages(model, one_row(model, inputs, 0), stages)
    with prune(model, plan_of(stages)):
        logits = model(**inputs).logits[0, -1]
    expected = masked_logits(model, one_row(model, inputs, 0), removed)
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=0)
    assert_equals_one_by_one(model, inputs, plan_of(stages))


def test_the_random_strategy_equals_its_own_choice_masked(small_llava):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)], seed=4)
    with prune(model, make_plan("random", keep_tokens=5)) as trace:
        logits = model(**inputs).logits[0, -1]
    (document,) = trace.documents
    assert len(document.stages[0].kept) == 5
    assert len(document.stages[0].text_weights) == 0
    expected = masked_logits(model, inputs, removed_by(document))
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=0)


def test_several_tokens_at_once_on_top_of_the_pruned_cache(small_llava):
    """As a multi-token continuation or a second turn does."""
    for attn in ("sdpa", "eager"):
        model = small_llava(attn=attn)
        inputs = make_inputs(model, [(3, IMAGE, 6)], seed=5)
        _, removed = expected_stages(model, inputs, PLANS["staged"])
        with prune(model, plan_of(PLANS["staged"])):
            cache = model(**inputs, use_cache=True).past_key_values
            more = torch.tensor([[5, 9, 13]])
            logits = model(input_ids=more, past_key_values=cache).logits[0]
        expected = run_masked(model, inputs, removed, [5, 9, 13]).logits[0, -3:]
        torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=0)


def test_generation_without_a_cache_prunes_every_forward_anew(small_llava):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)])
    with prune(model, make_plan(keep_tokens=4)) as trace:
        answers(model, inputs, 3, use_cache=False)
    assert [document.full_length for document in trace.documents] == [25, 26, 27]
    assert all(document.image_lengths == [16, 16, 16, 4, 4, 4] for document in trace.documents)


# What removes nothing changes nothing.


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "plan",
    [
        make_plan("none"),
        make_plan(keep_tokens=16),
        make_plan("fastv", keep_ratio=1.0),
        make_plan("random", keep_tokens=16),
        plan_of([("uniform", 1, 16, 1), ("last_row", 3, 16, 2)], "staged"),
    ],
    ids=lambda plan: plan.name,
)
def test_keeping_every_token_changes_nothing(small_llava, attn, plan):
    model = small_llava(attn=attn)
    inputs = make_inputs(model, [(3, IMAGE, 6), (5, IMAGE, 9)])
    plain, tokens = model(**inputs).logits, answers(model, inputs)
    with prune(model, plan, ranks=True) as trace:
        assert torch.equal(model(**inputs).logits, plain)
        assert answers(model, inputs) == tokens
    assert all(set(document.image_lengths) == {16} for document in trace.documents)
    assert all(document.flops_ratio == 1 for document in trace.documents)


def test_observing_ranks_of_the_unpruned_model(small_llava):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)])
    with prune(model, make_plan("none"), ranks=True) as trace:
        model(**inputs)
    attention = run_masked(model, inputs, {}).attentions[-1][0].double().numpy()
    expected = [svd_ranks(head[3:19, 3:19])[1] for head in attention]
    assert trace.documents[0].ranks.effective == pytest.approx(expected, rel=1e-4)


def test_ranks_are_left_out_unless_asked_for(small_llava):
    model = small_llava()
    with prune(model, make_plan(keep_tokens=4)) as trace:
        model(**make_inputs(model, [(3, IMAGE, 6)]))
    assert trace.documents[0].ranks is None
    assert "effective_rank" not in trace.documents[0].summary()


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_text_only_input_is_left_alone(small_llava, attn):
    model = small_llava(attn=attn)
    inputs = make_inputs(model, [(9,), (6,)])
    plain, tokens = model(**inputs).logits, answers(model, inputs)
    with prune(model, plan_of(PLANS["staged"]), ranks=True) as trace:
        assert torch.equal(model(**inputs).logits, plain)
        assert answers(model, inputs) == tokens
    assert trace.documents[0].lengths == [9] * 6
    assert trace.documents[1].lengths == [6] * 6
    assert trace.documents[0].image_tokens == trace.documents[0].kept_tokens == 0
    assert trace.documents[0].ranks is None


# What is kept, and how long everything is.


@pytest.mark.parametrize(
    ("stages", "lengths"),
    [
        ([("text_weighted", 2, 5, 2)], [25, 25, 25, 14, 14, 14]),
        ([("last_row", 0, 1, 0)], [25, 10, 10, 10, 10, 10]),
        ([("uniform", 4, 8, 0)], [25, 25, 25, 25, 25, 17]),
        ([("uniform", 1, 9, 1), ("last_row", 3, 4, 3)], [25, 25, 18, 18, 13, 13]),
        ([("uniform", 1, 9, 1), ("last_row", 3, 0, 3)], [25, 25, 18, 18, 9, 9]),
    ],
)
def test_later_layers_and_their_cache_are_shorter(small_llava, stages, lengths):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)])
    with prune(model, plan_of(stages)) as trace:
        cache = model(**inputs, use_cache=True).past_key_values
        assert [layer.keys.shape[2] for layer in cache.layers] == lengths
        model(input_ids=torch.tensor([[7]]), past_key_values=cache)
    assert [layer.keys.shape[2] for layer in cache.layers] == [length + 1 for length in lengths]
    assert trace.documents[0].lengths == lengths
    assert trace.documents[0].image_lengths == [length - 9 for length in lengths]
    assert len(trace.documents) == 1


def test_hidden_states_of_later_layers_are_really_shorter(small_llava):
    model = small_llava()
    seen = []
    handles = [
        layer.mlp.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
        for layer in model.model.language_model.layers
    ]
    with prune(model, make_plan(keep_tokens=5)):
        logits = model(**make_inputs(model, [(3, IMAGE, 6)])).logits
    for handle in handles:
        handle.remove()
    assert seen == [25, 25, 25, 14, 14, 14]
    assert logits.shape[1] == 14


@pytest.mark.parametrize(("ratio", "kept"), [(0.01, 1), (0.0625, 1), (0.124, 1), (0.125, 2), (0.49, 7), (1.0, 16)])
def test_a_ratio_rounds_down_to_at_least_one_token(small_llava, ratio, kept):
    model = small_llava()
    with prune(model, make_plan(keep_ratio=ratio)) as trace:
        model(**make_inputs(model, [(3, IMAGE, 6)]))
    assert len(trace.documents[0].stages[0].kept) == trace.documents[0].kept_tokens == kept


@pytest.mark.parametrize(("ratio", "tokens"), [(0.29, 100), (0.57, 100), (0.58, 100), (0.3, 10), (0.7, 10)])
def test_a_ratio_that_names_a_whole_number_of_tokens_keeps_that_number(ratio, tokens):
    """0.29 * 100 is 28.999999999999996 in floating point."""
    assert Stage(SCORERS["uniform"], 1, keep_ratio=ratio).keep(tokens) == round(ratio * tokens)


def test_a_share_of_an_image_that_is_gone_is_nothing(small_llava):
    """A cut-off followed by a share: no token can come back."""
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)])
    plan = Plan("late", (Stage(SCORERS["uniform"], 1, keep_tokens=0), Stage(SCORERS["last_row"], 3, keep_ratio=0.5)))
    with prune(model, plan) as trace:
        cache = model(**inputs, use_cache=True).past_key_values
    assert trace.documents[0].image_lengths == [16, 16, 0, 0, 0, 0]
    assert [layer.keys.shape[2] for layer in cache.layers] == [25, 25, 9, 9, 9, 9]


def test_the_kept_set_is_in_original_order_and_of_the_images_tokens(small_llava):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)])
    for budget in (1, 6, 15):
        with prune(model, make_plan(keep_tokens=budget)) as trace:
            model(**inputs)
        kept = trace.documents[0].stages[0].kept.tolist()
        assert kept == sorted(set(kept))
        assert len(kept) == budget
        assert set(kept) <= set(range(3, 19))


# Several images.


@pytest.mark.parametrize("prompt", [(2, IMAGE, 3, IMAGE, 5), (2, IMAGE, IMAGE, 5)], ids=["apart", "adjacent"])
@pytest.mark.parametrize("name", ["text_weighted", "staged", "ratio", "cut_off"])
def test_every_image_of_a_prompt_has_the_budget(small_llava, prompt, name):
    model = small_llava()
    inputs = make_inputs(model, [prompt], seed=6)
    expected, removed = expected_stages(model, inputs, PLANS[name])
    with prune(model, plan_of(PLANS[name]), ranks=True) as trace:
        logits = model(**inputs).logits[0, -1]
        tokens = answers(model, inputs, 4)
    document = trace.documents[0]
    starts = [2, 2 + 16 + (prompt[2] if prompt[2] != IMAGE else 0)]
    for stage, plain in zip(document.stages, expected, strict=True):
        assert stage.kept.tolist() == plain.kept
        share = [sum(start <= place < start + 16 for place in plain.kept) for start in starts]
        assert share[0] == share[1] == len(plain.kept) / 2
    torch.testing.assert_close(logits.double(), masked_logits(model, inputs, removed), atol=1e-4, rtol=0)
    assert tokens == [masked_generate(model, inputs, removed, 4)]
    if expected[-1].kept:
        ranks = expected_ranks(model, inputs, removed, expected[-1].kept)
        assert document.ranks.effective == pytest.approx(ranks.effective, rel=1e-4)


def test_text_between_images_neither_scores_nor_leaves(small_llava):
    model = small_llava()
    with prune(model, make_plan(keep_tokens=3)) as trace:
        cache = model(**make_inputs(model, [(2, IMAGE, 3, IMAGE, 5)]), use_cache=True).past_key_values
    assert trace.documents[0].stages[0].text.tolist() == [37, 38, 39, 40, 41]
    assert cache.layers[-1].keys.shape[2] == 2 + 3 + 3 + 3 + 5


# Batches.

BATCHES = {
    "lengths": [(3, IMAGE, 6), (8, IMAGE, 11), (1, IMAGE, 2)],
    "text_only_row": [(7,), (3, IMAGE, 6), (30,), (2, IMAGE, 14)],
    "numbers_of_images": [(3, IMAGE, 6), (2, IMAGE, IMAGE, 4), (1, IMAGE, 2, IMAGE, 3)],
}


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("name", ["text_weighted", "fastv", "staged", "staged_ratios", "cut_off"])
def test_a_padded_batch_equals_its_rows_one_by_one(small_llava, attn, batch, name):
    model = small_llava(attn=attn)
    assert_equals_one_by_one(model, make_inputs(model, batch, seed=7), plan_of(PLANS[name]))


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "batch",
    [[(25,), (3, IMAGE, 6)], [(2, IMAGE, 2, IMAGE, 4), (3, IMAGE, 21)]],
    ids=["text_only_row", "numbers_of_images"],
)
def test_rows_of_equal_length_that_lose_different_counts(small_llava, attn, batch):
    """No padding before the pruning layer, so the model makes no mask in decoding; fillers after it."""
    model = small_llava(attn=attn)
    inputs = make_inputs(model, batch)
    assert inputs["attention_mask"].all()
    assert_equals_one_by_one(model, inputs, plan_of(PLANS["text_weighted"]))


def test_rows_of_equal_length_without_padding(small_llava):
    model = small_llava()
    assert_equals_one_by_one(model, make_inputs(model, [(3, IMAGE, 6), (4, IMAGE, 5)]), plan_of(PLANS["staged"]))


def test_padding_in_front_of_every_row_changes_nothing(small_llava):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6), (4, IMAGE, 5)], pad_to=33)
    assert_equals_one_by_one(model, inputs, plan_of(PLANS["staged"]))


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_padding_behind_a_prompt_changes_neither_choice_nor_logits(small_llava, attn):
    """Where the rows come padded on the right, the shorter sequence is right-aligned."""
    model = small_llava(attn=attn)
    inputs = make_inputs(model, [(3, IMAGE, 6)])
    padded = BatchFeature(
        {
            "input_ids": torch.nn.functional.pad(inputs["input_ids"], (0, 4)),
            "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 4)),
            "pixel_values": inputs["pixel_values"],
        }
    )
    with prune(model, make_plan(keep_tokens=5), ranks=True) as plain:
        expected = model(**inputs).logits[0, -1]
    with prune(model, make_plan(keep_tokens=5), ranks=True) as trace:
        logits = model(**padded).logits[0, -1]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert_same_document(trace.documents[0], plain.documents[0])


def test_positions_in_the_trace_do_not_count_padding(small_llava):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)], pad_to=40)
    with prune(model, make_plan(keep_tokens=16)) as trace:
        model(**inputs)
    (stage,) = trace.documents[0].stages
    assert stage.kept.tolist() == stage.candidates.tolist() == list(range(3, 19))
    assert stage.text.tolist() == list(range(19, 25))


# Leaving the model as it was.


def state(model):
    """All hooks and attention configs of a model."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    hooks = {(name, kind): list(getattr(module, kind)) for name, module in model.named_modules() for kind in kinds}
    configs = [(id(layer.self_attn.config), layer.self_attn.config) for layer in model.model.language_model.layers]
    return hooks, [place for place, _ in configs], [copy.deepcopy(config.__dict__) for _, config in configs]


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_the_model_is_as_before_on_leaving(small_llava, attn):
    model = small_llava(attn=attn)
    inputs = make_inputs(model, [(3, IMAGE, 6)])
    logits, tokens = model(**inputs).logits, answers(model, inputs)
    before = state(model)
    with prune(model, plan_of(PLANS["staged_ratios"]), ranks=True):
        assert state(model) != before
        answers(model, inputs)
    assert state(model) == before
    assert torch.equal(model(**inputs).logits, logits)
    assert answers(model, inputs) == tokens


class Boom(Exception):
    pass


@pytest.mark.parametrize("where", ["body", "before", "inside"])
def test_the_model_is_as_before_after_an_exception(small_llava, where):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)])
    logits = model(**inputs).logits
    before = state(model)

    def fail(*_):
        raise Boom

    layer = model.model.language_model.layers[4]
    with pytest.raises(Boom), prune(model, plan_of(PLANS["staged"]), ranks=True):  # noqa: PT012
        if where == "body":
            raise Boom
        handle = (layer if where == "before" else layer.mlp).register_forward_pre_hook(fail)
        try:
            model(**inputs)
        finally:
            handle.remove()
    assert state(model) == before
    assert torch.equal(model(**inputs).logits, logits)


def test_a_rejected_input_leaves_the_model_as_before(small_llava):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)])
    logits = model(**inputs).logits
    before = state(model)
    with pytest.raises(PlanError), prune(model, make_plan(keep_tokens=17)):
        model(**inputs)
    assert state(model) == before
    assert torch.equal(model(**inputs).logits, logits)


def test_a_context_serves_many_prompts_and_a_model_many_contexts(small_llava):
    model = small_llava()
    prompts = [make_inputs(model, [(3, IMAGE, 6)], seed=seed) for seed in (1, 2)] + [
        make_inputs(model, [(3, IMAGE, 6), (9, IMAGE, 2)], seed=3)
    ]
    plan = make_plan(keep_tokens=5)
    with prune(model, plan) as together:
        first = [answers(model, inputs) for inputs in prompts]
    alone = []
    for inputs, tokens in zip(prompts, first, strict=True):
        with prune(model, plan) as trace:
            assert answers(model, inputs) == tokens
        alone += trace.documents
    assert len(together.documents) == 4
    for a, b in zip(together.documents, alone, strict=True):
        assert_same_document(a, b)


def test_one_context_inside_another_is_refused(small_llava):
    """Two plans at once have no meaning: a one-line error, and the model as before."""
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)])
    logits = model(**inputs).logits
    before = state(model)
    plan = make_plan(keep_tokens=5)
    with pytest.raises(PlanError), prune(model, plan), prune(model, plan):
        model(**inputs)
    assert state(model) == before
    assert torch.equal(model(**inputs).logits, logits)


# The random strategy.


def random_choice(model, inputs, budget: int = 5, **kwargs) -> list[list[int]]:
    with prune(model, make_plan("random", keep_tokens=budget), **kwargs) as trace:
        model(**inputs)
    return [document.stages[0].kept.tolist() for document in trace.documents]


def test_random_choice_does_not_depend_on_order_batch_or_padding(small_llava):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6), (3, IMAGE, 11), (3, IMAGE, 2)], seed=8)
    together = random_choice(model, inputs)
    assert together == [random_choice(model, one_row(model, inputs, row))[0] for row in range(3)]
    turned = BatchFeature({name: value.flip(0) for name, value in inputs.items()})
    assert random_choice(model, turned) == together[::-1]
    torch.manual_seed(99)
    assert random_choice(model, inputs) == together
    assert len({tuple(kept) for kept in together}) == 3


def test_random_choice_depends_on_the_seed(small_llava):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)])
    assert random_choice(model, inputs, seed=1) != random_choice(model, inputs, seed=2)


def test_a_callers_key_decides_alone(small_llava):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6), (3, IMAGE, 9)])
    same = random_choice(model, inputs, random_keys=["a", "a"])
    assert same[0] == same[1]
    assert random_choice(model, one_row(model, inputs, 1), random_keys=["a"])[0] == same[0]
    other = random_choice(model, inputs, random_keys=["a", "b"])
    assert other[0] == same[0] != other[1]


def test_random_budgets_are_nested(small_llava):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)])
    kept = [set(random_choice(model, inputs, budget)[0]) for budget in (2, 5, 11, 15)]
    assert kept[0] < kept[1] < kept[2] < kept[3]


def test_random_keys_must_be_one_a_row(small_llava):
    model = small_llava()
    with pytest.raises(PlanError, match=r"2 random_keys for a batch of 1"):
        random_choice(model, make_inputs(model, [(3, IMAGE, 6)]), random_keys=["a", "b"])


# Ways of running.


@pytest.mark.parametrize(
    "plan",
    [plan_of(PLANS["text_weighted"]), plan_of(PLANS["staged"]), make_plan("random", keep_tokens=5)],
    ids=["text_weighted", "staged", "random"],
)
def test_beam_search_over_a_batch_equals_its_rows_one_by_one(small_llava, plan):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6), (8, IMAGE, 11)], seed=9)
    with prune(model, plan):
        together = answers(model, inputs, 5, num_beams=2)
        for row in (0, 1):
            assert answers(model, one_row(model, inputs, row), 5, num_beams=2) == [together[row]]


def test_beam_search_scores_are_those_of_the_masked_model(small_llava):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)], seed=9)
    with prune(model, plan_of(PLANS["text_weighted"])) as trace:
        out = model.generate(
            **inputs,
            max_new_tokens=4,
            num_beams=3,
            return_dict_in_generate=True,
            output_scores=True,
            length_penalty=0.0,
        )
    tokens = out.sequences[0, 25:].tolist()
    kept = {tuple(document.stages[0].kept.tolist()) for document in trace.documents}
    assert len(kept) == 1
    logits = run_masked(model, inputs, removed_by(trace.documents[0]), tokens).logits[0, -5:-1]
    chosen = logits.log_softmax(dim=-1)[range(4), tokens].sum()
    assert out.sequences_scores[0].item() == pytest.approx(chosen.item(), abs=1e-4)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_bfloat16_gives_finite_logits_and_float32_scores(attn):
    model = build_llava(attn=attn).bfloat16()
    inputs = make_inputs(model, [(3, IMAGE, 6), (8, IMAGE, 11)])
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    with prune(model, plan_of(PLANS["staged"]), ranks=True) as trace:
        logits = model(**inputs).logits
        assert logits.dtype == torch.bfloat16
        assert torch.isfinite(logits[:, -1]).all()
        assert len(answers(model, inputs, 4)[0]) == 4
    for document in trace.documents:
        for stage in document.stages:
            assert stage.scores.dtype == stage.text_weights.dtype == torch.float32
            assert torch.isfinite(stage.scores).all()
            assert stage.text_weights.sum().item() == pytest.approx(1, abs=1e-5)
        assert document.element_size == 2
        assert 1 <= document.ranks.effective_mean <= 4


def test_sampling_runs_on_the_pruned_cache(small_llava):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6), (8, IMAGE, 11)])
    with prune(model, make_plan(keep_tokens=4)) as trace:
        torch.manual_seed(0)
        tokens = answers(model, inputs, 6, do_sample=True, temperature=2.0)
        torch.manual_seed(0)
        assert answers(model, inputs, 6, do_sample=True, temperature=2.0) == tokens
    assert [len(row) for row in tokens] == [6, 6]
    assert len(trace.documents) == 4


def test_the_summary_is_plain_data(small_llava):
    model = small_llava()
    with prune(model, make_plan(keep_tokens=4), ranks=True) as trace:
        model(**make_inputs(model, [(3, IMAGE, 6)]))
    (document,) = trace.documents
    data = document.summary()
    assert data["kept_positions"] == [document.stages[0].kept.tolist()]
    assert data["lengths"] == [25, 25, 25, 13, 13, 13]
    assert (data["image_tokens"], data["kept_tokens"], data["equivalent_tokens"]) == (16, 4, 10)
    assert data["kv_ratio"] == pytest.approx((3 * 25 + 3 * 13) / 150)
    assert data["effective_rank"] == pytest.approx(sum(document.ranks.effective) / 4)
    assert data["numeric_rank"] == sum(document.ranks.numeric) / 4


# What does not fit is an error.


def test_more_tokens_than_the_image_has(small_llava):
    model = small_llava()
    with (
        pytest.raises(PlanError, match=r"keep_tokens is 17, but the image has 16"),
        prune(model, make_plan(keep_tokens=17)),
    ):
        model(**make_inputs(model, [(3, IMAGE, 6)]))


def test_more_tokens_than_the_stage_in_front_left(small_llava):
    model = small_llava()
    plan = plan_of([("uniform", 1, 4, 1), ("uniform", 3, 5, 3)])
    with pytest.raises(PlanError, match=r"keep_tokens is 5, but the image has 4"), prune(model, plan):
        model(**make_inputs(model, [(3, IMAGE, 6)]))


@pytest.mark.parametrize("layer", [5, 6, 40])
def test_a_layer_outside_the_model(small_llava, layer):
    with (
        pytest.raises(PlanError, match=f"pruning layer is {layer}, but the model has 6"),
        prune(small_llava(), make_plan(pruning_layer=layer, keep_tokens=4)),
    ):
        pytest.fail("the context opened")


def test_the_deepest_layer_that_leaves_one_to_shorten(small_llava):
    model = small_llava()
    with prune(model, make_plan(pruning_layer=4, keep_tokens=4)) as trace:
        model(**make_inputs(model, [(3, IMAGE, 6)]))
    assert trace.documents[0].image_lengths == [16, 16, 16, 16, 16, 4]


@pytest.mark.parametrize("batch", [[(3, IMAGE)], [(3, IMAGE, 6), (12, IMAGE)]], ids=["alone", "in_a_batch"])
def test_an_image_at_the_end_of_the_prompt(small_llava, batch):
    model = small_llava()
    with pytest.raises(PlanError, match="ends with its image"), prune(model, make_plan(keep_tokens=4)):
        model(**make_inputs(model, batch))


def test_an_image_on_top_of_a_cache(small_llava):
    model = small_llava()
    with prune(model, make_plan(keep_tokens=4)):
        cache = model(**make_inputs(model, [(5,)]), use_cache=True).past_key_values
        late = make_inputs(model, [(IMAGE, 3)])
        with pytest.raises(PlanError, match="image tokens arrive on top of a KV cache"):
            model(input_ids=late["input_ids"], pixel_values=late["pixel_values"], past_key_values=cache)


def test_a_prefill_outside_the_context(small_llava):
    model = small_llava()
    cache = model(**make_inputs(model, [(3, IMAGE, 6)]), use_cache=True).past_key_values
    with prune(model, make_plan(keep_tokens=4)), pytest.raises(PlanError, match="prefill inside the context"):
        model(input_ids=torch.tensor([[7]]), past_key_values=cache)


def test_a_cache_of_a_kind_that_cannot_be_shorter_in_some_layers(small_llava):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)])
    cache = StaticCache(config=model.config.text_config, max_cache_len=64)
    with prune(model, make_plan(keep_tokens=4)):
        with pytest.raises(PlanError, match="StaticCache"):
            model(**inputs, past_key_values=cache)
        with pytest.raises(PlanError, match="StaticCache"):
            answers(model, inputs, cache_implementation="static")


def test_an_empty_cache_of_the_callers_own_is_a_prefill(small_llava):
    model = small_llava()
    cache = DynamicCache(config=model.config.text_config)
    with prune(model, make_plan(keep_tokens=4)) as trace:
        model(**make_inputs(model, [(3, IMAGE, 6)]), past_key_values=cache)
    assert len(trace.documents) == 1
    assert cache.layers[-1].keys.shape[2] == 13


def test_embeddings_instead_of_ids(small_llava):
    model = small_llava()
    embeddings = model.get_input_embeddings()(torch.tensor([[3, 4, 5]]))
    with prune(model, make_plan(keep_tokens=4)), pytest.raises(PlanError, match="without input_ids"):
        model(inputs_embeds=embeddings)


def test_a_model_without_decoder_layers():
    with pytest.raises(PlanError, match="Linear has no list of decoder layers"):
        find_decoder(torch.nn.Linear(2, 2))


def test_a_model_without_an_image_token(small_llava):
    model = LlamaForCausalLM(small_llava().config.text_config)
    with (
        pytest.raises(
            PlanError,
            match="LlamaForCausalLM has the model_type 'llama', which is of no known family: known are llava, ",
        ),
        prune(model, make_plan(keep_tokens=4)),
    ):
        pytest.fail("the context opened")


@pytest.mark.parametrize(
    ("decoder", "options"),
    [(MistralConfig, {}), (Qwen2Config, {"use_sliding_window": True, "max_window_layers": 3})],
)
def test_a_decoder_that_was_built_with_a_sliding_window_is_refused(decoder, options):
    model = build_llava(layers=4, decoder=functools.partial(decoder, sliding_window=8, **options))
    with pytest.raises(PlanError, match="sliding-window"), prune(model, make_plan(keep_tokens=4)):
        pytest.fail("the context opened")


def test_a_sliding_window_is_refused(small_llava, monkeypatch):
    model = small_llava()
    monkeypatch.setattr(model.model.language_model.layers[3].self_attn, "sliding_window", 8, raising=False)
    with pytest.raises(PlanError, match="sliding-window"), prune(model, make_plan(keep_tokens=4)):
        pytest.fail("the context opened")


def test_the_random_models_never_answer_with_the_image_token(small_llava):
    """Without a cache an image token among the answers would be taken for a picture."""
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6), (8, IMAGE, 11)])
    assert IMAGE_TOKEN not in [token for row in answers(model, inputs, 12) for token in row]
