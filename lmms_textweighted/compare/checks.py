"""What makes two runs incomparable, each reason in one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lmms_textweighted.compare.records import SAME_SETTINGS, Run, TaskResult


def differences(run: Run, other: Run) -> list[str]:
    """Why `run` cannot be compared with `other`, one reason a line; empty where it can."""
    reasons = list(_checkpoint(run, other))
    for name in SAME_SETTINGS:
        ours, theirs = run.settings.get(name), other.settings.get(name)
        if ours is not None and theirs is not None and ours != theirs:
            reasons.append(f"other {name}: {ours}, not {theirs}")
    if run.settings.get("system_instruction") != other.settings.get("system_instruction"):
        reasons.append("other prompt: the system instructions differ")
    for task, result in run.tasks.items():
        if task in other.tasks:
            reasons += [f"{task}: {reason}" for reason in _task(result, other.tasks[task], run, other)]
    return reasons


def unknowns(run: Run, other: Run) -> list[str]:
    """What could not be held against `other`, because one of the two did not record it."""
    missing = [name for name in SAME_SETTINGS if (run.settings.get(name) is None) != (other.settings.get(name) is None)]
    if run.checkpoint is None or other.checkpoint is None:
        missing.insert(0, "checkpoint")
    shared = [(result, other.tasks[task]) for task, result in run.tasks.items() if task in other.tasks]
    if any(not _same_kind(one, two) for one, two in shared):
        missing.append("the prompt of every document")
    return missing


def _checkpoint(run: Run, other: Run) -> Iterator[str]:
    ours, theirs = run.settings.get("weights"), other.settings.get("weights")
    if ours is not None and theirs is not None:
        if ours != theirs:
            yield f"other checkpoint: the weights of {run.checkpoint} are not those of {other.checkpoint}"
        return
    names = run.checkpoint_name, other.checkpoint_name
    if None not in names and names[0] != names[1]:
        yield f"other checkpoint: {run.checkpoint}, not {other.checkpoint}"


def _task(result: TaskResult, other: TaskResult, run: Run, other_run: Run) -> Iterator[str]:
    if result.metric != other.metric:
        yield f"other metric: {result.metric}, not {other.metric}"
    for name, value in result.facts.items():
        if name in other.facts and value != other.facts[name]:
            yield f"other {name}: {value}, not {other.facts[name]}"
    yield from _documents(result, other)
    shared = result.documents.keys() & other.documents.keys()
    same_target = [n for n in shared if result.documents[n].target == other.documents[n].target]
    changed = [n for n in sorted(same_target) if _prompts_differ(result, other, n)]
    if changed:
        yield f"other prompt: {len(changed)} of {len(shared)} documents, document {changed[0]} first"
    elif not _example_fits(result, other_run) or not _example_fits(other, run):
        yield "other prompt: the sweep's prompt of document 0 does not hold the run's"


def _documents(result: TaskResult, other: TaskResult) -> Iterator[str]:
    """Other numbers of documents, or other documents under the same numbers."""
    ours, theirs = result.documents, other.documents
    wrong = [n for n in sorted(ours.keys() & theirs.keys()) if ours[n].target != theirs[n].target]
    if wrong:
        yield f"other documents: {len(wrong)} have another target, document {wrong[0]} first"
    elif ours.keys() != theirs.keys():
        limits = [
            f"{len(one.documents)} of {one.total}" for one in (result, other) if one.limited and one.total is not None
        ]
        limit = f" (a --limit: {' and '.join(limits)} answered)" if limits else ""
        yield f"other documents: {_span(ours)}, not {_span(theirs)}{limit}"


def _prompts_differ(result: TaskResult, other: TaskResult, number: int) -> bool:
    one, two = result.documents[number], other.documents[number]
    if one.prompt is not None and two.prompt is not None:
        return one.prompt != two.prompt
    return one.pictured is not None and two.pictured is not None and one.pictured != two.pictured


def _same_kind(result: TaskResult, other: TaskResult) -> bool:
    """Both logged their prompts in the same form."""
    kinds = [{document.prompt is None for document in one.documents.values()} for one in (result, other)]
    return kinds[0] == kinds[1]


def _example_fits(result: TaskResult, sweep: Run) -> bool:
    """A sweep's whole prompt of document 0 holds the text that lmms-eval logged for it."""
    text = result.first_prompt
    if sweep.prompt_example is None or text is None or min(result.documents) != 0:
        return True
    return text.strip() in sweep.prompt_example


def _span(documents: dict[int, Any]) -> str:
    numbers = sorted(documents)
    gaps = "" if numbers[-1] - numbers[0] + 1 == len(numbers) else ", with gaps"
    return f"{len(numbers)} (documents {numbers[0]} to {numbers[-1]}{gaps})"
