"""Intervals of a mean score or of any figure of documents, paired tests of two runs, and Holm's correction.

scipy and statsmodels do the work; statsmodels is imported where it is needed, it takes a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LEVEL = 0.95
RESAMPLES = 9999
BOOTSTRAPS = 2000
_BATCH = 1 << 24  # numbers drawn at once by the permutation test


@dataclass(frozen=True)
class PairedTest:
    """A two-sided test that two runs score the same documents equally. difference: mean of the first minus second."""

    name: str
    documents: int
    difference: float
    p: float


def mean_interval(scores: Sequence[float], clusters: Sequence[str] | None = None) -> tuple[float, float]:
    """95 % interval of the mean score of documents.

    Wilson's for 0/1 scores, Student's t otherwise. clusters: documents of one cluster are not independent; then the
    cluster-robust sandwich (CR1) with t of clusters - 1 degrees of freedom. Where all clustered scores are equal it has
    no width, and Wilson's on the number of clusters stands in for it. NaN for one score that is neither 0 nor 1.
    """
    values = np.asarray(scores, dtype=float)
    binary = bool(np.isin(values, (0.0, 1.0)).all())
    groups = _groups(clusters)
    if groups is not None and values.std() > 0:
        return _cluster_interval(values, groups)
    if binary:
        count = len(values) if groups is None else len(np.unique(groups))
        result = stats.binomtest(round(float(values.mean()) * count), count)
        interval = result.proportion_ci(confidence_level=LEVEL, method="wilson")
        return float(interval.low), float(interval.high)
    if len(values) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def bootstrap_means(
    figures: ArrayLike, *, seed: int = 0, resamples: int = BOOTSTRAPS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(means [M], lower [M] and upper bounds [M]) of figures of documents, [N, M]: the percentile bootstrap's 95 %.

    Documents are drawn with replacement, all figures of one together. NaN stands where a document has no such figure:
    the mean is over those that do. A draw without any of these is left out. All NaN where no document has the figure,
    and bounds of NaN where only one does.
    """
    values = np.asarray(figures, dtype=float)
    count, known = len(values), np.isfinite(values)
    filled, documents = np.where(known, values, 0.0), known.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = filled.sum(axis=0) / documents
        drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / max(1, count)), size=resamples)
        resampled = (drawn @ filled) / (drawn @ known.astype(float))
    low, high = np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    enough = documents > 1
    if enough.any():
        tails = 50 * (1 - LEVEL), 50 * (1 + LEVEL)
        low[enough], high[enough] = np.nanpercentile(resampled[:, enough], tails, axis=0)
    return means, low, high


def paired_test(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[str] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PairedTest:
    """Test the documents' scores of two runs, in the same order.

    McNemar's exact test for 0/1 scores; the paired permutation test otherwise, and for clustered documents: each
    document's two scores (of a cluster all together) are exchanged or not, at random. Of 0/1 scores it is McNemar's. It
    never claims more than the number of documents allows, 2 / 2^n; and its p-value is at least 1 / (resamples + 1).
    """
    one, two = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    difference = float((one - two).mean())
    groups = _groups(clusters)
    if groups is None and are_hits(one, two):
        return PairedTest("McNemar exact", len(one), difference, mcnemar_exact(one, two))
    name = "paired permutation" if groups is None else "paired cluster permutation"
    return PairedTest(name, len(one), difference, _permutation(one - two, groups, seed, resamples))


def are_hits(*scores: ArrayLike) -> bool:
    """Whether all scores of these runs are 0 or 1."""
    return all(bool(np.isin(one, (0.0, 1.0)).all()) for one in scores)


def mcnemar_exact(first: ArrayLike, second: ArrayLike) -> float:
    """Two-sided p-value of McNemar's exact test of the same documents' 0/1 scores in two runs."""
    from statsmodels.stats.contingency_tables import mcnemar

    one, two = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    table = np.array([[((one == a) & (two == b)).sum() for b in (1, 0)] for a in (1, 0)])
    return float(mcnemar(table, exact=True).pvalue)


def ratio_variance(first: Sequence[float], second: Sequence[float], clusters: Sequence[str] | None = None) -> float:
    """Variance of mean(first) / mean(second) over paired documents, by the delta method.

    psi_i = (a_i - a) / b - a (b_i - b) / b^2, summed within clusters: G / (G - 1) x sum psi_g^2 / n^2 for G clusters
    (or documents) of n documents. NaN for less than two.
    """
    one, two = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    a, b = one.mean(), two.mean()
    influence = (one - a) / b - a * (two - b) / b**2
    groups = _groups(clusters)
    sums = influence if groups is None else np.bincount(groups, weights=influence)
    if len(sums) < 2:
        return float("nan")
    return float(len(sums) / (len(sums) - 1) * (sums**2).sum() / len(one) ** 2)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]]


def _groups(clusters: Sequence[str] | None) -> Any:
    """Cluster numbers, or None where every document stands alone or all stand together."""
    if clusters is None:
        return None
    _, numbers = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    return numbers if 1 < numbers.max() + 1 < len(numbers) else None


def _cluster_interval(values: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    from statsmodels.regression.linear_model import OLS

    fit = OLS(values, np.ones((len(values), 1))).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    low, high = fit.conf_int(alpha=1 - LEVEL)[0]
    return float(low), float(high)


def _permutation(differences: np.ndarray, groups: np.ndarray | None, seed: int, resamples: int) -> float:
    """Two-sided p: the share of exchanges whose summed difference is as far from 0 as the measured one.

    Units (documents, or clusters) whose differences have one size are interchangeable, so how many of a size are
    exchanged is one binomial number: the same distribution as exchanging units, at a fraction of the cost.
    """
    sums = differences if groups is None else np.bincount(groups, weights=differences)
    sizes, counts = np.unique(np.abs(sums).round(12), return_counts=True)
    measured = abs(float(sums.sum()))
    rng, beyond, done = np.random.default_rng(seed), 0, 0
    while done < resamples:
        size = min(resamples - done, max(1, _BATCH // len(counts)))
        drawn = (2 * rng.binomial(counts, 0.5, size=(size, len(counts))) - counts) @ sizes
        beyond += int((np.abs(drawn) >= measured - 1e-9).sum())
        done += size
    return (1 + beyond) / (1 + resamples)
