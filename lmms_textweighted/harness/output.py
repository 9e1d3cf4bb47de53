"""Check lmms-eval's output folder before the work, not after it: it only warns when results cannot be written."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from lmms_textweighted.errors import InputError


def run_options(arguments: Sequence[str], name: str) -> list[str]:
    """An option's value on lmms-eval's command line, or else that of each run of its `--config` file."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}")
    parser.add_argument("--config")
    known = vars(parser.parse_known_args(list(arguments))[0])
    values = [known[name]]
    if values == [None] and known["config"] and os.path.isfile(known["config"]):
        loaded = yaml.safe_load(Path(known["config"]).read_text())
        runs = loaded if isinstance(loaded, list) else [loaded]
        values = [run.get(name) for run in runs if isinstance(run, dict)]
    return [str(value) for value in values if value]


def check_output_paths(arguments: Sequence[str]) -> None:
    """Raise InputError when a folder named by `--output_path`, or by a `--config` file, cannot be written."""
    for path in run_options(arguments, "output_path"):
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
