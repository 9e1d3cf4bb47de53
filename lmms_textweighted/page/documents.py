"""Documents as the page holds them: an index of all, and for each one data of its own that is read when it is shown.

Points (a strategy after a layer with a seed at a budget) stand once in the index. A document names its kept sets, its
numbers and its answers by their places in its own tables, which are those of `view.compact`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lmms_textweighted.view.compact import to_data
from lmms_textweighted.view.record import DocumentView, StrategyView

if TYPE_CHECKING:
    from lmms_textweighted.page.sections import Documents, Shown

UNPRUNED = "none"
# Of a document at a point, in one digit: what the answer is, and whether it is another one than unpruned.
WRONG, RIGHT, UNKNOWN, CHANGED, ABSENT = 0, 1, 2, 4, 8
_SHOWN = 160  # characters of a question in the list


def index_of(section: Documents) -> dict[str, Any]:
    """What is read at once: the points and, a document each, its question's beginning and what every point answered."""
    points = points_of([shown.view for shown in section.documents])
    places = {key: place for place, key in enumerate(points)}
    labels = {s.strategy: s.label for shown in section.documents for s in shown.view.strategies}
    names = ("strategy", "layer", "budget", "unit", "seed")
    return {
        "points": [dict(zip(names, key, strict=True)) for key in points],
        "labels": labels,
        "documents": [
            {"uid": view.uid, "question": view.question[:_SHOWN], "codes": "".join(codes_of(view, places))}
            for view in (shown.view for shown in section.documents)
        ],
        "left_out": section.left_out,
        "notes": list(section.notes),
    }


def points_of(views: Sequence[DocumentView]) -> list[tuple[Any, ...]]:
    """The keys of all points of these documents: the unpruned first, then strategies in their order, large budgets
    before small ones."""
    found: dict[tuple[Any, ...], None] = {}
    for view in views:
        for strategy in view.strategies:
            found.setdefault(strategy.key)
    order = list(dict.fromkeys(key[0] for key in found))

    def rank(key: tuple[Any, ...]) -> tuple[Any, ...]:
        strategy, layer, budget, _, seed = key
        return (
            strategy != UNPRUNED,
            order.index(strategy),
            -1 if layer is None else layer,
            -1 if seed is None else seed,
            float("-inf") if budget is None else -budget,
        )

    return sorted(found, key=rank)


def codes_of(view: DocumentView, places: dict[tuple[Any, ...], int]) -> Iterator[str]:
    """A digit a point."""
    by_place = {places[strategy.key]: strategy for strategy in view.strategies}
    whole = next((strategy for strategy in view.strategies if strategy.strategy == UNPRUNED), None)
    for place in range(len(places)):
        yield str(_code(by_place.get(place), whole))


def _code(strategy: StrategyView | None, whole: StrategyView | None) -> int:
    if strategy is None:
        return ABSENT
    code = UNKNOWN if strategy.right is None else RIGHT if strategy.right else WRONG
    changed = whole is not None and strategy.answer.strip() != whole.answer.strip()
    return code + CHANGED * changed


def detail_of(shown: Shown, points: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    """Everything of one document, as `view.compact` has it, with what repeats in a table of its own."""
    data = to_data(shown.view)
    stages: list[Any] = []
    answers: list[str] = []
    found: dict[tuple[Any, ...], list[Any]] = {}
    for strategy, entry in zip(shown.view.strategies, data["strategies"], strict=True):
        smaller = {"pictures": entry["pictures"]} if "pictures" in entry else {}
        found[strategy.key] = [
            _place(answers, strategy.answer),
            strategy.right,
            strategy.score,
            [_place(stages, stage) for stage in entry["stages"]],
            [_rounded(strategy.figures.get(name)) for name in FIGURES],
            *([smaller["pictures"]] if smaller else []),
        ]
    return {
        **{name: data[name] for name in ("question", "choices", "target", "pieces", "after", "pictures", "numbers")},
        "texts": data["texts"],
        "reference": data["reference"],
        "images": [list(images) for images in shown.images],
        "answers": answers,
        "stages": stages,
        "points": [found.get(key) for key in points],
    }


FIGURES = ("kept_tokens", "equivalent_tokens", "flops_ratio")


def _place(table: list[Any], entry: Any) -> int:
    if entry not in table:
        table.append(entry)
    return table.index(entry)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
