"""Small result folders with the schema that lmms-eval 0.7.3 and our sweep write, for the tests of `compare`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LAYERS = 8
TOKENS = 576


def settings_of(strategy: str, keep: int, **changes: Any) -> dict[str, Any]:
    """What our model logs with every sample."""
    stages = [{"scorer": strategy, "scored_at": 2, "leave_after": 2, "keep_tokens": keep, "keep_ratio": None}] * (
        strategy != "none"
    )
    return {
        "pretrained": "tiny",
        "text_scope": "after",
        "keep_scope": "image",
        "seed": 0,
        "dtype": "float32",
        "strategy": strategy,
        "stages": stages,
        "conv_template": "vicuna_v1",
        "image_aspect_ratio": "pad",
        **changes,
    }


def counts_of(settings: dict[str, Any], keep: int, seconds: tuple[float, float] | None = None) -> dict[str, Any]:
    """The budget figures of one logged sample: after layer 2, `keep` of 576 image tokens are left.

    seconds: of the prefill, and of the selection in it; runs of older versions have none.
    """
    kept = TOKENS if settings["strategy"] == "none" else keep
    equivalent = (3 * TOKENS + (LAYERS - 3) * kept) / LAYERS
    return {
        "input_tokens": 640,
        "image_tokens": TOKENS,
        "kept_tokens": kept,
        "equivalent_tokens": equivalent,
        "flops_ratio": equivalent / TOKENS,
        "kv_bytes": int(1024 * equivalent),
        **({} if seconds is None else {"prefill_seconds": seconds[0], "selection_seconds": seconds[1]}),
        **({} if seconds is None else {"selection_flops_ratio": 0.0125}),
        "settings": settings,
    }


def write_run(
    folder: Path,
    scores: Mapping[str, Sequence[Any]],
    *,
    strategy: str = "text_weighted",
    keep: int = 64,
    model: str = "llava_textweighted",
    metric: str = "exact_match",
    value: Mapping[str, float] | None = None,
    total: int | None = None,
    first: int = 0,
    prompts: str = "question {}",
    targets: str = "target {}",
    config: Mapping[str, Any] | None = None,
    version: float = 1.0,
    date: str = "20260101_000000",
    model_args: str | None = None,
    seconds: tuple[float, float] | None = None,
    **changes: Any,
) -> Path:
    """`folder` with one run: task -> each document's logged metric. value: aggregates that are not the mean."""
    ours = model in ("llava_textweighted", "vlm_textweighted")
    settings = settings_of(strategy, keep, **changes)
    arguments = model_args or (f"pretrained=tiny,strategy={strategy},keep_tokens={keep}" if ours else "pretrained=tiny")
    place = folder / "tiny"
    place.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for task, values in scores.items():
        aggregate = (value or {}).get(task)
        if aggregate is None:
            aggregate = sum(one["score"] if isinstance(one, dict) else one for one in values) / len(values)
        results[task] = {
            "alias": task,
            "kept_image_tokens,none": float(keep),  # our pruning figures are no scores, wherever they stand
            f"{metric},none": aggregate,
            f"{metric}_stderr,none": "N/A",
            f"{metric}_stderr_clt,none": 0.1,
            "traces_missing,none": 0,
        }
        lines = [
            {
                "doc_id": first + number,
                "target": targets.format(first + number),
                "filtered_resps": "A",
                "token_counts": [counts_of(settings, keep, seconds)] if ours else [None],
                "doc_hash": "the same for every document",
                metric: one,
                "input": prompts.format(first + number),
            }
            for number, one in enumerate(values)
        ]
        lines = lines[::2] + lines[1::2]  # as two ranks leave them
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (place / f"{date}_samples_{task}.jsonl").write_text(text)
    data = {
        "results": results,
        "configs": {
            task: {
                "generation_kwargs": {"max_new_tokens": 16, "do_sample": False},
                "score_key": "score",
                **(config or {}),
            }
            for task in scores
        },
        "versions": dict.fromkeys(scores, version),
        "n-shot": dict.fromkeys(scores, 0),
        "higher_is_better": {task: {"kept_image_tokens": False, metric: True} for task in scores},
        "n-samples": {task: {"original": total or len(v), "effective": len(v)} for task, v in scores.items()},
        "config": {"model": model, "model_args": arguments, "limit": None, "offset": first},
        "system_instruction": None,
    }
    (place / f"{date}_results.json").write_text(json.dumps(data))
    return folder


def write_sweep(folder: Path, points: Mapping[tuple[str, int | None], Sequence[float]], **changes: Any) -> Path:
    """`folder` with a sweep of layer 2: (strategy, budget) -> each document's score."""
    folder.mkdir(parents=True, exist_ok=True)
    number = len(next(iter(points.values())))
    meta = {
        "checkpoint": "tiny",
        "weights": "abc",
        "dtype": "float32",
        "task": "shapes_mcq",
        "metric": "exact_match",
        "conv_mode": "vicuna_v1",
        "prompt_example": "USER: <image>\nquestion 0 ASSISTANT:",
        "image_aspect_ratio": "pad",
        "pruning_layer": 2,
        "text_scope": "after",
        "keep_scope": "image",
        "seed": 0,
        "num_samples": number,
        **changes,
    }
    path = folder / "fastv_textweighted_layer2_experiment.json"
    path.write_text(json.dumps({"strategies": {strategy: {} for strategy, _ in points}, "meta": meta}))
    lines = []
    for document in range(number):
        for (strategy, budget), scores in points.items():
            counts = counts_of({"strategy": strategy}, budget or TOKENS)
            line = {
                "strategy": strategy,
                "tokens": budget,
                "document": document,
                "id": str(document),
                "digest": f"digest {document}",
                "target": f"target {document}",
                "score": scores[document],
                **{name: counts[name] for name in ("image_tokens", "kept_tokens", "equivalent_tokens", "flops_ratio")},
            }
            lines.append(json.dumps(line) + "\n")
    path.with_suffix(".answers.jsonl").write_text("".join(lines))
    return folder
