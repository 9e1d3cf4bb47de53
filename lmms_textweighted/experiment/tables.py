"""A sweep's result in the terminal: one table where it fits, else in parts. No name and no number is broken."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from lmms_textweighted.engine.layers import EMBEDDINGS
from lmms_textweighted.experiment.files import blocks_of
from lmms_textweighted.experiment.names import AXES, axis, budget_text
from lmms_textweighted.experiment.pairs import ALPHA

Row = tuple[str, dict[str, Any]]
_BETTER, _WORSE, _SAME = "+", "-", "="  # beside an accuracy, against the first reference and against the second


def print_tables(data: dict[str, Any], console: Console) -> None:
    """Accuracy of every curve at every budget, and what each budget costs; and what prefills took, where timed.

    Where all strategies cost the same and the table fits, budgets stand in rows; else strategies do, in groups of equal
    cost, smallest layer first. Beside an accuracy stand the results of its paired tests; the note explains them.
    """
    rows = blocks_of(data)
    pruned = [row for row in rows if row[0] != "none"] or rows
    budgets = _budgets(rows)
    wide = console.options.update(width=10_000)

    def fits(table: Table) -> bool:
        return console.measure(table, options=wide).maximum <= console.width

    alike = len({_cost(block) for _, block in pruned}) == 1 and not any("seeds" in block for _, block in rows)
    upright = _upright(data, rows, budgets)
    if alike and (fits(upright) or len(budgets) > len(rows)):
        _print_parts(console, fits, [row[0] for row in rows], lambda some: _upright(data, _named(rows, some), budgets))
    else:
        _print_parts(console, fits, _budgets(pruned), lambda some: _lying(data, pruned, some))
    console.print(_note(data, rows), markup=False, highlight=False)
    if any("prefill_ratio" in block for _, block in rows):
        _print_parts(console, fits, _budgets(pruned), lambda some: _times(data, pruned, some))
        console.print(_slower(data, rows), markup=False, highlight=False)


def _print_parts(
    console: Console, fits: Callable[[Table], bool], items: Sequence[Any], make: Callable[[Sequence[Any]], Table]
) -> None:
    """The table of all items, or several of about equal width, as few as fit."""
    for parts in range(1, len(items) + 1):
        size = math.ceil(len(items) / parts)
        tables = [make(items[start : start + size]) for start in range(0, len(items), size)]
        if all(map(fits, tables)) or size == 1:
            break
    for table in tables:
        console.print(table)


def _upright(data: dict[str, Any], rows: Sequence[Row], budgets: Sequence[float]) -> Table:
    """Budgets in rows, strategies in columns, and what a budget costs all of them."""
    costs = next((block for name, block in rows if name != "none"), rows[0][1])
    table = Table(title=_title(data))
    counted = "image tokens" if axis(data["meta"]) == AXES["keep_tokens"] else "asked"
    for heading in (counted, "equivalent", "FLOPs", *(name for name, _ in rows)):
        table.add_column(heading, justify="right", no_wrap=True)
    for budget in budgets:
        cells = [
            budget_text(budget, data["meta"]),
            _at(costs, budget, "equivalent_tokens", "{:.0f}"),
            _at(costs, budget, "flops_ratio"),
        ]
        cells += [_accuracy(data, block, budget, "{:.1%}", 1) for _, block in rows]
        table.add_row(*cells)
    return table


def _lying(data: dict[str, Any], rows: Sequence[Row], budgets: Sequence[float]) -> Table:
    """Strategies in rows, budgets in columns; strategies that cost the same stand together, below their cost."""
    table = _with_budgets(_title(data), data, budgets)
    for layers, members in _of_equal_cost(rows):
        widest = max((block for _, block in members), key=lambda block: len(block["tokens"]))
        table.add_row(_where(layers), *("" for _ in budgets), style="bold")
        for label, figure, form in (("equivalent", "equivalent_tokens", "{:.0f}"), ("FLOPs", "flops_ratio", "{:.0%}")):
            table.add_row(f"  {label}", *(_at(widest, budget, figure, form) for budget in budgets), style="dim")
        for name, block in members:
            table.add_row(f"  {name}", *(_accuracy(data, block, budget, "{:.1f}", 100) for budget in budgets))
            if "seeds" in block:
                spread = (_at(block, budget, "accuracy_spread", "±{:.1f}", 100) for budget in budgets)
                table.add_row(f"    over {len(block['seeds'])} seeds", *spread)
        table.add_section()
    return table


def _with_budgets(title: str, data: dict[str, Any], budgets: Sequence[float]) -> Table:
    """An empty table with a column a budget."""
    table = Table(title=title)
    table.add_column(axis(data["meta"]), no_wrap=True)
    for budget in budgets:
        table.add_column(budget_text(budget, data["meta"]), justify="right", no_wrap=True)
    return table


def _of_equal_cost(rows: Sequence[Row]) -> list[tuple[tuple[int, ...], list[Row]]]:
    """(layers, rows) of strategies that prune after the same layers and cost the same at every budget they share, the
    one with most budgets first counted; smallest layer first."""
    groups: list[tuple[tuple[int, ...], dict[float, Any], list[Row]]] = []
    for row in sorted(rows, key=lambda row: (_layers(row[1]), -len(row[1]["tokens"]))):
        layers, cost = _layers(row[1]), {tokens: figures for tokens, *figures in _cost(row[1])}
        for known, figures, members in groups:
            if known == layers and all(figures.get(tokens) == cost[tokens] for tokens in cost):
                members.append(row)
                break
        else:
            groups.append((layers, cost, [row]))
    order = [name for name, _ in rows]
    return [(layers, sorted(members, key=lambda row: order.index(row[0]))) for layers, _, members in groups]


def _title(data: dict[str, Any]) -> str:
    return f"accuracy of the pruned model in %, {data['meta']['num_samples']} questions"


def _note(data: dict[str, Any], rows: Sequence[Row]) -> str:
    """Below the tables: the unpruned model, and how far the intervals reach."""
    halves = [
        (high - low) / 2
        for _, block in rows
        for low, high in zip(block["accuracy_low"], block["accuracy_high"], strict=True)
        if high - low == high - low  # not NaN, of a single document
    ]
    unpruned = [f"no pruning: {block['accuracies'][0]:.1%}" for name, block in rows if name == "none"]
    seeds = ["±: standard deviation over the seeds"] if any("seeds" in block for _, block in rows) else []
    reach = [f"95 % intervals: up to ±{100 * max(halves):.1f} points, each in the JSON"] if halves else []
    return "; ".join([*unpruned, *reach, *seeds, *_explained(data, rows)])


def _explained(data: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    """What the marks beside the accuracies say."""
    used = {name for _, block in rows for name in block.get("paired", {})}
    first, *others = [name for name in data["meta"].get("against", ()) if name in used] or [None]
    if first is None:
        return []
    said = [f"{_BETTER} {_WORSE}: better, worse than {first} at the same budget"]
    said += [f"{_SAME}: not told apart from {others[0]}"] if others else []
    return [*said, "paired tests with Holm's correction at 5 %"]


def _accuracy(data: dict[str, Any], block: dict[str, Any], budget: float, form: str, scale: float) -> str:
    """An accuracy with its marks; a mark's place stays free where there is none, so that figures stand in line."""
    value = _at(block, budget, "accuracies", form, scale)
    against = data["meta"].get("against", ())
    return value and value + "".join(_mark(block, budget, name, place) for place, name in enumerate(against[:2]))


