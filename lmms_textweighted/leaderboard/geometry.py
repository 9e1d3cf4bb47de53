"""The sizes of a checkpoint that a cost estimate needs, read from its config without loading a weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import LlavaConfig, PreTrainedConfig, Qwen2_5_VLConfig

from lmms_textweighted.engine.cost import DecoderShape
from lmms_textweighted.errors import CheckpointError, InputError, first_line
from lmms_textweighted.families import resolve


@dataclass(frozen=True)
class VisionShape:
    """A CLIP tower and LLaVA's projector. pixels: values of one patch, 3 x side x side. output: the decoder's width."""

    layers: int
    hidden: int
    intermediate: int
    patches: int
    pixels: int
    output: int

    @property
    def tokens(self) -> int:
        """Of one picture: its patches, without the class token."""
        return self.patches


@dataclass(frozen=True)
class WindowedShape:
    """Qwen2.5-VL's tower and merger. patches: of one picture, which may have any size. whole: layers in which every
    patch sees every other; in the rest it sees the `window` patches of its own window. merged: patches of one token."""

    layers: int
    whole: int
    hidden: int
    intermediate: int
    patches: int
    pixels: int
    window: int
    merged: int
    output: int

    @property
    def tokens(self) -> int:
        return self.patches // self.merged


@dataclass(frozen=True)
class Geometry:
    """A LLaVA-1.5, or a Qwen2.5-VL whose pictures are taken to have one size. source: where the sizes were read."""

    decoder: DecoderShape
    vision: VisionShape | WindowedShape
    source: str

    @property
    def image_tokens(self) -> int:
        """Of one picture."""
        return self.vision.tokens

    @property
    def fixed_tokens(self) -> int | None:
        """Of every picture; None where they depend on it."""
        return self.vision.tokens if isinstance(self.vision, VisionShape) else None

    def of_pictures(self, tokens: int | None) -> Geometry:
        """The same model with pictures of `tokens` tokens; None: as it is. Raises InputError where all have as many."""
        if tokens is None:
            return self
        if not isinstance(self.vision, WindowedShape):
            raise InputError(
                f"image_tokens is {tokens}, but every picture has {self.image_tokens} in {self.source}: leave it out"
            )
        return replace(self, vision=replace(self.vision, patches=tokens * self.vision.merged))


def read_geometry(
    pretrained: str, revision: str, stated: dict[str, Any] | None, image_tokens: int | None = None
) -> Geometry:
    """The geometry in the checkpoint's own config.json where that is local, else in `stated`, which is one like it.

    image_tokens: of a picture, where they depend on it. Raises InputError when there is no config, when it is of no
    kind that can be estimated, and where image_tokens are missing or given in vain.
    """
    config, source = _local_config(pretrained, revision), f"config.json of {pretrained}"
    if config is None:
        config, source = stated, "the leaderboard's estimate.config"
    if config is None:
        raise InputError(
            f"the config of {pretrained!r} is not on this machine: state estimate.config in the leaderboard's file, or "
            f"fetch the checkpoint"
        )
    kind = config.get("model_type", "llava")
    if kind not in _READERS or "vision_config" not in config:
        raise InputError(
            f"{source} is neither a LLaVA-1.5 in transformers' format nor a Qwen2.5-VL (model_type {kind!r}): the "
            f"estimate knows these only"
        )
    try:
        found = _READERS[kind](config, source)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{source} cannot be read: {first_line(error)}") from error
    if found.fixed_tokens is None and image_tokens is None:
        raise InputError(
            f"pictures of a {kind} have no one number of tokens: state estimate.image_tokens in the leaderboard's file"
        )
    return found.of_pictures(image_tokens)


def _llava(stated: dict[str, Any], source: str) -> Geometry:
    config: Any = LlavaConfig(**stated)
    vision, text = config.vision_config, config.text_config
    vision_shape = VisionShape(
        layers=vision.num_hidden_layers,
        hidden=vision.hidden_size,
        intermediate=vision.intermediate_size,
        patches=(vision.image_size // vision.patch_size) ** 2,
        pixels=3 * vision.patch_size**2,
        output=text.hidden_size,
    )
    return Geometry(DecoderShape.from_config(text), vision_shape, source)


def _qwen25(stated: dict[str, Any], source: str) -> Geometry:
    config: Any = Qwen2_5_VLConfig(**stated)
    vision = config.vision_config
    merged = vision.spatial_merge_size**2
    shape = WindowedShape(
        layers=vision.depth,
        whole=len(vision.fullatt_block_indexes),
        hidden=vision.hidden_size,
        intermediate=vision.intermediate_size,
        patches=merged,
        pixels=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        window=(vision.window_size // vision.patch_size) ** 2,
        merged=merged,
        output=vision.out_hidden_size,
    )
    return Geometry(DecoderShape.from_config(config.text_config), shape, source)


_READERS = {"llava": _llava, "qwen2_5_vl": _qwen25}


def _local_config(pretrained: str, revision: str) -> dict[str, Any] | None:
    folder = resolve(pretrained)
    try:
        config, _ = PreTrainedConfig.get_config_dict(folder, revision=revision, local_files_only=True)
    except (OSError, ValueError) as error:
        if Path(folder).is_dir():
            raise CheckpointError(f"checkpoint {pretrained!r} is no LLaVA: {first_line(error)}") from error
        return None
    return config or None
