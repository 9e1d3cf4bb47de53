"""Check lmms-eval's output folder before the work, not after it: it only warns when results cannot be written."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from lmms_textweighted.errors import InputError


def check_output_paths(arguments: Sequence[str]) -> None:
    """Raise InputError when a folder named by `--output_path`, or by a `--config` file, cannot be written."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--output_path")
    parser.add_argument("--config")
    known, _ = parser.parse_known_args(list(arguments))
    paths = [known.output_path]
    if known.config and os.path.isfile(known.config):
        loaded = yaml.safe_load(Path(known.config).read_text())
        runs = loaded if isinstance(loaded, list) else [loaded]
        paths += [run.get("output_path") for run in runs if isinstance(run, dict)]
    for path in paths:
        if path:
            check_writable(Path(path))


def check_writable(folder: Path) -> None:
    """Raise InputError when `folder` cannot be made or written. A name that ends in .json stands for its folder."""
    if folder.suffix in (".json", ".jsonl"):
        folder = folder.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # a name of its own: several processes check at once
            pass
    except OSError as error:
        raise InputError(f"output folder {str(folder)!r} cannot be written: {error.strerror or error}") from error
