"""Read a checkpoint's tensors from disk: safetensors, or `.bin` without unpickling anything but tensors."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open

from lmms_textweighted.errors import CheckpointError, first_line

_SAFETENSORS, _BIN = "model.safetensors", "pytorch_model.bin"
LOAD_ERRORS = (
    OSError,
    ValueError,
    ImportError,
    RuntimeError,
    pickle.UnpicklingError,
    SafetensorError,
    StrictDataclassError,  # a config whose values do not fit each other
)

_logger = logging.getLogger(__name__)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's weights, safetensors where both are there. Raises CheckpointError: none."""
    for name in (_SAFETENSORS, _BIN):
        index = folder / f"{name}.index.json"
        if index.is_file():
            names = _listed(index)
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise CheckpointError(
                    f"checkpoint {str(folder)!r} lacks the file {missing[0]!r}: is the download whole?"
                )
            return [folder / name for name in names]
        if (folder / name).is_file():
            return [folder / name]
    raise CheckpointError(
        f"checkpoint {str(folder)!r} has no weights: neither {_SAFETENSORS} nor {_BIN}: is the download whole?"
    )


def _listed(index: Path) -> list[str]:
    """The files that an index names, which lie beside it. Raises CheckpointError when it is none."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"index {str(index)!r} cannot be read: is the download whole?") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(
                f"index {str(index)!r} names the file {str(name)!r}, which is not beside it: correct it"
            )
    return names


def load_problem(error: BaseException) -> str:
    """What kept weights from being loaded, in one line.

    torch's own text for a refused pickle says how to unpickle it all the same.
    """
    if "weights_only" in str(error):
        return "it holds more than tensors, and is not unpickled further: get its safetensors"
    return f"{first_line(error)}: is the download whole?"


def notice_pickles(folder: Path) -> None:
    """One line when a checkpoint's weights are pickled."""
    if any(path.suffix == ".bin" for path in weight_files(folder)):
        _logger.warning(f"{folder.name}: weights are read from .bin files, tensors only; safetensors would be safer")


def read_weights(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, torch.Tensor]:
    """The tensors whose names are wanted, on the CPU, in the types they are stored in.

    Raises CheckpointError for a file that cannot be read, and for a `.bin` that holds more than tensors.
    """
    found: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        found.update(_read_file(path, wanted))
    return found


def stored_dtype(folder: Path) -> torch.dtype:
    """The type of a checkpoint's first tensor, whatever its config says."""
    first = weight_files(folder)[:1]
    tensors = iter(_read_file(first[0], lambda name: "embed_tokens" in name or name.endswith("norm.weight")).values())
    found = next(tensors, None)
    return torch.float16 if found is None else found.dtype


def _read_file(path: Path, wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".bin":
            loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return {name: value for name, value in loaded.items() if wanted(name)}
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if wanted(name)}  # noqa: SIM118
    except LOAD_ERRORS as error:
        raise CheckpointError(f"weights {str(path)!r} cannot be read: {load_problem(error)}") from error
