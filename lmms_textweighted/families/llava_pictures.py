"""Where a LLaVA's image tokens lie: CLIP's square, padded or cut, and the grids of LLaVA-NeXT and OneVision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from lmms_textweighted.errors import InputError
from lmms_textweighted.families.geometry import Box, Canvas, PictureGeometry, TokenGrid
from lmms_textweighted.families.pictured import Pictured, Size, size_of, stitched, whole

_EVEN = 1.1  # OneVision makes a grid's map smaller where it has this times the tokens that it may have, in length


def square_view(size: Size, image_processor: Any, *, padded: bool) -> Canvas:
    """One square (or other fixed size) of a picture, as CLIP's and SigLIP's image processors make it.

    padded: the picture was put in the middle of a square first, else its short side was resized and its middle cut out.
    """
    shown = (max(size), max(size)) if padded else size
    wanted = dict(image_processor.size)
    made = shown
    if not getattr(image_processor, "do_resize", True):
        pass
    elif wanted.get("shortest_edge"):
        short = wanted["shortest_edge"]
        wide, tall = shown
        # As transformers rounds the longer side.
        made = (short, int(short * tall / wide)) if wide <= tall else (int(short * wide / tall), short)
    else:
        made = (wanted["width"], wanted["height"])
    canvas = made
    if getattr(image_processor, "do_center_crop", False):
        canvas = (image_processor.crop_size["width"], image_processor.crop_size["height"])
    content, source = [], []
    for axis in (0, 1):
        first, scale = int((made[axis] - canvas[axis]) / 2), made[axis] / shown[axis]
        before = (shown[axis] - size[axis]) // 2  # of the square, in front of the picture
        # The picture's ends on the canvas, then what of it lies inside.
        ends = [(before + end) * scale - first for end in (0, size[axis])]
        inside = [min(max(end, 0), canvas[axis]) for end in ends]
        content.append(inside)
        source.append([(end + first) / scale - before for end in inside])
    return Canvas(canvas, _box(content), _box(source))


def one_square(
    size: Size, pixels: torch.Tensor, image_processor: Any, *, padded: bool, side: int, extra: int
) -> Pictured:
    """A picture of side x side tokens, behind `extra` that are no patch's."""
    canvas = square_view(size, image_processor, padded=padded)
    grids = (*_beside(extra), TokenGrid(side, side, 0, whole(canvas.size)))
    return Pictured(PictureGeometry(size, (canvas,), grids), (pixels,))


