"""What a second process brings: lmms-eval over the embedded set by one process and by two, on the same cores.

`python -m benchmarks.scale --documents 200 --repeats 3`. The time counted is that of the answers (the slowest process's
`answering_seconds`, from the first request to the last answer); start-up and scoring stand beside it. Ways take turns.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import typer

from benchmarks.rows import Row, show
from lmms_textweighted.paths import data_folder


@dataclass(frozen=True)
class Way:
    """How many processes, and threads in each."""

    processes: int
    threads: int

    @property
    def name(self) -> str:
        processes = "one process" if self.processes == 1 else f"{self.processes} processes"
        return f"{processes}, {self.threads} thread{'s' if self.threads > 1 else ''} each"


@dataclass(frozen=True)
class Seconds:
    """answering: the slowest process's. whole: the command's."""

    answering: float
    whole: float


def measure(way: Way, documents: int) -> Seconds:
    """One run of the real command in a folder of its own."""
    command = [sys.executable, "-m"]
    if way.processes > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(way.processes), "-m"]
    command += ["lmms_eval", "--model", "llava_textweighted", "--model_args", "pretrained=tiny,keep_tokens=64"]
    command += ["--tasks", "shapes_mcq", "--include_path", str(data_folder("tasks")), "--limit", str(documents)]
    threads = {name: str(way.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, **threads, "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
        environment["LMMS_TEXTWEIGHTED_CACHE"] = folder
        began = time.perf_counter()
        done = subprocess.run(
            [*command, "--output_path", folder], env=environment, capture_output=True, text=True, check=True
        )
        whole = time.perf_counter() - began
    found = [float(seconds) for seconds in re.findall(r"answering_seconds: ([\d.]+)", done.stdout + done.stderr)]
    if len(found) != way.processes:
        raise RuntimeError(f"{way.name}: {len(found)} answers' times found\n{done.stderr[-2000:]}")
    return Seconds(max(found), whole)


def run(documents: int = 200, repeats: int = 3) -> list[Row]:
    """Documents a second of each way, and what two processes make of two cores."""
    alone, threaded, both = Way(1, 1), Way(1, 2), Way(2, 1)
    taken: dict[Way, list[Seconds]] = {way: [] for way in (alone, threaded, both)}
    for _ in range(repeats):
        for way, seconds in taken.items():
            seconds.append(measure(way, documents))
    rows, rates = [], {}
    for way, seconds in taken.items():
        answering = median(one.answering for one in seconds)
        rates[way] = documents / answering
        details: dict[str, Any] = {
            "answering_s": [one.answering for one in seconds],
            "whole_s": [one.whole for one in seconds],
        }
        beside = median(one.whole - one.answering for one in seconds)
        note = f"{answering:.1f} s for {documents} documents, and {beside:.1f} s of start-up and scoring"
        rows.append(Row(f"scale: {way.name}", rates[way], unit="documents/s", note=note, details=details))
    rows.append(
        Row(
            "scale: two processes / twice one process, one thread each",
            rates[both] / (2 * rates[alone]),
            note="efficiency",
        )
    )
    rows.append(Row("scale: two processes / one process with both threads", rates[both] / rates[threaded]))
    return rows


def main(documents: int = typer.Option(200), repeats: int = typer.Option(3)) -> None:
    """Print the rows."""
    show(run(documents, repeats))


if __name__ == "__main__":
    typer.run(main)
