"""What a sweep's files are called. Imports nothing, so that readers of results need no torch."""

from __future__ import annotations

from typing import Any

_STEM = "fastv_textweighted_layer{layer}_experiment"
# For `Path.glob`: any pruning layer's, and that of several.
RESULT_PATTERN = f"{_STEM.format(layer='*')}.json"
ANSWERS_PATTERN = f"{_STEM.format(layer='*')}.answers.jsonl"
# In a result of several layers: the block of a method that has layers of its own, or removes nothing.
OWN_LAYERS = "own"


def file_name(layers: list[int] | None, ending: str) -> str:
    """The file of a sweep with this pruning layer: the published run's name. Several, or all (None), share one."""
    return f"{_STEM.format(layer=layers[0] if layers and len(layers) == 1 else 's')}.{ending}"


# What `tokens` counts in a sweep's result, by its meta's `budget`: as axes and tables call it.
AXES = {
    "keep_tokens": "image tokens kept",
    "keep_ratio": "share of image tokens kept",
    "equivalent_tokens": "equivalent tokens",
    "flops_ratio": "FLOPs against unpruned",
}
SHARES = ("keep_ratio", "flops_ratio")  # budgets that are no counts


def axis(meta: dict[str, Any]) -> str:
    """What the budgets of a sweep count; results from before there was a choice count kept tokens."""
    return AXES[meta.get("budget", "keep_tokens")]


def budget_text(budget: float, meta: dict[str, Any]) -> str:
    """A budget as tables and pictures write it: `64`, or `46%` of a share."""
    return f"{100 * budget:.4g}%" if meta.get("budget") in SHARES and budget <= 1 else f"{budget:g}"


def budget_suffix(kind: str, budget: float) -> str:
    """A budget in the name of a run: `64`, `ratio0.25`, `equivalent128`, `flops0.3`."""
    return {"keep_tokens": "", "keep_ratio": "ratio"}.get(kind, kind.partition("_")[0]) + f"{budget:g}"
