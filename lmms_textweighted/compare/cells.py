"""The texts of a comparison's cells, headings and notes, whatever the format."""

from __future__ import annotations

import math
from collections.abc import Callable

from lmms_textweighted.compare.records import Figures
from lmms_textweighted.compare.table import Cell, Column, Comparison, Row

SAME = "≈"  # not significantly different from the reference
NONE = "–"


def headings(comparison: Comparison) -> list[str]:
    tasks = [f"{column.task} ({unit(column)})" for column in comparison.columns]
    return [*fixed_headings(comparison), *tasks, average_heading(comparison)]


def fixed_headings(comparison: Comparison) -> list[str]:
    """The method and those figures of the budget that any row has."""
    return ["method", *(name for name, text in _FIGURES.items() if any(text(r.figures) for r in comparison.rows))]


def row_start(comparison: Comparison, row: Row) -> list[str]:
    """A row's method and the figures of its budget."""
    method = row.method + (" (reference)" if row.reference else "")
    return [method, *(_FIGURES[name](row.figures) or NONE for name in fixed_headings(comparison)[1:])]


def row_group(row: Row) -> tuple[bool, bool, float | None]:
    """Rows of one budget stand together, and so do the unpruned and the published ones."""
    kept = row.figures.kept
    return row.published, row.unpruned, None if row.published or row.unpruned or kept is None else round(kept)


def cell_line(cell: Cell | None) -> str:
    if cell is None:
        return NONE
    interval = "" if cell.low is None else f" [{cell.low:.1f}, {cell.high:.1f}]"
    return f"{cell.value:.1f}{interval}" + (f" {SAME}" if cell.different is False else "")


def cell_stacked(cell: Cell | None) -> str:
    """The value, and its interval in a line below it."""
    if cell is None:
        return NONE
    mark = f" {SAME}" if cell.different is False else "  "
    interval = "" if cell.low is None else f"\n{cell.low:.1f}–{cell.high:.1f}"
    return f"{cell.value:.1f}{mark}{interval}"


def footer(comparison: Comparison) -> list[str]:
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
    lines += [f"{row.name}: {note}" for row in comparison.rows for note in row.notes]
    return lines + time_notes(comparison)


TIME_HEADINGS = ("method", "prefill, ms", "against unpruned", "selection, ms", "selection FLOPs")


def time_rows(comparison: Comparison) -> list[list[str]]:
    """What prefills took, under TIME_HEADINGS: of rows whose seconds were logged; none where that is only one."""
    whole = _unpruned_seconds(comparison)
    rows = [
        [
            row.name,
            f"{1000 * seconds:.1f}",
            NONE if whole is None else f"{seconds / whole:.2f}",
            NONE if figures.selection_seconds is None else f"{1000 * figures.selection_seconds:.1f}",
            NONE if figures.selection_flops_ratio is None else f"{figures.selection_flops_ratio:.2%}",
        ]
        for row in comparison.rows
        if (seconds := (figures := row.figures).prefill_seconds) is not None
    ]
    return rows if len(rows) > 1 else []


def time_notes(comparison: Comparison) -> list[str]:
    """What the seconds are, and which rows took longer than the unpruned one beside them."""
    if not time_rows(comparison):
        return []
    whole = _unpruned_seconds(comparison)
    notes = [
        "prefill: mean seconds to the first token of a document's batch, vision tower and selection in it; comparable "
        "where machine and batch size were the same. Selection FLOPs: against the pruned prefill, and not in FLOPs"
    ]
    for row in comparison.rows:
        seconds = row.figures.prefill_seconds
        if whole is not None and seconds is not None and not row.unpruned and seconds > whole:
            notes.append(
                f"{row.name} was slower than the unpruned run beside it: {1000 * seconds:.1f} ms to the first token, "
                f"not {1000 * whole:.1f} ms"
            )
    return notes


def _unpruned_seconds(comparison: Comparison) -> float | None:
    """Of the only unpruned row whose seconds are known."""
    known = [row.figures.prefill_seconds for row in comparison.rows if row.unpruned and row.figures.prefill_seconds]
    return known[0] if len(known) == 1 else None


def average_heading(comparison: Comparison) -> str:
    return f"average, % of {comparison.base or 'unpruned'}"


def unit(column: Column) -> str:
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
