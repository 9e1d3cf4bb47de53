"""Accuracy over layer and budget: a small map for each strategy, all in one scale of colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from lmms_textweighted.experiment.files import blocks_of
from lmms_textweighted.experiment.names import OWN_LAYERS, axis, budget_text
from lmms_textweighted.methods import label_of

ACROSS = 4  # maps beside each other
_NUMBERS = 16  # budgets up to which the cells say their number
_COLORS = "viridis"


def map_rows(data: dict[str, Any]) -> list[tuple[str, list[str], list[dict[str, Any]]]]:
    """(title, row names, blocks) of every map: a strategy's with its layers in rows, and last one of all strategies
    that have layers of their own."""
    maps = [
        (label_of(name), [f"layer {key}" for key in found], list(found.values()))
        for name, found in data["strategies"].items()
        if OWN_LAYERS not in found
    ]
    own = [(name, block) for name, block in blocks_of(data) if block["layer"] is None and name != "none"]
    if own:
        maps.append(("layers of their own", [label_of(name) for name, _ in own], [block for _, block in own]))
    return maps


def map_heights(data: dict[str, Any]) -> list[float]:
    """Inches that each line of maps wants."""
    maps = map_rows(data)
    lines = [maps[start : start + ACROSS] for start in range(0, len(maps), ACROSS)]
    return [1.1 + 0.32 * max(len(names) for _, names, _ in line) for line in lines]


def draw_maps(figure: FigureBase, data: dict[str, Any]) -> None:
    """All maps into a figure. A cell without a point stays grey."""
    maps, heights = map_rows(data), map_heights(data)
    budgets = sorted({tokens for _, _, blocks in maps for block in blocks for tokens in block["tokens"]}, reverse=True)
    found = [accuracy for _, _, blocks in maps for block in blocks for accuracy in block["accuracies"]]
    chance = data["meta"].get("chance")
    low, high = min([*found, *([] if chance is None else [chance])]), max(found)
    panels = figure.subplots(len(heights), min(ACROSS, len(maps)), squeeze=False, height_ratios=heights)
    image: Any = None
    for axes, one in zip(panels.flat, maps, strict=False):
        image = _draw(axes, *one, budgets, low, high, data)
    for axes in list(panels.flat)[len(maps) :]:
        axes.axis("off")
    bar = figure.colorbar(image, ax=list(panels.flat), fraction=0.02, pad=0.01)
    bar.ax.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    bar.ax.tick_params(labelsize=8)


def _draw(
    axes: Axes,
    title: str,
    names: Sequence[str],
    blocks: Sequence[dict[str, Any]],
    budgets: Sequence[float],
    low: float,
    high: float,
    data: dict[str, Any],
) -> Any:
    values = [
        [dict(zip(block["tokens"], block["accuracies"], strict=True)).get(budget, math.nan) for budget in budgets]
        for block in blocks
    ]
    axes.set_facecolor("#DDDDDD")
    image = axes.imshow(values, cmap=_COLORS, vmin=low, vmax=high, aspect="auto")
    if len(budgets) <= _NUMBERS:
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                if not math.isnan(value):
                    dark = high == low or (value - low) / (high - low) < 0.6
                    axes.text(
                        column,
                        row,
                        f"{100 * value:.0f}",
                        ha="center",
                        va="center",
                        fontsize=7.5,
                        color="white" if dark else "black",
                    )
    every = math.ceil(len(budgets) / _NUMBERS)
    axes.set_xticks(
        range(0, len(budgets), every), [budget_text(budget, data["meta"]) for budget in budgets[::every]], fontsize=7.5
    )
    axes.set_yticks(range(len(names)), names, fontsize=7.5)
    axes.set_xlabel(axis(data["meta"]), fontsize=8)
    axes.set_title(title, fontsize=9)
    return image
