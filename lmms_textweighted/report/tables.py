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

from lmms_textweighted.compare.table import Cell, Column, Comparison, Row
from lmms_textweighted.errors import InputError, unknown

SAME = "≈"  # not significantly different from the reference
NONE = "–"
_FIXED = ("method", "tokens", "equivalent", "FLOPs", "KV")


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
    columns = list(comparison.columns)
    parts: list[list[Column]] = []
    while columns or not parts:
        size = max(1, len(columns))
        while size > 1 and _width(comparison, columns[:size], size == len(columns), console) > console.width:
            size -= 1
        parts.append(columns[:size])
        columns = columns[size:]
    for place, part in enumerate(parts):
        console.print(_table(comparison, part, place == len(parts) - 1))
    for line in _footer(comparison):
        console.print(line, markup=False, highlight=False)


def _terminal(comparison: Comparison) -> str:
    console = Console(file=io.StringIO(), width=160)
    show(comparison, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def _width(comparison: Comparison, columns: Sequence[Column], last: bool, console: Console) -> int:
    return console.measure(_table(comparison, columns, last)).minimum


def _table(comparison: Comparison, columns: Sequence[Column], last: bool) -> Table:
    table = Table(title="comparison" + (" (FORCED)" if comparison.forced else ""))
    for heading in _FIXED:
        left = heading == "method"
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for column in columns:
        table.add_column(f"{column.task}\n{_unit(column)}", justify="right", no_wrap=True)
    if last:
        table.add_column(_average_heading(comparison).replace(", ", "\n"), justify="right", no_wrap=True)
    published = False
    for row in comparison.rows:
        if row.published and not published:
            table.add_section()
            published = True
        cells = [_stacked(row.cells.get(column.task)) for column in columns]
        table.add_row(*_start(row), *cells, *([_stacked(row.average)] if last else []))
    return table


def _markdown(comparison: Comparison) -> str:
    headings = [*_FIXED, *(f"{c.task} ({_unit(c)})" for c in comparison.columns), _average_heading(comparison)]
    lines = ["| " + " | ".join(headings) + " |", "| --- |" + " ---: |" * (len(headings) - 1)]
    for row in comparison.rows:
        lines.append("| " + " | ".join(_pipe(text) for text in _texts(comparison, row)) + " |")
    return "\n".join([*lines, "", *(f"- {line}" for line in _footer(comparison))]) + "\n"


def _latex(comparison: Comparison) -> str:
    columns = comparison.columns
    headings = [*_FIXED, *(f"{c.task} ({_unit(c)})" for c in columns), _average_heading(comparison)]
    lines = [f"% {line}" for line in _footer(comparison)]
    lines += [
        r"\begin{tabular}{l" + "r" * (len(headings) - 1) + "}",
        r"\hline",
        " & ".join(map(_escape, headings)) + r" \\",
        r"\hline",
    ]
    published = False
    for row in comparison.rows:
        if row.published and not published:
            lines.append(r"\hline")
            published = True
        texts = [_start(row)[0] + (" (published)" if row.published else ""), *_start(row)[1:]]
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


def _start(row: Row) -> list[str]:
    """Method, tokens kept, equivalent tokens, FLOPs and KV cache."""
    figures = row.figures
    flops = NONE if figures.flops_ratio is None else f"{figures.flops_ratio:.0%}"
    kv = NONE if figures.kv_bytes is None else _bytes(figures.kv_bytes)
    method = row.method + (" (reference)" if row.reference else "")
    return [method, _count(figures.kept), _count(figures.equivalent), flops, kv]


def _texts(comparison: Comparison, row: Row) -> list[str]:
    method, *rest = _start(row)
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
    return "average" + ("" if comparison.base is None else f", % of {comparison.base}")


def _unit(column: Column) -> str:
    return f"{column.metric}, %" if column.percent else column.metric


def _count(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f}" if math.isclose(value, round(value)) else f"{value:.1f}"


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def _pipe(text: Any) -> str:
    return str(text).replace("|", "\\|")


def _escape(text: str) -> str:
    for char in "\\&%$#_{}":
        text = text.replace(char, r"\textbackslash{}" if char == "\\" else "\\" + char)
    return text.replace(NONE, "--").replace("~", r"\textasciitilde{}").replace("^", r"\textasciicircum{}")
