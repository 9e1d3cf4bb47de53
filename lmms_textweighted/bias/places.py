"""Where a prompt's image tokens lie in its pictures, and which of them are edge, middle, padding, base view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmms_textweighted.families.geometry import PictureGeometry

_NEAR = 1e-6  # of a picture's side: what rounding leaves between two tokens that touch the same line


@dataclass(frozen=True)
class Places:
    """boxes: float64 [I, 4], each image token's (left, top, right, bottom) in its picture as the model was shown it,
    from 0 to 1; NaN for tokens that are of no part of the picture (a row's newline). picture: int [I], which one. base:
    bool [I], whether the token is of the whole picture's view, where that also comes in crops (else all are False).
    padding: float64 [I], which share of the token's box is padding around the picture."""

    boxes: np.ndarray
    picture: np.ndarray
    base: np.ndarray
    padding: np.ndarray

    def __len__(self) -> int:
        return len(self.picture)

    @property
    def placed(self) -> np.ndarray:
        """bool [I]: tokens that lie somewhere."""
        return np.isfinite(self.boxes[:, 0])

    @property
    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """(column, row), [I] each: the tokens' middles, from 0 (left, top) to 1."""
        left, top, right, bottom = self.boxes.T
        return (left + right) / 2, (top + bottom) / 2

    @property
    def edge(self) -> np.ndarray:
        """bool [I]: tokens of the outermost rows and columns of their view."""
        found = np.zeros(len(self), dtype=bool)
        for view in self._views():
            left, top, right, bottom = self.boxes[view].T
            found[view] = (
                (left <= left.min() + _NEAR)
                | (top <= top.min() + _NEAR)
                | (right >= right.max() - _NEAR)
                | (bottom >= bottom.max() - _NEAR)
            )
        return found

    @property
    def middle(self) -> np.ndarray:
        """bool [I]: tokens whose middle lies in the middle half of the rows and of the columns, a quarter of the
        picture."""
        column, row = self.centres
        with np.errstate(invalid="ignore"):
            return (abs(column - 0.5) < 0.25) & (abs(row - 0.5) < 0.25)

    @property
    def padded(self) -> np.ndarray:
        """bool [I]: tokens that are padding for half of their box or more."""
        return self.padding >= 0.5

    def mirrored(self) -> np.ndarray:
        """int [I]: for each token the one that lies at its place when the picture is mirrored left to right, of the
        same view; -1 where there is none, as for a newline."""
        partner = np.full(len(self), -1)
        for view in self._views():
            boxes = self.boxes[view]
            turned = boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0]
            half = (boxes[:, 2:] - boxes[:, :2]).min() / 2
            apart = abs(turned[:, None] - boxes[None]).max(axis=2)
            nearest = apart.argmin(axis=1)
            partner[view] = np.where(apart.min(axis=1) < half, view[nearest], -1)
        return partner

    def _views(self) -> list[np.ndarray]:
        """The placed tokens' indices, of each picture the base view's and the others'."""
        keys = 2 * self.picture + self.base
        return [np.flatnonzero(self.placed & (keys == key)) for key in np.unique(keys[self.placed])]


def places_of(pictures: Sequence[PictureGeometry]) -> Places:
    """The places of a prompt's image tokens. pictures: the prompt's, in order."""
    boxes, numbers, base, padding = [], [], [], []
    for number, picture in enumerate(pictures):
        cut = any(canvas.crops for canvas in picture.canvases)
        for place in picture.places(number):
            box = (np.nan,) * 4
            if place.box is not None and place.canvas is not None:
                wide, tall = picture.canvases[place.canvas].size
                left, top, right, bottom = place.box
                box = (left / wide, top / tall, right / wide, bottom / tall)
            boxes.append(box)
            numbers.append(number)
            base.append(cut and place.box is not None and place.crop == 0)
            padding.append(place.padding)
    return Places(
        np.asarray(boxes, dtype=float).reshape(-1, 4),
        np.asarray(numbers, dtype=int),
        np.asarray(base, dtype=bool),
        np.asarray(padding, dtype=float),
    )
