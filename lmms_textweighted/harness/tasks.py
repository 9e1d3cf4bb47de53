"""What our tasks' `utils.py` files share: document ids, ScienceQA's own scoring, and the rank post-processor."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import datasets
from lmms_eval.tasks.scienceqa.utils import sqa_process_results
from loguru import logger

from lmms_textweighted.harness.names import MISSING_METRIC, TRACE_METRICS
from lmms_textweighted.harness.traces import current_key, find_record

_TEXT_FIELDS = ("question", "choices", "hint")


def add_trace_columns(documents: datasets.Dataset) -> datasets.Dataset:
    """A task's `process_docs`: add `uid`, a hash of text and picture, and `trace_store`; see `harness.traces`."""
    raw = documents.cast_column("image", datasets.Image(decode=False)) if "image" in documents.features else documents
    uids = [_uid(document) for document in raw]
    store = [current_key()] * len(documents)
    return documents.add_column("uid", uids).add_column("trace_store", store)


def score_with_trace(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """A task's `process_results`: ScienceQA's exact match, the pruning figures and the last layer's ranks.

    A figure that was not measured is NaN; `traces_missing` is 1 for a document of which nothing is known, or whose
    picture was seen but whose ranks were not measured. Under a plan that merges there are none (`Plan.unranked`), which
    the model says when it is asked for them.
    """
    record = find_record(document["trace_store"], document["uid"])
    figures = {
        metric: math.nan if record is None or record.get(field) is None else float(record[field])
        for metric, field in TRACE_METRICS.items()
    }
    unranked = record is not None and record["kept_tokens"] > 0 and record.get("numeric_rank") is None
    missing = float(record is None or (unranked and not record.get("unranked")))
    return {**sqa_process_results(document, results), **figures, MISSING_METRIC: missing}


def mean_of_known(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN when none is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def count_missing(values: Iterable[float]) -> float:
    """How many documents have no trace, with one warning when there are any."""
    total = list(values)
    missing = int(sum(total))
    if missing:
        logger.warning(
            f"{missing} of {len(total)} documents have no pruning trace (answered from a cache without their record, "
            f"or by another model): they are left out of the figures' means"
        )
    return missing


def _uid(document: dict[str, Any]) -> str:
    digest = hashlib.sha256(repr([document.get(name) for name in _TEXT_FIELDS]).encode())
    image = document.get("image")
    if image is not None:
        digest.update(image["bytes"] if image.get("bytes") is not None else str(image.get("path")).encode())
    return digest.hexdigest()[:16]
