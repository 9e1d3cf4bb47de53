"""What is measured of one choice: shares of index sets, of scores and of weights. Pure functions of numpy arrays.

NaN says that there is nothing to measure: no kept token, no region, no score.
"""

from __future__ import annotations

import numpy as np

STRONGEST = 10


def share_in(kept: np.ndarray, region: np.ndarray, among: np.ndarray | None = None) -> float:
    """|{k in kept : region_k}| / |kept|. kept: indices [K]. region: bool [I]. among: bool [I], the tokens that are
    counted at all. NaN where none of these is kept, and where the region is empty: nothing could lie in it."""
    counted = np.ones(len(region), dtype=bool) if among is None else among
    chosen = kept[counted[kept]]
    if not len(chosen) or not (region & counted).any():
        return float("nan")
    return float(region[chosen].mean())


def mean_place(kept: np.ndarray, coordinate: np.ndarray) -> float:
    """The mean of a coordinate [I] over the kept tokens; those without a place (NaN) are not counted."""
    found = coordinate[kept]
    found = found[np.isfinite(found)]
    return float(found.mean()) if len(found) else float("nan")


def bands(kept: np.ndarray, coordinate: np.ndarray, count: int) -> np.ndarray:
    """Share of the kept tokens in each of `count` equal bands of a coordinate from 0 to 1: [count], summing to 1."""
    found = coordinate[kept]
    found = found[np.isfinite(found)]
    if not len(found):
        return np.full(count, np.nan)
    return np.bincount(np.minimum((found * count).astype(int), count - 1), minlength=count) / len(found)


def strongest_share(scores: np.ndarray, strongest: int = STRONGEST) -> float:
    """sum of the `strongest` largest scores / sum of all scores. scores: [I], none negative. NaN where all are 0."""
    total = scores.sum()
    return float(np.sort(scores)[::-1][:strongest].sum() / total) if total > 0 else float("nan")


def overlap(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """(|A n B| / |A u B|, |A n B| / min(|A|, |B|)) of two sets of indices. NaN where one of them is empty."""
    one, other = set(first.tolist()), set(second.tolist())
    if not one or not other:
        return float("nan"), float("nan")
    common = len(one & other)
    return common / len(one | other), common / min(len(one), len(other))


def turned_back(kept: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """The tokens that lie, in the picture as it was, where `kept` lie in the mirrored one. mirrored: as
    `places.Places.mirrored` gives it; tokens without a partner are left out."""
    partners = mirrored[kept]
    return np.sort(partners[partners >= 0])


def with_partner(kept: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """The kept tokens that have a partner when the picture is mirrored."""
    return kept[mirrored[kept] >= 0]


def ends_and_centre(weights: np.ndarray) -> tuple[float, float, float]:
    """(weight of the first text token, of the last, and the centre of weight) of weights [T] that sum to 1.

    Centre: sum_i w_i i / (T - 1), i from 0: 0 where the first token weighs all, 1 where the last does, 1/2 if uniform.
    NaN for the centre of a single token.
    """
    count = len(weights)
    centre = float(weights @ np.arange(count)) / (count - 1) if count > 1 else float("nan")
    return float(weights[0]), float(weights[-1]), centre


def by_position(weights: np.ndarray, count: int) -> np.ndarray:
    """Weight in each of `count` equal parts of the text, over what uniform weights have there: [count], 1 if uniform.

    weights: [T], summing to 1. A token that lies in two parts counts to both by how much of it does.
    """
    edges = np.linspace(0, len(weights), count + 1)
    summed = np.concatenate([[0.0], np.cumsum(weights)])
    return np.diff(np.interp(edges, np.arange(len(weights) + 1), summed)) * count


def even_attention(rows: int, before: int, *, debiased: bool) -> np.ndarray:
    """The text-weighted method's weights [T] where every row attends evenly to all that it sees: the causal mask alone.

    Row j of T sees `before` + j + 1 tokens, so A[j, i] = 1 / (before + j + 1) for i <= j. debiased: each column sum is
    divided by the number of rows that see its token, T - i.
    """
    given = 1 / (before + np.arange(rows) + 1.0)
    received = np.cumsum(given[::-1])[::-1]
    if debiased:
        received = received / np.arange(rows, 0, -1)
    return received / received.sum()
