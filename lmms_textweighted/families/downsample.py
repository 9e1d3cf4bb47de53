"""The picture itself at a lower resolution, then all its tokens: the baseline that any pruning must beat."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from transformers import LlavaProcessor

from lmms_textweighted.engine.splice import removed_at_end, replaced
from lmms_textweighted.errors import InputError
from lmms_textweighted.families.images import LlavaImageProcessor, plain_image_processor
from lmms_textweighted.families.liuhaotian.processing import PlaceholderProcessor


@contextmanager
def downsampled(model: Any, processor: Any, side: int) -> Iterator[Any]:
    """While open, the model takes pictures of `side` x `side` pixels; gives the processor that makes them.

    LLaVA-1.5's 336 pixels are 24 x 24 = 576 tokens; 224 are 256, 196 are 196, 154 are 121, 112 are 64 and 56 are 16.
    The picture is prepared as always, but resized and cut to `side`. CLIP's position embeddings are interpolated
    (bicubic, as its `interpolate_pos_encoding`): the tower was not trained at this size, which is part of what the
    baseline costs. With the tower's own side nothing changes, bit for bit. The model is as it was when the block ends.

    model, processor: a LLaVA-1.5 of transformers with a CLIP tower, also one that was converted in memory. Raises
    InputError for another, and for a side that is no multiple of the tower's patch or larger than its own pictures.
    """
    _check(model, processor)
    vision = model.config.vision_config
    own, patch = vision.image_size, vision.patch_size
    if isinstance(side, bool) or not isinstance(side, int) or not patch <= side <= own or side % patch:
        raise InputError(f"side is {side!r}: give a multiple of {patch} pixels, from {patch} to {own}")
    tokens = (side // patch) ** 2 + _beside_patches(model)
    smaller = smaller_processor(model, processor, tokens)
    with smaller_pictures(model, tokens):
        yield smaller


def smaller_processor(model: Any, processor: Any, tokens: int) -> Any:
    """A processor whose pictures give `tokens` tokens each, see `downsampled`.

    Raises InputError for another model, and for a number that no square of patches has.
    """
    _check(model, processor)
    vision, patches = model.config.vision_config, tokens - _beside_patches(model)
    if not 1 <= patches <= (vision.image_size // vision.patch_size) ** 2 or math.isqrt(patches) ** 2 != patches:
        raise InputError(
            f"a picture of {tokens} tokens cannot be: give the number of a square of patches, at most "
            f"{model.config.image_seq_length}"
        )
    side = math.isqrt(patches) * vision.patch_size
    given = processor.image_processor
    plain = copy.deepcopy(plain_image_processor(given))
    plain.size = {"shortest_edge": side}
    plain.crop_size = {"height": side, "width": side}
    changed = copy.copy(processor)
    wraps = isinstance(given, LlavaImageProcessor)
    changed.image_processor = LlavaImageProcessor(plain, given.aspect_ratio) if wraps else plain
    return changed


@contextmanager
def smaller_pictures(model: Any, tokens: int) -> Iterator[None]:
    """While open, the model takes what `smaller_processor` prepares. model: as that function checked it."""
    with ExitStack() as stack:
        hook = model.model.vision_tower.register_forward_pre_hook(_interpolate, with_kwargs=True)
        stack.enter_context(removed_at_end(hook))
        stack.enter_context(replaced(model.config, "image_seq_length", tokens))
        yield


def _check(model: Any, processor: Any) -> None:
    vision: Any = getattr(model.config, "vision_config", None)
    kind = getattr(model.config, "model_type", None)
    known = isinstance(processor, LlavaProcessor | PlaceholderProcessor)
    if kind != "llava" or vision.model_type != "clip_vision_model" or not known:
        raise InputError(
            f"pictures cannot be downsampled for a model of type {kind!r}: only for a LLaVA-1.5 with a CLIP tower, "
            f"whose pictures have one size, run by transformers (loader=hf)"
        )


def _beside_patches(model: Any) -> int:
    """Tokens of a picture that are no patch's: the class token's, where the model keeps it."""
    vision = model.config.vision_config
    return model.config.image_seq_length - (vision.image_size // vision.patch_size) ** 2


def _interpolate(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return args, {**kwargs, "interpolate_pos_encoding": True}
