"""What holds for every method by its being listed: its choice and all that follows are those of float64 formulas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lmms_textweighted.engine.plan import POSITIONS, Plan
from lmms_textweighted.methods import _OWN, Method
from lmms_textweighted.methods.presets import PRESETS
from tests.conftest import IMAGE, assert_same_choice, make_inputs, one_row
from tests.method_oracles import ORACLES, Decision, View
from tests.replay import ReplayStage, replay, replay_generate
from tests.test_pruner import answers
from tests.text_towers import prune_asked

LAYERS, SIDE = 7, 6
TOKENS = SIDE * SIDE
REMOVING = [method for method in _OWN if method.removes]
ONE, TWO = (3, IMAGE, 7), (2, IMAGE, 3, IMAGE, 6)

every_method = pytest.mark.parametrize("method", REMOVING, ids=lambda method: method.name)
both_positions = pytest.mark.parametrize("positions", POSITIONS)


@pytest.fixture
def model(small_llava):
    return small_llava(layers=LAYERS, image_size=14 * SIDE, tower_layers=4)


def plan_of(method: Method, keep: int, positions: str | None = None) -> Plan:
    """The method's plan for a decoder of LAYERS layers and pictures of TOKENS tokens."""
    return method.fitted(LAYERS, TOKENS).plan(keep_tokens=keep, positions=positions)


def told(kept: list[int]):
    """An oracle of a choice by chance: the order is the engine's, which has tests of its own."""

    def decide(view: View, keep: list[int]) -> Decision:
        return Decision([[n for n in image if view.positions[n] in kept] for image in view.images])

    return decide


def replay_stages(plan: Plan, document: Any) -> list[ReplayStage]:
    return [
        ReplayStage(
            told(trace.kept.tolist()) if stage.scorer.name == "random" else ORACLES[stage.scorer.name],
            stage.layer,
            stage.scored_at,
            stage.keep,
            plan.positions_of(stage) == "renumber",
        )
        for stage, trace in zip(plan.stages, document.stages, strict=True)
    ]


def assert_decisions(document: Any, decisions: list[Decision]) -> None:
    for trace, decision in zip(document.stages, decisions, strict=True):
        kept = [place for part in decision.kept for place in part]
        if decision.merged or kept != sorted(kept):
            assert trace.kept.tolist() == kept
        else:
            assert_same_choice(
                trace.kept.tolist(), kept, decision.scores or dict.fromkeys(trace.candidates.tolist(), 0)
            )
        assert {place: sorted(sources) for place, sources in trace.sources.items()} == {
            place: sorted(sources) for place, sources in decision.merged.items()
        }
        if decision.scores:
            assert trace.candidates.tolist() == list(decision.scores)
            largest = max(map(abs, decision.scores.values()))
            np.testing.assert_allclose(trace.scores, list(decision.scores.values()), atol=1e-5 * max(1, largest))


@every_method
@both_positions
@pytest.mark.parametrize("prompt", [ONE, TWO], ids=["one image", "two images"])
@pytest.mark.parametrize("keep", [2, 8, 20])
def test_a_pruned_prefill_is_that_of_float64_formulas(model, method, positions, prompt, keep):
    plan = plan_of(method, keep, positions)
    inputs = make_inputs(model, [prompt], seed=keep)
    with prune_asked(model, plan, inputs) as trace:
        logits = model(**inputs).logits[0, -1]
    document = trace.documents[0]
    expected = replay(model, inputs, replay_stages(plan, document))
    assert_decisions(document, expected.decisions)
    assert document.lengths == expected.lengths
    assert document.kept_tokens == keep * prompt.count(IMAGE)
    torch.testing.assert_close(logits.double(), expected.logits, atol=1e-4, rtol=0)


@every_method
def test_a_method_that_may_merge_says_so_and_has_no_ranks(model, method):
    inputs = make_inputs(model, [TWO], seed=4)
    plan = plan_of(method, 8)
    with prune_asked(model, plan, inputs, ranks=True) as trace:
        model(**inputs)
    (document,) = trace.documents
    merged = any(stage.sources for stage in document.stages)
    assert bool(plan.unranked) >= merged
    assert (document.ranks is None) == bool(plan.unranked)
    assert document.summary().get("unranked", "") == plan.unranked


@every_method
def test_what_is_removed_matters(model, method):
    """Else the comparison above would hold for any choice."""
    inputs = make_inputs(model, [ONE], seed=8)
    with prune_asked(model, plan_of(method, 8), inputs):
        pruned = model(**inputs).logits[0, -1]
    assert (pruned - model(**inputs).logits[0, -1]).abs().max() > 0.01


