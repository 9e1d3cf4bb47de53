"""The report's tables as text: terminal, Markdown, CSV, LaTeX; and the report itself as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from lmms_textweighted.bias.tables import NONE, Table, tables_of
from lmms_textweighted.errors import InputError, unknown


def render(report: dict[str, Any], format: str) -> str:
    """The report as text, in one of FORMATS. Raises InputError for another."""
    if format not in FORMATS:
        raise InputError(unknown("format", format, FORMATS))
    return FORMATS[format](report)


def show(report: dict[str, Any], console: Console | None = None) -> None:
    """Print the tables to the terminal."""
    console = console or Console()
    meta = report["meta"]
    console.print(
        f"{meta['checkpoint']} ({meta['model_type']}), {meta['task']}, {meta['num_samples']} documents; intervals: "
        f"{report['intervals']}",
        markup=False,
        highlight=False,
    )
    for table in tables_of(report):
        if table.groups:
            for part in _fitting(table, console):
                console.print(part)
        else:
            console.print(table.title, markup=False, highlight=False)
        for note in table.notes:
            console.print(note, markup=False, highlight=False)
        console.print()


def _fitting(table: Table, console: Console) -> Iterator[RichTable]:
    """The table, or as many parts of fewer columns as fit."""
    wide = console.options.update(width=10_000)
    left = list(range(1, len(table.columns)))
    while left:
        size = len(left)
        while size > 1 and console.measure(_rich(table, left[:size]), options=wide).maximum > console.width:
            size -= 1
        yield _rich(table, left[:size])
        left = left[size:]


def _rich(table: Table, columns: list[int]) -> RichTable:
    made = RichTable(title=table.title)
    made.add_column(table.columns[0], overflow="fold", max_width=24)
    for column in columns:
        made.add_column(_stacked(table.columns[column]), justify="right", no_wrap=True)
    for heading, rows in table.groups:
        if heading:
            made.add_row(escape(heading), *("" for _ in columns), style="bold")
        for row in rows:
            made.add_row(escape(row[0]), *(escape(row[column]) for column in columns))
        made.add_section()
    return made


def _stacked(heading: str) -> str:
    """A heading of several words in two lines of about equal length."""
    words = heading.split(" ")
    at = min(range(len(words)), key=lambda at: max(len(" ".join(words[:at])), len(" ".join(words[at:]))))
    return heading if len(heading) <= 10 else f"{' '.join(words[:at])}\n{' '.join(words[at:])}"


def _terminal(report: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=160)
    show(report, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def _markdown(report: dict[str, Any]) -> str:
    parts = []
    for table in tables_of(report):
        lines = [f"### {table.title}", ""]
        if table.groups:
            lines += ["| " + " | ".join(table.columns) + " |", "| --- |" + " ---: |" * (len(table.columns) - 1)]
        for heading, rows in table.groups:
            if heading:
                lines.append(f"| **{_pipe(heading)}** |" + " |" * (len(table.columns) - 1))
            lines += ["| " + " | ".join(_pipe(text.strip()) for text in row) + " |" for row in rows]
        parts.append("\n".join([*lines, "", *(f"- {_pipe(note)}" for note in table.notes)]).rstrip() + "\n")
    return "\n".join(parts)


def _latex(report: dict[str, Any]) -> str:
    parts = []
    for table in tables_of(report):
        width = len(table.columns)
        lines = [f"% {table.title}", *(f"% {note}" for note in table.notes)]
        lines += [r"\begin{tabular}{l" + "r" * (width - 1) + "}", r"\hline"]
        lines += [" & ".join(map(_escape, table.columns)) + r" \\", r"\hline"]
        for heading, rows in table.groups:
            if heading:
                lines.append(rf"\multicolumn{{{width}}}{{l}}{{\textbf{{{_escape(heading)}}}}} \\")
            lines += [" & ".join(_escape(text.strip()) for text in row) + r" \\" for row in rows]
            lines.append(r"\hline")
        parts.append("\n".join([*lines, r"\end{tabular}"]) + "\n")
    return "\n".join(parts)


def _csv(report: dict[str, Any]) -> str:
    """One line a figure: of points, of pairs of points, of early words and of the hard subset."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    numbers = ["mean", "low", "high", "random", "documents", "reason"]
    writer.writerow(["part", "strategy", "layer", "budget", "other", "other_budget", "figure", *numbers])

    def line(part: str, point: dict[str, Any], other: Any, figure: str, entry: dict[str, Any]) -> None:
        own = [point.get("strategy"), point.get("layer"), point.get("budget")]
        told = [entry.get(name) for name in numbers]
        beside = [None, None] if other is None else [other["strategy"], other["budget"]]
        writer.writerow([part, *own, *beside, figure, *told])

    for point in report["points"]:
        for name, entry in point["figures"].items():
            line("points", point, None, name, entry)
        for name in ("rows", "columns", "words"):
            for place, entry in enumerate(point[name]):
                line("points", point, None, f"{name}_{place}", entry)
    for part in ("between_budgets", "between_methods"):
        for one in report[part]:
            for name in ("share", "iou"):
                line(part, one["first"], one["second"], name, one[name])
    for row in report["early_words"]["rows"]:
        for name, entry in row["even"].items():
            line("early_words", row, None, f"even_{name}", entry)
    for part in report["hard"]:
        for row in part.get("rows", [{"strategy": None, "layer": None, "fails": part, "enough": part}]):
            for name in ("fails", "enough"):
                line("hard", {**row, "budget": part["budget"]}, None, name, row[name])
    return file.getvalue()


def _json(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=2, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[dict[str, Any]], str]] = {
    "terminal": _terminal,
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
    "json": _json,
}


def _pipe(text: str) -> str:
    return text.replace("|", "\\|")


def _escape(text: str) -> str:
    return text.translate(_LATEX)


_LATEX = str.maketrans(
    {
        **{char: "\\" + char for char in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "→": r"$\to$",
        NONE: "--",
    }
)
