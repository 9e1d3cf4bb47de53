"""Numbers that say nothing stop with the document's name; the ends of what can be asked, and ties."""

from __future__ import annotations

import pytest
import torch

from lmms_textweighted.engine.fanout import continue_prefix
from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.engine.scoring import choose_tokens, top_tokens
from lmms_textweighted.errors import PlanError, PromptError
from lmms_textweighted.families import load
from lmms_textweighted.families.attach import prune, run_prefix
from lmms_textweighted.harness.documents import Documents
from lmms_textweighted.inference import Decoding, PrunedLlava
from lmms_textweighted.methods import make_plan
from tests.conftest import IMAGE, build_llava, make_inputs
from tests.oracles import masked_logits, removed_by

PLAN = make_plan("text_weighted", keep_tokens=16)


@pytest.fixture
def llava():
    return PrunedLlava(*load("tiny"), PLAN)


@pytest.fixture(scope="module")
def messages():
    return [document.message for document in Documents.of_task("shapes_mcq", 2, single_prediction_prompt=False)]


def spoil(module, value, row):
    """From now on one row of what the module gives is `value`."""

    def change(module, args, output):
        output = output.clone()
        output[row] = value
        return output

    return module.register_forward_hook(change)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_name_their_row(llava, messages, value):
    decoding = Decoding(max_new_tokens=3)
    handle = spoil(llava.model.lm_head, value, 1)
    with pytest.raises(PromptError, match="the model's logits are not finite") as stopped:
        llava.generate([[message] for message in messages], decoding)
    assert stopped.value.row == 1
    handle.remove()
    spoil(llava.model.lm_head, value, 0)
    with pytest.raises(PlanError, match="the model's logits are not finite"):
        llava.loss([messages[0]], "A")


def test_scores_that_are_not_finite_name_their_row(llava, messages):
    spoil(llava.model.get_decoder().layers[2].self_attn.q_proj, float("nan"), 1)
    with pytest.raises(PromptError, match="scores after layer 2 are not finite") as stopped:
        llava.generate([[message] for message in messages], Decoding(max_new_tokens=3))
    assert stopped.value.row == 1


def test_the_fan_out_stops_as_well(llava, messages):
    scorer = llava.plan.stages[0].scorer
    inputs = llava.encode([[messages[0]]]).inputs
    with torch.inference_mode():
        prefix = run_prefix(llava.model, inputs, 2, [scorer])
        spoil(llava.model.lm_head, float("nan"), 0)
        with pytest.raises(PlanError, match="the model's logits are not finite"):
            continue_prefix(llava.model, prefix, [prefix.image[:16]], max_new_tokens=2)
        spoil(llava.model.get_decoder().layers[2].self_attn.q_proj, float("nan"), 0)
        with pytest.raises(PlanError, match="scores by text_weighted are not finite"):
            run_prefix(llava.model, inputs, 2, [scorer])


@pytest.mark.parametrize("keep", [0, 1, 3, 7])
def test_equal_scores_keep_the_first_positions(keep):
    assert top_tokens(torch.full((7,), 0.25), keep).tolist() == list(range(keep))
    chosen, sizes = choose_tokens(torch.zeros(10), (6, 4), lambda count: min(keep, count))
    assert chosen.tolist() == [*range(min(keep, 6)), *range(6, 6 + min(keep, 4))]
    assert sizes == (min(keep, 6), min(keep, 4))


@pytest.mark.parametrize("strategy", ["text_weighted", "text_weighted_debiased", "fastv", "random"])
@pytest.mark.parametrize("text", [1, 6], ids=["one text token", "six"])
@pytest.mark.parametrize("side", [14, 56], ids=["one image token", "16"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["K = 1", "half", "all"])
def test_the_ends_of_what_can_be_asked_equal_the_masked_model(strategy, text, side, share):
    model = build_llava(image_size=side)
    inputs = make_inputs(model, [(3, IMAGE, text)])
    tokens = (side // 14) ** 2
    keep = max(1, int(share * tokens))
    with prune(model, make_plan(strategy, keep_tokens=keep)) as trace:
        logits = model(**inputs).logits[0, -1]
    (document,) = trace.documents
    assert len(document.stages[0].kept) == keep
    expected = masked_logits(model, inputs, removed_by(document))
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=0)


def test_keeping_none_equals_the_model_with_every_image_token_masked():
    model = build_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)])
    plan = Plan("nothing", (Stage(layer=2, scorer=PLAN.stages[0].scorer, keep_tokens=0),))
    with prune(model, plan) as trace:
        logits = model(**inputs).logits[0, -1]
    (document,) = trace.documents
    assert document.lengths == [25, 25, 25, 9, 9, 9]
    expected = masked_logits(model, inputs, removed_by(document))
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=0)
