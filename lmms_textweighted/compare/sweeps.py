"""Read what `lmms-textweighted sweep` wrote: the experiment's JSON and the answers beside it. Each point is a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from lmms_textweighted.compare.records import Document, Figures, Run, TaskResult, digest, leave_after
from lmms_textweighted.compare.runs import read_json, read_lines
from lmms_textweighted.errors import InputError
from lmms_textweighted.experiment.names import OWN_LAYERS
from lmms_textweighted.pictures import PICTURE_LIMITS


def read_sweep(path: Path, metrics: Mapping[str, str]) -> list[Run]:
    """One run for each strategy, layer and budget of an experiment's JSON. Several seeds are one run, of their means.

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
    points: dict[tuple[str, int | None, int | None], list[dict[str, Any]]] = {}
    for line in read_lines(answers):
        points.setdefault((line["strategy"], line.get("layer"), line["tokens"]), []).append(line)
    runs = []
    for (strategy, layer, budget), lines in points.items():
        documents = _documents(lines)
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
            "seed": "+".join(map(str, meta["seed"])) if isinstance(meta.get("seed"), list) else meta.get("seed"),
            "leave_after": _leave_after(data, strategy, layer, budget),
            **_recorded(meta),
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
                model_type=meta.get("model_type"),
            )
        )
    return runs


def _recorded(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The system prompt, an empty text where there is none, and what bounds pictures; sweeps of before have neither."""
    model = (meta.get("provenance") or {}).get("model") or {}
    limits = (meta.get("options") or {}).get("load_options") or {}
    prompt = {"system_prompt": model["system_prompt"] or ""} if "system_prompt" in model else {}
    return {**prompt, **{name: limits.get(name) for name in PICTURE_LIMITS}}


def _documents(lines: list[dict[str, Any]]) -> dict[int, Document]:
    """By number. The score of one that was answered with several seeds is their mean."""
    scores: dict[int, list[float]] = {}
    for line in lines:
        scores.setdefault(line["document"], []).append(float(line["score"]))
    return {
        line["document"]: Document(
            digest(str(line["target"])), None, fmean(scores[line["document"]]), pictured=line.get("digest")
        )
        for line in lines
    }


def _leave_after(data: dict[str, Any], strategy: str, layer: int | None, budget: int | None) -> Any:
    """The layer after which tokens leave, or all of them, as `7+15+23`. Sweeps of older versions have one for all."""
    block = data["strategies"][strategy]
    block = block.get(OWN_LAYERS if layer is None else str(layer), block)
    if "plans" not in block:
        return None if budget is None else data["meta"].get("pruning_layer")
    return leave_after(block["plans"][0 if budget is None else block["tokens"].index(budget)]["stages"])
