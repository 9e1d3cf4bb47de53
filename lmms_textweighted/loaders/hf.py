"""Load a LLaVA in transformers' format: checkpoint name or folder -> model and processor."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

from lmms_textweighted.errors import CheckpointError, InputError, first_line
from lmms_textweighted.paths import checkpoint_folder

DEFAULT_CHECKPOINT = "llava-hf/llava-1.5-7b-hf"
TINY = "tiny"


class Loaded(NamedTuple):
    """A model in evaluation mode and its processor, which pads on the left."""

    model: Any
    processor: Any


@dataclass(frozen=True)
class LoadOptions:
    """Where and how a checkpoint is loaded. dtype `auto`: the checkpoint's on a GPU, float32 on a CPU."""

    device: str | None = None
    dtype: str = "auto"
    device_map: str | None = None
    attn_implementation: str | None = None
    revision: str = "main"


def load(pretrained: str = DEFAULT_CHECKPOINT, options: LoadOptions | None = None) -> Loaded:
    """Load `pretrained`: `tiny` (the embedded model), a local folder or a hub name.

    Raises CheckpointError when it is missing, out of reach or no LLaVA, InputError for options that cannot be.
    """
    options = options or LoadOptions()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = _dtype(options.dtype, device)
    folder = resolve(pretrained)
    _check_config(pretrained, folder, options.revision)
    placed: dict[str, Any] = {"device_map": options.device_map} if options.device_map else {}
    if options.attn_implementation:
        placed["attn_implementation"] = options.attn_implementation
    try:
        model: Any = LlavaForConditionalGeneration.from_pretrained(
            folder, revision=options.revision, dtype=dtype, **placed
        )
        processor = AutoProcessor.from_pretrained(folder, revision=options.revision)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint {pretrained!r} cannot be loaded: {first_line(error)}") from error
    processor.tokenizer.padding_side = "left"
    if not options.device_map:
        try:
            model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device {device!r} cannot be used: {first_line(error)}") from error
    return Loaded(model.eval(), processor)


def resolve(pretrained: str) -> str:
    """`tiny` -> the embedded checkpoint's folder; a path must be a folder; anything else is a hub name."""
    if pretrained == TINY:
        return str(checkpoint_folder())
    path = Path(pretrained).expanduser()
    if path.is_dir():
        return str(path)
    looks_like_path = pretrained.startswith((".", "/", "~", os.sep)) or pretrained.count("/") > 1
    if looks_like_path or path.exists():
        raise CheckpointError(f"checkpoint folder {pretrained!r} does not exist: give a folder, a hub name or `tiny`")
    return pretrained


def weights_fingerprint(model: nn.Module) -> str:
    """A short hash of the weights: every parameter's name, shape, and 64 values spread over it."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        if value.is_meta:  # offloaded: its name and shape must do
            continue
        flat = value.reshape(-1)
        picked = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
        digest.update(picked.numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_config(pretrained: str, folder: str, revision: str) -> None:
    try:
        config = AutoConfig.from_pretrained(folder, revision=revision)
    except (OSError, ValueError) as error:
        if Path(folder).is_dir():
            raise CheckpointError(f"checkpoint {pretrained!r} is no LLaVA: {first_line(error)}") from error
        raise CheckpointError(
            f"checkpoint {pretrained!r} is not on disk and the hub did not give it: give a local folder, "
            f"`pretrained=tiny`, or a machine that reaches the hub"
        ) from error
    if config.model_type != "llava":
        raise CheckpointError(
            f"checkpoint {pretrained!r} is no LLaVA-1.5 in transformers' format: its model_type is "
            f"{config.model_type!r}, needed is 'llava'"
        )


def _dtype(name: str, device: str) -> Any:
    if name == "auto":
        return "auto" if device.startswith("cuda") else torch.float32
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype is {name!r}: give auto, float32, float16 or bfloat16")
    return dtype
