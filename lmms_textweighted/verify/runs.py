"""Answer documents of an lmms-eval run again, through lmms-eval, with the settings that its results file records."""

from __future__ import annotations

import argparse
import inspect
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from lmms_eval.api.task import ConfigurableTask
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.loggers.evaluation_tracker import EvaluationTracker
from lmms_eval.tasks import TaskManager, get_task_dict

from lmms_textweighted.compare.runs import read_json, read_lines
from lmms_textweighted.errors import InputError, describe, first_line
from lmms_textweighted.harness.names import MODEL_NAMES
from lmms_textweighted.harness.result_files import samples_of
from lmms_textweighted.verify.model import compare_models, compare_software
from lmms_textweighted.verify.verdict import Verdict, draw

# Of a logged sample: what is not an answer's or its score's. doc_hash holds a column of ours that names the run.
_NOT_HELD = ("doc_id", "token_counts", "doc_hash", "prompt_hash", "input_media", "resps")
_KEPT = ("image_tokens", "kept_tokens", "settings")
_PASSED = (
    "num_fewshot",
    "batch_size",
    "max_batch_size",
    "device",
    "system_instruction",
    "apply_chat_template",
    "fewshot_as_multiturn",
    "gen_kwargs",
    "predict_only",
    "force_simple",
    "repeats",
)
_SAME = 1e-9  # of an aggregate that is computed again


def verify_run(path: Path, *, share: float, seed: int) -> Verdict:
    """Hold each task's aggregates against its logged samples, and a share of the samples against the model.

    The documents are drawn of all tasks together. They are asked through lmms-eval's own evaluation, at the recorded
    batch size, each of them once: no cache, no limit. Relative paths of the recorded command count from here.

    Raises InputError where a file cannot be read, where the run logged no samples or was not made by lmms-eval's
    command line, is of another model than ours, has a task that cannot be found, or samples its answers at random.
    """
    data = read_json(path)
    asked = (data.get("config") or {}).get("resolved_cli_args")
    if not isinstance(asked, dict) or not isinstance(data.get("n-samples"), dict):
        raise InputError(
            f"result {str(path)!r} does not record lmms-eval's arguments: give a *_results.json that the `lmms-eval` "
            f"command wrote"
        )
    if asked["model"] not in MODEL_NAMES:
        raise InputError(
            f"result {str(path)!r} is of model {asked['model']!r}: only those of {', '.join(MODEL_NAMES)} record what "
            f"they were made with"
        )
    logged = {name: _logged(path, name) for name in data["n-samples"]}
    _check_greedy(path, data)
    tasks = _tasks(path, asked, data, list(logged))
    places = [(name, number) for name, samples in logged.items() for number in samples]
    chosen = [places[place] for place in draw(range(len(places)), share, seed)]
    verdict = Verdict(total=len(places), documents=len(chosen))
    for name, samples in logged.items():
        for line in _aggregates(tasks[name], name, data, samples, verdict):
            verdict.differences.append(line)
    recorded = _provenance(lines for samples in logged.values() for lines in samples.values())
    if not recorded:
        verdict.unchecked.append("weights: every answer came from a cache, which does not record them")
    numbers = {name: [number for task, number in chosen if task == name] for name in logged}
    here = _ask(asked, data["config"], {name: tasks[name] for name in numbers if numbers[name]}, numbers)
    for name, made in here.items():
        for place, number in enumerate(numbers[name]):
            verdict.answers += 1
            _compare(f"{name}, document {number}", logged[name][number], made[place], verdict)
    new = _provenance(chain.from_iterable(here.values()))
    if recorded and new:
        compare_models(recorded["model"], new["model"], verdict)
        compare_software(recorded, new, verdict)
    verdict.unchecked.append("times")
    return verdict


def _logged(path: Path, task: str) -> dict[int, list[dict[str, Any]]]:
    """Document number -> its samples, several where the task has several filters."""
    file = samples_of(path, task)
    if not file.is_file():
        raise InputError(f"result {str(path)!r} has no samples of {task}: only runs with --log_samples can be verified")
    return _by_document(read_lines(file))


