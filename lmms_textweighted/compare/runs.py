"""Read the folders that lmms-eval wrote: `*_results.json` and the `*_samples_TASK.jsonl` beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmms_textweighted.compare.judges import judge
from lmms_textweighted.compare.records import Document, Figures, Run, TaskResult, digest, scale_of
from lmms_textweighted.errors import InputError
from lmms_textweighted.harness.names import MISSING_METRIC, MODEL_NAMES, TRACE_METRICS
from lmms_textweighted.harness.result_files import samples_of

# What decides an answer; what our tasks ask of our model alone (ranks, image_aspect_ratio) stands in its settings.
_GENERATION = ("max_new_tokens", "temperature", "top_p", "num_beams", "do_sample", "until")
_NO_RATE = "no mean of the documents' scores: no interval, no test"


def read_results(path: Path, metrics: Mapping[str, str]) -> Run:
    """The run of one results file. metrics: task -> the metric to take instead of the first.

    Raises InputError when the file is broken or has no task, when samples are missing or not all there, and for a
    metric that the task does not have.
    """
    data = read_json(path)
    sizes = data.get("n-samples")
    if not isinstance(sizes, dict) or not sizes or not isinstance(data.get("results"), dict):
        raise InputError(f"run {str(path)!r} has no results: it is empty or not lmms-eval's, run it again")
    counts: list[dict[str, Any]] = []
    kinds: list[str] = []
    tasks: dict[str, TaskResult] = {}
    settings: dict[str, Any] = {}
    for task in sizes:
        samples = list(_samples(path, task))
        tasks[task] = _task(path, task, data, samples, metrics.get(task))
        found = [record for sample in samples for record in (sample.get("token_counts") or [])[:1] if record]
        counts += found
        made = [(record.get("provenance") or {}).get("model") or {} for record in found]
        kinds += [model["model_type"] for model in made if "model_type" in model]
        settings = _settings(path, [record["settings"] for record in found if "settings" in record], settings)
    config = data.get("config") or {}
    arguments = parse_arguments(config.get("model_args"))
    model = str(config.get("model") or data.get("model_source") or "unknown")
    ours = model in MODEL_NAMES
    if ours and settings:
        settings.setdefault("system_prompt", "")  # left out where there is none
    settings = {**arguments, **settings} if ours else arguments
    strategy = str(settings.get("strategy", "text_weighted")) if ours else model
    unpruned = not ours or strategy == "none"
    run = Run(
        path=path,
        model=model,
        strategy=strategy,
        unpruned=unpruned,
        checkpoint=settings.get("pretrained") or arguments.get("model"),
        settings={**settings, "system_instruction": data.get("system_instruction")},
        figures=Figures.mean(counts) if ours else Figures(flops_ratio=1.0),
        tasks=tasks,
        model_type=kinds[0] if kinds else None,
    )
    answered = sum(len(result.documents) for result in tasks.values())
    known = sum("kept_tokens" in record for record in counts)
    if not ours:
        run.notes.append(f"{model} is not a model of this project: taken as unpruned")
    if ours and known < answered:
        run.notes.append(f"budget figures are of {known} of {answered} documents: the others came from a cache")
    return run


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError when it cannot be read or is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"run {str(path)!r} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"run {str(path)!r} is no JSON ({error}): it was not written whole, run it again") from error
    if not isinstance(data, dict):
        raise InputError(f"run {str(path)!r} holds no results: give lmms-eval's or a sweep's own file")
    return data


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSON-lines file. Raises InputError that names the line."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):  # noqa: B007 (the error names it)
                yield json.loads(line)
    except OSError as error:
        raise InputError(f"run {str(path)!r} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"run {str(path)!r}, line {number}, is no JSON: the file was not written whole, run it again"
        ) from error


def parse_arguments(arguments: Any) -> dict[str, Any]:
    """lmms-eval's `a=1,b=2` as a dict; values stay text."""
    if isinstance(arguments, dict):
        return dict(arguments)
    pairs = [part.partition("=") for part in str(arguments or "").split(",") if "=" in part]
    return {name.strip(): value.strip() for name, _, value in pairs}


