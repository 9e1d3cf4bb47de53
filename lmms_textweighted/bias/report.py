"""The report as plain data: every figure of every point with its interval and what a random choice has."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmms_textweighted.bias import measures
from lmms_textweighted.bias.figures import BANDS, KINDS, PARTS, Figure
from lmms_textweighted.bias.gather import DocumentFigures, Pair
from lmms_textweighted.experiment.grid import Point
from lmms_textweighted.methods import find_method
from lmms_textweighted.statistics import BOOTSTRAPS, bootstrap_means

FORMAT = 1
KIND_OF_FILE = "bias"
PLAIN, CORRECTED = "text_weighted", "text_weighted_debiased"
_NOTHING = "there is nothing to measure"


@dataclass
class Figures:
    """Figures of documents, a column each: one bootstrap of the documents for all of them."""

    columns: list[list[Figure]] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)

    def add(self, column: list[Figure]) -> dict[str, Any]:
        """The column's entry, to be filled by `fill`: `mean`, `low`, `high` (95 %), `random`, `documents`; or a
        `reason` why there is none."""
        self.columns.append(column)
        self.entries.append({})
        return self.entries[-1]

    def fill(self) -> None:
        if not self.columns:
            return
        values = np.array([[figure.value for figure in column] for column in self.columns]).T
        randoms = np.array([[figure.random for figure in column] for column in self.columns]).T
        means, low, high = bootstrap_means(values)
        for place, (column, entry) in enumerate(zip(self.columns, self.entries, strict=True)):
            known = np.isfinite(values[:, place])
            if not known.any():
                reasons = Counter(figure.reason for figure in column if figure.reason)
                entry["reason"] = reasons.most_common(1)[0][0] if reasons else _NOTHING
                continue
            entry.update(mean=float(means[place]), low=_number(low[place]), high=_number(high[place]))
            random = randoms[known, place]
            entry["random"] = float(random.mean()) if np.isfinite(random).all() else None
            entry["documents"] = int(known.sum())


def report_of(
    points: Sequence[Point],
    documents: Sequence[DocumentFigures],
    budgets: Sequence[Pair],
    methods: Sequence[Pair],
) -> dict[str, Any]:
    """What docs/bias.md says of `figures`, `points`, `between_budgets`, `between_methods` and `early_words`.

    budgets, methods: as `gather.pairs_of` gives them; the documents' overlaps are of both, one after the other.
    """
    all_figures = Figures()
    of_points = [_point(place, point, documents, all_figures) for place, point in enumerate(points)]
    between = [_between(place, pair, points, documents, all_figures) for place, pair in enumerate([*budgets, *methods])]
    early = _early_words(points, documents, [*budgets, *methods], all_figures)
    all_figures.fill()
    return {
        "figures": {kind.name: {"says": kind.says, "random": kind.random, "percent": kind.percent} for kind in KINDS},
        "intervals": f"95 %, percentile bootstrap over documents, {BOOTSTRAPS} draws",
        "points": of_points,
        "between_budgets": between[: len(budgets)],
        "between_methods": between[len(budgets) :],
        "early_words": early,
    }


def named(point: Point) -> dict[str, Any]:
    """What tells a point from the others, in the report."""
    return {"strategy": point.strategy, "layer": point.layer, "budget": point.budget}


def _point(place: int, point: Point, documents: Sequence[DocumentFigures], figures: Figures) -> dict[str, Any]:
    own = [document.points[place] for document in documents]
    return {
        **named(point),
        "label": find_method(point.strategy).label,
        "figures": {kind.name: figures.add([one.figures[kind.name] for one in own]) for kind in KINDS},
        **{
            name: [figures.add([Figure(float(getattr(one, name)[part]), even) for one in own]) for part in range(parts)]
            for name, parts, even in (
                ("rows", BANDS, 1 / BANDS),
                ("columns", BANDS, 1 / BANDS),
                ("words", PARTS, 1.0),
            )
        },
    }


def _between(
    place: int, pair: Pair, points: Sequence[Point], documents: Sequence[DocumentFigures], figures: Figures
) -> dict[str, Any]:
    overlaps = [document.overlaps[place] for document in documents]
    return {
        "first": named(points[pair[0]]),
        "second": named(points[pair[1]]),
        "iou": figures.add([Figure(iou, random) for iou, _, random, _ in overlaps]),
        "share": figures.add([Figure(share, random) for _, share, _, random in overlaps]),
    }


def _early_words(
    points: Sequence[Point], documents: Sequence[DocumentFigures], pairs: Sequence[Pair], figures: Figures
) -> dict[str, Any]:
    """What the text-weighted method weighs first, plain and with the causal correction, at each layer and budget.

    `even`: the same figures where every text row attended evenly to all that it sees: the causal mask by itself.
    """
    found = []
    for place, point in enumerate(points):
        if point.strategy not in (PLAIN, CORRECTED):
            continue
        own = [document.points[place].figures for document in documents]
        even = [_even(document, point.strategy == CORRECTED) for document in documents]
        entry = {
            **named(point),
            **{name: figures.add([one[name] for one in own]) for name in ("first_word", "last_word", "word_centre")},
            "even": {
                name: figures.add([Figure(values[number]) for values in even])
                for number, name in enumerate(("first_word", "last_word", "word_centre"))
            },
        }
        for at, (first, second) in enumerate(pairs):
            names = {points[first].strategy, points[second].strategy}
            if place in (first, second) and names == {PLAIN, CORRECTED}:
                entry["shared_with_the_other"] = figures.add(
                    [Figure(document.overlaps[at][1], document.overlaps[at][3]) for document in documents]
                )
        found.append(entry)
    words = Counter(document.words[0] for document in documents if document.words)
    missing = [name for name in (PLAIN, CORRECTED) if all(entry["strategy"] != name for entry in found)]
    return {
        "rows": found,
        "first_tokens": dict(words.most_common(5)),
        "text_tokens": _mean([float(len(document.words)) for document in documents if document.words]),
        **({"reason": f"{' and '.join(missing)} not among the strategies"} if missing else {}),
    }


def _even(document: DocumentFigures, debiased: bool) -> tuple[float, float, float]:
    if not document.words:
        return (math.nan,) * 3
    return measures.ends_and_centre(measures.even_attention(len(document.words), document.before, debiased=debiased))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
