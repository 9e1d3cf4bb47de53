"""The sizes of a checkpoint that a cost estimate needs, read from its config without loading a weight."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlavaConfig, PreTrainedConfig

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


@dataclass(frozen=True)
class Geometry:
    """A LLaVA with a fixed number of image tokens. source: where the sizes were read."""

    decoder: DecoderShape
    vision: VisionShape
    source: str

    @property
    def image_tokens(self) -> int:
        """Of one picture: its patches, without the class token."""
        return self.vision.patches


def read_geometry(pretrained: str, revision: str, stated: dict[str, Any] | None) -> Geometry:
    """The geometry in the checkpoint's own config.json where that is local, else in `stated`, which is one like it.

    Raises InputError when there is neither, or when it is no LLaVA whose number of image tokens is the same for every
    picture (its tower CLIP's, one view).
    """
    config, source = _local_config(pretrained, revision), f"config.json of {pretrained}"
    if config is None:
        config, source = stated, "the leaderboard's estimate.config"
    if config is None:
        raise InputError(
            f"the config of {pretrained!r} is not on this machine: state estimate.config in the leaderboard's file, or "
            f"fetch the checkpoint"
        )
    if config.get("model_type", "llava") != "llava" or "vision_config" not in config:
        raise InputError(
            f"{source} is no LLaVA-1.5 in transformers' format (model_type {config.get('model_type')!r}): the estimate "
            f"knows one view a picture only, state estimate.config for what it should count"
        )
    try:
        return _geometry(LlavaConfig(**config), source)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{source} cannot be read: {first_line(error)}") from error


def _geometry(config: Any, source: str) -> Geometry:
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


def _local_config(pretrained: str, revision: str) -> dict[str, Any] | None:
    folder = resolve(pretrained)
    try:
        config, _ = PreTrainedConfig.get_config_dict(folder, revision=revision, local_files_only=True)
    except (OSError, ValueError) as error:
        if Path(folder).is_dir():
            raise CheckpointError(f"checkpoint {pretrained!r} is no LLaVA: {first_line(error)}") from error
        return None
    return config or None
