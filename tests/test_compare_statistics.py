"""Intervals and tests against their definitions, computed another way."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from lmms_textweighted.statistics import holm, mean_interval, paired_test, ratio_variance

Z = 1.959963984540054


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Wilson (1927): the p for which |p_hat - p| = z sqrt(p (1 - p) / n)."""
    share = hits / count
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return centre - half, centre + half


def sandwich(values: np.ndarray, clusters: list[str]) -> tuple[float, float]:
    """Mean +- t sqrt(G / (G - 1) sum_g (sum_i in g (x_i - mean))^2 / n^2), t of G - 1 degrees of freedom."""
    names, number, mean = sorted(set(clusters)), len(values), values.mean()
    sums = [sum(x - mean for x, c in zip(values, clusters, strict=True) if c == name) for name in names]
    groups = len(names)
    variance = groups / (groups - 1) * sum(s**2 for s in sums) / number**2
    half = stats.t.ppf(0.975, groups - 1) * math.sqrt(variance)
    return mean - half, mean + half


def exact_mcnemar(first: list[int], second: list[int]) -> Fraction:
    """Twice the smaller binomial tail of the discordant pairs, at most 1."""
    gained = sum(a > b for a, b in zip(first, second, strict=True))
    lost = sum(a < b for a, b in zip(first, second, strict=True))
    tail = sum(math.comb(gained + lost, k) for k in range(min(gained, lost) + 1))
    return min(Fraction(1), 2 * Fraction(tail, 2 ** (gained + lost)))


def naive_holm(values: list[float]) -> list[float]:
    order = sorted(range(len(values)), key=lambda place: values[place])
    adjusted, running = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        running = max(running, (len(values) - rank) * values[place])
        adjusted[place] = min(1.0, running)
    return adjusted


@pytest.mark.parametrize(("hits", "count"), [(0, 8), (93, 100), (7, 8), (500, 500)])
def test_hits_have_wilsons_interval(hits, count):
    found = mean_interval([1.0] * hits + [0.0] * (count - hits))
    assert found == pytest.approx(wilson(hits, count), abs=1e-9)


def test_graded_scores_have_students_interval():
    scores = np.random.default_rng(0).choice([0, 0.3, 0.6, 1], 40)
    half = stats.t.ppf(0.975, 39) * scores.std(ddof=1) / math.sqrt(40)
    assert mean_interval(list(scores)) == pytest.approx((scores.mean() - half, scores.mean() + half))
    assert all(map(math.isnan, mean_interval([0.5])))


def test_clustered_scores_have_the_sandwich_interval():
    rng = np.random.default_rng(1)
    clusters = [str(number) for number in rng.integers(0, 12, 60)]
    easy = {name: rng.random() for name in clusters}
    scores = np.array([float(rng.random() < easy[name]) for name in clusters])
    # statsmodels also multiplies by (n - 1) / (n - k), which is 1 for the mean alone.
    assert mean_interval(list(scores), clusters) == pytest.approx(sandwich(scores, clusters), abs=1e-9)


def test_a_cluster_of_copies_counts_once():
    scores = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    copies = [score for score in scores for _ in range(20)]
    names = [str(number) for number in range(10) for _ in range(20)]
    low, high = mean_interval(copies, names)
    assert high - low > 3 * np.diff(mean_interval(copies))[0]
    assert mean_interval([1.0] * 200, names) == pytest.approx(wilson(10, 10))  # no spread: never zero width
    assert mean_interval(scores, [str(n) for n in range(10)]) == pytest.approx(wilson(7, 10))


@pytest.mark.parametrize("seed", range(4))
def test_mcnemars_p_is_the_sum_of_binomial_terms(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 2, 50), rng.integers(0, 2, 50) | rng.integers(0, 2, 50)
    found = paired_test(first.astype(float), second.astype(float))
    assert found.name == "McNemar exact"
    assert found.p == pytest.approx(float(exact_mcnemar(list(first), list(second))), rel=1e-9)
    assert found.difference == pytest.approx(first.mean() - second.mean())


def test_equal_answers_are_not_different():
    assert paired_test([1.0, 0.0, 1.0], [1.0, 0.0, 1.0]).p == 1.0
    assert paired_test([0.3, 0.6, 1.0], [0.3, 0.6, 1.0]).p == 1.0


def scipys_permutation(first, second) -> float:
    return stats.permutation_test(
        (first, second),
        lambda one, two, axis: (one - two).mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20000,
        rng=np.random.default_rng(6),
    ).pvalue


def test_graded_scores_are_exchanged_as_scipy_does_it():
    rng = np.random.default_rng(3)
    first = rng.choice([0, 0.3, 0.6, 1], 80)
    second = np.clip(first + rng.choice([-0.3, 0, 0, 0, 0.3], 80, p=[0.25, 0.2, 0.2, 0.2, 0.15]), 0, 1)
    found = paired_test(first, second)
    assert found.name == "paired permutation"
    assert found.p == pytest.approx(scipys_permutation(first, second), abs=0.02)
    assert 0.02 < found.p < 0.98
    assert found == paired_test(first, second)


def test_few_documents_cannot_be_significant():
    """Four documents that all lose: 2 of 16 exchanges are as extreme. Resampling them would say p = 0.0001."""
    found = paired_test([0.2, 0.4, 0.3, 0.5], [0.9, 0.8, 1.0, 0.7])
    assert found.p == pytest.approx(2 / 16, abs=0.02)


def test_clusters_are_exchanged_whole():
    """Ten copies of each document tell no more than one, once they are clustered."""
    rng = np.random.default_rng(4)
    first = rng.random(30) < 0.7
    second = first & (rng.random(30) < 0.85)
    copies = [np.repeat(scores.astype(float), 10) for scores in (first, second)]
    names = [str(number) for number in range(30) for _ in range(10)]
    clustered = paired_test(*copies, names)
    assert clustered.name == "paired cluster permutation"
    assert clustered.p == pytest.approx(scipys_permutation(first * 1.0, second * 1.0), abs=0.02)
    assert clustered.p == pytest.approx(paired_test(first * 1.0, second * 1.0).p, abs=0.02)  # McNemar's exact
    assert paired_test(*copies).p < clustered.p / 10


def test_holm_is_the_step_down_of_the_sorted_p_values():
    values = [0.04, 0.001, 0.03, 0.9, 0.011]
    assert holm(values) == pytest.approx(naive_holm(values))
    assert holm([]) == []


@pytest.mark.parametrize("clustered", [False, True])
def test_the_variance_of_a_ratio_is_the_bootstraps(clustered):
    rng = np.random.default_rng(5)
    base = rng.random(600) < 0.8
    other = np.where(rng.random(600) < 0.8, base, rng.random(600) < 0.5)
    size = 3 if clustered else 1
    first, second = (np.repeat(x.astype(float), size) for x in (other, base))
    names = [str(number) for number in range(600) for _ in range(size)] if clustered else None
    picks = rng.integers(0, 600, (4000, 600))
    ratios = other[picks].mean(1) / base[picks].mean(1)
    assert ratio_variance(first, second, names) == pytest.approx(ratios.var(), rel=0.1)