@every_method
@both_positions
def test_keeping_all_is_the_model_bit_for_bit(model, method, positions):
    inputs = make_inputs(model, [TWO, ONE], seed=1)
    with prune_asked(model, plan_of(method, TOKENS, positions), inputs) as trace:
        pruned = model(**inputs).logits
        together = answers(model, inputs, 4)
    assert torch.equal(pruned, model(**inputs).logits)
    assert together == answers(model, inputs, 4)
    assert [document.image_lengths for document in trace.documents[:2]] == [[2 * TOKENS] * LAYERS, [TOKENS] * LAYERS]


@every_method
@both_positions
def test_a_text_alone_is_left_alone(model, method, positions):
    inputs = make_inputs(model, [(9,)], seed=2)
    with prune_asked(model, plan_of(method, 4, positions), inputs) as trace:
        pruned = model(**inputs).logits
    assert torch.equal(pruned, model(**inputs).logits)
    assert trace.documents[0].lengths == [9] * LAYERS


@every_method
@both_positions
def test_a_batch_equals_its_rows(model, method, positions):
    batch = [ONE, (11,), TWO, (IMAGE, 4)]
    inputs = make_inputs(model, batch, seed=3)
    plan = plan_of(method, 6, positions)
    with prune_asked(model, plan, inputs) as batched:
        # As `generate` counts them: the sizes of DART's keys depend on them, and so its choice.
        positions_of_rows = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        logits = model(**inputs, position_ids=positions_of_rows).logits[:, -1]
        together = answers(model, inputs, 4)
    for row in range(len(batch)):
        single = one_row(model, inputs, row)
        with prune_asked(model, plan, single) as alone:
            torch.testing.assert_close(logits[row], model(**single).logits[0, -1], atol=1e-4, rtol=0)
            assert answers(model, single, 4) == [together[row]]
        a, b = batched.documents[row], alone.documents[0]
        assert (a.lengths, a.image_lengths) == (b.lengths, b.image_lengths)
        for x, y in zip(a.stages, b.stages, strict=True):
            assert x.kept.tolist() == y.kept.tolist()
            assert x.sources == y.sources


@every_method
@both_positions
def test_decoding_is_that_of_float64_formulas_token_by_token(model, method, positions):
    plan = plan_of(method, 6, positions)
    inputs = make_inputs(model, [ONE], seed=4)
    with prune_asked(model, plan, inputs) as trace:
        found = answers(model, inputs, 5)
    stages = replay_stages(plan, trace.documents[0])
    assert found == [replay_generate(model, inputs, stages, 5)]


@every_method
def test_a_share_is_a_share_of_each_image(model, method):
    inputs = make_inputs(model, [TWO], seed=5)
    with prune_asked(model, method.fitted(LAYERS, TOKENS).plan(keep_ratio=0.25), inputs) as trace:
        model(**inputs)
    assert trace.documents[0].kept_tokens == 2 * 9


def test_pyramiddrop_chooses_by_the_next_layers_attention(model):
    """And not by that of the layer which tokens leave: both choices are known, and they differ."""
    (method,) = [method for method in REMOVING if method.name == "pyramiddrop"]
    plan = plan_of(method, 6)
    inputs = make_inputs(model, [ONE], seed=6)
    with prune_asked(model, plan, inputs) as trace:
        model(**inputs)
    stages = replay_stages(plan, trace.documents[0])
    ahead = replay(model, inputs, stages).decisions[0].kept
    behind = [replace(stage, scored_at=stage.layer) for stage in stages]
    assert trace.documents[0].stages[0].kept.tolist() == ahead[0]
    assert ahead != replay(model, inputs, behind).decisions[0].kept


@every_method
def test_positions_are_the_authors_where_none_are_asked_for(method):
    plan = plan_of(method, 4)
    before = plan.stages[0].layer == -1
    renumbered = {"pyramiddrop", "sparsevlm", "sparsevlm_paper", "adaptinfer"}
    assert plan.positions == ("renumber" if before or method.name in renumbered else "keep")


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_papers_setting_at_its_own_size_is_that_of_float64_formulas(small_llava, preset):
    """576 image tokens and 32 layers: the counts as they are printed, and the tokens that stay."""
    plan = preset.plan()
    depth = 2 + max(stage.layer for stage in plan.stages)  # deep layers of their own would test nothing more
    model = small_llava(layers=depth, heads=4, kv_heads=4, image_size=336, tower_layers=4)
    inputs = make_inputs(model, [(35, IMAGE, 12)], seed=1)
    with prune_asked(model, plan, inputs) as trace:
        logits = model(**inputs).logits[0, -1]
    document = trace.documents[0]
    expected = replay(model, inputs, replay_stages(plan, document))
    assert_decisions(document, expected.decisions)
    assert [len(stage.kept) for stage in document.stages] == [stage.keep_tokens for stage in plan.stages]
    torch.testing.assert_close(logits.double(), expected.logits, atol=1e-3, rtol=0)
