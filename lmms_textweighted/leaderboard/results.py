"""Whether a run is done: judged by its results file alone, since lmms-eval exits with 0 even when it failed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmms_textweighted.harness.names import MODEL_NAMES
from lmms_textweighted.harness.result_files import RESULTS, is_results, samples_of
from lmms_textweighted.leaderboard.commands import RUN_ID, Run

NOTHING = "no results yet"

# The options that answers and scores depend on, and lmms-eval's defaults. Not among them: where files go, the batch
# size (a batch answers like its documents alone), the device.
ACTING: dict[str, Any] = {
    "model": None,
    "model_args": "",
    "tasks": None,
    "limit": None,
    "offset": 0,
    "num_fewshot": None,
    "gen_kwargs": "",
    "system_instruction": None,
    "apply_chat_template": False,
    "predict_only": False,
    "force_simple": False,
    "repeats": 1,
    "max_tokens": None,
}


def done(run: Run) -> tuple[Path | None, str]:
    """(the run's newest results file that is whole and of the run's settings, ""), or (None, why there is none).

    Whole: it can be read, has a result for every task, and each task's samples are all logged; lmms-eval writes them
    after the results.
    """
    why = NOTHING
    files = list(filter(is_results, run.folder.glob(f"*/*{RESULTS}")))
    files.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))
    for file in reversed(files):
        missing = _missing(run, file)
        if missing is None:
            return file, ""
        why = f"{file.name}: {missing}"
    return None, why


def cached_answers(run: Run) -> int:
    """Answers that a run which did not end has left in lmms-eval's response cache, for the next try.

    Counted in the cache's logs: a line an answer, written before anything else.
    """
    cache = Path(str(run.options["use_cache"]))
    keys: set[str] = set()
    for log in [cache / "cache.audit.jsonl", *(cache / "runs" / run.environment[RUN_ID]).glob("rank_*.audit.jsonl")]:
        if log.is_file():
            keys.update(str(record.get("cache_key") or "") for record in _records(log))
    return len(keys - {""})


def _missing(run: Run, file: Path) -> str | None:
    """What a results file lacks for the run to be done; None when nothing."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        used = data["config"]["resolved_cli_args"]
        results, counts = data["results"], data["n-samples"]
    except (OSError, ValueError, KeyError, TypeError):
        return "it is not whole"
    for name, default in ACTING.items():
        wanted, found = run.options.get(name, default), used.get(name, default)
        if not _same(name, wanted, found):
            return f"made with {name}={found!r}, not {wanted!r}"
    for task in run.tasks:
        if task not in results or task not in counts:
            return f"it has no {task}"
        written, expected = _samples(file, task), min(counts[task]["effective"], counts[task]["original"])
        if written != expected:
            return f"{written} of {expected} samples of {task} are written"
    return None


def _same(name: str, wanted: Any, found: Any) -> bool:
    if name == "tasks":
        return sorted(str(wanted).split(",")) == sorted(str(found).split(","))
    if name == "model_args":
        return sorted(str(wanted).split(",")) == sorted(str(found).split(","))
    if name == "model":  # one class under two names
        return wanted == found or (wanted in MODEL_NAMES and found in MODEL_NAMES)
    if name == "limit":
        return (None if wanted == -1 else wanted) == (None if found == -1 else found)
    return wanted == found


def _samples(file: Path, task: str) -> int:
    """How many samples of a task are logged: lines that are ended, which a killed run's last one is not."""
    logged = samples_of(file, task)
    if not logged.is_file():
        return 0
    with logged.open("rb") as lines:
        return sum(line.endswith(b"\n") for line in lines)


def _records(file: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a JSONL file; the last one of a killed process may be half."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record
