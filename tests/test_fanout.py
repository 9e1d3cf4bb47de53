"""Many budgets from one prefill against `prune` and `generate`, one budget at a time."""

from __future__ import annotations

import pytest
import torch

from lmms_textweighted.engine.fanout import continue_prefix, row_lengths
from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.errors import PlanError
from lmms_textweighted.families.attach import prune, run_prefix
from lmms_textweighted.methods import SCORERS
from tests.conftest import BY_SCORE, IMAGE, build_llava, make_inputs

ALL_SCORERS = BY_SCORE
PROMPTS = {
    "one_image": (3, IMAGE, 6),
    "two_images": (2, IMAGE, 3, IMAGE, 5),
    "adjacent_images": (1, IMAGE, IMAGE, 4),
}


def pruned(model, inputs, scorer: str, layer: int, budget: int, count: int, seed: int = 0):
    """The tokens and the trace of `prune` and `generate`."""
    plan = Plan("one", (Stage(SCORERS[scorer], layer, keep_tokens=budget),))
    with prune(model, plan, ranks=True, seed=seed) as trace:
        out = model.generate(**inputs, max_new_tokens=count)
    return out[0, inputs["input_ids"].shape[1] :].tolist(), trace.documents[0]


def assert_equals_prune(model, inputs, scorer, layer, budgets, count=5, seed=0):
    prefix = run_prefix(model, inputs, layer, [SCORERS[scorer]], seed=seed)
    kept = [prefix.keep(SCORERS[scorer], budget) for budget in budgets]
    continuations = continue_prefix(model, prefix, kept, max_new_tokens=count, ranks=True)
    for budget, positions, continuation in zip(budgets, kept, continuations, strict=True):
        tokens, document = pruned(model, inputs, scorer, layer, budget, count, seed)
        (stage,) = document.stages
        assert positions.tolist() == stage.kept.tolist()
        torch.testing.assert_close(prefix.scores[SCORERS[scorer]], stage.scores, atol=1e-6, rtol=0)
        said = prefix.stage(SCORERS[scorer], budget)
        assert (said.layer, said.kept.tolist(), said.candidates.tolist(), said.text.tolist()) == (
            stage.layer,
            stage.kept.tolist(),
            stage.candidates.tolist(),
            stage.text.tolist(),
        )
        torch.testing.assert_close(said.text_weights, stage.text_weights, atol=1e-6, rtol=0)
        assert continuation.tokens == tokens
        total = budget * len(prefix.layout.image_sizes[0])
        assert row_lengths(prefix, document.shape, total) == (document.lengths, document.image_lengths)
        if total == 0:
            assert continuation.ranks is document.ranks is None
        else:
            assert continuation.ranks.effective == pytest.approx(document.ranks.effective, rel=1e-4)
            assert len(continuation.ranks.numeric) == len(document.ranks.numeric)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("scorer", ALL_SCORERS)
def test_every_budget_equals_a_pruned_generation(small_llava, attn, scorer):
    model = small_llava(attn=attn)
    inputs = make_inputs(model, [(3, IMAGE, 6)], seed=11)
    assert_equals_prune(model, inputs, scorer, 2, [16, 11, 5, 1, 0])


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("layer", [0, 3, 4])
def test_every_layer_and_number_of_images(small_llava, attn, prompt, layer):
    model = small_llava(attn=attn)
    inputs = make_inputs(model, [prompt], seed=12)
    assert_equals_prune(model, inputs, "text_weighted", layer, [9, 4])


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("budgets", [[5], [5, 5], [16]], ids=["one", "equal", "all"])
def test_kept_sets_of_equal_size_need_no_fillers(small_llava, attn, budgets):
    model = small_llava(attn=attn)
    inputs = make_inputs(model, [(3, IMAGE, 6)], seed=13)
    assert_equals_prune(model, inputs, "text_weighted", 2, budgets)


@pytest.mark.parametrize("kv_heads", [4, 1])
def test_other_groups_of_heads(small_llava, kv_heads):
    model = small_llava(kv_heads=kv_heads)
    assert_equals_prune(model, make_inputs(model, [(3, IMAGE, 6)], seed=14), "last_row", 1, [12, 3])


