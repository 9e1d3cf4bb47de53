"""Budgets: what they say, and that a method's plan is the closest there is, held against all plans tried one by one."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmms_textweighted import geometry_of, prune
from lmms_textweighted.engine.cost import DecoderShape
from lmms_textweighted.engine.plan import Stage
from lmms_textweighted.errors import PlanError
from lmms_textweighted.methods import find_method, make_plan, method_names
from lmms_textweighted.methods.base import Method, OneStage
from lmms_textweighted.methods.budget import LLAVA_15_7B, Budget, Geometry, cost_of
from lmms_textweighted.methods.uniform import LAST_ROW, UNIFORM
from tests.conftest import IMAGE, build_llava, make_inputs

# `downsample`, whose pictures have squares of tokens alone, has tests of its own.
SOLVED = [name for name in method_names() if find_method(name).removes]


class Pyramid(Method):
    """Three stages whose shares of the original are the powers of one factor."""

    name, label, source = "pyramid", "pyramid", "a test's"

    def __init__(self, *layers: int) -> None:
        self.layers, self.layer = layers, layers[0]

    def stages(self, layer, keep_tokens, keep_ratio):
        share = keep_ratio if keep_tokens is None else keep_tokens / 576
        return tuple(
            Stage(LAST_ROW, at, keep_tokens=math.floor(576 * share ** (power / 3) + 1e-9))
            for power, at in enumerate(self.layers, start=1)
        )


PYRAMID, EARLY = Pyramid(7, 15, 23), Pyramid(1, 7, 15)


def counted(stages, layers: int, image: int) -> list[int]:
    """Image tokens that enter each layer, by walking through the layers."""
    entering, original = [], image
    for layer in range(layers):
        for stage in stages:
            if stage.layer == layer - 1:
                image = stage.keep(image, original)
        entering.append(image)
    return entering


def flops(geometry: Geometry, entering: list[int]) -> float:
    """One decoder's prefill, in multiply-adds: projections, attention over the square, gated MLP."""
    d, shape = geometry.decoder.hidden, geometry.decoder
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    total = 0
    for image in entering:
        n = geometry.text_tokens + image
        total += n * d * query + 2 * n * d * key + n * query * d + 2 * n * n * query + 3 * n * d * shape.intermediate
    return total


def value_of(kind: str, geometry: Geometry, stages) -> float:
    entering = counted(stages, geometry.layers, geometry.image_tokens)
    if kind == "equivalent_tokens":
        return sum(entering) / len(entering)
    return flops(geometry, entering) / flops(geometry, [geometry.image_tokens] * geometry.layers)


@given(
    layers=st.integers(4, 40),
    image=st.integers(1, 200),
    text=st.integers(1, 80),
    layer=st.integers(0, 3),
    kv_heads=st.sampled_from([1, 2, 4]),
    kind=st.sampled_from(["equivalent_tokens", "flops_ratio"]),
    share=st.floats(0.05, 1),
)
def test_a_plan_of_one_stage_is_the_closest_of_all(layers, image, text, layer, kv_heads, kind, share):
    geometry = Geometry(DecoderShape(layers, 32, 4, kv_heads, 8, 64), image, text)
    method, layer = OneStage("one", "one", "a test's", UNIFORM), min(layer, layers - 2)
    asked = share * image if kind == "equivalent_tokens" else share
    every = {
        count: value_of(kind, geometry, method.stages(layer, count, None)) for count in range(geometry.image_tokens + 1)
    }
    if asked < every[0] - 1e-9:
        with pytest.raises(PlanError, match=r"one with layer .* cannot go below"):
            method.plan(**{kind: asked}, pruning_layer=layer, geometry=geometry)
        return
    plan = method.plan(**{kind: asked}, pruning_layer=layer, geometry=geometry)
    best = min(abs(value - asked) for value in every.values())
    assert abs(value_of(kind, geometry, plan.stages) - asked) == pytest.approx(best, abs=1e-9)
    assert cost_of(plan, geometry).get(kind) == pytest.approx(value_of(kind, geometry, plan.stages))


@pytest.mark.parametrize("strategy", SOLVED)
@pytest.mark.parametrize("kind", ["equivalent_tokens", "flops_ratio"])
@pytest.mark.parametrize("layers", [8, 32])
def test_every_method_reaches_a_mean_and_a_share_of_the_flops(strategy, kind, layers):
    """To within one token at its last stage, of 576, or a hundredth of the FLOPs."""
    decoder = DecoderShape(layers, 4096, 32, 32, 128, 11008)
    geometry = Geometry(decoder, 576)
    asked = 320 if kind == "equivalent_tokens" else 0.6
    plan = make_plan(strategy, **{kind: asked}, geometry=geometry)
    plan.check(layers, 576)
    assert value_of(kind, geometry, plan.stages) == pytest.approx(asked, abs=2 if kind == "equivalent_tokens" else 0.01)


@pytest.mark.parametrize("strategy", SOLVED)
def test_every_method_keeps_what_it_is_asked_to_keep_at_its_end(strategy):
    for budget, kept in (({"keep_tokens": 64}, 64), ({"keep_ratio": 0.25}, 144)):
        plan = make_plan(strategy, **budget)
        assert counted(plan.stages, 32, 576)[-1] == kept


