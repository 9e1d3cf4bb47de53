"""What a selection costs: the products of every listed choice as torch counts them, and what is read, by hand."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lmms_textweighted.engine.prefill import Prefill
from lmms_textweighted.engine.scoring import Choice
from lmms_textweighted.methods import make_plan
from tests.conftest import IMAGE, make_inputs
from tests.test_method_properties import REMOVING, SIDE, TOKENS, plan_of
from tests.text_towers import prune_asked

LAYERS, TOWER, TOWER_WIDTH = 7, 4, 16


@pytest.fixture
def model(small_llava):
    return small_llava(layers=LAYERS, image_size=14 * SIDE, tower_layers=TOWER)


def distances(first: tuple[int, ...], second: tuple[int, ...], *_: Any, out_shape: Any = None, **__: Any) -> int:
    """2 a b c, as for a product."""
    return 2 * first[0] * second[0] * first[1]


@pytest.mark.parametrize("method", REMOVING, ids=lambda method: method.name)
@pytest.mark.parametrize("keep", [3, 10])
def test_a_choices_flops_are_those_of_its_products_as_torch_counts_them(model, method, keep):
    plan = plan_of(method, keep)
    inputs = make_inputs(model, [(3, IMAGE, 7, IMAGE, 2)], seed=keep)
    counted: list[int] = []
    said: list[int] = []
    projected: list[int] = []

    def watched(scorer: Any, leaving: Any) -> Choice:
        choose = type(scorer).choose
        if leaving.tower is not None:
            project = leaving.tower.project

            def apart(vectors: torch.Tensor) -> torch.Tensor:
                with FlopCounterMode(display=False) as through:
                    made = project(vectors)
                projected.append(through.get_total_flops())
                return made

            leaving = dataclasses.replace(leaving, tower=dataclasses.replace(leaving.tower, project=apart))
        mapping = {torch.ops.aten._cdist_forward: distances}
        with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            choice = choose(scorer, leaving)
        counted.append(counter.get_total_flops())
        said.append(choice.flops)
        return choice

    def choose_watched(self: Any, stage: Any, *rest: Any) -> Choice:
        return original(self, _with(stage, _StandIn(stage.scorer, watched)), *rest)

    original = Prefill._choose
    with patch.object(Prefill, "_choose", choose_watched), prune_asked(model, plan, inputs):
        model(**inputs)
    assert len(counted) == len(plan.stages)
    assert sum(said) == sum(counted) - sum(projected)


class _StandIn:
    """A scorer whose choice is looked at."""

    def __init__(self, scorer: Any, watched: Any) -> None:
        self._scorer, self._watched = scorer, watched

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    def choose(self, leaving: Any) -> Choice:
        return self._watched(self._scorer, leaving)


def _with(stage: Any, scorer: Any) -> Any:
    made = object.__new__(type(stage))
    for item in dataclasses.fields(stage):
        object.__setattr__(made, item.name, getattr(stage, item.name))
    object.__setattr__(made, "scorer", scorer)
    return made


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        # One row of 37 tokens, heads that are 16 wide together.
        ("fastervlm", 2 * 37 * 16),
        # The means of the columns of two layers.
        ("hiprune", 2 * 2 * 37 * 37 * 16),
        # The row, and the cosines of 36 vectors of 16.
        ("scope", 2 * 37 * 16 + 2 * 36 * 36 * 16),
        # Nothing of the tower; the embeddings are 32 wide.
        ("divprune", 2 * 36 * 36 * 32),
        ("random_pre", 0),
    ],
)
def test_what_is_read_of_the_tower_is_counted_once_a_picture(model, name, by_hand):
    assert (TOKENS, model.config.vision_config.hidden_size) == (36, TOWER_WIDTH)
    assert model.config.text_config.hidden_size == 32
    inputs = make_inputs(model, [(3, IMAGE, 7), (2, IMAGE, 1, IMAGE, 4)], seed=1)
    with prune_asked(model, make_plan(name, keep_tokens=8), inputs) as trace:
        model(**inputs)
        model(**inputs)  # a second prefill counts anew
    assert [document.selection_flops for document in trace.documents] == [by_hand, 2 * by_hand] * 2
    assert all(document.selection_seconds > 0 for document in trace.documents)


def test_a_composition_counts_the_tower_once(model):
    inputs = make_inputs(model, [(3, IMAGE, 7)], seed=2)
    plan = make_plan("fastervlm+fastv", keep_tokens=4, pruning_layer=2)
    with prune_asked(model, plan, inputs) as trace:
        model(**inputs)
    before, after = trace.documents[0].stages
    assert before.flops == 2 * 37 * TOWER_WIDTH
    assert after.flops == 2 * (10 + 12) * 32  # one row over what was left, all heads 32 wide
