"""Accuracy where a smaller picture does not do, and where it does: a hard subset after VTC-Bench (arXiv 2510.07143).

At each budget the documents are parted by the method `downsample`, which keeps the whole picture at a lower resolution
with about as many tokens: those that it gets wrong (a score below 1/2) are hard for anything that throws pixels away
evenly. What is kept of a picture has to be chosen well there, if it is to help.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lmms_textweighted.bias.sources import Place
from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.errors import TextweightedError
from lmms_textweighted.methods import find_method
from lmms_textweighted.methods.budget import Geometry
from lmms_textweighted.statistics import mean_interval

SMALLER = "downsample"


def smaller_plans(budgets: Sequence[float], kind: str, geometry: Geometry) -> dict[float, Plan | str]:
    """For each budget the plan of a smaller picture, or why there is none."""
    plans: dict[float, Plan | str] = {}
    for budget in budgets:
        asked: dict[str, Any] = {kind: budget}
        try:
            plans[budget] = find_method(SMALLER).plan(**asked, geometry=geometry)
        except TextweightedError as error:
            plans[budget] = str(error)
    return plans


def hard_subset(
    scores: Mapping[Place, Mapping[int, float]], smaller: Mapping[float, Mapping[int, float] | str]
) -> list[dict[str, Any]]:
    """For each budget every strategy's accuracy on both parts, with Wilson's or Student's 95 % interval.

    scores: of each point, by document. smaller: for each budget the smaller picture's score of each document, or why
    there is none. Strategies without a budget of their own kind (unpruned) stand at every budget.
    """
    found = []
    for budget, own in smaller.items():
        if isinstance(own, str):
            found.append({"budget": budget, "reason": own})
            continue
        parts = {
            "fails": [number for number, score in own.items() if score < 0.5],
            "enough": [number for number, score in own.items() if score >= 0.5],
        }
        rows = [
            {
                "strategy": strategy,
                "layer": layer,
                **{name: _accuracy([of[n] for n in numbers if n in of]) for name, numbers in parts.items()},
            }
            for (strategy, layer, at), of in scores.items()
            if (at == budget or strategy == "none") and strategy != SMALLER
        ]
        found.append({"budget": budget, **{name: len(numbers) for name, numbers in parts.items()}, "rows": rows})
    return found


def _accuracy(scores: Sequence[float]) -> dict[str, Any]:
    if not scores:
        return {"reason": "no document"}
    low, high = mean_interval(scores)
    return {
        "mean": math.fsum(scores) / len(scores),
        "low": low if math.isfinite(low) else None,
        "high": high if math.isfinite(high) else None,
        "documents": len(scores),
    }
