"""One method before the model and one in it: names, budgets, refusals. `vscan` is one in every other test."""

from __future__ import annotations

import pytest

from lmms_textweighted import prune
from lmms_textweighted.errors import PlanError
from lmms_textweighted.experiment.grid import make_points
from lmms_textweighted.methods import find_method, make_plan
from lmms_textweighted.methods.budget import LLAVA_15_7B, cost_of
from tests.conftest import IMAGE, make_inputs


def counts(name: str, **budget: float) -> list[tuple[int, int | None]]:
    plan = make_plan(name, geometry=LLAVA_15_7B, **budget)
    plan.check(32, 576)
    return [(stage.layer, stage.keep_tokens) for stage in plan.stages]


def test_the_first_leaves_three_times_the_budget_and_at_most_all():
    assert counts("divprune+text_weighted", keep_tokens=64) == [(-1, 192), (2, 64)]
    assert counts("divprune+text_weighted", keep_tokens=300) == [(-1, 576), (2, 300)]
    assert counts("visionzip+himap", keep_tokens=64) == [(-1, 192), (1, 192), (7, 64)]
    assert counts("vscan", keep_tokens=32) == [(-1, 96), (15, 32)]


def test_a_preset_in_front_keeps_its_count():
    assert counts("divprune_192+text_weighted", keep_tokens=64) == [(-1, 192), (2, 64)]
    assert counts("divprune_192+fastv_k2", keep_tokens=16) == [(-1, 192), (1, 16)]
    with pytest.raises(PlanError, match="keep_tokens is 100, but divprune_64 leaves 64: give at most 64"):
        counts("divprune_64+fastv", keep_tokens=100)


@pytest.mark.parametrize("name", ["divprune+text_weighted", "divprune_192+text_weighted", "fastervlm+pyramiddrop"])
@pytest.mark.parametrize("budget", [{"flops_ratio": 0.25}, {"equivalent_tokens": 110}])
def test_a_mean_and_a_share_of_the_flops_are_solved_for_both(name, budget):
    plan = make_plan(name, geometry=LLAVA_15_7B, **budget)
    ((kind, value),) = budget.items()
    assert cost_of(plan, LLAVA_15_7B).get(kind) == pytest.approx(value, rel=0.01)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("text_weighted+divprune", "text_weighted does not remove before the model: name one that does first"),
        ("fastervlm+none", "none is no method that removes in the model by a budget"),
        ("fastervlm+fastv_k3_half", "fastv_k3_half is no method that removes in the model by a budget"),
        ("fastervln+fastv", "unknown strategy 'fastervln': did you mean 'fastervlm'"),
    ],
)
def test_what_does_not_compose_is_said_in_a_line(name, words):
    with pytest.raises(PlanError, match=words):
        find_method(name)


def test_a_sweep_has_it_under_its_name():
    points = make_points(["divprune+text_weighted", "vscan"], [64, 16], None, geometry=LLAVA_15_7B)
    assert [(point.strategy, point.plan.stages[0].keep_tokens) for point in points] == [
        ("divprune+text_weighted", 192),
        ("divprune+text_weighted", 48),
        ("vscan", 192),
        ("vscan", 48),
    ]


def test_both_choose_as_they_would_alone(small_llava):
    """The first as before the model alone; the second the best of what it left, on the shorter sequence."""
    model = small_llava(image_size=84)
    inputs = make_inputs(model, [(3, IMAGE, 5)], seed=1)
    with prune(model, find_method("divprune+fastv").fitted(6, 36).plan(keep_tokens=4, pruning_layer=2)) as both:
        model(**inputs)
    with prune(model, make_plan("divprune", keep_tokens=12)) as first:
        model(**inputs)
    (before, after) = both.documents[0].stages
    assert before.kept.tolist() == first.documents[0].stages[0].kept.tolist()
    assert after.candidates.tolist() == before.kept.tolist()
    assert both.documents[0].image_lengths == [12, 12, 12, 4, 4, 4]
