"""What every loader shares: options, where a checkpoint is, devices and types."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig
from transformers.utils import logging as transformers_logging

from lmms_textweighted.errors import CheckpointError, InputError, first_line, unknown
from lmms_textweighted.hub import asked_once, out_of_reach
from lmms_textweighted.paths import EMBEDDED, checkpoint_folder, expanded
from lmms_textweighted.pictures import PICTURE_LIMITS
from lmms_textweighted.upstream.known_bad import check_versions

DEFAULT_CHECKPOINT = "llava-hf/llava-1.5-7b-hf"
LOADERS = ("auto", "hf", "llava")
DTYPES = ("auto", "float32", "float16", "bfloat16")
ATTENTION = ("sdpa", "eager", "flash_attention_2")
_OTHER_FRAMEWORKS = ["*.h5", "*.msgpack", "*.onnx", "*.ot"]


class Loaded(NamedTuple):
    """A model in evaluation mode and its processor, which pads on the left."""

    model: Any
    processor: Any


@dataclass(frozen=True)
class LoadOptions:
    """Where and how a checkpoint is loaded. dtype `auto`: the checkpoint's on a GPU, float32 on a CPU.

    loader: `auto`, `hf` or `llava` (see `families.load`). vision_tower: a local CLIP folder, for checkpoints in
    liuhaotian format that only name theirs. image_aspect_ratio: `pad`, `square` or `anyres` as in LLaVA; None is the
    checkpoint's own. min_pixels, max_pixels (Qwen-VL, GLM-V), min_patches, max_patches (InternVL's tiles): how large a
    picture may become; None is what lmms-eval's own model of the kind takes.
    """

    device: str | None = None
    dtype: str = "auto"
    device_map: str | None = None
    attn_implementation: str | None = None
    revision: str = "main"
    loader: str = "auto"
    vision_tower: str | None = None
    image_aspect_ratio: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    min_patches: int | None = None
    max_patches: int | None = None

    def picture_limits(self) -> dict[str, int]:
        """The limits that are given, by name."""
        return {name: getattr(self, name) for name in PICTURE_LIMITS if getattr(self, name) is not None}

    @property
    def resolved_device(self) -> str:
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def resolved_dtype(self) -> Any:
        """A torch type, or `auto`. Raises InputError for what is none of DTYPES: torch has more."""
        if self.dtype not in DTYPES:
            raise InputError(f"dtype is {self.dtype!r}: give auto, float32, float16 or bfloat16")
        if self.dtype == "auto":
            return "auto" if self.resolved_device.startswith("cuda") else torch.float32
        return getattr(torch, self.dtype)

    def __post_init__(self) -> None:
        """Raises InputError for a value that transformers or torch would take, and pruning was never made for."""
        if self.loader not in LOADERS:
            raise InputError(unknown("loader", self.loader, LOADERS))
        if self.attn_implementation is not None and self.attn_implementation not in ATTENTION:
            raise InputError(
                f"attn_implementation is {self.attn_implementation!r}: give sdpa, eager or flash_attention_2, or leave "
                "it out"
            )
        if str(self.device).split(":")[0] == "meta" or self.device_map == "meta":
            raise InputError("device is 'meta', where weights have no values: give cuda or cpu, or leave it out")
        _ = self.resolved_dtype
        limits = self.picture_limits()
        for name, value in limits.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}: give a whole number of at least 1")
        for unit in ("pixels", "patches"):
            least, most = limits.get(f"min_{unit}"), limits.get(f"max_{unit}")
            if least is not None and most is not None and least > most:
                raise InputError(f"min_{unit} is {least}, but max_{unit} is {most}: give a smaller min_{unit}")

    def model_arguments(self) -> dict[str, Any]:
        """Arguments of transformers' `from_pretrained`."""
        arguments: dict[str, Any] = {"dtype": self.resolved_dtype}
        if self.device_map:
            arguments["device_map"] = self.device_map
        if self.attn_implementation:
            arguments["attn_implementation"] = self.attn_implementation
        return arguments

    def place(self, model: Any) -> Any:
        """The model on its device, in evaluation mode. Raises InputError for a device that is not there."""
        if not self.device_map:
            try:
                model.to(self.resolved_device)
            except (RuntimeError, AssertionError) as error:
                raise InputError(f"device {self.resolved_device!r} cannot be used: {first_line(error)}") from error
        return model.eval()


def looked_at_first(load: Callable[..., Loaded]) -> Callable[..., Loaded]:
    """A loader's `load` that first refuses known-bad versions, and asks a hub that it needs whether it is there."""

    @functools.wraps(load)
    def looked(pretrained: str = DEFAULT_CHECKPOINT, *args: Any, **kwargs: Any) -> Loaded:
        check_versions()
        with nullcontext() if Path(resolve(pretrained)).is_dir() else asked_once():
            return load(pretrained, *args, **kwargs)

    return looked


def resolve(pretrained: str) -> str:
    """`tiny`, `tiny-qwen` -> the embedded checkpoint's folder; a path must be a folder; anything else is a hub name."""
    if pretrained in EMBEDDED:
        return str(checkpoint_folder(pretrained))
    path = expanded(pretrained)
    if path.is_dir():
        return str(path)
    looks_like_path = pretrained.startswith((".", "/", "~", os.sep)) or pretrained.count("/") > 1
    if looks_like_path or path.exists():
        raise CheckpointError(f"checkpoint folder {pretrained!r} does not exist: give a folder, a hub name or `tiny`")
    return pretrained


def read_config(pretrained: str, folder: str, revision: str) -> dict[str, Any]:
    """A checkpoint's config.json as it stands. Raises CheckpointError when there is none."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(folder, revision=revision)
    except (OSError, ValueError) as error:
        if Path(folder).is_dir():
            raise CheckpointError(
                f"checkpoint {pretrained!r} is no LLaVA ({first_line(error)}): give a LLaVA's"
            ) from error
        raise CheckpointError(_out_of_reach(pretrained)) from error
    if not config:
        raise CheckpointError(
            f"checkpoint {pretrained!r} is no LLaVA, it has no config.json: give a LLaVA's"
            if Path(folder).is_dir()
            else _out_of_reach(pretrained)
        )
    return config


def local_folder(folder: str, revision: str) -> Path:
    """The checkpoint's files on disk, fetched from the hub where `folder` is a name."""
    if Path(folder).is_dir():
        return Path(folder)
    from huggingface_hub import snapshot_download

    with asked_once():
        try:
            return Path(snapshot_download(folder, revision=revision, ignore_patterns=_OTHER_FRAMEWORKS))
        except (OSError, ValueError) as error:
            raise CheckpointError(_out_of_reach(folder)) from error


def check_complete(pretrained: str, missing: Any) -> None:
    """Raise CheckpointError when weights were missing: transformers would fill them with random numbers."""
    names = sorted(missing)
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise CheckpointError(f"checkpoint {pretrained!r} lacks the weights {names[0]!r}{more}: is the download whole?")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """While open, transformers reports errors only."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _out_of_reach(pretrained: str) -> str:
    return (
        f"checkpoint {pretrained!r} is not on disk and the hub did not give it{out_of_reach()}: give a local folder, "
        f"`pretrained=tiny`, or a machine that reaches the hub"
    )
