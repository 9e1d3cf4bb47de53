"""A comparison as a page: curves of every method, the table with its tests, and the documents that sweeps recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmms_textweighted.compare.cells import average_heading, fixed_headings, footer, row_start, unit
from lmms_textweighted.compare.runs import read_json
from lmms_textweighted.compare.table import Cell, Column, Comparison, Row
from lmms_textweighted.experiment.names import RESULT_PATTERN
from lmms_textweighted.experiment.recorded import recorded
from lmms_textweighted.experiment.styles import styles
from lmms_textweighted.experiment.webpage import curves_of, documents_of
from lmms_textweighted.methods import label_of
from lmms_textweighted.page import Cell as Shown
from lmms_textweighted.page import Chart, Curve, Curves, Figure, Page, Section, Table
from lmms_textweighted.page import Column as Heading
from lmms_textweighted.view.record import DocumentView

_AVERAGE = "average"
# Attributes of a row's figures: what removing costs, and what it takes.
_COSTS = (
    Figure("flops_ratio", "FLOPs", "prefill FLOPs against unpruned", percent=True, better="low"),
    Figure("equivalent", "equivalent tokens", "image tokens, mean over all layers", better="low"),
    Figure("kv_bytes", "KV cache", "bytes of the KV cache after prefill", better="low"),
    Figure("prefill_seconds", "measured time", "measured seconds to the first token", better="low"),
    Figure("selection_seconds", "selection", "measured seconds of the selection", better="low"),
)
_KEPT = Figure("kept", "tokens kept", "image tokens kept", better="low", reversed=True)
Recorded = tuple[DocumentView, list[list[str]]]


def page_of(comparison: Comparison, *, title: str = "Comparison", more: Sequence[Section] = ()) -> Page:
    """The page. more: sections behind the comparison's own, before the documents."""
    sweeps = sweeps_of(comparison)
    sections: list[Section] = [curves(comparison), table(comparison)]
    sections += [curves_of(read_json(path), f"Sweep: {path.parent.name}") for path in sweeps]
    sections += more
    facts = [
        ("Methods at budgets", str(len(comparison.rows))),
        ("Tasks", ", ".join(column.task for column in comparison.columns)),
        ("Tested against", comparison.reference or "nothing"),
    ]
    return Page(
        title=title,
        subtitle="Methods at budgets, with intervals and paired tests of the same documents.",
        facts=facts,
        sections=[*sections, *documents_of(merged(sweeps), "Documents")],
    )


def sweeps_of(comparison: Comparison) -> list[Path]:
    """The results of sweeps that its rows are from."""
    paths = [Path(source) for source in dict.fromkeys(row.source for row in comparison.rows if not row.published)]
    return [path for path in paths if path.match(RESULT_PATTERN)]


def curves(comparison: Comparison) -> Curves:
    """Every task, and the average, over tokens kept and over costs."""
    tasks = [*comparison.columns, *([_average(comparison)] if any(row.average for row in comparison.rows) else [])]
    scores = [_score(column) for column in tasks]
    costs = [f for f in _COSTS if any(getattr(row.figures, f.key) is not None for row in comparison.rows)]
    methods = list(dict.fromkeys((row.method, row.published) for row in comparison.rows))
    look = styles([_strategy(method) for method, _ in methods])
    drawn = []
    for method, published in methods:
        rows = [row for row in comparison.rows if (row.method, row.published) == (method, published)]
        rows.sort(key=lambda row: -(row.figures.kept or 0))
        ends = [_values(rows, column) for column in tasks]
        drawn.append(
            Curve(
                name=f"{_label(method)} (published)" if published else _label(method),
                color=look[_strategy(method)][0],
                marker=look[_strategy(method)][1],
                points=[f"{row.figures.kept:.4g} tokens" if row.figures.kept else row.name for row in rows],
                values={
                    **{figure.key: [getattr(row.figures, figure.key) for row in rows] for figure in (_KEPT, *costs)},
                    **{figure.key: values for figure, (values, _, _) in zip(scores, ends, strict=True)},
                },
                low={figure.key: low for figure, (_, low, _) in zip(scores, ends, strict=True)},
                high={figure.key: high for figure, (_, _, high) in zip(scores, ends, strict=True)},
                single=all(row.unpruned for row in rows),
            )
        )
    names = [figure.key for figure in scores]
    return Curves(
        title="Curves",
        figures=[_KEPT, *costs, *scores],
        curves=drawn,
        charts=[
            Chart("Over the tokens kept", [_KEPT.key], [*names, *(cost.key for cost in costs)]),
            *([Chart("What it costs", [cost.key for cost in costs], names, front=True)] if costs else []),
        ],
        notes=["Bands and bars are 95 % intervals. The stepped line with rings is the Pareto front."],
    )


