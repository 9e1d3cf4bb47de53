"""A picture as the vision tower was given it: its geometry, and the pixels of its canvases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from lmms_textweighted.families.geometry import Box, Canvas, PictureGeometry, TokenGrid

Size = tuple[int, int]  # (width, height)


@dataclass(frozen=True)
class Pictured:
    """geometry: of one picture. pixels: of each of its canvases, [3, H, W], normalised as the tower takes them."""

    geometry: PictureGeometry
    pixels: tuple[torch.Tensor, ...]

    def images(self, processor: Any) -> tuple[Image.Image, ...]:
        """The canvases as pictures. processor: the one that made the pixels."""
        images = processor.image_processor
        return tuple(_image(pixels, images) for pixels in self.pixels)


def _image(pixels: torch.Tensor, images: Any) -> Image.Image:
    values = pixels.detach().float().cpu()
    if getattr(images, "do_normalize", True):
        mean, std = (torch.tensor(getattr(images, name), dtype=torch.float32) for name in ("image_mean", "image_std"))
        values = values * std[:, None, None] + mean[:, None, None]
    if not getattr(images, "do_rescale", True):
        values = values / 255
    rounded = (values.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(rounded.permute(1, 2, 0).numpy()))


def whole(size: Size) -> Box:
    """The box of all of a picture."""
    return (0, 0, size[0], size[1])


def stitched(tiles: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Crops [rows x columns, 3, H, W], row by row -> the canvas that they were cut from."""
    _, channels, height, width = tiles.shape
    grid = tiles.reshape(rows, columns, channels, height, width)
    return grid.permute(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)


def size_of(pixels: torch.Tensor) -> Size:
    """(width, height) of [3, H, W]."""
    return pixels.shape[-1], pixels.shape[-2]


def resized(size: Size, pixels: torch.Tensor, cell: int) -> Pictured:
    """A picture that was resized to the canvas, one token for every cell x cell pixels of it, row by row."""
    wide, tall = size_of(pixels)
    rows, columns = tall // cell, wide // cell
    canvas = Canvas((wide, tall), whole((wide, tall)), whole(size))
    grid = TokenGrid(rows, columns, 0, (0, 0, columns * cell, rows * cell))
    return Pictured(PictureGeometry(size, (canvas,), (grid,)), (pixels,))


def tiled(
    size: Size, tiles: torch.Tensor, rows: int, columns: int, side: int, *, content: Box | None = None
) -> Pictured:
    """A picture resized and cut into tiles of side x side tokens each, row by row, and behind them a view of the whole
    picture; or that view alone, where rows x columns is none or one.

    tiles: [tiles, 3, H, W]. content: of the whole view, where it is padded.
    """
    wide, tall = size_of(tiles[-1])
    view = Canvas((wide, tall), content or whole((wide, tall)), whole(size))
    if len(tiles) == 1:
        grid = TokenGrid(side, side, 0, whole((wide, tall)))
        return Pictured(PictureGeometry(size, (view,), (grid,)), (tiles[0],))
    cut = stitched(tiles[:-1], rows, columns)
    canvas = Canvas(size_of(cut), whole(size_of(cut)), whole(size), (rows, columns))
    grids = [
        TokenGrid(side, side, 0, (column * wide, row * tall, (column + 1) * wide, (row + 1) * tall))
        for row in range(rows)
        for column in range(columns)
    ]
    last = TokenGrid(side, side, 1, whole((wide, tall)))
    return Pictured(PictureGeometry(size, (canvas, view), (*grids, last)), (cut, tiles[-1]))


def merged_pictures(vision: Any, inputs: Any, sizes: Sequence[Size]) -> list[Pictured]:
    """Pictures of Qwen-VL and its kin, one after the other: one token for merge x merge patches. vision: the config."""
    if not sizes:
        return []
    patch, merge = vision.patch_size, vision.spatial_merge_size
    pixels = unmerged(inputs["pixel_values"], inputs["image_grid_thw"].tolist(), patch, merge)
    return [resized(size, one, patch * merge) for size, one in zip(sizes, pixels, strict=True)]


def unmerged(pixels: torch.Tensor, grids: Sequence[Sequence[int]], patch: int, merge: int) -> list[torch.Tensor]:
    """Qwen's patches -> each picture's pixels [3, H, W], of its first frame.

    pixels: [patches, 3 x frames x patch x patch], those of merge x merge neighbours one after the other. grids:
    (frames, rows, columns) of patches of each picture.
    """
    found, first = [], 0
    for frames, rows, columns in grids:
        count = frames * rows * columns
        part = pixels[first : first + count].reshape(
            frames, rows // merge, columns // merge, merge, merge, 3, -1, patch, patch
        )
        one = part[0, :, :, :, :, :, 0]  # rows, columns, row inside, column inside, channel, patch, patch
        found.append(one.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * patch, columns * patch))
        first += count
    return found
