"""Many plans that remove before the model, from one entrance, against `prune` and `generate`, one plan at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmms_textweighted.engine.entrance import can_enter, continue_entrance, enter
from lmms_textweighted.engine.plan import POSITIONS
from lmms_textweighted.errors import PlanError
from lmms_textweighted.experiment import points
from lmms_textweighted.experiment.grid import make_points
from lmms_textweighted.families import load
from lmms_textweighted.families.attach import prune, run_entrance
from lmms_textweighted.harness.documents import Documents
from lmms_textweighted.inference import PrunedLlava, geometry_of
from lmms_textweighted.methods import make_plan
from tests.conftest import IMAGE, make_inputs
from tests.test_method_properties import REMOVING, SIDE, TOKENS, plan_of
from tests.text_towers import prune_asked, text_tower_of, texts_of
from tests.vlms import MODELS, inputs_of, model_of, prompts_of

LAYERS, BUDGETS, NEW = 7, (TOKENS, 20, 7, 1), 4
BEFORE = [method for method in REMOVING if can_enter(plan_of(method, 8))]


@pytest.fixture(params=["sdpa", "eager"])
def model(request, small_llava):
    return small_llava(layers=LAYERS, image_size=14 * SIDE, tower_layers=4, attn=request.param)


def entrance_of(model: Any, inputs: Any, plans: list, **options: Any):
    return run_entrance(model, inputs, plans, text_tower=text_tower_of(model), texts=texts_of(inputs), **options)


@pytest.mark.parametrize("prompt", [(3, IMAGE, 6), (2, IMAGE, 3, IMAGE, 5)], ids=["one image", "two images"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_every_plan_goes_on_as_it_would_alone(model, prompt, positions):
    plans = [plan_of(method, keep, positions) for method in BEFORE for keep in BUDGETS]
    inputs = make_inputs(model, [prompt], seed=3)
    with torch.inference_mode():
        entrance = entrance_of(model, inputs, plans, seed=5)
        together = continue_entrance(model, entrance, plans, max_new_tokens=NEW, ranks=True)
    for plan, (made, trace) in zip(plans, together, strict=True):
        with torch.inference_mode(), prune_asked(model, plan, inputs, ranks=True, seed=5) as alone:
            tokens = model.generate(**inputs, max_new_tokens=NEW)[0, inputs["input_ids"].shape[1] :].tolist()
        (document,) = alone.documents
        assert made.tokens == tokens
        assert (trace.lengths, trace.image_lengths) == (document.lengths, document.image_lengths)
        assert (trace.flops, trace.selection_flops) == (document.flops, document.selection_flops)
        said, expected = trace.stages[0], document.stages[0]
        assert (said.layer, said.kept.tolist(), said.sources) == (-1, expected.kept.tolist(), expected.sources)
        torch.testing.assert_close(said.scores, expected.scores, atol=1e-6, rtol=1e-5)
        assert (made.ranks is None) == (document.ranks is None)
        if made.ranks is not None:
            assert made.ranks.effective == pytest.approx(document.ranks.effective, rel=1e-4)
        assert enter(model, entrance, plan).stages[0].kept.tolist() == expected.kept.tolist()


def test_the_tower_runs_once_for_all(model):
    plans = [plan_of(method, keep) for method in BEFORE for keep in BUDGETS]
    calls: list[int] = []
    hook = model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    try:
        with torch.inference_mode():
            inputs = make_inputs(model, [(3, IMAGE, 6)], seed=4)
            continue_entrance(model, entrance_of(model, inputs, plans), plans, max_new_tokens=2)
    finally:
        hook.remove()
    assert calls == [1]


def test_the_model_is_as_it_was(model):
    inputs = make_inputs(model, [(3, IMAGE, 6)], seed=6)
    before = model(**inputs).logits
    entrance_of(model, inputs, [make_plan("scope", keep_tokens=4)])
    assert torch.equal(model(**inputs).logits, before)


def test_what_cannot_enter_is_refused(model):
    inputs = make_inputs(model, [(3, IMAGE, 6)], seed=7)
    for name in ("fastv", "divprune+fastv", "none"):
        plan = make_plan(name) if name == "none" else make_plan(name, keep_tokens=4, pruning_layer=2)
        assert not can_enter(plan)
        with pytest.raises(PlanError, match="does not remove once, before layer 0: prune with it alone"):
            entrance_of(model, inputs, [plan])
    with pytest.raises(PlanError, match="one unpadded prompt at a time"):
        entrance_of(model, make_inputs(model, [(3, IMAGE, 6)] * 2), [make_plan("divprune", keep_tokens=4)])


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_model_goes_on_as_it_would_alone(kind, positions):
    model, inputs = model_of(kind), inputs_of(kind, prompts_of(kind)[:1], seed=2)
    plans = [
        make_plan(name, keep_tokens=keep, positions=positions) for name in ("divprune", "pool_pre") for keep in (5, 2)
    ]
    with torch.inference_mode():
        entrance = run_entrance(model, inputs, plans)
        together = continue_entrance(model, entrance, plans, max_new_tokens=NEW)
        for plan, (made, trace) in zip(plans, together, strict=True):
            with prune(model, plan) as alone:
                out = model.generate(**inputs, max_new_tokens=NEW)
            assert made.tokens == out[0, inputs["input_ids"].shape[1] :].tolist()
            assert trace.stages[0].kept.tolist() == alone.documents[0].stages[0].kept.tolist()
            assert trace.lengths == alone.documents[0].lengths


@pytest.mark.parametrize("kind", ["tiny", "tiny-qwen"])
def test_a_sweeps_points_are_those_of_the_model_alone(kind, monkeypatch):
    """On trained models, of which one has DeepStack features and positions of three axes."""
    llava = PrunedLlava(*load(kind))
    documents = Documents.of_task("shapes_mcq", 1, single_prediction_prompt=True)
    (document,) = documents
    grid = make_points(["divprune", "pool_pre", "random_pre", "none"], [33, 8], None, geometry=geometry_of(llava.model))
    kept: list[dict[int, Any]] = [{}, {}]
    outcomes = []
    for record in kept:
        outcomes.append(
            points.run_document(
                llava,
                document.message,
                grid,
                decoding=documents.decoding,
                ranks=True,
                judge=lambda answer: (0.0, answer == document.target),
                record=record.__setitem__,
            )
        )
        monkeypatch.setattr(points, "can_enter", lambda plan: False)
    for place, (one, other) in enumerate(zip(*outcomes, strict=True)):
        assert one.answer == other.answer
        assert (one.kept_tokens, one.flops_ratio) == (other.kept_tokens, other.flops_ratio)
        assert (one.effective_rank is None) == (other.effective_rank is None) == bool(grid[place].plan.unranked)
        assert one.effective_rank is None or one.effective_rank == pytest.approx(other.effective_rank, rel=1e-3)
        assert [stage.kept.tolist() for stage in kept[0][place]] == [stage.kept.tolist() for stage in kept[1][place]]