def test_a_padded_prompt_or_a_batch_is_refused(small_llava):
    """Its early layers would decode over the padding."""
    model = small_llava()
    for inputs in (make_inputs(model, [(3, IMAGE, 6)], pad_to=32), make_inputs(model, [(3, IMAGE, 6)] * 2)):
        with pytest.raises(PlanError, match="one unpadded prompt at a time"):
            run_prefix(model, inputs, 2, [SCORERS["text_weighted"]])


def test_one_prefix_serves_every_scorer_at_once(small_llava):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)], seed=16)
    prefix = run_prefix(model, inputs, 2, [SCORERS[scorer] for scorer in ALL_SCORERS])
    kept = [prefix.keep(SCORERS[scorer], budget) for scorer in ALL_SCORERS for budget in (10, 2)]
    continuations = iter(continue_prefix(model, prefix, kept, max_new_tokens=4))
    for scorer in ALL_SCORERS:
        for budget in (10, 2):
            assert next(continuations).tokens == pruned(model, inputs, scorer, 2, budget, 4)[0]


def test_a_prefix_can_be_continued_again(small_llava):
    model = small_llava()
    prefix = run_prefix(model, make_inputs(model, [(3, IMAGE, 6)], seed=17), 2, [SCORERS["uniform"]])
    kept = [prefix.keep(SCORERS["uniform"], 6), prefix.keep(SCORERS["uniform"], 2)]
    first = continue_prefix(model, prefix, kept, max_new_tokens=5, ranks=True)
    second = continue_prefix(model, prefix, kept, max_new_tokens=5, ranks=True)
    assert first == second
    turned = continue_prefix(model, prefix, kept[::-1], max_new_tokens=5)
    assert [c.tokens for c in turned] == [c.tokens for c in first[::-1]]


def test_the_seed_of_the_random_choice(small_llava):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)], seed=18)
    assert_equals_prune(model, inputs, "random", 2, [8, 4], seed=3)
    kept = [
        run_prefix(model, inputs, 2, [SCORERS["random"]], seed=seed).keep(SCORERS["random"], 4).tolist()
        for seed in (3, 4)
    ]
    assert kept[0] != kept[1]


def test_an_answer_stops_with_its_end_token():
    """Rows that end early do not disturb those that go on."""
    model = build_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)], seed=19)
    prefix = run_prefix(model, inputs, 2, [SCORERS["text_weighted"]])
    kept = [prefix.keep(SCORERS["text_weighted"], budget) for budget in range(17)]
    free = [c.tokens for c in continue_prefix(model, prefix, kept, max_new_tokens=6)]
    end = next(tokens[2] for tokens in free if tokens[2] not in tokens[:2])
    for ends in (end, [end, 62]):
        model.generation_config.eos_token_id = ends
        stopped = [c.tokens for c in continue_prefix(model, prefix, kept, max_new_tokens=6)]
        assert any(len(tokens) == 3 for tokens in stopped)
        for tokens, whole in zip(stopped, free, strict=True):
            places = [n for n, token in enumerate(whole) if token == end or (ends != end and token == 62)]
            assert tokens == (whole[: places[0] + 1] if places else whole)


def test_one_token_is_the_first_of_many(small_llava):
    model = small_llava()
    prefix = run_prefix(model, make_inputs(model, [(3, IMAGE, 6)], seed=20), 2, [SCORERS["uniform"]])
    kept = [prefix.keep(SCORERS["uniform"], 6)]
    (one,) = continue_prefix(model, prefix, kept, max_new_tokens=1)
    (many,) = continue_prefix(model, prefix, kept, max_new_tokens=4)
    assert one.tokens == many.tokens[:1]
    assert len(many.tokens) == 4


def test_the_model_is_as_before(small_llava):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)], seed=21)
    logits = model(**inputs).logits
    layers = model.model.language_model.layers
    configs = [layer.self_attn.config for layer in layers]
    prefix = run_prefix(model, inputs, 2, [SCORERS["text_weighted"]])
    continue_prefix(model, prefix, [prefix.keep(SCORERS["text_weighted"], 3)], max_new_tokens=2, ranks=True)
    assert all(layer.self_attn.config is config for layer, config in zip(layers, configs, strict=True))
    assert not any(layer._forward_pre_hooks for layer in layers)
    assert torch.equal(model(**inputs).logits, logits)
