"""LLaVA's own image preparation: the pixels that the `llava` package's `process_images` gives, for any checkpoint.

    pad       a square with the picture in the middle, the mean colour around it
    square    the image processor's own way: the short side resized, the middle cut out
    anyres    LLaVA-NeXT: the whole picture squeezed into one square, then the squares of a grid that it is fitted into

A transformers processor does `square` for LLaVA-1.5, whose weights were trained on `pad`.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, CLIPImageProcessor
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_processing_utils import select_best_resolution
from transformers.image_utils import make_flat_list_of_images

from lmms_textweighted.errors import InputError, unknown

ASPECT_RATIOS = ("pad", "square", "anyres")


def check_aspect_ratio(name: str) -> str:
    """The name as `prepare_images` takes it; InputError with the nearest one if there is none such.

    `original`, which some of lmms-eval's tasks give, is `square`: the package treats every name so that it does not
    know. `anyres_max_9` is a name of its own, because a model may cap its tokens by it; its pixels are those of
    `anyres`.
    """
    if name == "original":
        return "square"
    if name not in ASPECT_RATIOS and not re.fullmatch(r"anyres_max_[1-9]\d*", str(name)):
        raise InputError(unknown("image_aspect_ratio", name, ASPECT_RATIOS))
    return name


def prepare_images(
    images: Sequence[Image.Image], image_processor: Any, aspect_ratio: str, grid_pinpoints: Any = None
) -> list[torch.Tensor]:
    """One tensor a picture: [C, H, W], or for anyres [1 + squares of its grid, C, H, W], the whole picture first.

    image_processor: a CLIPImageProcessor. grid_pinpoints, for anyres: the resolutions [[width, height], …] in pixels,
    that list as a string, or LLaVA-NeXT's `(1x1),...,(6x6)` in squares. Raises InputError for an unknown aspect ratio,
    for anyres without a grid and for a grid that cannot be read.
    """
    aspect_ratio = check_aspect_ratio(aspect_ratio)
    if aspect_ratio.startswith("anyres"):
        grid = _grid(grid_pinpoints, image_processor.crop_size["height"])
        return [_pixels(_views(image, image_processor, grid), image_processor) for image in images]
    if aspect_ratio == "pad":
        # Cut down as the package does it, not rounded.
        colour = tuple(int(value * 255) for value in image_processor.image_mean)
        images = [_padded(image, colour) for image in images]
    return list(_pixels(images, image_processor)) if images else []


class LlavaImageProcessor(ImageProcessingMixin):
    """`prepare_images` in the place of a transformers processor's image processor, which it asks for all else.

    image_processor: a CLIPImageProcessor. grid_pinpoints: as `prepare_images` takes it, width first.

    In a LlavaProcessor (pad, square) it gives pixel_values [N, C, H, W]; in a LlavaNextProcessor (anyres) pixel_values
    [N, most views, C, H, W], zeros behind a picture's last view, and image_sizes [N, 2], height first.
    """

    def __init__(self, image_processor: Any, aspect_ratio: str, grid_pinpoints: Any = None) -> None:
        super().__init__()
        self.image_processor = image_processor
        self.aspect_ratio = check_aspect_ratio(aspect_ratio)
        self.grid = _grid(grid_pinpoints, image_processor.crop_size["height"]) if self._has_views else None

    def __call__(self, images: Any, return_tensors: Any = None, **kwargs: Any) -> BatchFeature:
        """images: a picture, a list of them, or a list of such lists. Raises InputError for a setting given on call."""
        kwargs.pop("do_pad", None)  # a LlavaNextProcessor always says it: the views are padded here
        if kwargs:
            raise InputError(f"{', '.join(kwargs)} cannot be set on call: the pictures are prepared as LLaVA does it")
        pictures: Any = make_flat_list_of_images(images)
        for picture in pictures:
            if not isinstance(picture, Image.Image):
                raise InputError(f"a picture is a {type(picture).__name__}: LLaVA's preparation takes PIL images only")
        pixels = prepare_images(pictures, self.image_processor, self.aspect_ratio, self.grid)
        if not self._has_views:
            return BatchFeature({"pixel_values": torch.stack(pixels)}, tensor_type=return_tensors)
        data = {
            "pixel_values": torch.nn.utils.rnn.pad_sequence(pixels, batch_first=True),
            "image_sizes": [(picture.height, picture.width) for picture in pictures],
        }
        return BatchFeature(data, tensor_type=return_tensors)

    preprocess = __call__

    @property
    def image_grid_pinpoints(self) -> list[list[int]] | None:
        """The grid as transformers has it, [[height, width], …]: a LLaVA-NeXT model's config needs the same list.

        The package's is [[width, height], …]. Where one was taken for the other, a picture that fits a wide and a tall
        grid equally well is cut in one way and put together in the other.
        """
        return [[height, width] for width, height in self.grid] if self.grid else None

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "image_sizes"] if self._has_views else ["pixel_values"]

    @property
    def _has_views(self) -> bool:
        return self.aspect_ratio.startswith("anyres")

    def to_dict(self) -> dict[str, Any]:
        """The image processor's settings and ours. Its type stays, so that transformers can load what is saved."""
        ours = {"image_aspect_ratio": self.aspect_ratio, "image_grid_pinpoints": self.image_grid_pinpoints}
        return {**self.image_processor.to_dict(), **ours}

    def __getattr__(self, name: str) -> Any:
        if name == "image_processor":  # not there yet: a copy asks before it is filled
            raise AttributeError(name)
        return getattr(self.image_processor, name)


