"""Numeric and effective rank against numpy's SVD."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch

from lmms_textweighted.engine.rank import attention_ranks, effective_rank, numeric_rank, singular_values
from tests.oracles import svd_ranks


def causal_block(size: int, seed: int, sharpness: float = 2.0) -> torch.Tensor:
    """A lower-triangular block of softmax rows, float64."""
    logits = sharpness * torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits.masked_fill(torch.ones(size, size).triu(1).bool(), float("-inf")).softmax(dim=-1)


@pytest.mark.parametrize("size", [1, 2, 16, 60])
@pytest.mark.parametrize("sharpness", [0.0, 1.0, 4.0])
def test_ranks_equal_those_of_an_svd(size, sharpness):
    block = causal_block(size, seed=size, sharpness=sharpness)
    ranks = attention_ranks(block[None])
    numeric, effective = svd_ranks(block.numpy())
    assert ranks.effective[0] == pytest.approx(effective, rel=1e-6)
    assert ranks.numeric[0] == numeric


def test_singular_values_agree_with_an_svd_to_a_tenth_of_the_tolerance():
    block = causal_block(80, seed=1, sharpness=1.0)
    expected = np.linalg.svd(block.numpy(), compute_uv=False)
    got = singular_values(block).numpy()
    assert np.abs(got - expected).max() < 1e-7 * expected[0]
    assert (np.diff(got) <= 0).all()


@pytest.mark.parametrize("size", [1, 5, 32])
def test_an_identity_block_has_full_rank(size):
    ranks = attention_ranks(torch.eye(size)[None])
    assert ranks.numeric == (size,)
    assert ranks.effective[0] == pytest.approx(size)


def test_a_block_of_nearly_equal_rows_has_effective_rank_about_one():
    generator = torch.Generator().manual_seed(0)
    block = torch.ones(24, 24) / 24 + 1e-4 * torch.rand(24, 24, generator=generator)
    ranks = attention_ranks(block[None])
    assert 1 <= ranks.effective[0] < 1.01
    assert ranks.numeric == (24,)


def test_a_tolerance_hides_the_tiny_diagonal_of_a_block_whose_exact_rank_is_full():
    """Causal rows that put all but 1e-9 on the first token: invertible, yet one direction is all the rank shows."""
    size = 12
    block = torch.zeros(size, size, dtype=torch.float64)
    block[:, 0] = 1 - 1e-9
    block += 1e-9 * torch.eye(size, dtype=torch.float64)
    assert np.linalg.matrix_rank(block.numpy(), tol=1e-12) == size
    ranks = attention_ranks(block[None])
    assert ranks.numeric == (1,)
    assert ranks.effective[0] == pytest.approx(1, abs=1e-6)

    block += 1e-3 * torch.eye(size, dtype=torch.float64)
    assert attention_ranks(block[None]).numeric == (size,)


@pytest.mark.parametrize(("small", "expected"), [(2e-6, 2), (0.5e-6, 1)])
def test_the_numeric_rank_counts_above_one_millionth_of_the_largest(small, expected):
    assert numeric_rank(torch.tensor([3.0, 3.0 * small], dtype=torch.float64)).item() == expected


def test_the_effective_rank_of_values_worked_by_hand():
    values = torch.tensor([2.0, 1.0, 1e-7], dtype=torch.float64)
    p = [0.8, 0.2]
    expected = math.exp(-sum(x * math.log(x) for x in p))
    assert effective_rank(values).item() == pytest.approx(expected, rel=1e-9)


def test_scaling_a_block_changes_neither_rank():
    block = causal_block(20, seed=4)
    small = attention_ranks(1e-5 * block[None])
    assert small.numeric == attention_ranks(block[None]).numeric
    assert small.effective[0] == pytest.approx(attention_ranks(block[None]).effective[0], rel=1e-6)


def test_each_head_has_its_own_ranks_and_the_means_are_over_heads():
    blocks = torch.stack([torch.eye(10, dtype=torch.float64), torch.ones(10, 10).double(), causal_block(10, seed=2)])
    ranks = attention_ranks(blocks)
    plain = [svd_ranks(block.numpy()) for block in blocks]
    assert ranks.numeric == tuple(numeric for numeric, _ in plain)
    assert ranks.numeric_mean == pytest.approx(sum(numeric for numeric, _ in plain) / 3)
    assert ranks.effective_mean == pytest.approx(sum(effective for _, effective in plain) / 3, rel=1e-6)
    assert ranks.numeric[1] == 1


def test_the_ranks_leave_torchs_number_of_threads_alone():
    before = torch.get_num_threads()
    attention_ranks(torch.rand(3, 8, 8).tril())
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *seen] == [before, before]
