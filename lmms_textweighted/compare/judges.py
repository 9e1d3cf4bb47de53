"""Scores of single documents for tasks that log an answer and no score: lmms-eval's own judgement of one record.

Only tasks are here whose judge is free of side effects: some of lmms-eval's aggregations write files or ask a service.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def judge(metric: str, record: dict[str, Any]) -> float | None:
    """1 for a right answer, 0 for a wrong one, None where the metric has no judge or the record is not one of its."""
    if metric not in _JUDGES:
        return None
    try:
        return float(_JUDGES[metric](record))
    except KeyError:
        return None


def _seed(record: dict[str, Any]) -> float:
    from lmms_eval.tasks.seedbench.utils import seed_aggregation_result

    return seed_aggregation_result([record])


def _mmmu(record: dict[str, Any]) -> float:
    from lmms_eval.tasks.mmmu.utils import evaluate_mmmu

    return evaluate_mmmu([record])[1]["acc"]


_JUDGES: dict[str, Callable[[dict[str, Any]], float]] = {
    "seed_all": _seed,
    "seed_image": _seed,
    "seed_video": _seed,
    "mmmu_acc": _mmmu,
}
