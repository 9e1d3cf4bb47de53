"""Read what `lmms-textweighted sweep` wrote: the experiment's JSON and the answers beside it. Each point is a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from lmms_textweighted.compare.records import Document, Figures, Run, TaskResult, digest
from lmms_textweighted.compare.runs import read_json, read_lines
from lmms_textweighted.errors import InputError


def read_sweep(path: Path, metrics: Mapping[str, str]) -> list[Run]:
    """One run for each strategy and budget of an experiment's JSON.

    Raises InputError when it or its answers are missing or not whole, and for a metric that is not the sweep's.
    """
    data = read_json(path)
    meta = data.get("meta")
    if not isinstance(meta, dict) or "strategies" not in data:
        raise InputError(f"run {str(path)!r} is no sweep of this project: it has no meta and no strategies")
    task, metric = str(meta["task"]), str(meta["metric"])
    if metrics.get(task, metric) != metric:
        raise InputError(f"metric {metrics[task]!r} is not in the sweep {str(path)!r}: it has {metric}")
    answers = path.with_suffix(".answers.jsonl")
    points: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
    for line in read_lines(answers):
        points.setdefault((line["strategy"], line["tokens"]), []).append(line)
    runs = []
    for (strategy, budget), lines in points.items():
        documents = {line["document"]: _document(line) for line in lines}
        if len(documents) != meta["num_samples"]:
            raise InputError(
                f"run {str(answers)!r} has {len(documents)} of {meta['num_samples']} documents for {strategy} at "
                f"{budget}: it is not of {path.name}, run the sweep again"
            )
        result = TaskResult(
            metric=metric,
            value=fmean(line["score"] for line in lines),
            higher_is_better=True,
            documents=documents,
            scale=1.0,
        )
        settings = {
            "conv_template": meta.get("conv_mode"),
            "image_aspect_ratio": meta.get("image_aspect_ratio"),
            "weights": meta.get("weights"),
            "dtype": meta.get("dtype"),
            "text_scope": meta.get("text_scope"),
            "keep_scope": meta.get("keep_scope"),
            "seed": meta.get("seed"),
            "leave_after": meta.get("pruning_layer") if budget is not None else None,
        }
        runs.append(
            Run(
                path=path,
                model="sweep",
                strategy=strategy,
                unpruned=strategy == "none",
                checkpoint=meta.get("checkpoint"),
                settings={name: value for name, value in settings.items() if value is not None},
                figures=Figures.mean(lines),
                tasks={task: result},
                prompt_example=meta.get("prompt_example"),
            )
        )
    return runs


def _document(line: dict[str, Any]) -> Document:
    return Document(digest(str(line["target"])), None, float(line["score"]), pictured=line.get("digest"))
