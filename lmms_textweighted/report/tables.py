"""A comparison as the field prints it: terminal, Markdown, CSV, LaTeX, JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lmms_textweighted.compare.records import Figures
from lmms_textweighted.compare.table import Cell, Column, Comparison, Row
from lmms_textweighted.errors import InputError, unknown

SAME = "≈"  # not significantly different from the reference
NONE = "–"


def render(comparison: Comparison, format: str) -> str:
    """The table as text, in one of FORMATS. Raises InputError for another."""
    if format not in FORMATS:
        raise InputError(unknown("format", format, FORMATS))
    return FORMATS[format](comparison)


def choose_format(format: str | None, output: Path | None) -> str:
    """The format that is named, or that the file's ending means. Raises InputError for one that is not known."""
    if format is not None:
        if format not in FORMATS:
            raise InputError(unknown("format", format, FORMATS))
        return format
    if output is None:
        return "terminal"
    if output.suffix not in ENDINGS:
        raise InputError(f"output {str(output)!r} has none of the endings {', '.join(ENDINGS)}: give --format")
    return ENDINGS[output.suffix]


def show(comparison: Comparison, console: Console | None = None) -> None:
    """Print the table to the terminal: in parts, a few tasks each, where it is too wide for one."""
    console = console or Console()
    wide = console.options.update(width=10_000)

    def fits(table: Table) -> bool:
        return console.measure(table, options=wide).maximum <= console.width

    left, parts = list(comparison.columns), 0
    average = True  # still to be shown
    while left or average:
        size = len(left)
        whole = fits(_table(comparison, left, figures=not parts, average=True))
        while not whole and size > 1 and not fits(_table(comparison, left[:size], figures=not parts, average=False)):
            size -= 1
        console.print(_table(comparison, left[:size], figures=not parts, average=whole or not left))
        average = not (whole or not left)
        left, parts = left[size:], parts + 1
    for line in _footer(comparison):
        console.print(line, markup=False, highlight=False)


def _terminal(comparison: Comparison) -> str:
    console = Console(file=io.StringIO(), width=160)
    show(comparison, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def _table(comparison: Comparison, columns: Sequence[Column], *, figures: bool, average: bool) -> Table:
    title = "FORCED: not comparable, see below" if comparison.forced else None
    table = Table(title=title)
    fixed = _fixed(comparison) if figures else ["method"]
    table.add_column("method", overflow="fold", max_width=34)
    for heading in fixed[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for column in columns:
        heading = f"{column.task}\n{_unit(column)}".replace("+", "+\n").replace(", ", "\n")
        table.add_column(heading, justify="right", no_wrap=True)
    if average:
        table.add_column(
            _average_heading(comparison).replace(", ", "\n").replace(" of ", " of\n"), justify="right", no_wrap=True
        )
    before: Row | None = None
    for row in comparison.rows:
        if before is not None and _group(row) != _group(before):
            table.add_section()
        before = row
        cells = [_stacked(row.cells.get(column.task)) for column in columns]
        method, *budget = _start(comparison, row)[: len(fixed)]
        table.add_row(method.replace(" (ref", "\n(ref"), *budget, *cells, *([_stacked(row.average)] if average else []))
    return table


def _markdown(comparison: Comparison) -> str:
    headings = _headings(comparison)
    lines = ["| " + " | ".join(headings) + " |", "| --- |" + " ---: |" * (len(headings) - 1)]
    for row in comparison.rows:
        lines.append("| " + " | ".join(_pipe(text) for text in _texts(comparison, row)) + " |")
    return "\n".join([*lines, "", *(f"- {line}" for line in _footer(comparison))]) + "\n"


def _latex(comparison: Comparison) -> str:
    columns = comparison.columns
    headings = _headings(comparison)
    lines = [f"% {line}" for line in _footer(comparison)]
    lines += [
        r"\begin{tabular}{l" + "r" * (len(headings) - 1) + "}",
        r"\hline",
        " & ".join(map(_escape, headings)) + r" \\",
        r"\hline",
    ]
    before: Row | None = None
    for row in comparison.rows:
        if before is not None and _group(row) != _group(before):
            lines.append(r"\hline")
        before = row
        method, *rest = _start(comparison, row)
        texts = [method + (" (published)" if row.published else ""), *rest]
        cells = [_latex_cell(row.cells.get(c.task)) for c in columns] + [_latex_cell(row.average)]
        lines.append(" & ".join([*map(_escape, texts), *cells]) + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}"]) + "\n"


def _csv(comparison: Comparison) -> str:
    """One line a row and task, every figure a column of its own."""
    file = io.StringIO()
    fields = ["row", "method", "published", "kept", "equivalent", "flops_ratio", "kv_bytes", "task", "metric", "unit"]
    names = [name for name in Cell.__dataclass_fields__ if name != "note"]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*fields, *names, "note", "forced", "source"])
    average = Column("average", f"relative to {comparison.base}", True)
    for row in comparison.rows:
        figures = row.figures
        start = [row.name, row.method, row.published, figures.kept, figures.equivalent, figures.flops_ratio]
        for column in [*comparison.columns, average]:
            cell = row.average if column is average else row.cells.get(column.task)
            if cell is None:
                continue
            where = [figures.kv_bytes, column.task, column.metric, "%" if column.percent else "score"]
            values = [getattr(cell, name) for name in names]
            writer.writerow([*start, *where, *values, cell.note, bool(comparison.forced), row.source])
    return file.getvalue()


