"""A document's view as compact JSON data and back.

Sets of image tokens are bitmaps in base64, the first token in the highest bit of the first byte. Numbers one a token
are 8-bit codes in base64 between the least (0) and the largest (255) of them, so that what is read differs from what
was measured by at most (largest - least) / 510. What several strategies or budgets share stands once in the document's
tables, and is named by its place there.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any

import numpy as np

from lmms_textweighted.families.geometry import Canvas, PictureGeometry, TokenGrid
from lmms_textweighted.view.record import DocumentView, StageView, StrategyView, places_of

FORMAT = 1
CODES = 255
_PLAIN = ("strategy", "budget", "budget_unit", "pruning_layer", "seed", "answer", "right", "score")
_DEFAULTS = {one.name: one.default for one in fields(StrategyView) if one.name in _PLAIN and one.default is not MISSING}


def to_data(view: DocumentView) -> dict[str, Any]:
    """The view as data that `json` takes; see docs/show.md for its keys."""
    tables = _Tables()
    count = len(view.places)
    return {
        "format": FORMAT,
        "uid": view.uid,
        "reference": view.reference,
        "question": view.question,
        "choices": list(view.choices),
        "target": view.target,
        "pieces": list(view.pieces),
        "after": view.after,
        "pictures": [_picture_data(picture) for picture in view.pictures],
        "strategies": [_strategy_data(strategy, count, tables) for strategy in view.strategies],
        "labels": {strategy.strategy: strategy.label for strategy in view.strategies},
        "figures": tables.figures,
        "numbers": tables.numbers,
        "texts": tables.texts,
    }


def from_data(data: dict[str, Any]) -> DocumentView:
    """The view again. Raises KeyError, TypeError or ValueError for what `to_data` cannot have made."""
    if data["format"] != FORMAT:
        raise ValueError(f"its format is {data['format']!r}, known is {FORMAT}")
    pictures = tuple(_picture(picture) for picture in data["pictures"])
    count = sum(picture.tokens for picture in pictures)
    return DocumentView(
        uid=data["uid"],
        question=data["question"],
        choices=tuple(data["choices"]),
        target=data["target"],
        pictures=pictures,
        pieces=tuple(data["pieces"]),
        after=data["after"],
        strategies=tuple(_strategy(strategy, count, data) for strategy in data["strategies"]),
        reference=data["reference"],
    )


class _Tables:
    """What several entries share, each kept once."""

    def __init__(self) -> None:
        self.numbers: list[dict[str, Any]] = []
        self.texts: list[list[int]] = []
        self.figures: list[str] = []

    def number(self, values: Sequence[float]) -> int:
        return _place(self.numbers, to_codes(values))

    def figure(self, figures: dict[str, float]) -> list[float | None]:
        """The values in the order of the names, None for one that is not among them. Four digits do."""
        self.figures += [name for name in figures if name not in self.figures]
        return [_short(figures[name]) if name in figures else None for name in self.figures]

    def text(self, pieces: Sequence[int]) -> int:
        return _place(self.texts, list(pieces))


def _place(table: list[Any], entry: Any) -> int:
    if entry not in table:
        table.append(entry)
    return table.index(entry)


def to_bitmap(chosen: Sequence[int], count: int) -> str:
    """A set of the numbers 0 … count - 1."""
    bits = np.zeros(count, dtype=bool)
    bits[list(chosen)] = True
    return base64.b64encode(np.packbits(bits).tobytes()).decode("ascii")


def from_bitmap(text: str, count: int) -> tuple[int, ...]:
    """The set again, ascending."""
    found = np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=count)
    return tuple(np.flatnonzero(found).tolist())


def to_codes(values: Sequence[float]) -> dict[str, Any]:
    """{"least", "largest", "codes"}. Raises ValueError for a value that is not finite."""
    numbers = np.asarray(values, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("a score or a weight is not finite")
    least, largest = (float(numbers.min()), float(numbers.max())) if len(numbers) else (0.0, 0.0)
    span = largest - least
    codes = np.round((numbers - least) / span * CODES) if span else np.zeros(len(numbers))
    return {
        "least": least,
        "largest": largest,
        "codes": base64.b64encode(codes.astype(np.uint8).tobytes()).decode("ascii"),
    }


def from_codes(data: dict[str, Any]) -> tuple[float, ...]:
    """The numbers again, to 1/510 of their span."""
    codes = np.frombuffer(base64.b64decode(data["codes"]), dtype=np.uint8)
    return tuple((data["least"] + codes * ((data["largest"] - data["least"]) / CODES)).tolist())


def _picture_data(picture: PictureGeometry) -> dict[str, Any]:
    return {
        "size": list(picture.size),
        "canvases": [
            {
                "size": list(canvas.size),
                "content": _round(canvas.content),
                "source": _round(canvas.source),
                "crops": canvas.crops and list(canvas.crops),
            }
            for canvas in picture.canvases
        ],
        "grids": [
            [grid.canvas, grid.rows, grid.columns, _round(grid.box), int(grid.newlines)] for grid in picture.grids
        ],
    }


def _picture(data: dict[str, Any]) -> PictureGeometry:
    return PictureGeometry(
        size=_pair(data["size"]),
        canvases=tuple(
            Canvas(
                size=_pair(canvas["size"]),
                content=_box(canvas["content"]),
                source=_box(canvas["source"]),
                crops=canvas["crops"] and _pair(canvas["crops"]),
            )
            for canvas in data["canvases"]
        ),
        grids=tuple(
            TokenGrid(rows, columns, canvas, _box(box), bool(newlines))
            for canvas, rows, columns, box, newlines in data["grids"]
        ),
    )


def _strategy_data(strategy: StrategyView, count: int, tables: _Tables) -> dict[str, Any]:
    if strategy.pictures is not None:
        count = len(places_of(strategy.pictures))
    stages, before = [], tuple(range(count))
    for stage in strategy.stages:
        stages.append(
            {
                "layer": stage.layer,
                "kept": to_bitmap(stage.kept, count),
                # Left out where those are scored that the stage before it kept: always, but for plans by hand.
                **({} if stage.candidates == before else {"candidates": to_bitmap(stage.candidates, count)}),
                **({} if stage.scores is None else {"scores": tables.number(stage.scores)}),
                **({"text": tables.text(stage.text), "weights": tables.number(stage.weights)} if stage.weights else {}),
                **({"sources": {str(to): list(of) for to, of in stage.sources.items()}} if stage.sources else {}),
            }
        )
        before = stage.kept
    data = {name: getattr(strategy, name) for name in _PLAIN}
    # What is as it is by default is left out: there are thousands of these.
    data = {name: value for name, value in data.items() if name not in _DEFAULTS or value != _DEFAULTS[name]}
    data.update(figures=tables.figure(strategy.figures), stages=stages)
    if strategy.pictures is not None:
        data["pictures"] = [_picture_data(picture) for picture in strategy.pictures]
    return data


def _strategy(data: dict[str, Any], count: int, document: dict[str, Any]) -> StrategyView:
    pictures = None
    if "pictures" in data:
        pictures = tuple(_picture(picture) for picture in data["pictures"])
        count = sum(picture.tokens for picture in pictures)
    stages, before = [], tuple(range(count))
    for stage in data["stages"]:
        kept = from_bitmap(stage["kept"], count)
        stages.append(
            StageView(
                layer=stage["layer"],
                kept=kept,
                candidates=from_bitmap(stage["candidates"], count) if "candidates" in stage else before,
                scores=from_codes(document["numbers"][stage["scores"]]) if "scores" in stage else None,
                text=tuple(document["texts"][stage["text"]]) if "text" in stage else (),
                weights=from_codes(document["numbers"][stage["weights"]]) if "weights" in stage else (),
                sources={int(to): tuple(of) for to, of in stage.get("sources", {}).items()},
            )
        )
        before = kept
    figures = zip(document["figures"], data["figures"], strict=False)  # names that came with later ones are at the end
    return StrategyView(
        **{name: data[name] if name not in _DEFAULTS else data.get(name, _DEFAULTS[name]) for name in _PLAIN},
        label=document["labels"][data["strategy"]],
        stages=tuple(stages),
        figures={name: value for name, value in figures if value is not None},
        pictures=pictures,
    )


def _short(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(f"{value:.4g}")


def _round(box: Sequence[float]) -> list[float]:
    """Thousandths of a pixel do."""
    return [int(value) if float(value).is_integer() else round(float(value), 3) for value in box]


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second


def _box(values: Sequence[float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = values
    return left, top, right, bottom
