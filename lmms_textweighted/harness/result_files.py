"""The files that lmms-eval writes: `DATE_results.json`, and beside it `DATE_samples_TASK.jsonl`."""

from __future__ import annotations

from pathlib import Path

RESULTS = "_results.json"
SAMPLES = "_samples_"


def is_results(path: Path) -> bool:
    """Whether it is named as a run's results are.

    Some tasks write what is to be handed in (`submissions/mmbench_en_dev_results.json`) beside them.
    """
    return path.name.endswith(RESULTS) and path.parent.name != "submissions"


def samples_of(results: Path, task: str) -> Path:
    """Where the logged samples of one task of a run are."""
    return results.with_name(f"{results.name.removesuffix(RESULTS)}{SAMPLES}{task}.jsonl")
