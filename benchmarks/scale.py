"""What a second process brings: lmms-eval over the embedded set by one process and by two, on the same cores.

`python -m benchmarks.scale --documents 200 --repeats 3`. The time counted is that of the answers (the slowest process's
`answering_seconds`, from the first request to the last answer); start-up and scoring stand beside it. Ways take turns.

Turns do not help where the ways need different numbers of cores: other work slows two processes and one differently.
So the share of the machine that other work took is measured, too, and above QUIET there is no figure.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from statistics import median

import psutil
import typer

from benchmarks.rows import Row, show
from lmms_textweighted.paths import data_folder

QUIET = 0.05  # of all cores' time


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
    """answering: the slowest process's. whole: the command's. others: share of all cores' time that other work took."""

    answering: float
    whole: float
    others: float


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
        busy, own, began = _busy(), _children(), time.perf_counter()
        done = subprocess.run(
            [*command, "--output_path", folder], env=environment, capture_output=True, text=True, check=True
        )
        whole = time.perf_counter() - began
        others = (_busy() - busy - _children() + own) / (whole * (psutil.cpu_count() or 1))
    found = [float(seconds) for seconds in re.findall(r"answering_seconds: ([\d.]+)", done.stdout + done.stderr)]
    if len(found) != way.processes:
        raise RuntimeError(f"{way.name}: {len(found)} answers' times found\n{done.stderr[-2000:]}")
    return Seconds(max(found), whole, others)


def _busy() -> float:
    """Seconds that all cores together were not idle."""
    times = psutil.cpu_times()
    return sum(times[:]) - times.idle - getattr(times, "iowait", 0.0)


def _children() -> float:
    """Processor seconds of this process's finished children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(documents: int = 200, repeats: int = 3) -> list[Row]:
    """Documents a second of each way, and what two processes make of two cores."""
    alone, threaded, both = Way(1, 1), Way(1, 2), Way(2, 1)
    taken: dict[Way, list[Seconds]] = {way: [] for way in (alone, threaded, both)}
    for _ in range(repeats):
        for way, seconds in taken.items():
            seconds.append(measure(way, documents))
    others = max(one.others for seconds in taken.values() for one in seconds)
    disturbed = f"other work took up to {others:.0%} of the cores: run it on a quiet machine" if others > QUIET else ""
    rows, rates = [], {}
    for way, seconds in taken.items():
        answering = median(one.answering for one in seconds)
        rates[way] = documents / answering
        beside = median(one.whole - one.answering for one in seconds)
        note = f"{answering:.1f} s for {documents} documents, and {beside:.1f} s of start-up and scoring"
        details = {name: [getattr(one, name) for one in seconds] for name in ("answering", "whole", "others")}
        value = None if disturbed else rates[way]
        rows.append(Row(f"scale: {way.name}", value, unit="documents/s", note=disturbed or note, details=details))
    for against, ratio in (
        ("twice one process of one thread (efficiency)", rates[both] / (2 * rates[alone])),
        ("one process with both threads", rates[both] / rates[threaded]),
    ):
        rows.append(Row(f"scale: two processes / {against}", None if disturbed else ratio, note=disturbed))
    return rows


def main(documents: int = typer.Option(200), repeats: int = typer.Option(3)) -> None:
    """Print the rows."""
    show(run(documents, repeats))


if __name__ == "__main__":
    typer.run(main)
