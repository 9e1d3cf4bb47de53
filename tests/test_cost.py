"""Counted costs against torch's FLOP counter and against a real KV cache."""

from __future__ import annotations

import pytest
from torch.utils.flop_counter import FlopCounterMode

from lmms_textweighted.engine.cost import DecoderShape, equivalent_tokens, kv_bytes, prefill_flops
from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.families.attach import prune
from lmms_textweighted.methods import make_plan
from lmms_textweighted.methods.text_weighted import TEXT_WEIGHTED
from lmms_textweighted.methods.uniform import LAST_ROW, UNIFORM
from tests.conftest import IMAGE, build_llava, make_inputs, one_row


def decoder_flops(model, inputs) -> int:
    """What torch counts in the decoder layers of one forward; under SDPA on the CPU it would count no attention."""
    assert model.config.text_config._attn_implementation == "eager"
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    layers = range(len(model.model.language_model.layers))
    names = [f"LlavaForConditionalGeneration.model.language_model.layers.{number}" for number in layers]
    assert all(name in counter.flop_counts for name in names)
    return sum(sum(counter.flop_counts[name].values()) for name in names)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (8, 1)])
def test_unpruned_flops_equal_what_torch_counts(small_llava, heads, kv_heads):
    model = small_llava(heads=heads, kv_heads=kv_heads, attn="eager")
    inputs = make_inputs(model, [(4, IMAGE, 9)])
    shape = DecoderShape.from_config(model.config.text_config)
    assert prefill_flops(shape, [29] * 6) == decoder_flops(model, inputs)


@pytest.mark.parametrize(
    ("plan", "tolerance"),
    [
        (make_plan("random", keep_tokens=5), 0),
        (make_plan("fastv", keep_tokens=5), 0.02),
        (make_plan("text_weighted", keep_tokens=5), 0.02),
        (
            Plan("staged", (Stage(UNIFORM, 1, keep_tokens=30), Stage(LAST_ROW, 3, keep_tokens=0))),
            0.02,
        ),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_pruned_flops_are_within_two_percent_of_what_torch_counts(small_llava, plan, tolerance):
    """The rows read for scoring are extra work that the count leaves out; `random` reads none, so it is exact."""
    model = small_llava(image_size=112, attn="eager")
    inputs = make_inputs(model, [(4, IMAGE, 6)])
    with prune(model, plan) as trace:
        counted = decoder_flops(model, inputs)
    (document,) = trace.documents
    assert document.flops == pytest.approx(counted, rel=tolerance)
    full = prefill_flops(document.shape, [74] * 6)
    assert document.flops < 0.85 * full
    assert document.flops_ratio == pytest.approx(document.flops / full)
    assert full == decoder_flops(model, inputs)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
def test_kv_bytes_are_those_of_the_real_cache(kv_heads, double):
    model = build_llava(kv_heads=kv_heads)
    inputs = make_inputs(model, [(3, IMAGE, 4)])
    if double:
        model, inputs["pixel_values"] = model.double(), inputs["pixel_values"].double()
    plan = Plan("staged", (Stage(TEXT_WEIGHTED.scorer, 1, keep_tokens=9), Stage(LAST_ROW, 3, keep_tokens=2)))
    with prune(model, plan) as trace:
        cache = model(**inputs, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    (document,) = trace.documents
    assert document.kv_bytes == held
    full = model(**inputs, use_cache=True).past_key_values
    whole = sum(layer.keys.nbytes + layer.values.nbytes for layer in full.layers)
    assert document.kv_ratio == pytest.approx(held / whole)
    assert held < whole


def test_padding_costs_a_document_nothing(small_llava):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 4), (9, IMAGE, 12)])
    plan = make_plan(keep_tokens=6)
    with prune(model, plan) as batched:
        model(**inputs)
    with prune(model, plan) as alone:
        model(**one_row(model, inputs, 0))
        model(**one_row(model, inputs, 1))
    for a, b in zip(batched.documents, alone.documents, strict=True):
        assert (a.flops, a.kv_bytes, a.equivalent_tokens) == (b.flops, b.kv_bytes, b.equivalent_tokens)
    assert batched.documents[0].flops < batched.documents[1].flops


def test_kv_bytes_of_a_shape_worked_by_hand():
    shape = DecoderShape(layers=2, hidden=16, heads=4, kv_heads=2, head_dim=4, intermediate=32)
    assert kv_bytes(shape, [10, 3], element_size=2) == 2 * 2 * 4 * 2 * 13


def test_equivalent_tokens_are_the_mean_over_layers():
    assert equivalent_tokens([576, 576, 576, 64]) == pytest.approx((3 * 576 + 64) / 4)


def test_the_trace_reports_equivalent_tokens_of_every_layer(small_llava):
    model = small_llava()
    with prune(model, make_plan(keep_tokens=4, pruning_layer=2)) as trace:
        model(**make_inputs(model, [(3, IMAGE, 4)]))
    (document,) = trace.documents
    assert document.image_lengths == [16, 16, 16, 4, 4, 4]
    assert document.equivalent_tokens == 10
    assert document.kept_tokens == 4


def test_sizes_are_read_from_the_config(small_llava):
    config = small_llava().config.text_config
    shape = DecoderShape.from_config(config)
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim) == (6, 32, 4, 2, 8)
    assert shape.intermediate == 64