def _pixels(images: Sequence[Image.Image], image_processor: Any) -> torch.Tensor:
    return image_processor.preprocess(list(images), return_tensors="pt")["pixel_values"]


def _padded(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    if image.width == image.height:
        return image
    if image.mode not in ("RGB", "RGBA"):
        # The package fails here, or takes the colour for another: it is given RGB by its own scripts.
        image = image.convert("RGBA" if "A" in image.mode or "transparency" in image.info else "RGB")
    side = max(image.size)
    square = Image.new(image.mode, (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _views(image: Image.Image, image_processor: Any, grid: list[tuple[int, int]]) -> list[Image.Image]:
    """The whole picture as a square, then the squares of the best resolution, row by row."""
    height, width = select_best_resolution((image.height, image.width), [(tall, wide) for wide, tall in grid])
    scale = min(width / image.width, height / image.height)
    # PIL's default filter, not the image processor's: the package names none.
    fitted = image.resize((min(math.ceil(image.width * scale), width), min(math.ceil(image.height * scale), height)))
    canvas = Image.new("RGB", (width, height))
    canvas.paste(fitted, ((width - fitted.width) // 2, (height - fitted.height) // 2))
    edge, side = image_processor.size["shortest_edge"], image_processor.crop_size["height"]
    corners = [(left, top) for top in range(0, height, side) for left in range(0, width, side)]
    return [image.resize((edge, edge)), *(canvas.crop((x, y, x + side, y + side)) for x, y in corners)]


def _grid(pinpoints: Any, side: int) -> list[tuple[int, int]]:
    """(width, height) of each resolution in pixels. side: of one square."""
    if not pinpoints:
        raise InputError("image_aspect_ratio=anyres needs image_grid_pinpoints, and the checkpoint names none: use pad")
    try:
        if isinstance(pinpoints, str) and "x" in pinpoints:
            grid = _grid_of_squares(pinpoints, side)
        else:
            pairs = ast.literal_eval(pinpoints) if isinstance(pinpoints, str) else pinpoints
            grid = [(int(width), int(height)) for width, height in pairs]
        if min(min(pair) for pair in grid) < 1:
            raise ValueError("a resolution is not positive")
    except (ValueError, TypeError, SyntaxError, IndexError) as error:
        raise InputError(
            f"image_grid_pinpoints is {str(pinpoints)[:80]!r}: give [[width, height], …] in pixels, or (1x1),...,(6x6)"
        ) from error
    return grid


def _grid_of_squares(pinpoints: str, side: int) -> list[tuple[int, int]]:
    """`(1x2),(2x2)`: width x height, in squares; with `...` all from the first to the last."""
    counts = [(int(wide), int(tall)) for wide, tall in re.findall(r"\((\d+)x(\d+)\)", pinpoints.replace(" ", ""))]
    if "..." in pinpoints:
        (least_wide, least_tall), (most_wide, most_tall) = counts[0], counts[-1]
        counts = [(w, h) for w in range(least_wide, most_wide + 1) for h in range(least_tall, most_tall + 1)]
    return [(wide * side, tall * side) for wide, tall in counts]


def plain_image_processor(image_processor: Any) -> Any:
    """CLIP's preparation of one square tile, with this processor's numbers."""
    if isinstance(image_processor, LlavaImageProcessor):
        return image_processor.image_processor
    if type(image_processor).__name__.startswith("CLIP"):
        return image_processor
    names = (
        "size",
        "crop_size",
        "image_mean",
        "image_std",
        "resample",
        "rescale_factor",
        "do_center_crop",
        "do_resize",
    )
    return CLIPImageProcessor(**{name: getattr(image_processor, name) for name in names})
