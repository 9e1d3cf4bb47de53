"""The sweep that a result records: its options again, for what answers or looks at its documents anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lmms_textweighted.errors import InputError
from lmms_textweighted.experiment.options import Experiment
from lmms_textweighted.families import LoadOptions
from lmms_textweighted.inference import StatedLengths


def check_recorded(path: Path, meta: Mapping[str, Any], given: Mapping[str, Path | None]) -> None:
    """given: `question_file` and `image_folder`, whose names alone a result holds. Raises InputError where the result
    is of a version that did not record its options, and where one of these is not given, or was not used by the sweep.
    """
    if "options" not in meta:
        raise InputError(f"result {str(path)!r} does not record its options: it is of an older version, run it again")
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if meta["options"][name] and value is None:
            raise InputError(
                f"result {str(path)!r} is of {name} {meta['options'][name]!r}, whose place it does not tell: say it "
                f"with {flag}"
            )
        if value is not None and not meta["options"][name]:
            raise InputError(f"{flag} is {str(value)!r}, but result {str(path)!r} has no {name}: leave it out")


def recorded_experiment(meta: Mapping[str, Any], question_file: Path | None, image_folder: Path | None) -> Experiment:
    """The recorded options. What was left to a default is what it came to: dtype and attention kernel."""
    options, model = dict(meta["options"]), meta["provenance"]["model"]
    loading = {**options["load_options"], "dtype": model["dtype"], "attn_implementation": model["attn_implementation"]}
    if loading["device_map"] is None:
        reachable = model["device"] == "cpu" or (model["device"] == "cuda" and torch.cuda.is_available())
        loading["device"] = model["device"] if reachable else None
    options.update(
        load_options=LoadOptions(**loading),
        stated=StatedLengths(**options["stated"]),
        conv_mode=meta["conv_mode"],
        question_file=question_file,
        image_folder=image_folder,
        output_dir=Path(),
    )
    return Experiment(**options)
