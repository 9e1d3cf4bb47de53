"""What holds for every model shape, plan and batch."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.engine.scoring import top_tokens
from lmms_textweighted.families.attach import prune
from lmms_textweighted.methods import SCORERS
from tests.conftest import BY_SCORE, IMAGE, make_inputs, one_row
from tests.oracles import masked_logits, removed_by

shapes = st.fixed_dictionaries(
    {
        "layers": st.sampled_from([2, 3, 5]),
        "kv_heads": st.sampled_from([1, 2, 4]),
        "image_size": st.sampled_from([28, 56]),
        "attn": st.sampled_from(["eager", "sdpa"]),
    }
)
prompts = st.lists(
    st.one_of(
        st.integers(1, 12).map(lambda count: (count,)),
        st.tuples(st.integers(0, 8), st.just(IMAGE), st.integers(1, 12)),
        st.tuples(st.just(IMAGE), st.integers(0, 3), st.just(IMAGE), st.integers(1, 6)),
    ),
    min_size=1,
    max_size=3,
)
image_prompts = st.tuples(st.integers(0, 8), st.just(IMAGE), st.integers(1, 12))
scorers = st.sampled_from(sorted(BY_SCORE))


@st.composite
def plans(draw, layers: int, image_tokens: int) -> Plan:
    """One to three stages that fit the model; a later one keeps no more than the one in front of it."""
    stages, first, budget = [], 0, image_tokens
    for _ in range(draw(st.integers(1, 3))):
        if first > layers - 2:
            break
        scored = draw(st.integers(first, layers - 2))
        layer = draw(st.integers(scored, layers - 2))
        budget = draw(st.integers(0, budget))
        stages.append(Stage(SCORERS[draw(scorers)], layer, keep_tokens=budget, score_layer=scored))
        first = layer + 1
    return Plan("drawn", tuple(stages))


def tokens_per_image(shape) -> int:
    return (shape["image_size"] // 14) ** 2


@given(data=st.data(), shape=shapes, prompt=image_prompts, seed=st.integers(0, 50))
def test_removal_is_masking(small_llava, data, shape, prompt, seed):
    model = small_llava(**shape)
    plan = data.draw(plans(shape["layers"], tokens_per_image(shape)))
    inputs = make_inputs(model, [prompt], seed=seed)
    with prune(model, plan) as trace:
        logits = model(**inputs).logits[0, -1]
    expected = masked_logits(model, inputs, removed_by(trace.documents[0]))
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=0)


@given(data=st.data(), shape=shapes, batch=prompts, seed=st.integers(0, 50), extra=st.integers(0, 5))
def test_a_batch_equals_its_rows(small_llava, data, shape, batch, seed, extra):
    model = small_llava(**shape)
    plan = data.draw(plans(shape["layers"], tokens_per_image(shape)))
    inputs = make_inputs(model, batch, seed=seed)
    inputs = make_inputs(model, batch, seed=seed, pad_to=inputs["input_ids"].shape[1] + extra)
    with prune(model, plan, ranks=True) as batched:
        out = model(**inputs, use_cache=True)
        # A decoding step on top, told where the padding is.
        more = torch.full((len(batch), 1), 7)
        seen = torch.cat([inputs["attention_mask"], torch.ones_like(more)], dim=1)
        after = model(input_ids=more, attention_mask=seen, past_key_values=out.past_key_values).logits
    for row in range(len(batch)):
        with prune(model, plan, ranks=True) as alone:
            single = model(**one_row(model, inputs, row), use_cache=True)
            then = model(input_ids=more[:1], past_key_values=single.past_key_values).logits
        a, b = batched.documents[row], alone.documents[0]
        torch.testing.assert_close(out.logits[row, -1], single.logits[0, -1], atol=1e-4, rtol=0)
        torch.testing.assert_close(after[row], then[0], atol=1e-4, rtol=0)
        assert (a.lengths, a.image_lengths) == (b.lengths, b.image_lengths)
        assert [layer.keys.shape[2] - 1 for layer in single.past_key_values.layers] == b.lengths
        for x, y in zip(a.stages, b.stages, strict=True):
            assert x.kept.tolist() == y.kept.tolist()
            assert x.text.tolist() == y.text.tolist()
            torch.testing.assert_close(x.scores, y.scores, atol=1e-5, rtol=0)
        assert (a.ranks is None) == (b.ranks is None)
        if a.ranks is not None:
            assert a.ranks.effective == pytest.approx(b.ranks.effective, rel=1e-3)


@given(data=st.data(), shape=shapes, prompt=image_prompts, seed=st.integers(0, 50))
def test_the_kept_set_has_its_size_its_order_and_the_best_scores(small_llava, data, shape, prompt, seed):
    model = small_llava(**shape)
    count = tokens_per_image(shape)
    plan = data.draw(plans(shape["layers"], count))
    with prune(model, plan) as trace:
        model(**make_inputs(model, [prompt], seed=seed))
    candidates = list(range(prompt[0], prompt[0] + count))
    for stage, planned in zip(trace.documents[0].stages, plan.stages, strict=True):
        kept = stage.kept.tolist()
        assert stage.candidates.tolist() == candidates
        assert len(kept) == planned.keep_tokens
        assert kept == sorted(set(kept) & set(candidates))
        assert kept == stage.candidates[top_tokens(stage.scores, planned.keep_tokens)].tolist()
        gone = [score for place, score in zip(candidates, stage.scores.tolist(), strict=True) if place not in kept]
        stay = [score for place, score in zip(candidates, stage.scores.tolist(), strict=True) if place in kept]
        assert not gone or not stay or min(stay) >= max(gone)
        candidates = kept


@given(
    shape=shapes,
    prompt=image_prompts,
    scorer=scorers,
    layer=st.integers(0, 3),
    budgets=st.lists(st.integers(0, 16), min_size=2, max_size=4),
    seed=st.integers(0, 50),
)
def test_a_smaller_budget_keeps_a_subset(small_llava, shape, prompt, scorer, layer, budgets, seed):
    model = small_llava(**shape)
    inputs = make_inputs(model, [prompt], seed=seed)
    layer = min(layer, shape["layers"] - 2)
    kept, scores = [], []
    for budget in sorted(min(budget, tokens_per_image(shape)) for budget in budgets):
        with prune(model, Plan("drawn", (Stage(SCORERS[scorer], layer, keep_tokens=budget),))) as trace:
            model(**inputs)
        kept.append(set(trace.documents[0].stages[0].kept.tolist()))
        scores.append(trace.documents[0].stages[0].scores)
    assert all(small <= large for small, large in pairwise(kept))
    assert all(torch.equal(scores[0], other) for other in scores)
