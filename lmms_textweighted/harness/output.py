"""Check the output folder before the work, not after it: lmms-eval only warns when results cannot be written."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmms_textweighted.errors import InputError


def check_output_paths(runs: Sequence[Mapping[str, Any]]) -> None:
    """Raise InputError when the `output_path` of one of lmms-eval's runs cannot be written."""
    for run in runs:
        if run.get("output_path"):
            check_writable(Path(str(run["output_path"])))


def check_writable(folder: Path) -> None:
    """Raise InputError when `folder` cannot be made or written. A name that ends in .json stands for its folder."""
    if folder.suffix in (".json", ".jsonl"):
        folder = folder.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # a name of its own: several processes check at once
            pass
    except OSError as error:
        raise InputError(
            f"output folder {str(folder)!r} cannot be written ({error.strerror or error}): name another"
        ) from error
