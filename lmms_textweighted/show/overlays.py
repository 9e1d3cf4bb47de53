"""What is laid over a canvas: removed patches dimmed, scores as colours, borders, merged groups. Arrays and segments.

Every box is rounded to the canvas's pixels, so that neighbours share their edge and none overlap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lmms_textweighted.view.record import Place

PixelBox = tuple[int, int, int, int]
Segment = tuple[tuple[int, int], tuple[int, int]]

_PAPER = 255
_DIM = 0.82  # the share of white in what was removed
_GREY = np.array([0.299, 0.587, 0.114])


def boxes_on(places: Sequence[Place], picture: int, canvas: int) -> dict[int, PixelBox]:
    """The boxes of the image tokens that lie on one canvas, by their numbers."""
    return {
        token: _rounded(place.box)
        for token, place in enumerate(places)
        if place.box is not None and (place.picture, place.canvas) == (picture, canvas)
    }


def dimmed(pixels: np.ndarray, boxes: Mapping[int, PixelBox], kept: Iterable[int]) -> np.ndarray:
    """uint8 [H, W, 3] with what is in no kept token's box nearly white and grey.

    What no token stands for (rows of a grid that show only padding) was removed, too.
    """
    stays = np.zeros(pixels.shape[:2], dtype=bool)
    for token in set(kept) & set(boxes):
        left, top, right, bottom = boxes[token]
        stays[top:bottom, left:right] = True
    pale = (pixels @ _GREY)[..., None] * (1 - _DIM) + _PAPER * _DIM
    return np.where(stays[..., None], pixels, np.broadcast_to(pale, pixels.shape)).astype(np.uint8)


def grey(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] without colour, and pale, for what is laid over it."""
    pale = (pixels @ _GREY)[..., None] * 0.6 + _PAPER * 0.4
    return np.broadcast_to(pale, pixels.shape).astype(np.uint8)


def heat(shape: tuple[int, int], boxes: Mapping[int, PixelBox], scores: Mapping[int, float]) -> np.ma.MaskedArray:
    """The score of the token that each pixel belongs to, masked where none was scored. shape: (height, width)."""
    found = np.ma.masked_all(shape)
    for token in scores.keys() & boxes.keys():
        left, top, right, bottom = boxes[token]
        found[top:bottom, left:right] = scores[token]
    return found


def borders(boxes: Mapping[int, PixelBox], tokens: Iterable[int]) -> list[Segment]:
    """The edges of these tokens' boxes, without those between two of them."""
    seen: Counter[Segment] = Counter()
    for token in set(tokens) & set(boxes):
        left, top, right, bottom = boxes[token]
        seen[(left, top), (right, top)] += 1
        seen[(left, bottom), (right, bottom)] += 1
        seen[(left, top), (left, bottom)] += 1
        seen[(right, top), (right, bottom)] += 1
    return [segment for segment, times in seen.items() if times == 1]


def merged_into(sources: Sequence[Mapping[int, Sequence[int]]]) -> dict[int, set[int]]:
    """Which tokens went into each kept one, itself among them, over all stages. sources: of each stage, in order."""
    found: dict[int, set[int]] = {}
    for stage in sources:
        for to, of in stage.items():
            found[to] = {to}.union(*(found.get(token, {token}) for token in of))
    return found


def _rounded(box: tuple[float, float, float, float]) -> PixelBox:
    left, top, right, bottom = (int(edge + 0.5) for edge in box)
    return left, top, right, bottom
