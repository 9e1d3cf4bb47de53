"""Attention rows -> scores, weights and choices: pure functions against plain loops."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from lmms_textweighted.engine.observe import attention_rows
from lmms_textweighted.engine.scoring import Rows, Seen, top_tokens
from lmms_textweighted.methods import SCORERS
from lmms_textweighted.methods.chance import random_scores
from lmms_textweighted.methods.text_weighted import column_sum_weights, debiased_column_sum_weights
from lmms_textweighted.methods.uniform import uniform_weights
from tests import oracles


def causal_attention(size: int, seed: int) -> torch.Tensor:
    """A random float32 causal attention matrix [size, size] far from uniform."""
    logits = 3 * torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    hidden = torch.ones(size, size).triu(1).bool()
    return logits.masked_fill(hidden, float("-inf")).softmax(dim=-1)


@pytest.mark.parametrize("name", ["text_weighted", "text_weighted_debiased", "last_row", "uniform"])
@pytest.mark.parametrize("text_tokens", [1, 2, 7])
def test_scores_and_weights_follow_the_formula(name, text_tokens):
    attention = causal_attention(12 + text_tokens, seed=text_tokens)
    image = torch.arange(3, 11)
    text = torch.arange(12, 12 + text_tokens)
    rows = text[-1:] if SCORERS[name].reads is Rows.LAST else text
    scores, weights = SCORERS[name].score(Seen(image, rows, attention[rows]))

    plain = attention.double().numpy()
    expected_weights = oracles.text_weights(name, plain, text.tolist())
    expected = oracles.image_scores(plain, expected_weights, image.tolist())
    assert list(expected_weights) == rows.tolist()
    np.testing.assert_allclose(weights.numpy(), list(expected_weights.values()), atol=1e-6)
    np.testing.assert_allclose(scores.numpy(), list(expected.values()), atol=1e-6)
    assert scores.dtype == weights.dtype == torch.float32


@pytest.mark.parametrize("weigh", [column_sum_weights, debiased_column_sum_weights, uniform_weights])
def test_weights_sum_to_one(weigh):
    attention = causal_attention(20, seed=0)[11:, 11:]
    assert weigh(attention).sum().item() == pytest.approx(1, abs=1e-6)


def test_column_sum_weights_of_a_matrix_worked_by_hand():
    attention = torch.tensor([[0.5, 0.0], [0.1, 0.3]])
    torch.testing.assert_close(column_sum_weights(attention), torch.tensor([0.6 / 0.9, 0.3 / 0.9]))
    torch.testing.assert_close(debiased_column_sum_weights(attention), torch.tensor([0.3 / 0.6, 0.3 / 0.6]))


def test_the_correction_removes_the_head_start_of_early_tokens():
    """Rows that look alike at all they can see: plain weights favour the first token, debiased ones are equal."""
    flat = torch.ones(6, 6).tril() * 0.01
    assert column_sum_weights(flat)[0] == pytest.approx(6 * column_sum_weights(flat)[5].item())
    torch.testing.assert_close(debiased_column_sum_weights(flat), torch.full((6,), 1 / 6))


def test_last_row_scorer_returns_the_row_itself():
    attention = causal_attention(10, seed=3)
    image = torch.arange(2, 6)
    scores, weights = SCORERS["last_row"].score(Seen(image, torch.tensor([9]), attention[9:]))
    assert torch.equal(scores, attention[9, image])
    assert weights.tolist() == [1.0]


@pytest.mark.parametrize(
    ("scores", "keep", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0], 2, [0, 1]),
        ([0.0, 2.0, 1.0, 2.0, 2.0], 2, [1, 3]),
        ([0.0, 1.0, 5.0, 1.0, 1.0], 3, [1, 2, 3]),
        ([3.0, 1.0, 2.0], 3, [0, 1, 2]),
        ([3.0, 1.0, 2.0], 0, []),
        ([1.0, 3.0, 2.0], 1, [1]),
    ],
)
def test_top_tokens_are_ascending_and_the_earlier_of_equals_wins(scores, keep, expected):
    assert top_tokens(torch.tensor(scores), keep).tolist() == expected


def test_ties_are_broken_by_position_among_many_tokens():
    """Long enough that an unstable sort would show."""
    scores = torch.randint(0, 3, (2000,), generator=torch.Generator().manual_seed(0)).float()
    plain = oracles.best(dict(enumerate(scores.tolist())), 1100)
    assert top_tokens(scores, 1100).tolist() == plain


def test_random_budgets_are_nested():
    scores = random_scores(64, "question 1", seed=5)
    kept = [set(top_tokens(scores, budget).tolist()) for budget in range(65)]
    assert all(small < large for small, large in pairwise(kept))


def test_random_scores_are_an_order_of_all_tokens():
    assert sorted(random_scores(50, "key").tolist()) == [float(n) for n in range(50)]


def test_random_scores_depend_on_key_and_seed():
    base = random_scores(64, "a", seed=0)
    assert torch.equal(base, random_scores(64, "a", seed=0))
    assert not torch.equal(base, random_scores(64, "b", seed=0))
    assert not torch.equal(base, random_scores(64, "a", seed=1))


def test_random_scores_do_not_touch_or_read_the_global_generator():
    torch.manual_seed(1)
    first = random_scores(32, "key")
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))
    assert torch.equal(first, random_scores(32, "key"))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("padding", [0, 3])
def test_attention_rows_equal_a_softmax_in_plain_loops(groups, padding):
    heads, length, width = 4, 9, 5
    generator = torch.Generator().manual_seed(groups)
    query = torch.randn(heads, length, width, generator=generator)
    key = torch.randn(heads // groups, length, width, generator=generator)
    valid = torch.arange(length) >= padding
    rows = torch.tensor([4, 8])
    scaling = 0.7
    expected = np.zeros((heads, len(rows), length))
    for head in range(heads):
        for place, row in enumerate(rows.tolist()):
            seen = range(padding, row + 1)
            terms = [
                math.exp(scaling * float(query[head, row].double() @ key[head // groups, k].double())) for k in seen
            ]
            for k, term in zip(seen, terms, strict=True):
                expected[head, place, k] = term / sum(terms)
    per_head = attention_rows(query, key, rows, valid, scaling, mean_over_heads=False)
    np.testing.assert_allclose(per_head.numpy(), expected, atol=1e-6)
    mean = attention_rows(query, key, rows, valid, scaling)
    np.testing.assert_allclose(mean.numpy(), expected.mean(axis=0), atol=1e-6)


def test_attention_rows_are_the_same_when_heads_are_done_in_several_chunks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(6, 8, 4, generator=generator), torch.randn(3, 8, 4, generator=generator)
    rows, valid = torch.tensor([5, 6, 7]), torch.ones(8, dtype=torch.bool)
    whole = [attention_rows(query, key, rows, valid, 0.5, mean_over_heads=mean) for mean in (True, False)]
    monkeypatch.setattr("lmms_textweighted.engine.observe._CHUNK_ELEMENTS", 24)
    parts = [attention_rows(query, key, rows, valid, 0.5, mean_over_heads=mean) for mean in (True, False)]
    torch.testing.assert_close(parts, whole)


def test_attention_rows_of_bfloat16_are_computed_in_float32():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 8, 4, generator=generator).bfloat16()
    key = torch.randn(2, 8, 4, generator=generator).bfloat16()
    rows, valid = torch.tensor([7]), torch.ones(8, dtype=torch.bool)
    got = attention_rows(query, key, rows, valid, 0.5)
    assert got.dtype == torch.float32
    assert torch.equal(got, attention_rows(query.float(), key.float(), rows, valid, 0.5))
