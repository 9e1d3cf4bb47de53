"""A sweep's result as a page: its curves, its table, its documents."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from lmms_textweighted.experiment.files import blocks_of
from lmms_textweighted.experiment.names import SHARES, axis, budget_text
from lmms_textweighted.experiment.pairs import ALPHA
from lmms_textweighted.experiment.styles import styles
from lmms_textweighted.methods import label_of
from lmms_textweighted.page import Cell, Chart, Column, Curve, Curves, Documents, Figure, Page, Section, Shown, Table
from lmms_textweighted.view.record import DocumentView

MOST = 500  # documents of a page
Recorded = Iterable[tuple[DocumentView, Sequence[Sequence[str]]]]

# The block's lists, as the page calls them.
_FIGURES = (
    Figure("accuracies", "accuracy", "accuracy", percent=True, better="high"),
    Figure("exact_equality", "exact equality", "answers equal to the target", percent=True, better="high"),
    Figure("effective_ranks", "effective rank", "effective rank of the last layer"),
    Figure("numeric_ranks", "numeric rank", "numeric rank of the last layer"),
    Figure("equivalent_tokens", "equivalent tokens", "image tokens, mean over all layers", better="low"),
    Figure("flops_ratio", "FLOPs", "prefill FLOPs against unpruned", percent=True, better="low"),
    Figure("prefill_ratio", "measured time", "measured time to the first token against unpruned", True, "low"),
    Figure("prefill_seconds", "seconds", "measured seconds to the first token", better="low"),
    Figure("selection_seconds", "selection", "measured seconds of the selection", better="low"),
)
_COSTS = ("flops_ratio", "equivalent_tokens", "prefill_ratio")


def page_of(data: dict[str, Any], documents: Recorded, *, more: Sequence[Section] = ()) -> Page:
    """The page of `files.experiment_data`. more: sections behind its own."""
    meta = data["meta"]
    layers = meta["pruning_layer"]
    facts = [
        ("Model", f"{meta['checkpoint']} ({meta['model_type']})"),
        ("Task", str(meta["task"])),
        ("Documents", str(meta["num_samples"])),
        ("Pruned after", f"layers {', '.join(map(str, layers))}" if isinstance(layers, list) else f"layer {layers}"),
        ("Weights", f"{meta['dtype']} on {meta['device']}"),
    ]
    return Page(
        title=f"{meta['checkpoint']} on {meta['task']}",
        subtitle="What removing image tokens costs in accuracy, and what it saves.",
        facts=facts,
        sections=[*sections_of(data, documents), *more],
    )


def sections_of(data: dict[str, Any], documents: Recorded, *, of: str = "") -> list[Section]:
    """Curves, table and, where documents were recorded, the browser. of: said in the titles, where there are several
    results."""
    behind = f": {of}" if of else ""
    return [
        curves_of(data, f"Curves{behind}"),
        table_of(data, f"Table{behind}"),
        *documents_of(documents, f"Documents{behind}", data["meta"]["num_samples"]),
    ]


def documents_of(documents: Recorded, title: str, total: int = 0) -> list[Section]:
    """The browser, of as many documents as a page holds; nothing where there are none."""
    shown: list[Shown] = []
    count = 0
    for view, images in documents:
        count += 1
        if len(shown) < MOST:
            shown.append(Shown(view, images))
    return [Documents(title, shown, left_out=max(total, count) - len(shown))] if shown else []


def curves_of(data: dict[str, Any], title: str) -> Curves:
    """Every figure over the budgets, and accuracy over what it costs."""
    blocks = blocks_of(data)
    meta = data["meta"]
    look = styles([name for name, _ in blocks])
    figures = [figure for figure in _FIGURES if any(_known(block.get(figure.key)) for _, block in blocks)]
    known = [figure.key for figure in figures]
    several = len({name for name, _ in blocks}) < len(blocks)
    unit = axis(meta)
    budget = Figure("budget", unit, unit, percent=meta.get("budget") in SHARES, better="low", reversed=True)
    curves = []
    for name, block in blocks:
        values = {figure: _finite(block[figure]) for figure in known if figure in block}
        layer = f", layer {block['layer']}" if several and block["layer"] is not None else ""
        curves.append(
            Curve(
                name=f"{label_of(name)}{layer}",
                color=look[name][0],
                marker=look[name][1],
                values={"budget": block["tokens"], **values},
                low={"accuracies": _finite(block["accuracy_low"])},
                high={"accuracies": _finite(block["accuracy_high"])},
                points=[_point(tokens, meta) for tokens in block["tokens"]],
                single=name == "none",
            )
        )
    chance = [] if meta.get("chance") is None else [("chance", meta["chance"])]
    costs = [name for name in _COSTS if name in known]
    return Curves(
        title=title,
        figures=[budget, *figures],
        curves=curves,
        charts=[
            Chart("Over the budget", ["budget"], known, lines=chance),
            Chart("What accuracy costs", costs, ["accuracies"], front=True, lines=chance),
        ],
        notes=[
            "Bands and bars are 95 % intervals. The stepped line with rings is the Pareto front of the means: no other "
            "point is as cheap and more accurate.",
            *([_timed(meta)] if meta.get("timed_documents") else []),
        ],
    )


def table_of(data: dict[str, Any], title: str) -> Table:
    """A row a point, with its paired tests."""
    meta = data["meta"]
    blocks = blocks_of(data)
    against = [name for name in meta.get("against", ()) if any(name in b.get("paired", {}) for _, b in blocks)]
    layered = len({block["layer"] for name, block in blocks if name != "none"}) > 1
    extra = [
        (name, heading, form)
        for name, heading, form in (
            ("equivalent_tokens", "equivalent", "{:.0f}"),
            ("flops_ratio", "FLOPs", "{:.0%}"),
            ("numeric_ranks", "numeric rank", "{:.1f}"),
            ("effective_ranks", "effective rank", "{:.1f}"),
            ("prefill_ratio", "time", "{:.0%}"),
        )
        if any(_known(block.get(name)) for _, block in blocks)
    ]
    columns = [
        Column("strategy", number=False),
        *([Column("layer")] if layered else []),
        Column("budget"),
        Column("accuracy"),
        Column("95 % interval"),
        *(Column(label_of(name), group="difference in points against") for name in against),
        *(Column(heading) for _, heading, _ in extra),
    ]
    rows = []
    for name, block in blocks:
        for place, tokens in enumerate(block["tokens"]):
            low, high = block["accuracy_low"][place], block["accuracy_high"][place]
            interval = Cell(f"{low:.1%} – {high:.1%}", high - low) if low == low else Cell("–")
            layer = block["layer"]
            rows.append(
                [
                    Cell(label_of(name)),
                    *([Cell("own" if layer is None else str(layer), layer)] if layered else []),
                    Cell(budget_text(tokens, meta), tokens),
                    Cell(f"{block['accuracies'][place]:.1%}", block["accuracies"][place]),
                    interval,
                    *(_test(block.get("paired", {}).get(other), place) for other in against),
                    *(_number(block.get(figure), place, form) for figure, _, form in extra),
                ]
            )
    notes = [
        "Columns sort by a press on their heading.",
        *(
            [
                "▲ ▼ significantly better, worse than that strategy at the same budget; ≈ not told apart: paired "
                "tests of the same documents, Holm's correction, at 5 %."
            ]
            if against
            else []
        ),
    ]
    return Table(title, columns, rows, notes)


def _test(tests: dict[str, Any] | None, place: int) -> Cell:
    if tests is None or tests["adjusted_p"][place] is None:
        return Cell("–")
    difference, p = tests["difference"][place], tests["adjusted_p"][place]
    mark = "same" if p >= ALPHA else "better" if difference > 0 else "worse"
    return Cell(f"{100 * difference:+.1f}", difference, mark, f"{tests['test'][place]}, p = {p:.2g} after correction")


def _number(values: Sequence[float | None] | None, place: int, form: str) -> Cell:
    value = None if values is None else values[place]
    return Cell("–") if value is None or not math.isfinite(value) else Cell(form.format(value), value)


def _known(values: Sequence[float | None] | None) -> bool:
    return values is not None and any(value is not None for value in values)


def _finite(values: Sequence[float | None]) -> list[float | None]:
    return [value if value is not None and math.isfinite(value) else None for value in values]


def _point(tokens: float, meta: dict[str, Any]) -> str:
    counted = " tokens" if meta.get("budget", "keep_tokens") == "keep_tokens" else ""
    return budget_text(tokens, meta) + counted


def _timed(meta: dict[str, Any]) -> str:
    return f"Times are medians of {meta['timed_documents']} documents, each timed beside unpruned on this machine."
