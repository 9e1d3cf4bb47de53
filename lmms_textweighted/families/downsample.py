"""The picture itself at a lower resolution, then all its tokens: the baseline that any pruning must beat."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from transformers import LlavaProcessor

from lmms_textweighted.engine.splice import removed_at_end, replaced
from lmms_textweighted.errors import InputError
from lmms_textweighted.families.images import LlavaImageProcessor
from lmms_textweighted.families.llava import plain_image_processor


@contextmanager
def downsampled(model: Any, processor: Any, side: int) -> Iterator[Any]:
    """While open, the model takes pictures of `side` x `side` pixels; gives the processor that makes them.

    LLaVA-1.5's 336 pixels are 24 x 24 = 576 tokens; 224 are 256, 196 are 196, 154 are 121, 112 are 64 and 56 are 16.
    The picture is prepared as always, but resized and cut to `side`. CLIP's position embeddings are interpolated
    (bicubic, as its `interpolate_pos_encoding`): the tower was not trained at this size, which is part of what the
    baseline costs. With the tower's own side nothing changes, bit for bit. The model is as it was when the block ends.

    model, processor: a LLaVA-1.5 of transformers with a CLIP tower. Raises InputError for another, and for a side that
    is no multiple of the tower's patch or larger than its own pictures.
    """
    vision: Any = getattr(model.config, "vision_config", None)
    kind = getattr(model.config, "model_type", None)
    if kind != "llava" or vision.model_type != "clip_vision_model" or not isinstance(processor, LlavaProcessor):
        raise InputError(
            f"pictures cannot be downsampled for a model of type {kind!r}: only for a LLaVA-1.5 of transformers with a "
            f"CLIP tower, whose pictures have one size"
        )
    own, patch = vision.image_size, vision.patch_size
    if isinstance(side, bool) or not isinstance(side, int) or not patch <= side <= own or side % patch:
        raise InputError(f"side is {side!r}: give a multiple of {patch} pixels, from {patch} to {own}")
    tokens = model.config.image_seq_length - (own // patch) ** 2 + (side // patch) ** 2
    with ExitStack() as stack:
        hook = model.model.vision_tower.register_forward_pre_hook(_interpolate, with_kwargs=True)
        stack.enter_context(removed_at_end(hook))
        stack.enter_context(replaced(model.config, "image_seq_length", tokens))
        yield _smaller(processor, side)


def _interpolate(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return args, {**kwargs, "interpolate_pos_encoding": True}


def _smaller(processor: Any, side: int) -> Any:
    given = processor.image_processor
    plain = copy.deepcopy(plain_image_processor(given))
    plain.size = {"shortest_edge": side}
    plain.crop_size = {"height": side, "width": side}
    changed = copy.copy(processor)
    wraps = isinstance(given, LlavaImageProcessor)
    changed.image_processor = LlavaImageProcessor(plain, given.aspect_ratio) if wraps else plain
    return changed
