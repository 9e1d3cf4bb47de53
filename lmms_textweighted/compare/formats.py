"""A comparison as the field prints it: terminal, Markdown, CSV, LaTeX, JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lmms_textweighted.compare.cells import (
    NONE,
    SAME,
    TIME_HEADINGS,
    average_heading,
    cell_line,
    cell_stacked,
    fixed_headings,
    footer,
    headings,
    row_group,
    row_start,
    time_rows,
    unit,
)
from lmms_textweighted.compare.table import Cell, Column, Comparison, Row
from lmms_textweighted.errors import InputError, unknown


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
    times = time_rows(comparison)
    if times:
        console.print(_time_table(times))
    for line in footer(comparison):
        console.print(line, markup=False, highlight=False)


def _time_table(rows: Sequence[Sequence[str]]) -> Table:
    table = Table()
    for number, heading in enumerate(TIME_HEADINGS):
        table.add_column(heading.replace(", ", "\n").replace(" ", "\n", 1), justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _terminal(comparison: Comparison) -> str:
    console = Console(file=io.StringIO(), width=160)
    show(comparison, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def _table(comparison: Comparison, columns: Sequence[Column], *, figures: bool, average: bool) -> Table:
    title = "FORCED: not comparable, see below" if comparison.forced else None
    table = Table(title=title)
    fixed = fixed_headings(comparison) if figures else ["method"]
    table.add_column("method", overflow="fold", max_width=34)
    for heading in fixed[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for column in columns:
        heading = f"{column.task}\n{unit(column)}".replace("+", "+\n").replace(", ", "\n")
        table.add_column(escape(heading), justify="right", no_wrap=True)
    if average:
        table.add_column(
            average_heading(comparison).replace(", ", "\n").replace(" of ", " of\n"), justify="right", no_wrap=True
        )
    before: Row | None = None
    for row in comparison.rows:
        if before is not None and row_group(row) != row_group(before):
            table.add_section()
        before = row
        cells = [cell_stacked(row.cells.get(column.task)) for column in columns]
        method, *budget = row_start(comparison, row)[: len(fixed)]
        last = [cell_stacked(row.average)] if average else []
        table.add_row(escape(method.replace(" (ref", "\n(ref")), *budget, *cells, *last)
    return table


def _markdown(comparison: Comparison) -> str:
    names = headings(comparison)
    lines = ["| " + " | ".join(names) + " |", "| --- |" + " ---: |" * (len(names) - 1)]
    for row in comparison.rows:
        lines.append("| " + " | ".join(_pipe(text) for text in _texts(comparison, row)) + " |")
    times = time_rows(comparison)
    if times:
        lines += ["", "| " + " | ".join(TIME_HEADINGS) + " |", "| --- |" + " ---: |" * (len(TIME_HEADINGS) - 1)]
        lines += ["| " + " | ".join(map(_pipe, row)) + " |" for row in times]
    return "\n".join([*lines, "", *(f"- {line}" for line in footer(comparison))]) + "\n"


def _latex(comparison: Comparison) -> str:
    columns = comparison.columns
    names = headings(comparison)
    lines = [f"% {line}" for line in footer(comparison)]
    lines += [
        r"\begin{tabular}{l" + "r" * (len(names) - 1) + "}",
        r"\hline",
        " & ".join(map(_escape, names)) + r" \\",
        r"\hline",
    ]
    for reason in comparison.forced:
        said = _escape(f"FORCED, not comparable: {reason}")
        lines.append(rf"\multicolumn{{{len(names)}}}{{l}}{{\scriptsize {said}}} \\")
    before: Row | None = None
    for row in comparison.rows:
        if before is not None and row_group(row) != row_group(before):
            lines.append(r"\hline")
        before = row
        method, *rest = row_start(comparison, row)
        texts = [method + (" (published)" if row.published else ""), *rest]
        cells = [_latex_cell(row.cells.get(c.task)) for c in columns] + [_latex_cell(row.average)]
        lines.append(" & ".join([*map(_escape, texts), *cells]) + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}"]) + "\n"


def _csv(comparison: Comparison) -> str:
    """One line a row and task, every figure a column of its own."""
    file = io.StringIO()
    fields = ["row", "method", "published", "kept", "equivalent", "flops_ratio", "kv_bytes"]
    fields += ["prefill_seconds", "selection_seconds", "selection_flops_ratio", "task", "metric", "unit"]
    names = [name for name in Cell.__dataclass_fields__ if name != "note"]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*fields, *names, "note", "forced", "source"])
    average = Column("average", f"relative to {comparison.base}", True)
    for row in comparison.rows:
        figures = row.figures
        start = [row.name, row.method, row.published, figures.kept, figures.equivalent, figures.flops_ratio]
        start += [figures.kv_bytes, figures.prefill_seconds, figures.selection_seconds, figures.selection_flops_ratio]
        for column in [*comparison.columns, average]:
            cell = row.average if column is average else row.cells.get(column.task)
            if cell is None:
                continue
            where = [column.task, column.metric, "%" if column.percent else "score"]
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


def _texts(comparison: Comparison, row: Row) -> list[str]:
    method, *rest = row_start(comparison, row)
    method += " (published)" if row.published else ""
    return [method, *rest, *(cell_line(row.cells.get(c.task)) for c in comparison.columns), cell_line(row.average)]


def _latex_cell(cell: Cell | None) -> str:
    if cell is None:
        return "--"
    interval = "" if cell.low is None else rf" {{\scriptsize [{cell.low:.1f}, {cell.high:.1f}]}}"
    return f"{cell.value:.1f}{interval}" + (r" $\approx$" if cell.different is False else "")


def _pipe(text: Any) -> str:
    return str(text).replace("|", "\\|")


def _escape(text: str) -> str:
    return text.translate(_LATEX)


_LATEX = str.maketrans(
    {
        **{char: "\\" + char for char in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        NONE: "--",
        SAME: r"$\approx$",
    }
)
