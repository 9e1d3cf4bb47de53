"""Methods at equal FLOPs: docs/comparison.md's tables and picture of several sweeps with `--budget flops_ratio`.

`python -m benchmarks.matched SWEEP… --picture FILE` reads finished sweeps over the same questions and the same model,
joins them, and prints a Markdown table for each place where tokens leave: before the language model, at layers of a
method's own, after one chosen layer, and at both. Each point is tested against `random_pre`, a random choice before the
language model, at the same budget (McNemar's exact test, Holm's correction over all points).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import typer
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.console import Console

from lmms_textweighted.compare.runs import read_json, read_lines
from lmms_textweighted.engine.layers import EMBEDDINGS
from lmms_textweighted.errors import InputError
from lmms_textweighted.experiment.names import OWN_LAYERS
from lmms_textweighted.experiment.pairs import ALPHA
from lmms_textweighted.methods import label_of
from lmms_textweighted.statistics import holm, mcnemar_exact, mean_interval

REFERENCE = "random_pre"
# Where tokens leave, in the order of the tables, and the picture's panels.
BEFORE = "Before the language model"
OWN = "In the language model, at layers of the method's own"
CHOSEN = "In the language model, after one layer"
BOTH = "Before it and in it"
PANELS = {
    (BEFORE,): "before the language model",
    (OWN, CHOSEN): "in it; the best of layers 0, 1, 2 at each budget",
    (BOTH,): "both",
}
SIZE = (6.4, 6.0)
# Ten colours and seven markers: no two lines of a panel have both alike.
COLORS = [to_hex(color) for color in matplotlib.colormaps["tab10"].colors]
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Point:
    """At a budget. layer: None for layers of its own. place: one of those above. after: as the table has it."""

    strategy: str
    layer: int | None
    budget: float
    place: str
    after: str
    scores: tuple[float, ...]
    kept: float

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.scores))


def read(path: Path) -> tuple[dict[str, Any], list[Point]]:
    """(meta, points) of a finished sweep with one seed."""
    data = read_json(path)
    if data["meta"].get("budget") != "flops_ratio":
        raise InputError(f"sweep {str(path)!r} is at {data['meta'].get('budget')!r}: give those at 'flops_ratio'")
    lines: dict[tuple[str, int | None, float], list[dict[str, Any]]] = {}
    for line in read_lines(path.with_suffix(".answers.jsonl")):
        lines.setdefault((line["strategy"], line["layer"], line["tokens"]), []).append(line)
    points = []
    for (strategy, layer, budget), own in lines.items():
        if strategy == "none":
            continue
        own.sort(key=lambda line: line["document"])
        block = data["strategies"][strategy]
        block = block.get(OWN_LAYERS if layer is None else str(layer), block)
        stages = block["plans"][block["tokens"].index(budget)]["stages"]
        place, after = _place(layer, [stage["leave_after"] for stage in stages])
        scores = tuple(float(line["score"]) for line in own)
        kept = float(np.mean([line["kept_tokens"] for line in own]))
        points.append(Point(strategy, layer, budget, place, after, scores, kept))
    return data["meta"], points


def _place(layer: int | None, leave_after: Sequence[int]) -> tuple[str, str]:
    after = ", ".join("before 0" if one == EMBEDDINGS else str(one) for one in leave_after) or "the picture"
    first, last = (leave_after[0], leave_after[-1]) if leave_after else (EMBEDDINGS, EMBEDDINGS)  # a smaller picture
    if first == EMBEDDINGS:
        return (BEFORE if last == EMBEDDINGS else BOTH), after
    return (OWN if layer is None else CHOSEN), after


def join(paths: Sequence[Path]) -> list[Point]:
    """The points of all sweeps; what several have is taken from the last. Raises InputError where they do not fit."""
    found: dict[tuple[str, int | None, float], Point] = {}
    first: dict[str, Any] | None = None
    for path in paths:
        meta, points = read(path)
        first = first or meta
        for name in ("documents_sha256", "weights", "dtype", "metric"):
            if meta[name] != first[name]:
                raise InputError(
                    f"sweep {str(path)!r} has {name} {meta[name]!r}, and {str(paths[0])!r} {first[name]!r}"
                )
        found |= {(point.strategy, point.layer, point.budget): point for point in points}
    return list(found.values())


def marks(points: Sequence[Point]) -> dict[Point, str]:
    """↑, ↓ or nothing: significantly above or below the reference at the same budget."""
    reference = {point.budget: point for point in points if point.strategy == REFERENCE}
    tested = [point for point in points if point.strategy != REFERENCE and point.budget in reference]
    p_values = holm([mcnemar_exact(point.scores, reference[point.budget].scores) for point in tested])
    return {
        point: ("↑" if point.accuracy > reference[point.budget].accuracy else "↓") if p < ALPHA else ""
        for point, p in zip(tested, p_values, strict=True)
    }


def tables(points: Sequence[Point]) -> Iterator[str]:
    said = marks(points)
    budgets = sorted({point.budget for point in points}, reverse=True)
    for place in (BEFORE, OWN, CHOSEN, BOTH):
        rows: dict[tuple[str, int | None], dict[float, Point]] = {}
        for point in points:
            if point.place == place:
                rows.setdefault((point.strategy, point.layer), {})[point.budget] = point
        shared = min(set.intersection(*map(set, rows.values())), default=None) if rows else None
        order = sorted(rows, key=lambda row: (row[1] or 0, -rows[row][shared].accuracy if shared else 0, row[0]))
        yield f"**{place}**\n"
        yield "| method | after layer | " + " | ".join(f"{budget:.0%}" for budget in budgets) + " |"
        yield "| --- | --- |" + " ---: |" * len(budgets)
        for row in order:
            own = rows[row]
            cells = [_cell(own[b], said.get(own[b], "")) if b in own else "" for b in budgets]
            yield f"| `{row[0]}` | {next(iter(own.values())).after} | " + " | ".join(cells) + " |"
        yield ""


def _cell(point: Point, mark: str) -> str:
    return f"{100 * point.accuracy:.1f}{' ' * bool(mark)}{mark} ({point.kept:.0f})"


def draw(points: Sequence[Point], title: str) -> Figure:
    """A panel for each kind of place: each method at its best layer, the reference, and the best of all in grey."""
    figure = Figure(figsize=(SIZE[0] * len(PANELS), SIZE[1]), layout="constrained")
    panels = figure.subplots(1, len(PANELS), sharey=True)
    budgets = sorted({point.budget for point in points}, reverse=True)
    best = _best(points)
    for axes, (places, name) in zip(panels, PANELS.items(), strict=True):
        shown = {point.strategy for point in points if point.place in places} | {REFERENCE}
        axes.plot(*_xy(best, budgets), color="black", linewidth=6, alpha=0.12, label="best of all")
        ends = []
        for number, strategy in enumerate(sorted(shown - {REFERENCE})):
            line = _best([point for point in points if point.strategy == strategy])
            x, y = _xy(line, budgets)
            color = COLORS[number % len(COLORS)]
            axes.plot(x, y, linewidth=1.3, markersize=5, color=color, marker=MARKERS[number % len(MARKERS)])
            ends.append((x[-1], y[-1], _short(strategy), color))
        x, y = _xy(_best([point for point in points if point.strategy == REFERENCE]), budgets)
        axes.plot(x, y, linewidth=1.3, color="black", linestyle="--")
        ends.append((x[-1], y[-1], "random, before", "black"))
        _name(axes, ends, len(budgets))
        axes.set_xticks(range(len(budgets)), [f"{budget:.0%}" for budget in budgets])
        axes.set(title=name, xlabel="prefill FLOPs of the decoder against unpruned")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("accuracy")
    panels[0].legend(loc="lower left", fontsize=9)
    figure.suptitle(title)
    return figure


def _short(strategy: str) -> str:
    name = label_of(strategy).removesuffix(" before the model")
    return name.replace(", then text-weighted,", " +").replace("text-weighted, ", "weighted, ")


def _best(points: Sequence[Point]) -> list[Point]:
    """At each budget the one with the highest accuracy."""
    found: dict[float, Point] = {}
    for point in points:
        if point.budget not in found or found[point.budget].accuracy < point.accuracy:
            found[point.budget] = point
    return list(found.values())


def _xy(points: Sequence[Point], budgets: Sequence[float]) -> tuple[list[int], list[float]]:
    ordered = sorted(points, key=lambda point: -point.budget)
    return [budgets.index(point.budget) for point in ordered], [point.accuracy for point in ordered]


def _name(axes: Axes, ends: Sequence[tuple[float, float, str, str]], budgets: int) -> None:
    """Each line's name and last accuracy at the right, as near to its end as the others' names let it be."""
    low, high, left = 0.26, 1.02, budgets - 0.6
    axes.set_xlim(-0.2, budgets + 2.5)
    axes.set_ylim(low, high)
    ordered = sorted(ends, key=lambda end: -end[1])
    gap = min(0.034, (high - low) / max(1, len(ordered)))
    places = [min(high - 0.02, end[1]) for end in ordered]
    for _ in range(200):  # neighbours that are too near push each other away
        for upper, lower in pairwise(range(len(places))):
            lacking = gap - (places[upper] - places[lower])
            if lacking > 0:
                places[upper] = min(high - 0.015, places[upper] + lacking / 2)
                places[lower] = max(low + 0.015, places[lower] - lacking / 2)
    for place, (x, y, text, color) in zip(places, ordered, strict=True):
        axes.plot([x + 0.05, left - 0.05], [y, place], color=color, linewidth=0.5, alpha=0.6)
        axes.text(left, place, f"{text}  {y:.0%}", color=color, fontsize=9, va="center")


def main(
    sweeps: Annotated[list[Path], typer.Argument(help="JSON files of sweeps at --budget flops_ratio.", exists=True)],
    picture: Annotated[Path | None, typer.Option(help="Write a picture there.")] = None,
) -> None:
    """Join sweeps at equal FLOPs, test each point against a random choice before the model, print the tables."""
    points = join(sweeps)
    documents = len(points[0].scores)
    console = Console(soft_wrap=True, highlight=False)
    for line in tables(points):
        console.print(line, markup=False)
    widest = max(high - low for low, high in (mean_interval(point.scores) for point in points))
    console.print(f"{documents} questions, {len(points)} points; 95 % intervals reach up to ±{50 * widest:.1f} points")
    if picture is not None:
        draw(points, f"accuracy at equal FLOPs, {documents} questions of the embedded set").savefig(picture, dpi=110)


if __name__ == "__main__":
    typer.run(main)
