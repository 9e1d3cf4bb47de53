"""The report as sections of a page: sortable tables, with each figure's meaning and interval where a reader asks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmms_textweighted.bias.tables import CHANCE, NONE, Table, tables_of
from lmms_textweighted.compare.runs import read_json
from lmms_textweighted.page import Cell, Column, Page, Section
from lmms_textweighted.page import Table as PageTable

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_CHANCE_OUTSIDE = f"{CHANCE}'s value is outside of the 95 % interval"


def sections_of(report: dict[str, Any]) -> list[Section]:
    """A section a table, for whoever makes a page: of a sweep, a comparison, or the report alone."""
    return [_section(table) for table in tables_of(report)]


def page_of(report: dict[str, Any], results: Sequence[Path] = ()) -> Page:
    """The page of the sweep with the report behind its own sections, where `results` is one file that is there; else a
    page of the report alone. Raises InputError where that file cannot be read."""
    if len(results) == 1 and results[0].is_file():
        from lmms_textweighted.experiment.recorded import recorded
        from lmms_textweighted.experiment.webpage import page_of as sweeps_page

        return sweeps_page(read_json(results[0]), recorded(results[0]), more=sections_of(report))
    meta = report["meta"]
    facts = [
        ("model", f"{meta['checkpoint']} ({meta['model_type']})"),
        ("task", str(meta["task"])),
        ("documents", str(meta["num_samples"])),
    ]
    return Page("Where methods look", sections_of(report), f"intervals: {report['intervals']}", facts)


def _section(table: Table) -> PageTable:
    grouped = any(heading for heading, _ in table.groups)
    columns = [Column(table.columns[0], number=False)]
    columns += [Column("budget", number=False)] * grouped
    columns += [Column(name, number=name != "which") for name in table.columns[1:]]
    rows = [
        [Cell(row[0]), *([Cell(heading)] * grouped), *map(_cell, row[1:])]
        for heading, rows in table.groups
        for row in rows
    ]
    return PageTable(f"{table.short}: {table.title[0].lower()}{table.title[1:]}", columns, rows, table.notes)


def _cell(text: str) -> Cell:
    number = _NUMBER.match(text)
    note = _CHANCE_OUTSIDE if text.endswith("*") else "no figure: see below" if text == NONE else ""
    return Cell(text.strip(), float(number.group()) if number else None, note=note)
