"""Accuracy over FLOPs, of all strategies, layers and budgets in one panel, and which of them no other one beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from lmms_textweighted.experiment.files import blocks_of
from lmms_textweighted.experiment.names import budget_text
from lmms_textweighted.experiment.styles import styles
from lmms_textweighted.methods import label_of

_LISTED = 24  # points of the front that are listed by name


@dataclass(frozen=True)
class Measured:
    """One point of the panel. layer: as `Point.layer`."""

    strategy: str
    layer: int | None
    budget: str
    flops: float
    accuracy: float
    low: float
    high: float

    def __str__(self) -> str:
        layer = "" if self.layer is None else f", layer {self.layer}"
        where = "no pruning" if self.strategy == "none" else f"{label_of(self.strategy)}{layer}, {self.budget}"
        return f"{where}: {self.accuracy:.1%}"


def measured(data: dict[str, Any]) -> list[Measured]:
    """Every point of a result, curve by curve."""
    figures = ("tokens", "flops_ratio", "accuracies", "accuracy_low", "accuracy_high")
    counts = data["meta"].get("budget", "keep_tokens") == "keep_tokens"
    return [
        Measured(strategy, block["layer"], budget_text(tokens, data["meta"]) + " tokens" * counts, *values)
        for strategy, block in blocks_of(data)
        for tokens, *values in zip(*(block[figure] for figure in figures), strict=True)
    ]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the (cost, value) that no other point beats: cheaper and as good, or as cheap and better.

    By rising cost, and so by rising value. Of equal points the first counts.
    """
    front: list[int] = []
    best = float("-inf")
    for place in sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1], place)):
        if points[place][1] > best:
            front.append(place)
            best = points[place][1]
    return front


def draw_flops(axes: Axes, data: dict[str, Any]) -> list[str]:
    """All points with their 95 % intervals, the front as a line, its points numbered. Returns what the numbers mean."""
    found = measured(data)
    look = styles([point.strategy for point in found])
    for name, (color, marker) in look.items():
        own = [point for point in found if point.strategy == name]
        axes.errorbar(
            [point.flops for point in own],
            [point.accuracy for point in own],
            yerr=[[p.accuracy - p.low for p in own], [p.high - p.accuracy for p in own]],
            fmt=marker,
            color=color,
            markersize=4,
            elinewidth=0.6,
            alpha=0.55,
            label=label_of(name),
        )
    front = [found[place] for place in pareto_front([(round(p.flops, 6), round(p.accuracy, 9)) for p in found])]
    flops, accuracies = [point.flops for point in front], [point.accuracy for point in front]
    axes.step(
        flops, accuracies, where="post", color="black", linewidth=1.2, zorder=4, label="Pareto front of the means"
    )
    for number, point in enumerate(front[:_LISTED], start=1):
        color, marker = look[point.strategy]
        axes.plot(point.flops, point.accuracy, marker, color=color, markeredgecolor="black", markersize=7, zorder=5)
        axes.annotate(
            str(number),
            (point.flops, point.accuracy),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    chance = data["meta"].get("chance")
    if chance is not None:
        axes.axhline(chance, color="black", linestyle=":", linewidth=1, label=f"chance ({chance:.1%})")
    axes.set(xlabel="prefill FLOPs of the decoder against unpruned", ylabel="accuracy", title="accuracy over FLOPs")
    axes.set_ylim(top=min(axes.get_ylim()[1], 1.06))  # intervals of means may reach beyond what can be
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(alpha=0.25)
    return [f"{number}  {point.flops:.0%}: {point}" for number, point in enumerate(front[:_LISTED], start=1)]