def _json(comparison: Comparison) -> str:
    return json.dumps(comparison.to_dict(), indent=2, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "terminal": _terminal,
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
    "json": _json,
}
ENDINGS = {".md": "markdown", ".csv": "csv", ".tex": "latex", ".json": "json", ".txt": "terminal"}


def _headings(comparison: Comparison) -> list[str]:
    tasks = [f"{column.task} ({_unit(column)})" for column in comparison.columns]
    return [*_fixed(comparison), *tasks, _average_heading(comparison)]


def _fixed(comparison: Comparison) -> list[str]:
    """The method and those figures of the budget that any row has."""
    return ["method", *(name for name, text in _FIGURES.items() if any(text(r.figures) for r in comparison.rows))]


def _start(comparison: Comparison, row: Row) -> list[str]:
    """A row's method and the figures of its budget."""
    method = row.method + (" (reference)" if row.reference else "")
    return [method, *(_FIGURES[name](row.figures) or NONE for name in _fixed(comparison)[1:])]


def _group(row: Row) -> tuple[bool, bool, float | None]:
    """Rows of one budget stand together, and so do the unpruned and the published ones."""
    kept = row.figures.kept
    return row.published, row.unpruned, None if row.published or row.unpruned or kept is None else round(kept)


def _texts(comparison: Comparison, row: Row) -> list[str]:
    method, *rest = _start(comparison, row)
    method += " (published)" if row.published else ""
    return [method, *rest, *(_line(row.cells.get(c.task)) for c in comparison.columns), _line(row.average)]


def _line(cell: Cell | None) -> str:
    if cell is None:
        return NONE
    interval = "" if cell.low is None else f" [{cell.low:.1f}, {cell.high:.1f}]"
    return f"{cell.value:.1f}{interval}" + (f" {SAME}" if cell.different is False else "")


def _stacked(cell: Cell | None) -> str:
    """The value, and its interval in a line below it."""
    if cell is None:
        return NONE
    mark = f" {SAME}" if cell.different is False else "  "
    interval = "" if cell.low is None else f"\n{cell.low:.1f}–{cell.high:.1f}"
    return f"{cell.value:.1f}{mark}{interval}"


def _latex_cell(cell: Cell | None) -> str:
    if cell is None:
        return "--"
    interval = "" if cell.low is None else rf" {{\scriptsize [{cell.low:.1f}, {cell.high:.1f}]}}"
    return f"{cell.value:.1f}{interval}" + (r" $\approx$" if cell.different is False else "")


def _footer(comparison: Comparison) -> list[str]:
    """What the numbers are, and everything that has to be said about them."""
    lines = [f"FORCED, not comparable: {reason}" for reason in comparison.forced]
    if any(cell.low is not None for row in comparison.rows for cell in row.cells.values()):
        lines.append("intervals: 95 %")
    tests = sorted({cell.test for row in comparison.rows for cell in row.cells.values() if cell.test})
    if tests:
        lines.append(
            f"{SAME}: not significantly different from {comparison.reference} at 5 % ({', '.join(tests)}; Holm over "
            f"the table)"
        )
    if any(row.published for row in comparison.rows):
        lines.append("published rows: as printed by their source, no interval and no test possible")
    lines += comparison.notes
    return lines + [f"{row.name}: {note}" for row in comparison.rows for note in row.notes]


def _average_heading(comparison: Comparison) -> str:
    return f"average, % of {comparison.base or 'unpruned'}"


def _unit(column: Column) -> str:
    return f"{column.metric}, %" if column.percent else column.metric


def _count(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if math.isclose(value, round(value)) else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _bytes(value: float | None) -> str:
    if value is None:
        return ""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


# Heading -> a figure of the budget as text, empty where it is not known.
_FIGURES: dict[str, Callable[[Figures], str]] = {
    "tokens": lambda figures: _count(figures.kept),
    "equivalent": lambda figures: _count(figures.equivalent),
    "FLOPs": lambda figures: _share(figures.flops_ratio),
    "KV": lambda figures: _bytes(figures.kv_bytes),
}


def _pipe(text: Any) -> str:
    return str(text).replace("|", "\\|")


def _escape(text: str) -> str:
    for char in "\\&%$#_{}":
        text = text.replace(char, r"\textbackslash{}" if char == "\\" else "\\" + char)
    return text.replace(NONE, "--").replace("~", r"\textasciitilde{}").replace("^", r"\textasciicircum{}")