def anyres(
    size: Size,
    views: torch.Tensor,
    pinpoints: Sequence[Sequence[int]],
    patch: int,
    *,
    extra: int = 0,
    most: int | None = None,
    unpadded: bool = True,
    newlines: bool = True,
) -> Pictured:
    """A picture as one square, then as a grid of squares.

    views: [1 + squares, 3, H, W], maybe with padding behind. pinpoints: (height, width) of each resolution. most: the
    squares whose tokens a grid may have, where its map is made smaller (`anyres_max_9`). unpadded: rows and columns
    that show nothing of the picture are left out.
    """
    wide, tall = size_of(views)
    side = tall // patch
    rows, columns = get_anyres_image_grid_shape((size[1], size[0]), [list(pair) for pair in pinpoints], tall)
    cut = stitched(views[1 : 1 + rows * columns], rows, columns)
    full = size_of(cut)
    scale = min(full[0] / size[0], full[1] / size[1])
    fitted = (min(math.ceil(size[0] * scale), full[0]), min(math.ceil(size[1] * scale), full[1]))
    left, top = ((full[axis] - fitted[axis]) // 2 for axis in (0, 1))
    base = Canvas((wide, tall), whole((wide, tall)), whole(size))
    grid = Canvas(full, (left, top, left + fitted[0], top + fitted[1]), whole(size), (rows, columns))
    height, width = rows * side, columns * side
    box: Box = whole(full)
    if unpadded:
        _, height, width = unpad_image(torch.empty(1, height, width), (size[1], size[0])).shape
        above, before = (rows * side - height) // 2 * patch, (columns * side - width) // 2 * patch
        box = (before, above, before + width * patch, above + height * patch)
    if most is not None:
        ratio = math.sqrt(height * width / (most * side**2))
        if ratio > _EVEN:
            height, width = int(height // ratio), int(width // ratio)
    grids = (
        *_beside(extra),
        TokenGrid(side, side, 0, whole((wide, tall))),
        TokenGrid(height, width, 1, box, newlines=newlines),
    )
    return Pictured(PictureGeometry(size, (base, grid), grids), (views[0], cut))


def llava_pictures(config: Any, processor: Any, inputs: Any, sizes: Sequence[Size]) -> list[Pictured]:
    """Pictures of a LLaVA of transformers, one after the other. inputs: of a batch; sizes: of all its pictures."""
    images, ratio = processor.image_processor, getattr(processor, "image_aspect_ratio", None)
    ratio = ratio or getattr(images, "aspect_ratio", None) or ""
    inner = getattr(images, "image_processor", images)
    pixels = inputs["pixel_values"]
    vision = config.vision_config
    extra = int(getattr(config, "vision_feature_select_strategy", None) == "full" and _class_token(vision))
    if pixels.ndim == 4:
        side = pixels.shape[-1] // vision.patch_size
        return [
            one_square(size, one, inner, padded=ratio == "pad", side=side, extra=extra)
            for size, one in zip(sizes, pixels, strict=True)
        ]
    counts = inputs.get("batch_num_images")
    alone = [True] * len(sizes)  # OneVision cuts a prompt's only picture into a grid, but not several
    if counts is not None:
        alone = [count == 1 for count in torch.as_tensor(counts).tolist() for _ in range(count)]
    most = _most(config)
    return [
        anyres(size, views, config.image_grid_pinpoints, vision.patch_size, extra=extra, most=most)
        if cut
        else _square_with_newline(size, views[0], inner, vision.patch_size)
        for size, views, cut in zip(sizes, pixels, alone, strict=True)
    ]


def _square_with_newline(size: Size, pixels: torch.Tensor, image_processor: Any, patch: int) -> Pictured:
    made = one_square(size, pixels, image_processor, padded=True, side=pixels.shape[-1] // patch, extra=0)
    geometry = made.geometry
    return Pictured(PictureGeometry(size, geometry.canvases, (*geometry.grids, *_beside(1))), made.pixels)


def _beside(tokens: int) -> tuple[TokenGrid, ...]:
    return (TokenGrid(1, tokens),) if tokens else ()


def _class_token(vision: Any) -> bool:
    return "clip" in str(getattr(vision, "model_type", ""))


def _most(config: Any) -> int | None:
    """`anyres_max_9`: 9."""
    name = str(getattr(config, "vision_aspect_ratio", None) or "")
    return most_of(name)


def most_of(aspect_ratio: str) -> int | None:
    """The number in `anyres_max_9`; None for another name."""
    _, marked, number = aspect_ratio.partition("anyres_max_")
    return int(number) if marked and number.isdigit() else None


def package_pictures(config: Any, side: int, processor: Any, inputs: Any, sizes: Sequence[Size]) -> list[Pictured]:
    """Pictures of a model of the `llava` package. side: tokens of a square's side.

    Raises InputError for a way of putting squares together that is not known here.
    """
    merge, ratio = getattr(config, "mm_patch_merge_type", "flat"), processor.image_aspect_ratio
    made = []
    for size, pixels in zip(sizes, _of_prompts_with_pictures(inputs, len(sizes)), strict=True):
        if pixels.ndim == 3:
            newline = "unpad" in merge  # behind a picture of one square, too
            one = one_square(size, pixels, processor.image_processor, padded=ratio == "pad", side=side, extra=0)
            grids = (*one.geometry.grids, *_beside(int(newline)))
            made.append(Pictured(PictureGeometry(size, one.geometry.canvases, grids), one.pixels))
            continue
        pinpoints = [(tall, wide) for wide, tall in processor.grid_pinpoints]
        patch = pixels.shape[-1] // side
        if merge == "flat":
            made.append(_flat(anyres(size, pixels, pinpoints, patch, unpadded=False, newlines=False), side))
        elif merge in ("spatial", "spatial_unpad"):
            unpad = merge == "spatial_unpad"
            most = most_of(ratio) if unpad else None
            made.append(anyres(size, pixels, pinpoints, patch, most=most, unpadded=unpad, newlines=unpad))
        else:
            raise InputError(f"mm_patch_merge_type is {merge!r}: where its tokens lie in the picture is not known here")
    return made


def _of_prompts_with_pictures(inputs: Any, count: int) -> list[torch.Tensor]:
    """The package takes a picture for a prompt without one, too, and leaves it out."""
    given = list(inputs["images"])
    tags = (inputs["input_ids"] == -200).sum(dim=1).tolist()
    found, first = [], 0
    for number in tags:
        found += given[first : first + number]
        first += max(1, number)
    if len(found) != count:
        raise InputError(f"the prompts have {len(found)} pictures, but {count} are given: give one for each <image>")
    return found


def _flat(made: Pictured, side: int) -> Pictured:
    """The same squares, one after the other instead of row by row through all of them."""
    geometry = made.geometry
    base, grid = geometry.canvases
    rows, columns = grid.crops or (1, 1)
    wide, tall = grid.size[0] / columns, grid.size[1] / rows
    grids = [
        TokenGrid(side, side, 1, (column * wide, row * tall, (column + 1) * wide, (row + 1) * tall))
        for row in range(rows)
        for column in range(columns)
    ]
    return Pictured(PictureGeometry(geometry.size, (base, grid), (geometry.grids[0], *grids)), made.pixels)


def _box(axes: list[list[float]]) -> Box:
    (left, right), (top, bottom) = axes
    return (left, top, right, bottom)
