"""A model laid over two cards, or partly on disk, answers as the undivided one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from accelerate import dispatch_model

from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.experiment.points import make_points, run_document
from lmms_textweighted.families import load
from lmms_textweighted.harness.documents import Documents
from lmms_textweighted.inference import Decoding, PrunedLlava
from lmms_textweighted.methods import SCORERS, make_plan
from lmms_textweighted.prompts import Message
from tests.cards import Cards, spread

FIRST = (
    *("model.vision_tower", "model.multi_modal_projector"),
    *("model.language_model.embed_tokens", "model.language_model.rotary_emb"),
)
LAST = ("model.language_model.norm", "lm_head")
DECODING = Decoding(max_new_tokens=4)


@pytest.fixture(scope="module")
def documents():
    return list(Documents.of_task("shapes_mcq", 2, single_prediction_prompt=True))


def device_map(first: Any, second: Any, cut: int, layers: int = 8) -> dict[str, Any]:
    """The decoder's layers from `cut` on, and what follows them, on the second device."""
    devices = {f"model.language_model.layers.{number}": first if number < cut else second for number in range(layers)}
    return {**dict.fromkeys(FIRST, first), **devices, **dict.fromkeys(LAST, second)}


def everything(model, processor, documents) -> list[Any]:
    """What every path through the engine gives: a batch of two lengths, a loss, and the sweep's fan-out."""
    found: list[Any] = []
    longer = Message("user", (*documents[1].message.content, ("text", " Why?")))
    messages = [documents[0].message, longer]
    twice = Plan(
        "two stages",
        (Stage(SCORERS["text_weighted"], 1, keep_tokens=288), Stage(SCORERS["last_row"], 4, keep_tokens=48)),
    )
    for plan in (make_plan("text_weighted", keep_tokens=48), make_plan("random", keep_tokens=48), twice):
        llava = PrunedLlava(model, processor, plan)
        answers = llava.generate([[message] for message in messages], DECODING, ranks=True)
        found += [(answer.text, answer.trace.summary()) for answer in answers]
    found.append(llava.loss([documents[0].message], "A")[:2])
    points = make_points(["text_weighted", "random", "none"], [48, 16], 2)
    first = documents[0].message
    outcomes = run_document(llava, first, points, decoding=DECODING, ranks=True, judge=lambda answer: (0.0, False))
    return found + [asdict(outcome) for outcome in outcomes]


@pytest.fixture(scope="module")
def undivided(documents):
    return everything(*load("tiny"), documents)


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_a_model_over_two_cards_answers_as_on_one(undivided, documents, cut):
    """Before, at and behind the pruning layer."""
    model, processor = load("tiny")
    spread(model, device_map(0, 1, cut))
    with Cards() as cards:
        found = everything(model, processor, documents)
    assert cards.moves > 0
    assert found == undivided


def test_cards_refuse_what_cuda_would(documents):
    model, processor = load("tiny")
    spread(model, device_map(0, 1, 3))
    hooked = model.model.language_model.layers[3]
    hooked.forward = hooked._old_forward  # without its hook the layer gets the other card's hidden states
    with Cards(), pytest.raises(RuntimeError, match=r"got tensors on \['cuda:0', 'cuda:1'\]"):
        PrunedLlava(model, processor).generate([[documents[0].message]], DECODING)


def test_a_model_that_is_partly_on_disk_answers_as_in_memory(undivided, documents, tmp_path):
    model, processor = load("tiny")
    places = device_map("cpu", "disk", 2)
    dispatch_model(
        model, places, main_device="cpu", offload_dir=str(tmp_path), skip_keys=model._skip_keys_device_placement
    )
    assert all(parameter.is_meta for parameter in model.model.language_model.layers[2:].parameters())
    assert everything(model, processor, documents) == undivided
