"""What a random choice has: expectations in closed form, where every set of as many tokens is as likely as any other.

A choice of a budget for each picture draws from each picture by itself. `groups` says how: the group of each image
token, int [I], the pictures' numbers or all 0. All sets have as many tokens of each group as the choice that is
compared with chance. Two choices are taken as drawn independently.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import stats


def expected_share(kept: np.ndarray, region: np.ndarray, groups: np.ndarray, among: np.ndarray | None = None) -> float:
    """E of `measures.share_in`: sum_g k_g r_g / n_g / sum_g k_g, with k_g kept tokens of the group, r_g of its n_g in
    the region. With `among`, k_g, r_g and n_g count these alone. NaN as there."""
    counted = np.ones(len(region), dtype=bool) if among is None else among
    sizes, members = _counts(groups, counted), _counts(groups, region & counted)
    chosen = np.bincount(groups[kept[counted[kept]]], minlength=len(sizes))
    if not chosen.sum() or not members.sum():
        return float("nan")
    return float((chosen * members / np.maximum(sizes, 1)).sum() / chosen.sum())


def expected_mean(kept: np.ndarray, coordinate: np.ndarray, groups: np.ndarray) -> float:
    """E of `measures.mean_place`: the groups' means, weighted by the tokens that are kept of each."""
    placed = np.isfinite(coordinate)
    sizes = _counts(groups, placed)
    sums = np.bincount(groups[placed], weights=coordinate[placed], minlength=len(sizes))
    chosen = np.bincount(groups[kept[placed[kept]]], minlength=len(sizes))
    return float((chosen * sums / np.maximum(sizes, 1)).sum() / chosen.sum()) if chosen.sum() else float("nan")


def expected_overlap(
    first: np.ndarray, second: np.ndarray, groups: np.ndarray, among: np.ndarray | None = None
) -> tuple[float, float]:
    """E of `measures.overlap` of two independent choices: the number in common is hypergeometric in each group.

    E of |A n B| / min = sum_g a_g b_g / n_g / min(sum a, sum b); E of |A n B| / |A u B| = sum_h P(h) h / (a + b - h).
    among: bool [I], the tokens that either could choose; all where it is None.
    """
    counted = np.ones(len(groups), dtype=bool) if among is None else among
    sizes = _counts(groups, counted)
    a, b = (np.bincount(groups[kept], minlength=len(sizes)) for kept in (first, second))
    if not a.sum() or not b.sum():
        return float("nan"), float("nan")
    return _expected_overlap(tuple(sizes.tolist()), tuple(a.tolist()), tuple(b.tolist()))


@cache
def _expected_overlap(sizes: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> tuple[float, float]:
    chances, all_in_common = np.ones(1), 0.0
    for size, one, other in zip(sizes, a, b, strict=True):
        if one and other:
            all_in_common += one * other / size
            chances = np.convolve(chances, stats.hypergeom.pmf(np.arange(min(one, other) + 1), size, one, other))
    common = np.arange(len(chances))
    iou = (chances * common / (sum(a) + sum(b) - common)).sum()
    return float(iou), all_in_common / min(sum(a), sum(b))


def _counts(groups: np.ndarray, counted: np.ndarray) -> np.ndarray:
    return np.bincount(groups[counted], minlength=int(groups.max()) + 1 if len(groups) else 0)
