"""`lmms-textweighted leaderboard`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def leaderboard(
    config: Annotated[str, typer.Argument(help="A YAML file, or a ready one: tiny, llava15-7b.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print plan, cost estimate and commands; run nothing.")
    ] = False,
    write: Annotated[
        Path | None, typer.Option(help="Write the runs to a file for `lmms-eval --config`; run nothing.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="The first N documents of each task, to try it out; in a folder of its own.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="Some of the runs: 'none,fastv-*'.")] = None,
    launcher: Annotated[
        str | None,
        typer.Option(help="Starts lmms-eval: 'accelerate launch --num_processes 8 -m lmms_eval'; else this Python."),
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Go on after a failed run, instead of ending at the first one.")
    ] = False,
    output_dir: Annotated[Path | None, typer.Option(help="Instead of the config's.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page of the table here, too.")] = None,
    flops_per_second: Annotated[
        float | None,
        typer.Option(help="The estimate's rate, all devices together; else the config's (1e14, a third of an A100)."),
    ] = None,
    bytes_per_second: Annotated[
        float | None,
        typer.Option(help="The estimate's memory rate while decoding; else the config's (1e12, half of an A100)."),
    ] = None,
) -> None:
    """Tasks x budgets x methods: run what is missing, go on where it stopped, and end in one table."""
    from lmms_textweighted.leaderboard.main import Request, run_leaderboard

    request = Request(
        config, output_dir, limit, only, launcher, keep_going, dry_run, write, flops_per_second, bytes_per_second, html
    )
    raise typer.Exit(run_leaderboard(request))
