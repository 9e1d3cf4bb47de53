"""Scenes of the embedded set: coloured shapes on a plain canvas, as JSON and as pixels.

A scene is a handful of objects, each with its own shape, its own colour and its own cell of a 3 x 3 grid. Every
attribute occurs at most once per scene, so each attribute names one object and any other attribute can be asked of it.
Objects are aligned to the 14 px patch grid of LLaVA-1.5's tower and 2 to 4 patches wide.

Pixels are computed here from each shape's inequality, with no drawing library, so a scene's bytes are the same on
every machine.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace

import numpy as np

IMAGE_SIZE = 336
PATCH_SIZE = 14
GRID = IMAGE_SIZE // PATCH_SIZE
CELL = GRID // 3

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "star", "moon")
COLORS = {
    "red": (220, 30, 30),
    "green": (30, 150, 40),
    "blue": (30, 60, 220),
    "yellow": (245, 225, 40),
    "orange": (245, 135, 20),
    "purple": (140, 40, 170),
    "black": (15, 15, 15),
    "white": (250, 250, 250),
}
PLACES = ("northwest", "north", "northeast", "west", "center", "east", "southwest", "south", "southeast")
ATTRIBUTES = {"shape": SHAPES, "color": tuple(COLORS), "place": PLACES}

MIN_OBJECTS, MAX_OBJECTS = 4, 6
MIN_WIDTH, MAX_WIDTH = 2, 4


@dataclass(frozen=True)
class Object:
    """One object: its attributes, its width in patches and its upper left patch (row, column) on the 24 x 24 grid."""

    shape: str
    color: str
    place: str
    width: int
    row: int
    column: int


@dataclass(frozen=True)
class Scene:
    """A plain background (a grey level, 0 to 255) and its objects."""

    background: int
    objects: tuple[Object, ...]

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> Scene:
        return cls(data["background"], tuple(Object(**item) for item in data["objects"]))

    def digest(self) -> str:
        """SHA-256 of the scene's canonical JSON: equal scenes, and only those, have equal digests."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def is_held_out(self) -> bool:
        """Whether the scene belongs to the test side: one scene in sixteen, decided by its digest alone.

        Training draws until it has a scene of the other side, so no test scene can be trained on, whatever the seeds.
        """
        return int(self.digest()[:2], 16) < 16


def random_scene(rng: np.random.Generator, *, held_out: bool) -> Scene:
    """A scene drawn from `rng`, on the asked side of the train/test split."""
    while True:
        scene = _draw_scene(rng)
        if scene.is_held_out() == held_out:
            return scene


def on_canvas(scene: Scene, rows: int, columns: int, rng: np.random.Generator) -> Scene:
    """The scene for a canvas of `rows` x `columns` patches: every object keeps its attributes and its cell, and is
    placed anew inside it. Both must be multiples of 3 and at least 18, so that the widest object fits into a cell."""
    cell_rows, cell_columns = rows // 3, columns // 3
    objects = []
    for item in scene.objects:
        cell_row, cell_column = divmod(PLACES.index(item.place), 3)
        row = cell_row * cell_rows + int(rng.integers(1, cell_rows - item.width))
        column = cell_column * cell_columns + int(rng.integers(1, cell_columns - item.width))
        objects.append(replace(item, row=row, column=column))
    return Scene(scene.background, tuple(objects))


def render(scene: Scene, rows: int = GRID, columns: int = GRID) -> np.ndarray:
    """The scene's pixels on a canvas of `rows` x `columns` patches: uint8, [14 rows, 14 columns, 3].

    A pixel is an object's when its centre satisfies the shape.
    """
    pixels = np.full((rows * PATCH_SIZE, columns * PATCH_SIZE, 3), scene.background, dtype=np.uint8)
    for item in scene.objects:
        side = item.width * PATCH_SIZE
        top, left = item.row * PATCH_SIZE, item.column * PATCH_SIZE
        pixels[top : top + side, left : left + side][_mask(item.shape, side)] = COLORS[item.color]
    return pixels


def patch_labels(scene: Scene, grid_rows: int = GRID, grid_columns: int = GRID) -> np.ndarray:
    """What each of the N = grid_rows x grid_columns patches shows: int64 [N, 3] of (shape, color, place) indices, -1
    where no object lies.

    The place of an empty patch is its cell all the same.
    """
    count = grid_rows * grid_columns
    rows, columns = np.divmod(np.arange(count), grid_columns)
    labels = np.full((count, 3), -1, dtype=np.int64)
    labels[:, 2] = (rows // (grid_rows // 3)) * 3 + columns // (grid_columns // 3)
    for item in scene.objects:
        inside = (rows >= item.row) & (rows < item.row + item.width)
        inside &= (columns >= item.column) & (columns < item.column + item.width)
        labels[inside, 0] = SHAPES.index(item.shape)
        labels[inside, 1] = ATTRIBUTES["color"].index(item.color)
    return labels


def _draw_scene(rng: np.random.Generator) -> Scene:
    count = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    shapes = rng.permutation(SHAPES)[:count]
    colors = rng.permutation(list(COLORS))[:count]
    places = rng.permutation(len(PLACES))[:count]
    objects = []
    for shape, color, place in zip(shapes, colors, places, strict=True):
        width = int(rng.integers(MIN_WIDTH, MAX_WIDTH + 1))
        cell_row, cell_column = divmod(int(place), 3)
        row, column = rng.integers(1, CELL - width, size=2)  # at least one empty patch around every object
        objects.append(
            Object(
                str(shape),
                str(color),
                PLACES[place],
                width,
                cell_row * CELL + int(row),
                cell_column * CELL + int(column),
            )
        )
    return Scene(int(rng.integers(150, 201)), tuple(objects))


def _mask(shape: str, side: int) -> np.ndarray:
    """Which of `side` x `side` pixels the shape covers, in coordinates from -1 to 1 with y pointing down."""
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(axis, axis)
    radius = np.hypot(x, y)
    if shape == "circle":
        return radius < 0.95
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) < 0.9
    if shape == "triangle":
        return (y < 0.9) & (2 * np.abs(x) < (y + 0.95))
    if shape == "diamond":
        return np.abs(x) + np.abs(y) < 0.98
    if shape == "cross":
        return (np.minimum(np.abs(x), np.abs(y)) < 0.3) & (np.maximum(np.abs(x), np.abs(y)) < 0.95)
    if shape == "ring":
        return (radius < 0.95) & (radius > 0.5)
    if shape == "star":
        # Five points: between two tips the edge is a straight line, which in polar form is a / cos(angle - offset).
        sector = 2 * np.pi / 5
        angle = np.mod(np.arctan2(x, -y) + sector / 2, sector) - sector / 2
        inner, outer = 0.4, 0.98
        edge_x, edge_y = inner * np.cos(sector / 2) - outer, inner * np.sin(sector / 2)
        local_x, local_y = radius * np.cos(angle) - outer, radius * np.abs(np.sin(angle))
        return edge_x * local_y - edge_y * local_x > 0
    if shape == "moon":
        return (radius < 0.95) & (np.hypot(x - 0.45, y) > 0.75)
    raise ValueError(f"unknown shape {shape!r}: use one of {', '.join(SHAPES)}")
