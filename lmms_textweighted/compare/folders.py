"""Find the runs under the paths that a user names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmms_textweighted.compare.records import Run
from lmms_textweighted.compare.runs import read_results
from lmms_textweighted.compare.sweeps import read_sweep
from lmms_textweighted.errors import InputError
from lmms_textweighted.experiment.names import ANSWERS_PATTERN, RESULT_PATTERN
from lmms_textweighted.harness.result_files import RESULTS, SAMPLES, is_results


def read_runs(paths: Sequence[Path], metrics: Mapping[str, str] | None = None) -> list[Run]:
    """All runs under folders, or of single files, in the order given; a folder's by name, so the oldest first.

    Runs of one model with the same settings and different tasks become one. Raises InputError for a path without a
    finished run, and as `read_results` and `read_sweep` do.
    """
    runs: list[Run] = []
    seen: set[Path] = set()
    for path in paths:
        for file in _files(path):
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            if file.name.endswith(RESULTS):
                runs.append(read_results(file, metrics or {}))
            else:
                runs += read_sweep(file, metrics or {})
    return _joined(runs)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if path.name.endswith(RESULTS) or path.match(RESULT_PATTERN):
            return [path]
        raise InputError(
            f"run {str(path)!r} is no *{RESULTS} and no {RESULT_PATTERN}: give one of them, or their folder"
        )
    if not path.is_dir():
        raise InputError(f"run {str(path)!r} does not exist: give a folder that lmms-eval or a sweep wrote")
    found = sorted(filter(is_results, path.rglob(f"*{RESULTS}"))) + sorted(path.rglob(RESULT_PATTERN))
    for answers in path.rglob(ANSWERS_PATTERN):
        json_file = answers.with_name(answers.name.replace(".answers.jsonl", ".json"))
        if not json_file.is_file():
            raise InputError(f"run {str(answers)!r} has answers but no {json_file.name}: the sweep did not finish")
    for samples in path.rglob(f"*{SAMPLES}*.jsonl"):
        name = samples.name.partition(SAMPLES)[0] + RESULTS
        if not samples.with_name(name).is_file():
            raise InputError(f"run {str(samples)!r} has samples but no {name}: the run did not finish")
    if not found:
        raise InputError(f"run {str(path)!r} has no *{RESULTS} and no {RESULT_PATTERN}: it is empty or did not finish")
    return found


def _joined(runs: list[Run]) -> list[Run]:
    """Runs that are one method in several commands, a task or more each, as one."""
    kept: list[Run] = []
    for run in runs:
        same = [one for one in kept if _identity(one) == _identity(run) and not one.tasks.keys() & run.tasks.keys()]
        if same and run.model != "sweep":
            same[0].tasks.update(run.tasks)
            same[0].figures = same[0].figures.joined(run.figures)
            same[0].notes += run.notes
        else:
            kept.append(run)
    return kept


def _identity(run: Run) -> str:
    return json.dumps([run.model, run.strategy, run.checkpoint, run.settings], sort_keys=True, default=str)
