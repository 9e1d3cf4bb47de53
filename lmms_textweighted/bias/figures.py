"""The figures of a choice in one document: each with its value, and what a random choice of as many tokens has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lmms_textweighted.bias import chance, measures
from lmms_textweighted.bias.looks import Look
from lmms_textweighted.bias.places import Places

BANDS = 8  # of the picture's rows and columns
PARTS = 10  # of the text


@dataclass(frozen=True)
class Kind:
    """What a figure is. name: in the JSON. heading: in tables. percent: a share, printed in %. says: its definition.
    random: how the value of a random choice is known."""

    name: str
    heading: str
    percent: bool
    says: str
    random: str


_COUNTED = "closed form: the share of the tokens that lie there"
_HYPER = "closed form: two independent choices of as many tokens"
_EVEN = "closed form: uniform weights"

KINDS: tuple[Kind, ...] = (
    Kind("edge", "edge", True, "kept tokens in the outermost rows and columns of their view", _COUNTED),
    Kind("middle", "middle", True, "kept tokens in the middle half of rows and columns", _COUNTED),
    Kind("column", "column", False, "mean column of the kept tokens, 0 left, 1 right", "closed form: the mean of all"),
    Kind("row", "row", False, "mean row of the kept tokens, 0 top, 1 bottom", "closed form: the mean of all"),
    Kind("padding", "padding", True, "kept tokens in letterbox padding", _COUNTED),
    Kind("base", "base view", True, "kept tokens of the whole picture's view, where it also comes in crops", _COUNTED),
    Kind(
        "strongest",
        "ten strongest",
        True,
        "share of the scores' sum on the ten strongest image tokens",
        "closed form: ten tokens drawn at random, 10 / I",
    ),
    Kind("first_word", "first token", True, "weight of the first text token that votes", _EVEN + ", 1 / T"),
    Kind("last_word", "last token", True, "weight of the last text token that votes", _EVEN + ", 1 / T"),
    Kind("word_centre", "centre", False, "centre of weight of the text, 0 first token, 1 last", _EVEN + ", 1/2"),
    Kind("question", "other question", True, "kept tokens that stay with another document's question", _HYPER),
    Kind("question_iou", "IoU", True, "the same two sets: common over united", _HYPER),
    Kind("same_place", "mirrored: place", True, "kept tokens whose places are kept in the mirrored picture", _HYPER),
    Kind("same_place_iou", "IoU", True, "the same two sets: common over united", _HYPER),
    Kind(
        "same_content", "mirrored: content", True, "kept tokens whose content is kept in the mirrored picture", _HYPER
    ),
    Kind("same_content_iou", "IoU", True, "the same two sets: common over united", _HYPER),
)
KIND = {kind.name: kind for kind in KINDS}

NO_PADDING = "no picture has padding"
NO_CROPS = "no picture comes as a whole and in crops"
NO_OTHER = "no other document has another question and as many pictures"
NOTHING_THERE = "no image token lies there"
NO_PICTURE = "the document has no picture"


@dataclass(frozen=True)
class Figure:
    """value, random: NaN where `reason` says why there is none."""

    value: float = math.nan
    random: float = math.nan
    reason: str = ""


@dataclass
class PointFigures:
    """Of one point in one document. rows, columns: share of the kept tokens in each of BANDS bands. words: weight in
    each of PARTS parts of the text, over uniform."""

    figures: dict[str, Figure] = field(default_factory=dict)
    rows: np.ndarray = field(default_factory=lambda: np.full(BANDS, np.nan))
    columns: np.ndarray = field(default_factory=lambda: np.full(BANDS, np.nan))
    words: np.ndarray = field(default_factory=lambda: np.full(PARTS, np.nan))


def groups_of(sizes: Sequence[int], keep_scope: str) -> np.ndarray:
    """What a random choice draws from, int [I]: each picture by itself, or with the scope `prompt` all together."""
    numbers = np.repeat(np.arange(len(sizes)), sizes)
    return numbers if keep_scope == "image" else np.zeros_like(numbers)


def figures_of(
    look: Look,
    places: Places | str,
    groups: np.ndarray,
    exchanged: Look | None,
    mirrored: Look,
) -> PointFigures:
    """A point's figures. places: of the image tokens, or why nobody knows them. groups: see `groups_of`. exchanged,
    mirrored: the point with another question, and with the pictures mirrored."""
    found = PointFigures()
    put = found.figures
    if look.kept is None:
        reason = look.why["kept"]
        for name in ("edge", "middle", "column", "row", "padding", "base", "question", "same_place", "same_content"):
            put[name] = Figure(reason=reason)
    else:
        _where(found, look.kept, places, groups)
        _question(put, look.kept, exchanged, groups)
        _mirror(put, look.kept, mirrored, places, groups)
    for name in ("question", "same_place", "same_content"):
        put.setdefault(f"{name}_iou", Figure(reason=put[name].reason))
    if look.scores is None:
        put["strongest"] = Figure(reason=look.why["scores"])
    else:
        count = len(look.scores)
        put["strongest"] = Figure(
            measures.strongest_share(look.scores), min(1.0, measures.STRONGEST / count) if count else math.nan
        )
    _words(found, look)
    return found


def _where(found: PointFigures, kept: np.ndarray, places: Places | str, groups: np.ndarray) -> None:
    if isinstance(places, str):
        for name in ("edge", "middle", "column", "row", "padding", "base"):
            found.figures[name] = Figure(reason=places)
        return
    placed = places.placed
    column, row = places.centres
    regions = (("edge", places.edge), ("middle", places.middle), ("padding", places.padded))
    for name, region in regions:
        found.figures[name] = Figure(
            measures.share_in(kept, region, placed),
            chance.expected_share(kept, region, groups, placed),
            "" if region.any() else {"padding": NO_PADDING}.get(name, NOTHING_THERE),
        )
    found.figures["base"] = Figure(
        measures.share_in(kept, places.base),
        chance.expected_share(kept, places.base, groups),
        "" if places.base.any() else NO_CROPS,
    )
    for name, coordinate in (("column", column), ("row", row)):
        found.figures[name] = Figure(
            measures.mean_place(kept, coordinate), chance.expected_mean(kept, coordinate, groups)
        )
    found.rows, found.columns = measures.bands(kept, row, BANDS), measures.bands(kept, column, BANDS)


def _question(put: dict[str, Figure], kept: np.ndarray, exchanged: Look | None, groups: np.ndarray) -> None:
    if exchanged is None or exchanged.kept is None:
        put["question"] = Figure(reason=NO_OTHER if exchanged is None else exchanged.why["kept"])
        return
    put["question_iou"], put["question"] = _overlaps(kept, exchanged.kept, groups)


def _mirror(put: dict[str, Figure], kept: np.ndarray, mirrored: Look, places: Places | str, groups: np.ndarray) -> None:
    if mirrored.kept is None or isinstance(places, str):
        reason = places if isinstance(places, str) else mirrored.why["kept"]
        put["same_place"] = put["same_content"] = Figure(reason=reason)
        return
    partners = places.mirrored()
    own, there = measures.with_partner(kept, partners), measures.with_partner(mirrored.kept, partners)
    among = partners >= 0
    put["same_place_iou"], put["same_place"] = _overlaps(own, there, groups, among)
    back = measures.turned_back(there, partners)
    put["same_content_iou"], put["same_content"] = _overlaps(own, back, groups, among)


def _overlaps(
    first: np.ndarray, second: np.ndarray, groups: np.ndarray, among: np.ndarray | None = None
) -> tuple[Figure, Figure]:
    measured = measures.overlap(first, second)
    random = chance.expected_overlap(first, second, groups, among)
    return Figure(measured[0], random[0]), Figure(measured[1], random[1])


def _words(found: PointFigures, look: Look) -> None:
    names = ("first_word", "last_word", "word_centre")
    if look.words is None:
        found.figures.update({name: Figure(reason=look.why["words"]) for name in names})
        return
    count = len(look.words)
    uniform = (1 / count, 1 / count, 0.5)
    values = measures.ends_and_centre(look.words)
    for name, value, random in zip(names, values, uniform, strict=True):
        found.figures[name] = Figure(value, random)
    found.words = measures.by_position(look.words, PARTS)
