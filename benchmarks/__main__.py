"""`python -m benchmarks [PART …]`: the CPU set, as JSON and a Markdown table in `benchmarks/results/`.

Without a part, everything that this machine can; the 7B rows need a GPU. Each part runs in a process of its own,
because the thread pools of one slow down the next. Rows are written after each part.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks import evaluation, peers, prefill, scale, selection, spectrum, startup, sweep
from benchmarks.rows import Row, show, write

PARTS: dict[str, Callable[[], list[Row]]] = {
    "startup": startup.run,
    "spectrum": spectrum.run,
    "selection": selection.run,
    "prefill-1b": lambda: [*prefill.run("1b"), prefill.peak_memory("1b", 1)],
    "peers": peers.run,
    "evaluation": evaluation.run,
    "sweep": sweep.run,
    "scale": lambda: scale.run(documents=100),
    "prefill-7b-batch-1": lambda: [*prefill.run("7b", 1), prefill.peak_memory("7b", 1)],
    "prefill-7b-batch-8": lambda: [*prefill.run("7b", 8), prefill.peak_memory("7b", 8)],
    "peers-7b": lambda: peers.run("7b"),
}
# The parts that need a GPU, and what their main row must reach.
GPU_TARGETS = {"prefill-7b-batch-1": 0.90, "prefill-7b-batch-8": 0.90, "peers-7b": 1.0}


def main(
    parts: Annotated[list[str] | None, typer.Argument(help=f"Any of {', '.join(PARTS)}; all without one.")] = None,
    rows_file: Annotated[
        Path | None, typer.Option(help="Run one part here and now; its rows go into this file.")
    ] = None,
) -> None:
    """Run the parts and write their rows."""
    chosen = parts or list(PARTS)
    wrong = [name for name in chosen if name not in PARTS]
    if wrong:
        raise typer.BadParameter(f"unknown part {wrong[0]!r}: known are {', '.join(PARTS)}")
    if rows_file is not None:
        rows_file.write_text(json.dumps([asdict(row) for name in chosen for row in PARTS[name]()]))
        return
    console = Console()
    rows: list[Row] = []
    for name in chosen:
        console.print(f"[bold]{name}[/bold]")
        rows += _run(name)
        write(rows)
    show(rows)
    console.print(f"wrote {write(rows)}")


def _run(name: str) -> list[Row]:
    if name in GPU_TARGETS and not torch.cuda.is_available():
        return [Row(f"{name}, bfloat16, GPU", None, GPU_TARGETS[name], note="no GPU at hand")]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks", name, "--rows-file", str(file)]
        subprocess.run(command, check=True)
        return [Row(**row) for row in json.loads(file.read_text())]


if __name__ == "__main__":
    typer.run(main)
