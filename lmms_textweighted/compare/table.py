"""The comparison as data: rows of methods at budgets, columns of tasks, and the statistics of every cell."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from lmms_textweighted.compare.records import Figures, Run, TaskResult
from lmms_textweighted.statistics import holm, mean_interval, paired_test, ratio_variance

ALPHA = 0.05
_Z = 1.959963984540054  # of a two-sided 95 % interval


@dataclass(frozen=True)
class Column:
    """A task. percent: its numbers are printed as percentages; else in the metric's own units."""

    task: str
    metric: str
    percent: bool
    higher_is_better: bool = True


@dataclass
class Cell:
    """A number as it is printed, with its 95 % interval, and its paired test against the reference's.

    difference, p, adjusted_p (Holm over the table), test and shared (documents both answered) are None in the
    reference's row and where no test can be made. different: significant at 5 % after the correction.
    """

    value: float
    low: float | None = None
    high: float | None = None
    documents: int | None = None
    shared: int | None = None
    difference: float | None = None
    p: float | None = None
    adjusted_p: float | None = None
    test: str | None = None
    different: bool | None = None
    note: str | None = None


@dataclass
class Row:
    """A method at a budget. average: over all columns, relative to the base row, in %. source: a path or a citation."""

    name: str
    method: str
    figures: Figures
    cells: dict[str, Cell]
    source: str
    average: Cell | None = None
    unpruned: bool = False
    reference: bool = False
    published: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass
class Comparison:
    """A whole table. base: the row that `average` is relative to. forced: what --force overrode."""

    columns: list[Column]
    rows: list[Row]
    reference: str | None = None
    base: str | None = None
    notes: list[str] = field(default_factory=list)
    forced: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def make_columns(runs: list[Run]) -> list[Column]:
    """The tasks of all runs, in the order in which they appear."""
    results: dict[str, list[TaskResult]] = {}
    for run in runs:
        for task, result in run.tasks.items():
            results.setdefault(task, []).append(result)
    return [
        Column(task, found[0].metric, all(map(_is_share, found)), found[0].higher_is_better)
        for task, found in results.items()
    ]


def make_row(name: str, method: str, run: Run, columns: list[Column]) -> Row:
    """A run's numbers and their intervals."""
    cells = {column.task: _cell(run.tasks[column.task], column) for column in columns if column.task in run.tasks}
    notes = [*run.notes, *(f"{task}: {note}" for task, result in run.tasks.items() for note in result.notes)]
    return Row(name, method, run.figures, cells, str(run.path), unpruned=run.unpruned, notes=notes)


def add_tests(rows: list[Row], runs: list[Run], reference: int, columns: list[Column]) -> None:
    """Test every cell against the reference's, with Holm's correction over all of them."""
    tested: list[Cell] = []
    for row, run in zip(rows, runs, strict=True):
        for column in columns:
            if run is runs[reference] or column.task not in run.tasks or column.task not in runs[reference].tasks:
                continue
            if _test(row.cells[column.task], run.tasks[column.task], runs[reference].tasks[column.task], column):
                tested.append(row.cells[column.task])
    for cell, adjusted in zip(tested, holm([cell.p or 0.0 for cell in tested]), strict=True):
        cell.adjusted_p = adjusted
        cell.different = adjusted < ALPHA


def add_averages(rows: list[Row], runs: list[Run], base: int, columns: list[Column]) -> None:
    """Mean over the columns of 100 x value / base's value (its inverse where less is better), with an interval by the
    delta method over paired documents where every column has scores. A row with an empty column gets none."""
    for row, run in zip(rows, runs, strict=True):
        pairs = [(run.tasks.get(c.task), runs[base].tasks.get(c.task), c) for c in columns]
        ratios, variance = [], 0.0
        for one, two, column in pairs:
            if one is None or two is None:
                break
            first, second = (one, two) if column.higher_is_better else (two, one)
            if second.value == 0:
                break
            ratios.append(first.value / second.value)
            shared, clusters = _shared(first, second)
            same = len(shared) == len(first.documents) == len(second.documents)
            scores = [[result.scores()[n] for n in shared] for result in (first, second)] if same else []
            variance += ratio_variance(scores[0], scores[1], clusters) if scores else math.nan
        if len(ratios) < len(columns):
            continue
        mean = 100 * sum(ratios) / len(ratios)
        half = 100 * _Z * math.sqrt(variance) / len(ratios)
        # Equal answers have no spread: no interval rather than one of no width.
        known = half > 1e-9 and math.isfinite(half)
        row.average = Cell(mean, mean - half if known else None, mean + half if known else None)


def _is_share(result: TaskResult) -> bool:
    scores = result.scores().values()
    return 0 <= result.value <= 1 and all(0 <= score <= 1 for score in scores)


def _factor(column: Column) -> float:
    return 100.0 if column.percent else 1.0


def _clusters(result: TaskResult, numbers: list[int]) -> list[str] | None:
    """The documents' clusters; None where the task has none. A document without one stands alone."""
    found = [result.documents[number].cluster for number in numbers]
    if all(cluster is None for cluster in found):
        return None
    return [
        f"document {n}" if cluster is None else f"cluster {cluster}" for n, cluster in zip(numbers, found, strict=True)
    ]


def _cell(result: TaskResult, column: Column) -> Cell:
    factor, scores = _factor(column), result.scores()
    cell = Cell(factor * result.value, documents=len(result.documents))
    if not scores:
        cell.note = result.notes[-1] if result.notes else None
        return cell
    clusters = _clusters(result, list(scores))
    if clusters is not None and len(set(clusters)) == 1:
        cell.note = "all documents are of one cluster: no interval, no test"
        return cell
    scale = result.scale or 1.0
    low, high = mean_interval([score / scale for score in scores.values()], clusters)
    if math.isfinite(low):
        cell.low, cell.high = factor * scale * low, factor * scale * high
    return cell


def _shared(one: TaskResult, two: TaskResult) -> tuple[list[int], list[str] | None]:
    """The documents that both answered and scored, and their clusters."""
    if one.scale != two.scale:
        return [], None
    scores = one.scores(), two.scores()
    numbers = [n for n in scores[0] if n in scores[1] and one.documents[n].target == two.documents[n].target]
    return numbers, _clusters(one, numbers) if numbers else None


def _test(cell: Cell, result: TaskResult, reference: TaskResult, column: Column) -> bool:
    numbers, clusters = _shared(result, reference)
    if not numbers or cell.note is not None or result.metric != reference.metric:
        return False
    scale = result.scale or 1.0
    first, second = ([one.scores()[n] / scale for n in numbers] for one in (result, reference))
    done = paired_test(first, second, clusters)
    cell.shared, cell.test, cell.p = done.documents, done.name, done.p
    cell.difference = _factor(column) * scale * done.difference
    return True