def _mark(block: dict[str, Any], budget: float, against: str, place: int) -> str:
    tests = block.get("paired", {}).get(against)
    at = block["tokens"].index(budget)
    if tests is None or tests["adjusted_p"][at] is None:
        return " "
    different, difference = tests["adjusted_p"][at] < ALPHA, tests["difference"][at]
    if place == 0:
        return (_BETTER if difference > 0 else _WORSE) if different else " "
    return " " if different else _SAME


def _times(data: dict[str, Any], rows: Sequence[Row], budgets: Sequence[float]) -> Table:
    """Measured prefill against unpruned, selection in it, and the selection's own seconds."""
    documents = data["meta"]["timed_documents"]
    title = f"seconds to the first token against unpruned in %, {documents} documents (selection in ms)"
    table = _with_budgets(title, data, budgets)
    for name, block in sorted(rows, key=lambda row: _layers(row[1])):
        layer = "" if block["layer"] is None else f" {block['layer']}"
        table.add_row(name + layer, *(_time(block, budget) for budget in budgets))
    return table


def _time(block: dict[str, Any], budget: float) -> str:
    ratio = _at(block, budget, "prefill_ratio", "{:.0f}", 100)
    return ratio and f"{ratio} ({_at(block, budget, 'selection_seconds', '{:.1f}', 1000)})"


def _slower(data: dict[str, Any], rows: Sequence[Row]) -> str:
    """Says which points took longer than the unpruned model."""
    found = [
        f"{name}{_after(block)} at {budget_text(budget, data['meta'])} ({ratio:.2f})"
        for name, block in rows
        if name != "none"
        for budget, ratio in zip(block["tokens"], block["prefill_ratio"], strict=True)
        if ratio > 1
    ]
    if not found:
        return "no point was slower than the unpruned model"
    return f"slower than the unpruned model, with the selection in it: {'; '.join(found)}"


def _layers(block: dict[str, Any]) -> tuple[int, ...]:
    """The layers after which tokens leave, at the block's first budget."""
    plan = block["plans"][0]
    return tuple(stage["leave_after"] for stage in plan["stages"]) or ((EMBEDDINGS,) if "picture" in plan else ())


def _where(layers: Sequence[int]) -> str:
    if not layers:
        return "nothing leaves"
    inside = [layer for layer in layers if layer != EMBEDDINGS]
    before = "before layer 0" if len(inside) < len(layers) else ""
    after = f"after layer{'s' * (len(inside) > 1)} {', '.join(map(str, inside))}" if inside else ""
    return f"{before}, then {after}" if before and after else before or after


def _cost(block: dict[str, Any]) -> tuple[Any, ...]:
    figures = zip(block["tokens"], block["equivalent_tokens"], block["flops_ratio"], strict=True)
    return tuple((tokens, round(equivalent, 3), round(flops, 6)) for tokens, equivalent, flops in figures)


def _budgets(rows: Sequence[Row]) -> list[float]:
    return sorted({count for _, block in rows for count in block["tokens"]}, reverse=True)


def _named(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    return [row for row in rows if row[0] in names]


def _at(block: dict[str, Any], budget: float, figure: str, form: str = "{:.0%}", scale: float = 1) -> str:
    return form.format(scale * block[figure][block["tokens"].index(budget)]) if budget in block["tokens"] else ""


def _after(block: dict[str, Any]) -> str:
    return "" if block["layer"] is None else f" after layer {block['layer']}"
