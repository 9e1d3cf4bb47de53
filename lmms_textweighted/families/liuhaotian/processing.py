"""Texts and pictures -> model inputs, as the original `llava` package makes them.

A prompt is cut at its `<image>` tags and each piece is tokenized by itself; the pictures are prepared by
`images.prepare_images`. The two processors differ in what stands for a picture in the ids: one tag of -200, which the
package's models splice themselves, or an id for every image token, as transformers' models have it.
"""

from __future__ import annotations

import copy
from typing import Any

import jinja2
import torch
from transformers import BatchFeature
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from lmms_textweighted.errors import InputError
from lmms_textweighted.families.base import IMAGE_TAG_ID
from lmms_textweighted.families.images import LlavaImageProcessor, check_aspect_ratio, prepare_images
from lmms_textweighted.families.pieces import llava_pieces, padded
from lmms_textweighted.prompts import IMAGE_TAG


class LiuhaotianProcessor:
    """What both share. aspect_ratio: `pad`, `square` or `anyres`; for that, grid_pinpoints: [width, height] pairs."""

    def __init__(
        self, tokenizer: Any, image_processor: Any, aspect_ratio: str, grid_pinpoints: Any, config: Any
    ) -> None:
        self.tokenizer, self.image_processor, self.config = tokenizer, image_processor, config
        self.grid_pinpoints = grid_pinpoints
        self.image_aspect_ratio = self.check_aspect_ratio(aspect_ratio)

    def check_aspect_ratio(self, name: str) -> str:
        """The name itself. Raises InputError for an unknown one, and for one that the model cannot take."""
        if "anyres" in check_aspect_ratio(name) and not self.grid_pinpoints:
            raise InputError(f"image_aspect_ratio is {name!r}, but this checkpoint takes pad or square: it has no grid")
        return check_aspect_ratio(name)

    def __call__(self, images: Any = None, text: Any = None, **_: Any) -> BatchFeature:
        """Model inputs of a batch of prompts, padded on the left. images: one, a flat list, or a list a prompt."""
        raise NotImplementedError

    @property
    def chat_template(self) -> Any:
        return getattr(self.tokenizer, "chat_template", None)

    def apply_chat_template(self, messages: Any, **kwargs: Any) -> str:
        """The tokenizer's template, whether it takes a message's pieces or, as a text model's, its text with tags."""
        pieces = [piece for message in messages for piece in message["content"]]
        tags = sum(1 if piece["type"] == "image" else piece["text"].count(IMAGE_TAG) for piece in pieces)
        try:
            rendered = self.tokenizer.apply_chat_template(messages, **kwargs)
        except (TypeError, jinja2.TemplateError):  # a text model's template joins strings
            rendered = ""
        if rendered.count(IMAGE_TAG) == tags and rendered and "{'type'" not in rendered:
            return rendered
        return self.tokenizer.apply_chat_template(
            [{"role": message["role"], "content": _texts(message)} for message in messages], **kwargs
        )

    def with_aspect_ratio(self, aspect_ratio: str) -> LiuhaotianProcessor:
        """The same processor with pictures prepared in another way."""
        changed = copy.copy(self)
        changed.image_aspect_ratio = self.check_aspect_ratio(aspect_ratio)
        return changed

    def _read(self, images: Any, text: Any) -> tuple[list[list[int]], list[Any]]:
        """(each prompt's ids with its tags, the pictures), from a picture, a flat list of them or one list a prompt."""
        prompts = [text] if isinstance(text, str) else text
        rows = [llava_pieces(self.tokenizer, prompt)[0] for prompt in prompts]
        given = images if isinstance(images, list | tuple) else [] if images is None else [images]
        flat = [image for entry in given for image in (entry if isinstance(entry, list | tuple) else [entry])]
        _check_count(rows, len(flat))
        return rows, flat