def _by_document(lines: Iterator[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        found.setdefault(int(line["doc_id"]), []).append(line)
    return dict(sorted(found.items()))


def _check_greedy(path: Path, data: Mapping[str, Any]) -> None:
    for task, config in (data.get("configs") or {}).items():
        generation = config.get("generation_kwargs") or {}
        if generation.get("do_sample") and (generation.get("temperature") or 1.0) > 0:
            raise InputError(
                f"result {str(path)!r}: {task} draws its answers at random (do_sample, temperature "
                f"{generation.get('temperature', 1.0)}), so that another answer says nothing"
            )


def _tasks(
    path: Path, asked: Mapping[str, Any], data: Mapping[str, Any], names: Sequence[str]
) -> dict[str, ConfigurableTask]:
    """Name -> lmms-eval's task object, as the run had it."""
    manager = TaskManager("ERROR", include_path=asked.get("include_path"), model_name=asked["model"])
    backend = str(data["config"].get("model_backend"))
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise InputError(
            f"result {str(path)!r} is of task {unknown[0]!r}, which lmms-eval does not find here: its "
            f"--include_path was {asked.get('include_path')!r}, counted from the folder of the run"
        )
    try:
        found = get_task_dict(list(names), manager, "simple" if backend.endswith("(simple)") else "chat")
    except Exception as error:  # a task's own code and its data set's
        raise InputError(f"result {str(path)!r}: its tasks cannot be loaded: {describe(error)}") from error
    for name, task in found.items():
        if len(task.eval_docs) != data["n-samples"][name].get("original"):
            raise InputError(
                f"result {str(path)!r}: {name} has {len(task.eval_docs)} documents here and "
                f"{data['n-samples'][name].get('original')} there: it is another data set"
            )
    return dict(found)


def _ask(
    asked: Mapping[str, Any],
    config: Mapping[str, Any],
    tasks: Mapping[str, ConfigurableTask],
    numbers: Mapping[str, Sequence[int]],
) -> dict[str, list[list[dict[str, Any]]]]:
    """Task -> the samples of its chosen documents, in order, as lmms-eval logs them."""
    for name, task in tasks.items():
        _only(task, numbers[name])
    with tempfile.TemporaryDirectory() as folder:
        tracker = EvaluationTracker(output_path=folder)
        results = simple_evaluate(
            model=asked["model"],
            model_args=asked.get("model_args") or "",
            tasks=list(tasks.values()),
            evaluation_tracker=tracker,
            verbosity="ERROR",
            random_seed=config["random_seed"],
            numpy_random_seed=config["numpy_seed"],
            torch_random_seed=config["torch_seed"],
            fewshot_random_seed=config["fewshot_seed"],
            bootstrap_iters=0,
            cli_args=argparse.Namespace(**{**asked, "limit": None, "offset": 0, "use_cache": None}),
            **{name: asked[name] for name in _PASSED if name in asked},
        )
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=None, datetime_str="again")  # names the samples' files
        for name in tasks:
            tracker.save_results_samples(task_name=name, samples=samples[name])
        files = {name: next(Path(folder).rglob(f"*_samples_{name}.jsonl")) for name in tasks}
        return {name: [*_by_document(read_lines(file)).values()] for name, file in files.items()}


def _only(task: ConfigurableTask, numbers: Sequence[int]) -> None:
    """Leave a task nothing but these documents, which it then counts from 0."""
    split = task.config.test_split if task.has_test_docs() else task.config.validation_split
    pictured = task.dataset is not task.dataset_no_image
    task.dataset[split] = task.dataset[split].select(numbers)
    if pictured:
        task.dataset_no_image[split] = task.dataset_no_image[split].select(numbers)


def _aggregates(
    task: ConfigurableTask,
    name: str,
    data: Mapping[str, Any],
    samples: Mapping[int, list[dict[str, Any]]],
    verdict: Verdict,
) -> Iterator[str]:
    """Aggregates that are not what the task's own function makes of the logged scores."""
    functions = task.aggregation()
    for key, said in data["results"][name].items():
        metric, comma, _ = key.partition(",")
        if not comma or metric not in functions or "_stderr" in metric:
            continue
        values = [line[metric] for lines in samples.values() for line in lines if metric in line]
        function = functions[metric]
        if not values or len(samples) != sum(map(len, samples.values())) or _wants_arguments(function):
            verdict.unchecked.append(f"{name}: {metric} of all documents")
            continue
        try:
            made = function(values)
        except Exception as error:  # a task's own code
            verdict.unchecked.append(f"{name}: {metric} of all documents ({first_line(error)})")
            continue
        if not _equal(made, said):
            yield f"{name}: {metric} is {made!r} by its samples, recorded is {said!r}"


def _wants_arguments(function: Any) -> bool:
    """Whether it is one of those that write a file to hand in."""
    return "args" in inspect.signature(function).parameters


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=_SAME, abs_tol=_SAME) or (math.isnan(one) and math.isnan(other))
    return bool(one == other)


def _compare(where: str, then: list[dict[str, Any]], now: list[dict[str, Any]], verdict: Verdict) -> None:
    """One line for the first thing that differs."""
    if len(then) != len(now):
        verdict.differences.append(f"{where}: {len(then)} samples are recorded, {len(now)} were made")
        return
    for recorded, made in zip(then, now, strict=True):
        pairs = [(name, recorded.get(name), made[name]) for name in made if name not in _NOT_HELD]
        counted, counts = ((sample.get("token_counts") or [None])[0] or {} for sample in (recorded, made))
        pairs += [(name, counted[name], counts.get(name)) for name in _KEPT if name in counted]
        for name, was, is_now in pairs:
            if not _equal(_as_read(was), _as_read(is_now)):
                verdict.differences.append(f"{where}: {name} is {is_now!r}, recorded is {was!r}")
                return


def _as_read(value: Any) -> Any:
    """A record as text, so that figures in it which are not numbers are equal to themselves."""
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value


def _provenance(documents: Iterable[list[dict[str, Any]]]) -> dict[str, Any]:
    """Of the first sample that has it; empty where none has."""
    counted = (counts for sample in chain.from_iterable(documents) for counts in sample.get("token_counts") or [])
    return next((counts["provenance"] for counts in counted if counts and "provenance" in counts), {})
