"""All checks in their order, and the table."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lmms_textweighted.doctor import machine, packages, running
from lmms_textweighted.doctor.rows import BAD, OK, WARN, Checked, Row, run_checks

_AGAIN = "install this project anew: pip install . in an empty environment"
CHECKS = (
    Checked("Python", packages.python, _AGAIN),
    Checked("packages", packages.packages, _AGAIN),
    Checked("packages together", packages.one_another, _AGAIN),
    Checked("accelerator", machine.accelerator, "torch does not work here: pip install --force-reinstall torch"),
    Checked("attention", machine.kernels, "torch and transformers must both be importable, see the rows above"),
    Checked("hub", machine.hub, "pip install --force-reinstall huggingface-hub"),
    Checked("cache folder", machine.cache, "set LMMS_TEXTWEIGHTED_CACHE to a folder that can be written"),
    Checked("upstream names", running.names, _AGAIN),
    Checked("lmms-eval model", running.entry_point, "pip install --force-reinstall lmms-eval"),
    Checked("tasks", running.tasks, "pip install --force-reinstall lmms-eval"),
    Checked("embedded model", running.answer, "what stands above as bad comes first; then: install anew"),
)
_STYLES = {OK: "green", WARN: "yellow", BAD: "bold red"}


def examine() -> Iterator[Row]:
    """The rows of all checks, as they come."""
    return run_checks(CHECKS)


def is_well(rows: list[Row]) -> bool:
    """Whether runs can be expected to work: no row is BAD."""
    return all(row.status != BAD for row in rows)


def show(rows: list[Row], console: Console) -> None:
    """The table, and under it what to do, bad rows first."""
    table = Table("", "what", "found", box=None, pad_edge=False)
    for row in rows:
        table.add_row(f"[{_STYLES[row.status]}]{row.status}[/]", row.name, escape(row.found))
    console.print(table)
    for row in sorted((row for row in rows if row.advice), key=lambda row: row.status != BAD):
        console.print(f"\n[{_STYLES[row.status]}]{row.status}[/] {row.name}: {escape(row.advice)}", highlight=False)
    bad = [row.name for row in rows if row.status == BAD]
    console.print(f"\n{'bad: ' + ', '.join(bad) if bad else 'Nothing is wrong.'}", highlight=False)
