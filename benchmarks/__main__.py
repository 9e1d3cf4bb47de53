"""`python -m benchmarks [PART …]`: the CPU set, as JSON and a Markdown table in `benchmarks/results/`.

Without a part, everything that this machine can; the 7B rows need a GPU. Rows are written after each part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks import evaluation, peers, prefill, scale, spectrum, startup, sweep
from benchmarks.rows import Row, show, write

PARTS: dict[str, Callable[[], list[Row]]] = {
    "startup": startup.run,
    "spectrum": spectrum.run,
    "prefill-1b": lambda: [*prefill.run("1b"), prefill.peak_memory("1b", 1)],
    "peers": peers.run,
    "evaluation": evaluation.run,
    "sweep": sweep.run,
    "scale": scale.run,
    "prefill-7b-batch-1": lambda: [*prefill.run("7b", 1), prefill.peak_memory("7b", 1)],
    "peers-7b": lambda: peers.run("7b"),
    "prefill-7b-batch-8": lambda: [*prefill.run("7b", 8), prefill.peak_memory("7b", 8)],
}


def main(
    parts: Annotated[list[str] | None, typer.Argument(help=f"Any of {', '.join(PARTS)}; all without one.")] = None,
) -> None:
    """Run the parts and write their rows."""
    wrong = [name for name in parts or [] if name not in PARTS]
    if wrong:
        raise typer.BadParameter(f"unknown part {wrong[0]!r}: known are {', '.join(PARTS)}")
    console = Console()
    rows: list[Row] = []
    for name in parts or PARTS:
        console.print(f"[bold]{name}[/bold]")
        if "7b" in name and not torch.cuda.is_available():
            rows.append(Row(f"{name}, bfloat16, GPU", None, 0.90, note="no GPU at hand"))
        else:
            rows += PARTS[name]()
        write(rows)
    show(rows)
    console.print(f"wrote {write(rows)}")


if __name__ == "__main__":
    typer.run(main)
