"""From paths to a whole comparison: read, check, count, test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lmms_textweighted.compare.checks import differences, unknowns
from lmms_textweighted.compare.folders import read_runs
from lmms_textweighted.compare.naming import find_reference, name_runs
from lmms_textweighted.compare.published import (
    PublishedTable,
    other_model,
    published_columns,
    published_rows,
    read_published,
)
from lmms_textweighted.compare.records import Run
from lmms_textweighted.compare.table import Column, Comparison, Row, add_averages, add_tests, make_columns, make_row
from lmms_textweighted.errors import InputError


def compare_runs(
    paths: Sequence[Path],
    *,
    reference: str | None = None,
    force: bool = False,
    published: Sequence[str] = (),
    metrics: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare the runs under `paths`: folders or files of lmms-eval and of sweeps.

    reference: the row (by name or path) that the others are tested against; the unpruned run where there is exactly
    one. published: tables to put beside. metrics: task -> metric, instead of a task's first.

    Raises InputError for runs that are not finished and, without `force`, for runs that cannot be compared.
    """
    tables = {name: read_published(name) for name in published}
    if not paths and not tables:
        raise InputError("no run is given: name the folders that lmms-eval or a sweep wrote")
    # As the field prints it: unpruned on top, then budget by budget, each in the order given.
    runs = sorted(read_runs(paths, metrics), key=lambda run: (not run.unpruned, -(run.figures.kept or 0)))
    named = name_runs(runs)
    names = [name for name, _ in named]
    chosen = find_reference(reference, names, runs)
    anchor = 0 if chosen is None else chosen
    problems = _problems(runs, names, anchor, tables)
    if problems and not force:
        raise InputError("; ".join(problems) + "; --force compares anyway and says so")
    columns = make_columns(runs) if runs else published_columns(list(tables.values()))
    rows = [make_row(name, method, run, columns) for (name, method), run in zip(named, runs, strict=True)]
    notes = _notes(runs, names, anchor, chosen)
    base = _base(runs, chosen)
    if chosen is not None:
        rows[chosen].reference = True
        add_tests(rows, runs, chosen, columns)
    if base is not None:
        add_averages(rows, runs, base, columns)
    more, said = _published(tables, columns)
    return Comparison(
        columns=columns,
        rows=rows + more,
        reference=None if chosen is None else names[chosen],
        base=None if base is None else names[base],
        notes=notes + said,
        forced=problems,
    )


def _problems(runs: list[Run], names: list[str], anchor: int, tables: Mapping[str, PublishedTable]) -> list[str]:
    found = []
    for place, run in enumerate(runs):
        if place != anchor:
            reasons = differences(run, runs[anchor])
            if reasons:
                found.append(f"{names[place]} cannot be compared with {names[anchor]}: {', '.join(reasons)}")
    for name, table in tables.items():
        reason = other_model(table, runs)
        if reason:
            found.append(f"published table {name} cannot stand beside these runs: {reason}")
    return found


def _base(runs: list[Run], chosen: int | None) -> int | None:
    """The row that averages are relative to: the only unpruned run, else the reference."""
    unpruned = [place for place, run in enumerate(runs) if run.unpruned]
    if chosen is not None and (chosen in unpruned or len(unpruned) != 1):
        return chosen
    return unpruned[0] if len(unpruned) == 1 else None


def _notes(runs: list[Run], names: list[str], anchor: int, chosen: int | None) -> list[str]:
    notes = list(_models(runs))
    if runs and chosen is None:
        notes.append("no reference: not exactly one run is unpruned, so nothing is tested; name one with --reference")
    for task, result in {task: result for run in runs for task, result in run.tasks.items()}.items():
        if result.limited:
            notes.append(f"{task}: {len(result.documents)} of its {result.total} documents, a --limit")
    for place, run in enumerate(runs):
        missing = unknowns(run, runs[anchor]) if place != anchor else []
        other = run.settings.get("dtype"), runs[anchor].settings.get("dtype")
        if None not in other and other[0] != other[1]:
            notes.append(f"{names[place]}: dtype is {other[0]}, {names[anchor]}'s is {other[1]}")
        if missing:
            notes.append(f"{names[place]}: not checked against {names[anchor]}, not recorded: {', '.join(missing)}")
    return notes


def _models(runs: list[Run]) -> Iterator[str]:
    """What model the table is of, and its kind where a run records it."""
    checkpoints = {run.checkpoint_name: run.checkpoint for run in runs if run.checkpoint is not None}
    kinds = {run.model_type for run in runs if run.model_type is not None}
    if checkpoints:
        kind = f" ({', '.join(sorted(kinds))})" if kinds else ""
        yield f"model: {', '.join(map(str, checkpoints.values()))}{kind}"


def _published(tables: Mapping[str, PublishedTable], columns: list[Column]) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    notes: list[str] = []
    for name, table in tables.items():
        more, said = published_rows(name, table, columns)
        rows += more
        notes += said
    return rows, notes
