"""Paired tests within a sweep: each point against a reference strategy's at the same budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lmms_textweighted.experiment.outcomes import Curve
from lmms_textweighted.statistics import RESAMPLES, holm, paired_test

REFERENCES = ("text_weighted", "random")  # of a sweep that was told none; those that it runs
ALPHA = 0.05


@dataclass
class Pair:
    """A point against a reference's point, on the same documents.

    place: of the budget in the curve. against, against_layer: the reference and its pruning layer. difference: of the
    mean scores. adjusted_p: Holm's, over all tests against this reference.
    """

    curve: Curve
    place: int
    against: str
    against_layer: int | None
    test: str
    difference: float
    p: float
    adjusted_p: float = 1.0

    @property
    def is_different(self) -> bool:
        """Significant at 5 % after the correction."""
        return self.adjusted_p < ALPHA


def pair(curves: Sequence[Curve], against: str) -> list[Pair]:
    """Every point of every other strategy that has a counterpart among those of `against`, tested against it.

    The counterpart has the same budget, and the same pruning layer where the reference has it; else of several layers
    the one whose FLOPs come closest (of two, the earlier). Of `none` it is its only point. Nothing is tested at a
    budget of 0, where no method has a choice, nor for what removes nothing. Points that have the same documents right
    differ by 0 and have p = 1.

    The test is `statistics.paired_test`: McNemar's exact for 0/1 scores of one seed, else the paired permutation of the
    documents' means, with 100 times as many resamples as there are tests, lest the correction hide what it can resolve.
    """
    references = [curve for curve in curves if curve.strategy == against]
    found = [
        (curve, place, *counterpart)
        for curve in curves
        if curve.strategy != against
        for place, budget in enumerate(curve.budgets)
        if budget and (counterpart := _counterpart(curve, place, references)) is not None
    ]
    resamples = max(RESAMPLES, 100 * len(found))
    pairs = []
    for curve, place, other, there in found:
        done = paired_test(curve.document_scores(place), other.document_scores(there), resamples=resamples)
        pairs.append(Pair(curve, place, against, other.layer, done.name, done.difference, done.p))
    for one, adjusted in zip(pairs, holm([one.p for one in pairs]), strict=True):
        one.adjusted_p = adjusted
    return pairs


def paired_figures(curve: Curve, pairs: Sequence[Pair]) -> dict[str, dict[str, list[Any]]]:
    """A curve's tests for its block: for each reference lists with an entry a budget, None where there is no test."""
    figures: dict[str, dict[str, list[Any]]] = {}
    for one in pairs:
        if one.curve is not curve:
            continue
        names = ("against_layer", "test", "difference", "p", "adjusted_p")
        lists = figures.setdefault(one.against, {name: [None] * len(curve.budgets) for name in names})
        for name in names:
            lists[name][one.place] = getattr(one, name)
    return figures


def _counterpart(curve: Curve, place: int, references: Sequence[Curve]) -> tuple[Curve, int] | None:
    """The reference's curve, and the place of its point there."""
    same = [
        (other, there)
        for other in references
        for there, budget in enumerate(other.budgets)
        if budget in (curve.budgets[place], None)
    ]
    flops = _flops(curve, place)

    def distance(point: tuple[Curve, int]) -> tuple[bool, float]:
        elsewhere = curve.layer is not None and point[0].layer != curve.layer
        return elsewhere, abs(_flops(*point) - flops)

    return min(same, key=distance, default=None)


def _flops(curve: Curve, place: int) -> float:
    return fmean(outcome.flops_ratio for outcome in curve.all_of(place))
