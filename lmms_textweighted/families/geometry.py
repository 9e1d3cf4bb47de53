"""Where a picture's tokens lie: which part of which image that the vision tower was given each of them stands for.

Boxes are (left, top, right, bottom), in pixels, right and bottom not included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Canvas:
    """One image that the tower was given; of a grid, all its crops put together again.

    size: (width, height). content: the part that shows the picture, the rest is padding. source: the part of the
    picture, in the pixels of its file, that is shown there. crops: (rows, columns) of the crops that it was cut into,
    None for a view of the whole picture.
    """

    size: tuple[int, int]
    content: Box
    source: Box
    crops: tuple[int, int] | None = None


@dataclass(frozen=True)
class TokenGrid:
    """Tokens that follow one another: rows x columns of a canvas's `box`, row by row.

    newlines: one more token behind each row that stands for no part of the picture. canvas None: rows x columns such
    tokens (a class token).
    """

    rows: int
    columns: int
    canvas: int | None = None
    box: Box = (0, 0, 0, 0)
    newlines: bool = False

    @property
    def tokens(self) -> int:
        return self.rows * (self.columns + self.newlines)


@dataclass(frozen=True)
class Place:
    """What one token stands for. picture: its number in the prompt. canvas, box: None for a newline or class token.

    crop: 0 in a view of the whole picture, else the crop that the box's middle is in, from 1 on, row by row.
    padding: the share of the box that shows nothing of the picture, in [0, 1].
    """

    picture: int
    canvas: int | None = None
    box: Box | None = None
    crop: int = 0
    padding: float = 0.0


@dataclass(frozen=True)
class PictureGeometry:
    """One picture of a prompt: its size (width, height), what the tower was given of it, and its tokens in order."""

    size: tuple[int, int]
    canvases: tuple[Canvas, ...]
    grids: tuple[TokenGrid, ...]

    @property
    def tokens(self) -> int:
        return sum(grid.tokens for grid in self.grids)

    def places(self, picture: int = 0) -> Iterator[Place]:
        """The place of each of its image tokens, in order. picture: its number in the prompt."""
        for grid in self.grids:
            for row in range(grid.rows):
                for column in range(grid.columns):
                    yield self._place(picture, grid, row, column)
                if grid.newlines:
                    yield Place(picture)

    def _place(self, picture: int, grid: TokenGrid, row: int, column: int) -> Place:
        if grid.canvas is None:
            return Place(picture)
        left, top, right, bottom = grid.box
        wide, tall = (right - left) / grid.columns, (bottom - top) / grid.rows
        box = (left + column * wide, top + row * tall, left + (column + 1) * wide, top + (row + 1) * tall)
        canvas = self.canvases[grid.canvas]
        return Place(picture, grid.canvas, box, _crop(canvas, box), 1 - covered(box, canvas.content))


def covered(box: Box, by: Box) -> float:
    """The share of a box's area that lies in another."""
    wide = max(0.0, min(box[2], by[2]) - max(box[0], by[0]))
    tall = max(0.0, min(box[3], by[3]) - max(box[1], by[1]))
    area = (box[2] - box[0]) * (box[3] - box[1])
    share = wide * tall / area if area else 0.0
    return 1.0 if share > 1 - 1e-9 else share


def _crop(canvas: Canvas, box: Box) -> int:
    if canvas.crops is None:
        return 0
    rows, columns = canvas.crops
    row = int((box[1] + box[3]) / 2 / canvas.size[1] * rows)
    column = int((box[0] + box[2]) / 2 / canvas.size[0] * columns)
    return 1 + min(row, rows - 1) * columns + min(column, columns - 1)
