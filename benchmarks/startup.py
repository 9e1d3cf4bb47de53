"""How long until something happens: `lmms-textweighted --help`, and lmms-eval up to its first document.

`python -m benchmarks.startup`. lmms-eval with our model is held against lmms-eval with its own `dummy` model on the
same task: whole runs of one document, our model's weights and its one answer included.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial

import typer

from benchmarks.rows import Row, show
from benchmarks.timing import take_turns
from lmms_textweighted.paths import data_folder


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return time.perf_counter() - began


def lmms_eval(model: str, arguments: str, folder: str) -> float:
    """Seconds of a whole lmms-eval run over one document."""
    command = [sys.executable, "-m", "lmms_eval", "--model", model, "--tasks", "shapes_mcq", "--limit", "1"]
    command += ["--include_path", str(data_folder("tasks")), "--output_path", folder]
    return _seconds([*command, *(["--model_args", arguments] if arguments else [])])


def run(repeats: int = 5) -> list[Row]:
    """Both rows."""
    help_command = [sys.executable, "-c", "from lmms_textweighted.cli import main; main()", "--help"]
    helped = take_turns({"help": partial(_seconds, help_command)}, repeats)["help"]
    with tempfile.TemporaryDirectory() as folder:
        times = take_turns(
            {
                "ours": partial(lmms_eval, "llava_textweighted", "pretrained=tiny,keep_tokens=64", folder),
                "dummy": partial(lmms_eval, "dummy", "", folder),
            },
            repeats,
        )
    return [
        Row("start-up: lmms-textweighted --help", helped.median, 0.5, False, unit="s"),
        Row(
            "start-up: lmms-eval over one document, ours / its dummy model",
            times["ours"].median / times["dummy"].median,
            1.15,
            False,
            note="whole runs of one document, the weights' load time included",
            details={name: {"median_s": value.median, "spread": value.spread} for name, value in times.items()},
        ),
    ]


def main(repeats: int = typer.Option(5)) -> None:
    """Print the rows."""
    show(run(repeats))


if __name__ == "__main__":
    typer.run(main)