def table(comparison: Comparison) -> Table:
    """A row a method at a budget. A mark says what the paired test against the reference found."""
    fixed = fixed_headings(comparison)
    shown = [*comparison.columns, *([_average(comparison)] if any(row.average for row in comparison.rows) else [])]
    columns = [
        Heading("method", number=False),
        *(Heading(name) for name in fixed[1:]),
        *(Heading(_heading(column), group=column.task if len(comparison.columns) > 1 else "") for column in shown),
    ]
    rows = []
    for row in comparison.rows:
        name, *figures = row_start(comparison, row)
        about = "as its source prints it" if row.published else ""
        cells = [Shown(name + (" (published)" if row.published else ""), note=about)]
        cells += [Shown(text, _figure(row, heading)) for text, heading in zip(figures, fixed[1:], strict=True)]
        cells += [_cell(_of(row, column), column) for column in shown]
        rows.append(cells)
    against = comparison.reference
    marks = f"▲ ▼ significantly better, worse than {against}; ≈ not told apart from it, at 5 %." if against else ""
    return Table("Table", columns, rows, [text for text in (marks, *footer(comparison)) if text])


def merged(sweeps: Sequence[Path]) -> Iterator[Recorded]:
    """The recorded documents of several sweeps. One that several have, with the same pictures and the same prompt, is
    one with the strategies of all; a strategy that two of them have otherwise is called by its folder, too."""
    found: dict[tuple[Any, ...], Recorded] = {}
    for path in sweeps:
        for view, pictures in recorded(path):
            key = (view.uid, view.pictures, view.pieces)
            if key not in found:
                found[key] = view, pictures
                continue
            known, images = found[key]
            found[key] = _joined(known, view, path.parent.name), images or pictures
    yield from found.values()


def _joined(known: DocumentView, other: DocumentView, folder: str) -> DocumentView:
    there = {strategy.key: strategy for strategy in known.strategies}
    more = []
    for strategy in other.strategies:
        same = there.get(strategy.key)
        if same is None:
            more.append(strategy)
        elif (same.answer, same.stages) != (strategy.answer, strategy.stages):
            named = f"{strategy.strategy} ({folder})"
            more.append(replace(strategy, strategy=named, label=f"{strategy.label} ({folder})"))
    return replace(known, strategies=(*known.strategies, *more))


def _average(comparison: Comparison) -> Column:
    return Column(_AVERAGE, average_heading(comparison), percent=True)


def _score(column: Column) -> Figure:
    name = column.metric if column.task == _AVERAGE else f"{column.task}, {column.metric}"
    return Figure(
        f"task {column.task}",
        column.task,
        name,
        percent=column.percent,
        better="high" if column.higher_is_better else "low",
    )


def _of(row: Row, column: Column) -> Cell | None:
    return row.average if column.task == _AVERAGE else row.cells.get(column.task)


def _values(rows: Sequence[Row], column: Column) -> tuple[list[float | None], list[float | None], list[float | None]]:
    """(values, low, high) of a column, shares where it is printed in percent."""
    by = 100.0 if column.percent else 1.0
    cells = [_of(row, column) for row in rows]

    def part(name: str) -> list[float | None]:
        found = [None if cell is None else getattr(cell, name) for cell in cells]
        return [None if value is None else value / by for value in found]

    return part("value"), part("low"), part("high")


def _cell(cell: Cell | None, column: Column) -> Shown:
    if cell is None:
        return Shown("–")
    interval = "" if cell.low is None else f"  [{cell.low:.1f}, {cell.high:.1f}]"
    mark, note = "", cell.note or ""
    if cell.different is not None and cell.difference is not None:
        better = (cell.difference > 0) == column.higher_is_better
        mark = "same" if not cell.different else "better" if better else "worse"
        note = f"difference {cell.difference:+.1f}, {cell.test}, p = {cell.adjusted_p:.2g} after correction"
    return Shown(f"{cell.value:.1f}{interval}", cell.value, mark, note)


def _heading(column: Column) -> str:
    return column.metric if column.task == _AVERAGE else f"{column.task} ({unit(column)})"


def _figure(row: Row, heading: str) -> float | None:
    figures = row.figures
    return {
        "tokens": figures.kept,
        "equivalent": figures.equivalent,
        "FLOPs": figures.flops_ratio,
        "KV": figures.kv_bytes,
    }.get(heading)


def _strategy(method: str) -> str:
    name = method.partition(" ")[0]
    return "none" if name == "unpruned" else name


def _label(method: str) -> str:
    name, _, details = method.partition(" ")
    return " ".join(filter(None, (label_of(_strategy(name)), details)))