class TagProcessor(LiuhaotianProcessor):
    """For the `llava` package's models, whose `generate` takes `images` and `image_sizes` ((width, height) pairs)."""

    takes_modalities = False  # LLaVA-NeXT's package wants to be told that a picture is no video

    def __call__(self, images: Any = None, text: Any = None, **_: Any) -> BatchFeature:
        """Model inputs of a batch of prompts, padded on the left, and their pictures in order."""
        rows, pictures = self._read(images, text)
        data: dict[str, Any] = padded(rows, self.tokenizer)
        if pictures:
            pixels = prepare_images(pictures, self.image_processor, self.image_aspect_ratio, self.grid_pinpoints)
            # The package also takes a picture for a row without one, and then leaves it out.
            given, sizes, left = [], [], list(zip(pixels, pictures, strict=True))
            for ids in rows:
                count = ids.count(IMAGE_TAG_ID)
                given += [value for value, _ in left[:count]] or [torch.zeros_like(pixels[0])]
                sizes += [picture.size for _, picture in left[:count]] or [pictures[0].size]
                left = left[count:]
            data["images"] = given if pixels[0].ndim == 4 else torch.stack(given)
            data["image_sizes"] = sizes
            if self.takes_modalities:
                data["modalities"] = ["image"] * max(len(rows), len(given))
        return BatchFeature(data)


class PlaceholderProcessor(LiuhaotianProcessor):
    """For a checkpoint that was converted to transformers' LLaVA or LLaVA-NeXT in memory."""

    def check_aspect_ratio(self, name: str) -> str:
        grid = hasattr(self.config, "image_grid_pinpoints")
        if "anyres_max" in name:
            raise InputError(f"image_aspect_ratio is {name!r}: its cap on tokens is known to the llava package alone")
        if grid != ("anyres" in check_aspect_ratio(name)):
            takes = "anyres" if grid else "pad or square"
            raise InputError(
                f"image_aspect_ratio is {name!r}, but this checkpoint takes {takes} without the llava package"
            )
        return check_aspect_ratio(name)

    def __call__(self, images: Any = None, text: Any = None, **_: Any) -> BatchFeature:
        """Model inputs of a batch of prompts, padded on the left, and their pictures in order."""
        rows, pictures = self._read(images, text)
        counts = iter([self._image_tokens(picture) for picture in pictures])
        token = self.config.image_token_id
        whole = [[i for p in ids for i in ([token] * next(counts) if p == IMAGE_TAG_ID else [p])] for ids in rows]
        data: dict[str, Any] = padded(whole, self.tokenizer)
        if pictures:
            prepare = LlavaImageProcessor(self.image_processor, self.image_aspect_ratio, self.grid_pinpoints)
            data.update(prepare(pictures, return_tensors="pt"))
        return BatchFeature(data)

    def _image_tokens(self, picture: Any) -> int:
        """How many features transformers' model makes of a picture; the grid's unpadding is its own."""
        vision = self.config.vision_config
        extra = self.config.vision_feature_select_strategy == "full"
        if "anyres" not in self.image_aspect_ratio:  # as large as they are prepared, which may be smaller
            return (self.image_processor.crop_size["height"] // vision.patch_size) ** 2 + extra
        side = vision.image_size // vision.patch_size
        size = (picture.height, picture.width)
        rows, columns = get_anyres_image_grid_shape(size, self.config.image_grid_pinpoints, vision.image_size)
        _, height, width = unpad_image(torch.empty(1, rows * side, columns * side), size).shape
        return side**2 + extra + height * (width + 1)  # a newline feature ends every row


def takes_pictures(tokenizer: Any) -> bool:
    """Whether the tokenizer's own chat template writes one tag for one picture."""
    pieces = [{"type": "image"}, {"type": "text", "text": "?"}]
    if not tokenizer.chat_template:
        return False
    try:
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": pieces}], tokenize=False)
    except (TypeError, jinja2.TemplateError):
        return False
    return rendered.count(IMAGE_TAG) == 1 and "{'type'" not in rendered


def _texts(message: dict[str, Any]) -> str:
    return "".join(IMAGE_TAG + "\n" if p["type"] == "image" else p["text"] for p in message["content"])


def _check_count(rows: list[list[int]], pictures: int) -> None:
    tags = sum(ids.count(IMAGE_TAG_ID) for ids in rows)
    if tags != pictures:
        raise InputError(f"the prompts have {tags} <image> tags but {pictures} pictures")