def _samples(path: Path, task: str) -> Iterator[dict[str, Any]]:
    samples = samples_of(path, task)
    if not samples.is_file():
        raise InputError(f"run {str(path)!r} has no samples of {task}: run lmms-eval with --log_samples")
    return read_lines(samples)


def _task(path: Path, task: str, data: dict[str, Any], samples: list[dict[str, Any]], metric: str | None) -> TaskResult:
    values = _metrics(data["results"].get(task) or {})
    if not values:
        raise InputError(f"run {str(path)!r} has no score for {task}: it is empty or failed, run it again")
    name = metric or next(iter(values))
    parts = name.split("+")
    for part in parts:
        if part not in values:
            raise InputError(f"metric {part!r} is not in task {task} of {str(path)!r}: it has {', '.join(values)}")
    config = (data.get("configs") or {}).get(task) or {}
    better = (data.get("higher_is_better") or {}).get(task) or {}
    documents, notes = _documents(samples, config, name)
    _check_whole(path, task, data, documents)
    value = sum(values[part] for part in parts)
    known = [document.score for document in documents.values() if document.score is not None]
    scale = scale_of(value, known) if len(parts) == 1 and not notes else None
    if scale is None:
        notes.append(f"{name} is {_NO_RATE}")
    generation = config.get("generation_kwargs") or {}
    return TaskResult(
        metric=name,
        value=value,
        higher_is_better=better.get(parts[0]) is not False,
        documents=documents,
        scale=scale,
        facts={
            "task version": (data.get("versions") or {}).get(task),
            "number of examples in the prompt": (data.get("n-shot") or {}).get(task),
            **{setting: generation.get(setting) for setting in _GENERATION},
        },
        total=data["n-samples"][task].get("original"),
        first_prompt=_prompt(min(samples, key=lambda sample: sample["doc_id"])),
        notes=notes,
    )


def _metrics(results: dict[str, Any]) -> dict[str, float]:
    """Metric -> value, in the file's order, without standard errors and the pruning's own figures."""
    found: dict[str, float] = {}
    for key, value in results.items():
        name, comma, _ = key.partition(",")
        own = name in TRACE_METRICS or name == MISSING_METRIC
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if comma and number and not own and "_stderr" not in name:
            found.setdefault(name, float(value))
    return found


def _documents(
    samples: list[dict[str, Any]], config: dict[str, Any], metric: str
) -> tuple[dict[int, Document], list[str]]:
    """The documents by number, and what keeps their scores from being used."""
    documents: dict[int, Document] = {}
    notes: list[str] = []
    for sample in samples:
        score, cluster = _score(metric, sample.get(metric), config)
        document = Document(digest(str(sample.get("target"))), digest(_prompt(sample)), score, cluster)
        if documents.setdefault(int(sample["doc_id"]), document) != document and not notes:
            notes.append("documents are logged several times with different scores (several filters?)")
    return documents, notes


def _prompt(sample: dict[str, Any]) -> str:
    prompt = sample.get("input")
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)


def _score(metric: str, value: Any, config: dict[str, Any]) -> tuple[float | None, str | None]:
    """(score, cluster) of a logged metric: a number, or a record that holds them under the task's own keys."""
    cluster = None
    if isinstance(value, dict):
        key = config.get("cluster_key")
        cluster = None if key is None or value.get(key) is None else str(value[key])
        key = config.get("score_key") or "score"
        value = value[key] if key in value else judge(metric, value)
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None, cluster
    return float(value), cluster


def _check_whole(path: Path, task: str, data: dict[str, Any], documents: dict[int, Document]) -> None:
    size = data["n-samples"][task]
    offset = int((data.get("config") or {}).get("offset") or 0)
    expected = min(size.get("effective") or 0, (size.get("original") or 0) - offset)
    if not documents or len(documents) < expected:
        raise InputError(
            f"run {str(path)!r} has samples of {len(documents)} of {int(expected)} documents of {task}: it was not "
            f"written whole, run it again"
        )


def _settings(path: Path, found: list[dict[str, Any]], before: dict[str, Any]) -> dict[str, Any]:
    """The settings that all logged samples share."""
    for settings in found:
        if before and settings != before:
            raise InputError(f"run {str(path)!r} has samples of different settings: two runs wrote into one file")
        before = settings
    return before
