"""What a page can show, one class a kind of section. A caller makes them; the page does not know where from.

All text in them is shown as text, whatever characters it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lmms_textweighted.view.record import DocumentView


@dataclass(frozen=True)
class Cell:
    """A cell of a table. text: as it is shown. value: what it is sorted by, the text where it is None.

    mark: one of MARKS, or none. note: what a pointer, a keyboard's focus or a screen reader is told besides.
    """

    text: str
    value: float | None = None
    mark: str = ""
    note: str = ""


MARKS = {"better": "▲", "worse": "▼", "same": "≈"}  # each is said in words, too


@dataclass(frozen=True)
class Column:
    """A table's column. group: the heading above it, which columns beside each other may share."""

    name: str
    number: bool = True
    group: str = ""


@dataclass(frozen=True)
class Table:
    """Rows that a reader can sort. notes: below it, a paragraph each."""

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()

    def data(self) -> dict[str, Any]:
        return {
            "columns": [vars(column) for column in self.columns],
            "rows": [[_cell(cell) for cell in row] for row in self.rows],
            "notes": list(self.notes),
            "marks": MARKS,
        }


@dataclass(frozen=True)
class Figure:
    """Something that was measured at every point. key: what curves call it. better: "high", "low" or None.

    percent: shares that are written as percentages. reversed: as an axis, large numbers stand to the left.
    """

    key: str
    name: str
    label: str
    percent: bool = False
    better: str | None = None
    reversed: bool = False


@dataclass(frozen=True)
class Curve:
    """One strategy's points. values: by the figure's key, one a point, None where it was not measured.

    low, high: 95 % intervals, by the figure's key. points: what each point is called. single: of no budget, drawn as
    a line across. color, marker: as matplotlib calls them.
    """

    name: str
    color: str
    marker: str
    values: dict[str, Sequence[float | None]]
    points: Sequence[str]
    low: dict[str, Sequence[float | None]] = field(default_factory=dict)
    high: dict[str, Sequence[float | None]] = field(default_factory=dict)
    single: bool = False


@dataclass(frozen=True)
class Chart:
    """One panel. x, y: the figures that an axis offers, the first one shown. front: with the Pareto front, where both
    axes have a better end. lines: (label, value) across, of the first of `y`."""

    title: str
    x: Sequence[str]
    y: Sequence[str]
    front: bool = False
    lines: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True)
class Curves:
    """Panels of the same curves, which are shown and hidden together."""

    kind: ClassVar[str] = "curves"
    title: str
    figures: Sequence[Figure]
    curves: Sequence[Curve]
    charts: Sequence[Chart]
    notes: Sequence[str] = ()

    def data(self) -> dict[str, Any]:
        return {
            "figures": {figure.key: vars(figure) for figure in self.figures},
            "curves": [vars(curve) for curve in self.curves],
            "charts": [vars(chart) for chart in self.charts],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Shown:
    """A document for the browser. images: each picture's canvases as data URIs, in the geometry's order; none where
    they are not there any more."""

    view: DocumentView
    images: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Documents:
    """The document browser. left_out: how many more there are, which the page has no room for."""

    kind: ClassVar[str] = "documents"
    title: str
    documents: Sequence[Shown]
    left_out: int = 0
    notes: Sequence[str] = ()

    def data(self) -> dict[str, Any]:
        from lmms_textweighted.page.documents import index_of

        return index_of(self)


Section = Table | Curves | Documents


def _cell(cell: Cell) -> dict[str, Any]:
    return {name: value for name, value in vars(cell).items() if value not in ("", None)}
