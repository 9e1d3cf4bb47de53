"""Published numbers, from `configs/published/NAME.yaml`: what a paper printed, of which model, at which budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lmms_textweighted.compare.records import Figures, Run
from lmms_textweighted.compare.table import Cell, Column, Row
from lmms_textweighted.errors import InputError, first_problem, unknown
from lmms_textweighted.paths import data_folder


class PublishedColumn(BaseModel):
    """A printed column. metric: lmms-eval's for it. percent: printed as percentages. note: how it was measured."""

    model_config = ConfigDict(extra="forbid")
    printed: str
    metric: str
    percent: bool = True
    note: str | None = None


class PublishedRow(BaseModel):
    """A printed row. values: task -> number as printed. tokens, equivalent: what the source says of the budget."""

    model_config = ConfigDict(extra="forbid")
    method: str
    values: dict[str, float]
    unpruned: bool = False
    tokens: float | None = None
    equivalent: float | None = None
    flops_ratio: float | None = None
    source: str | None = None
    note: str | None = None


class PublishedTable(BaseModel):
    """One table of one source. counted: how it counts its budgets. checkpoints: names of the model, in lower case."""

    model_config = ConfigDict(extra="forbid")
    paper: str
    source: str
    model: str
    checkpoints: list[str]
    counted: str
    columns: dict[str, PublishedColumn]
    rows: list[PublishedRow]
    notes: list[str] = []


def published_names() -> list[str]:
    """The tables that there are."""
    return sorted(path.stem for path in (data_folder("configs") / "published").glob("*.yaml"))


def read_published(name: str) -> PublishedTable:
    """A table by its name, or a YAML file of the user's own. Raises InputError when there is none or it is wrong."""
    path = data_folder("configs") / "published" / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
        if path.suffix not in (".yaml", ".yml") or not path.is_file():
            raise InputError(unknown("published table", name, published_names()))
    try:
        table = PublishedTable.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise InputError(f"published table {name!r} is no YAML: {str(error).splitlines()[0]}") from error
    except ValidationError as error:
        raise InputError(f"published table {name!r} is wrong at {first_problem(error)}") from error
    for row in table.rows:
        for task in row.values:
            if task not in table.columns:
                raise InputError(f"published table {name!r} has {task!r} in row {row.method!r}, but no such column")
    return table


def published_columns(tables: Sequence[PublishedTable]) -> list[Column]:
    """All columns of some tables, for a comparison without runs."""
    found: dict[str, Column] = {}
    for table in tables:
        for task, column in table.columns.items():
            found.setdefault(task, Column(task, column.metric, column.percent))
    return list(found.values())


def other_model(table: PublishedTable, runs: Sequence[Run]) -> str | None:
    """Why these runs cannot stand beside the table, if so."""
    for run in runs:
        if run.checkpoint_name is not None and run.checkpoint_name not in table.checkpoints:
            return f"other checkpoint: the published numbers are of {table.model}, this run is of {run.checkpoint}"
        for task, result in run.tasks.items():
            if task in table.columns and result.limited:
                return f"a --limit: {len(result.documents)} of {result.total} documents of {task}, not all"
    return None


def published_rows(name: str, table: PublishedTable, columns: Sequence[Column]) -> tuple[list[Row], list[str]]:
    """(rows, notes) of a table in these columns. A number of another metric or unit is left out, and a note says so.

    Raises InputError when the table has none of these tasks.
    """
    shared, notes = [], []
    for column in columns:
        printed = table.columns.get(column.task)
        if printed is None:
            continue
        if printed.metric != column.metric:
            notes.append(
                f"{name}: {column.task} is left out, its {printed.printed} is {printed.metric} and the column "
                f"{column.metric} (--metric {column.task}={printed.metric})"
            )
            continue
        shared.append(column.task)
        if printed.note:
            notes.append(f"{name}, {printed.printed}: {printed.note}")
    if not shared and not notes:
        raise InputError(
            f"published table {name!r} has no number for {', '.join(column.task for column in columns)}: it has "
            f"{', '.join(table.columns)}"
        )
    rows = []
    base = next((row.values for row in table.rows if row.unpruned), {})
    for printed_row in table.rows:
        values = {task: printed_row.values[task] for task in shared if task in printed_row.values}
        if not values:
            continue
        figures = Figures(printed_row.tokens, printed_row.equivalent, printed_row.flops_ratio)
        row = Row(
            name=f"{name}: {printed_row.method}",
            method=printed_row.method,
            figures=figures,
            cells={task: Cell(value) for task, value in values.items()},
            source=f"{table.paper}, {printed_row.source or table.source}",
            unpruned=printed_row.unpruned,
            published=True,
            notes=[printed_row.note] if printed_row.note else [],
        )
        if len(values) == len(columns) and all(base.get(task) for task in values):
            row.average = Cell(100 * sum(value / base[task] for task, value in values.items()) / len(values))
        rows.append(row)
    notes = [f"{name}: {table.paper}, {table.source}; {table.model}; budget: {table.counted}", *notes]
    return rows, [*notes, *(f"{name}: {note}" for note in table.notes)]
