"""A journal's first line: what the run is. Another run's answers are never taken for this one's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from lmms_textweighted.experiment.grid import Point
from lmms_textweighted.experiment.options import Experiment
from lmms_textweighted.harness.documents import Documents
from lmms_textweighted.inference import PrunedLlava
from lmms_textweighted.methods import strategy_digest
from lmms_textweighted.provenance.model import model_state
from lmms_textweighted.provenance.software import code_digest, lock_digest, versions

_FORMAT = 1
_NOT_ACTING = ("output_dir", "overwrite", "html")
_SHOWN = 60  # characters of a value that differs


def head_of(
    experiment: Experiment, points: Sequence[Point], llava: PrunedLlava, documents: Documents
) -> dict[str, Any]:
    """All that answers and figures depend on: every option, the points with their plans as solved, the model with its
    weights' fingerprint, the set of documents, and the software.

    Not the documents themselves: each has its own digest in its own line, and is held against it when a run goes on.
    """
    found = {
        "journal": _FORMAT,
        "options": options_of(experiment),
        "strategy_digests": {name: strategy_digest(name) for name in experiment.strategies},
        "points": [[point.strategy, point.layer, point.budget, point.seed, point.plan.to_dict()] for point in points],
        "model": model_state(llava),
        "documents": {**documents.describe(), "count": len(documents), "metric": documents.metric},
        "decoding": documents.decoding,
        "software": {"versions": versions(), "lock": lock_digest(), "code": code_digest()},
    }
    return json.loads(json.dumps(found, default=_plain))


def options_of(experiment: Experiment) -> dict[str, Any]:
    """Every option that acts on the result, in words that JSON has."""
    options = {item.name: getattr(experiment, item.name) for item in fields(experiment)}
    acting = {name: value for name, value in options.items() if name not in _NOT_ACTING}
    return dict(json.loads(json.dumps(acting, default=_plain)))


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """The first thing in which two heads differ, in words; None where they say the same."""
    for name, one, other in _differences(there, here, ""):
        return f"{name} is {_short(one)} there and {_short(other)} here"
    return None


def _differences(there: Any, here: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in dict.fromkeys([*here, *there]):
            yield from _differences(there.get(key), here.get(key), f"{name}.{key}" if name else str(key))
    elif there != here:
        yield name, there, here


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _plain(value: Any) -> Any:
    """Options that JSON has no word for: paths, and records of options."""
    return vars(value) if hasattr(value, "__dataclass_fields__") else str(value)