def test_fastv_means_192_128_and_64_tokens_at_the_counts_of_the_literature():
    kept = [make_plan("fastv_k2", equivalent_tokens=mean).stages[0].keep_tokens for mean in (192, 128, 64)]
    assert kept == [166, 98, 30]
    assert [make_plan(f"fastv_k2_mean{mean}").stages for mean in (192, 128, 64)] == [
        make_plan("fastv_k2", keep_tokens=count).stages for count in kept
    ]


@pytest.mark.parametrize(
    ("method", "mean", "factor"),
    [(PYRAMID, 192, 0.2531), (EARLY, 192, 0.5596), (EARLY, 128, 0.4197), (EARLY, 64, 0.1916)],
)
def test_three_stages_solve_for_powers_of_one_factor(method, mean, factor):
    """The factors of the methods' specification (2.2), to the last figure of a count that is rounded down."""
    stages = method.plan(equivalent_tokens=mean).stages
    assert [stage.keep_tokens for stage in stages] == pytest.approx([576 * factor**i for i in (1, 2, 3)], abs=1.5)
    assert sum(counted(stages, 32, 576)) / 32 == pytest.approx(mean, abs=0.5)


def test_the_authors_setting_is_the_power_one():
    assert [stage.keep_tokens for stage in PYRAMID.plan(equivalent_tokens=270).stages] == [288, 144, 72]
    assert [stage.keep_tokens for stage in PYRAMID.plan(keep_tokens=72).stages] == [288, 144, 72]


def test_a_bound_is_named():
    with pytest.raises(
        PlanError, match=r"^pyramid with layers 7, 15, 23 of 32 cannot go below a mean of 144 of 576 tokens, but equi"
    ):
        PYRAMID.plan(equivalent_tokens=100)
    assert sum(counted(PYRAMID.plan(equivalent_tokens=144).stages, 32, 576)) / 32 == pytest.approx(144, abs=0.8)
    with pytest.raises(PlanError, match=r"cannot go below a FLOPs ratio of 0.1824, but flops_ratio is 0.1: give at"):
        make_plan("text_weighted", flops_ratio=0.1)
    make_plan("text_weighted", flops_ratio=0.1824)  # what the message names can be had


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"keep_tokens": -1}, "keep_tokens is -1: give a whole number of at least 0"),
        ({"keep_tokens": True}, "keep_tokens is True: give a whole number"),
        ({"keep_tokens": 6.0}, "keep_tokens is 6.0: give a whole number"),
        ({"keep_ratio": 0}, "keep_ratio is 0: give a number above 0 and at most 1"),
        ({"equivalent_tokens": 0}, "equivalent_tokens is 0: give a number above 0"),
        ({"equivalent_tokens": float("nan")}, "equivalent_tokens is nan: give a number above 0"),
        ({"flops_ratio": "half"}, "flops_ratio is 'half': give a number above 0 and at most 1"),
        ({"flops_ratio": 0.5, "keep_ratio": 0.5}, "keep_ratio is 0.5 and flops_ratio is 0.5: give exactly one of them"),
        ({}, "no budget is given: give one of keep_tokens, keep_ratio, equivalent_tokens, flops_ratio"),
    ],
)
def test_a_budget_that_is_none_is_named(given, said):
    with pytest.raises(PlanError, match=re.escape(said)):
        Budget(**given)


def test_no_budget_is_192_tokens():
    assert Budget.of() == Budget(keep_tokens=192)
    assert make_plan("fastv").stages[0].keep_tokens == 192


@pytest.mark.parametrize("given", [{"equivalent_tokens": 128}, {"flops_ratio": 0.5}])
@pytest.mark.parametrize("why", ["the picture decides", "the prompt decides"])
def test_where_the_number_of_image_tokens_is_not_known_a_mean_is_refused(given, why):
    geometry = Geometry(LLAVA_15_7B.decoder, None) if why == "the picture decides" else None
    scope = "prompt" if why == "the prompt decides" else "image"
    with pytest.raises(PlanError, match=r"is not the same for every prompt here: give keep_ratio$"):
        make_plan("fastv", **given, geometry=geometry, keep_scope=scope)
    assert make_plan("fastv", keep_ratio=0.5, geometry=geometry, keep_scope=scope).stages[0].keep_ratio == 0.5


def test_a_trace_reports_all_four_as_the_plan_was_solved():
    """On a model: what the engine measures is what the solver counted."""
    model = build_llava(layers=6)
    geometry = geometry_of(model)
    inputs = make_inputs(model, [(3, IMAGE, 6)])
    geometry = Geometry(geometry.decoder, geometry.image_tokens, text_tokens=9)
    plan = make_plan("text_weighted", flops_ratio=0.8, pruning_layer=1, geometry=geometry)
    with prune(model, plan) as trace:
        model(**inputs)
    (document,), cost = trace.documents, cost_of(plan, geometry)
    summary = document.summary()
    assert summary["kept_tokens"] == cost.keep_tokens < geometry.image_tokens
    for name, value in (
        ("kept_ratio", cost.keep_ratio),
        ("equivalent_tokens", cost.equivalent_tokens),
        ("flops_ratio", cost.flops_ratio),
    ):
        assert summary[name] == pytest.approx(value)
    assert summary["flops_ratio"] == pytest.approx(0.8, abs=0.03)
