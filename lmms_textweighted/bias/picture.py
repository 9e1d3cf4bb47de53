"""The report as a picture: figures of all methods with their intervals beside chance, and who chooses like whom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from lmms_textweighted.bias.tables import UNPRUNED, name_of
from lmms_textweighted.experiment.names import budget_text
from lmms_textweighted.experiment.styles import styles

# Of the first row: (figures, title, factor). Of two figures in one panel the second is hollow.
_PANELS: tuple[tuple[tuple[str, ...], str, float], ...] = (
    (("edge",), "kept at the edge, %", 100),
    (("row",), "mean row (0 top, 1 bottom)", 1),
    (("strongest",), "score on the ten\nstrongest tokens, %", 100),
    (("question",), "kept with another\nquestion, too, %", 100),
    (("same_content", "same_place"), "kept when mirrored, %:\ncontent ●, place ○", 100),
)
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_CURVES = 6  # of words' weights, with a legend that can be read


def draw(path: Path, report: dict[str, Any]) -> None:
    """Draw a report as a PNG."""
    names = list(
        dict.fromkeys(name_of(point, report["points"]) for point in report["points"] if point["strategy"] != UNPRUNED)
    )
    budgets = sorted({point["budget"] for point in report["points"] if point["budget"] is not None}, reverse=True)
    tall, wide = 1.4 + 0.2 * max(5, len(names)), 3.2 + 0.14 * len(names)
    figure = plt.figure(figsize=(15, tall + wide), dpi=100, layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=[tall, wide])[:, 0]
    for axes, (figures, title, scale) in zip(top.subplots(1, len(_PANELS), sharey=True), _PANELS, strict=True):
        _dots(axes, report, names, budgets, figures, scale)
        axes.set_title(title, fontsize=9)
    left, rows, columns, words = bottom.subplots(1, 4, width_ratios=[2.0, 0.7, 0.7, 1.4])
    middle = budgets[(len(budgets) - 1) // 2] if budgets else None
    at = f"at {budget_text(middle, report['meta'])}" if middle is not None else ""
    _matrix(left, report, names, middle)
    left.set_title(f"share of kept tokens in common, % {at}", fontsize=9)
    for axes, part, title in ((rows, "rows", "rows, down"), (columns, "columns", "columns, right")):
        _bands(axes, report, names, middle, part)
        axes.set_title(f"kept over chance\n{at}: {title}", fontsize=9)
    _words(words, report)
    meta = report["meta"]
    figure.suptitle(
        f"{meta['checkpoint']} ({meta['model_type']}) · {meta['task']} · {meta['num_samples']} documents · bars: 95 %, "
        f"bootstrap over documents · grey lines: a random choice",
        fontsize=11,
    )
    figure.savefig(path, format="png")
    plt.close(figure)


def _dots(
    axes: Axes,
    report: dict[str, Any],
    names: Sequence[str],
    budgets: Sequence[float],
    figures: Sequence[str],
    scale: float,
) -> None:
    """A row a method, a marker a budget; methods that have no such figure stay empty."""
    for number, budget in enumerate([*budgets, None]):
        colour = f"C{number}"
        label = "as named" if budget is None else budget_text(budget, report["meta"])
        for place, figure in enumerate(figures):
            found = [
                (names.index(name_of(point, report["points"])), point["figures"][figure])
                for point in report["points"]
                if point["budget"] == budget and point["strategy"] != UNPRUNED and "mean" in point["figures"][figure]
            ]
            if not found:
                continue
            heights = np.array([row for row, _ in found]) + 0.22 * (number - (len(budgets) - 1) / 2)
            means = np.array([scale * entry["mean"] for _, entry in found])
            ends = np.array([[scale * _or(entry[end], entry["mean"]) for _, entry in found] for end in ("low", "high")])
            axes.errorbar(
                means,
                heights,
                xerr=np.abs(ends - means),
                fmt=_MARKERS[number % len(_MARKERS)],
                color=colour,
                markerfacecolor="none" if place else colour,
                markersize=4,
                linewidth=1,
                label=label if not place else None,
            )
            chances = {round(scale * entry["random"], 3) for _, entry in found if entry["random"] is not None}
            for chance in chances if len(chances) <= 3 else ():
                axes.axvline(chance, color="0.6", linewidth=1, linestyle=(0, (4, 2)), zorder=0)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    if figures[0] == "edge" and axes.get_legend_handles_labels()[0]:
        axes.legend(title=report["meta"]["budget"], fontsize=7, title_fontsize=7)
    if not axes.lines and not axes.containers:
        axes.text(0.5, 0.5, "–", transform=axes.transAxes, ha="center")


def _matrix(axes: Axes, report: dict[str, Any], names: Sequence[str], budget: float | None) -> None:
    values = np.full((len(names), len(names)), np.nan)
    chances = []
    for one in report["between_methods"]:
        if one["first"]["budget"] == budget and "mean" in one["share"]:
            first, second = (names.index(name_of(one[end], report["points"])) for end in ("first", "second"))
            values[first, second] = values[second, first] = 100 * one["share"]["mean"]
            chances.append(100 * one["share"]["random"])
    known = np.flatnonzero(np.isfinite(values).any(axis=1)).tolist()
    if not known:
        axes.text(0.5, 0.5, "–", transform=axes.transAxes, ha="center")
        axes.axis("off")
        return
    image = axes.imshow(values[np.ix_(known, known)], vmin=0, vmax=100, cmap="viridis")
    shown = [names[place] for place in known]
    axes.set_xticks(range(len(shown)), shown, rotation=90, fontsize=7)
    axes.set_yticks(range(len(shown)), shown, fontsize=7)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.8)
    bar.ax.tick_params(labelsize=7)
    if chances:
        bar.ax.axhline(float(np.mean(chances)), color="white", linewidth=2)
        bar.set_label(f"white line: random choice, {np.mean(chances):.1f}", fontsize=7)


def _bands(axes: Axes, report: dict[str, Any], names: Sequence[str], budget: float | None, part: str) -> None:
    """How many times as many tokens as chance each band has."""
    points = [p for p in report["points"] if p["budget"] == budget and all("mean" in entry for entry in p[part])]
    values = np.array([[entry["mean"] / entry["random"] for entry in point[part]] for point in points])
    if not len(values):
        axes.text(0.5, 0.5, "–", transform=axes.transAxes, ha="center")
        axes.axis("off")
        return
    image = axes.imshow(values, vmin=0, vmax=2, cmap="RdBu_r", aspect="auto")
    axes.set_yticks(
        range(len(points)), [name_of(point, report["points"]) for point in points] if part == "rows" else [], fontsize=7
    )
    axes.set_xticks([])
    axes.figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)


def _words(axes: Axes, report: dict[str, Any]) -> None:
    """Weight by place in the text over uniform weights, of each method's first point that weighs words."""
    found: dict[str, dict[str, Any]] = {}
    for point in report["points"]:
        if all("mean" in entry for entry in point["words"]):
            found.setdefault(name_of(point, report["points"]), point)
    flat = [name for name, point in found.items() if all(abs(e["mean"] - 1) < 1e-6 for e in point["words"])]
    single = [
        name for name, point in found.items() if max(e["mean"] for e in point["words"]) > 0.99 * len(point["words"])
    ]
    shown = [name for name in found if name not in flat and name not in single][:_CURVES]
    for name, (colour, marker) in styles(shown).items():
        entries = found[name]["words"]
        parts = (np.arange(len(entries)) + 0.5) / len(entries)
        axes.plot(parts, [e["mean"] for e in entries], color=colour, marker=marker, markersize=4, label=name)
        low, high = ([_or(e[end], e["mean"]) for e in entries] for end in ("low", "high"))
        axes.fill_between(parts, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(1, color="0.6", linestyle=(0, (4, 2)), linewidth=1, label="uniform weights")
    axes.set_xlabel("place in the text that votes (0 first, 1 last)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.set_title("weight of the words over uniform", fontsize=9)
    axes.set_ylim(bottom=0)
    left = [f"uniform: {', '.join(flat)}"] * bool(flat) + [f"last token alone: {', '.join(single)}"] * bool(single)
    axes.legend(
        fontsize=7,
        title="\n".join(left) or None,
        title_fontsize=6,
        ncols=2,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        frameon=False,
    )


def _or(value: float | None, other: float) -> float:
    return other if value is None else value
