"""`lmms-textweighted leaderboard`: a config -> its plan, its runs, and the table that compares them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from loguru import logger
from rich.console import Console

from lmms_textweighted.compare.published import read_published
from lmms_textweighted.errors import InputError, unknown
from lmms_textweighted.families import DEFAULT_CHECKPOINT
from lmms_textweighted.leaderboard.commands import Run, config_text_of, expand
from lmms_textweighted.leaderboard.documents import check_tasks, count_documents
from lmms_textweighted.leaderboard.estimate import Rates, estimate
from lmms_textweighted.leaderboard.geometry import read_geometry
from lmms_textweighted.leaderboard.results import done
from lmms_textweighted.leaderboard.runner import Outcome, run_missing
from lmms_textweighted.leaderboard.schema import Matrix, read_matrix
from lmms_textweighted.leaderboard.show import show_commands, show_plan, show_states
from lmms_textweighted.page import check_page, write_page

INTERRUPTED = 130  # as a shell has it
TABLE = "leaderboard"  # the table's files, beside the runs


@dataclass(frozen=True)
class Request:
    """What the command line asks for. only: names of runs, with `*`, separated by commas. Rates: else the config's."""

    config: str
    output_dir: Path | None = None
    limit: int | None = None
    only: str | None = None
    launcher: str | None = None
    keep_going: bool = False
    dry_run: bool = False
    write: Path | None = None
    flops_per_second: float | None = None
    bytes_per_second: float | None = None
    html: Path | None = None


def run_leaderboard(request: Request) -> int:
    """Do what is asked; the exit code: 0 when every chosen run is done, 130 when interrupted, else 1.

    Raises InputError, PlanError or CheckpointError before any work for what cannot be.
    """
    console = Console()
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    matrix = read_matrix(request.config)
    if request.limit is not None and request.limit < 1:
        raise InputError(f"limit is {request.limit}: give a whole number of documents of at least 1")
    check_page(request.html)
    output = request.output_dir or Path(matrix.output)
    if request.limit is not None:  # trials apart from the real thing
        output = output.with_name(f"{output.name}-limit{request.limit}")
    rates = _rates(request, matrix)
    every = expand(matrix, output=output, limit=request.limit)
    runs = _chosen(every, request.only)
    if request.write is not None:
        _write(request.write, runs, request.config)
        console.print(f"wrote {request.write}: `lmms-eval --config {request.write}` does the {len(runs)} runs")
        return 0
    _plan(request, matrix, runs, rates, console)
    if request.dry_run:
        show_commands(runs, request.launcher, console)
        return 0
    try:
        outcomes = run_missing(runs, console=console, launcher=request.launcher, keep_going=request.keep_going)
    except KeyboardInterrupt:
        print("lmms-textweighted: interrupted: the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    _compare(matrix, every, output, request.html, console)
    return _verdict(runs, outcomes)


def _plan(request: Request, matrix: Matrix, runs: list[Run], rates: Rates, console: Console) -> None:
    arguments = matrix.model_args
    pretrained, revision = str(arguments.get("pretrained", DEFAULT_CHECKPOINT)), str(arguments.get("revision", "main"))
    # What is not there should be noticed before the work, not after it.
    for table in matrix.published:
        read_published(table)
    check_tasks([task.name for task in matrix.tasks], matrix.options.include_path)
    try:
        geometry = read_geometry(pretrained, revision, matrix.estimate.config, matrix.estimate.image_tokens)
        parts = count_documents(matrix, request.limit)
    except InputError as error:  # a leaderboard can be run though it cannot be estimated
        show_states(matrix, runs, f"No estimate: {error}", console)
        return
    show_plan(matrix, runs, estimate(matrix, runs, geometry, rates, parts), console)


def _rates(request: Request, matrix: Matrix) -> Rates:
    batch, stated = matrix.options.batch_size, matrix.estimate
    flops, size = request.flops_per_second, request.bytes_per_second
    return Rates(
        stated.flops_per_second if flops is None else flops,
        stated.bytes_per_second if size is None else size,
        int(batch) if batch.isdigit() else 1,
    )


def _chosen(runs: list[Run], only: str | None) -> list[Run]:
    if only is None:
        return runs
    wanted = [pattern.strip() for pattern in only.split(",") if pattern.strip()]
    for pattern in wanted or [only]:
        if not any(fnmatchcase(run.name, pattern) for run in runs):
            raise InputError(unknown("run", pattern, [run.name for run in runs]))
    return [run for run in runs if any(fnmatchcase(run.name, pattern) for pattern in wanted)]


def _write(path: Path, runs: list[Run], config: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = config_text_of(runs, f"Expanded from the leaderboard {config}: lmms-eval --config {path}")
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"config file {str(path)!r} cannot be written: {error.strerror}") from error


def _compare(matrix: Matrix, runs: Sequence[Run], output: Path, html: Path | None, console: Console) -> None:
    """Print the table over all runs of the leaderboard that are done, now or before, and write it beside them."""
    from lmms_textweighted.compare import compare_runs
    from lmms_textweighted.compare.formats import ENDINGS, render, show
    from lmms_textweighted.compare.webpage import page_of

    states = {run.name: done(run) for run in runs}
    files = [file for file, _ in states.values() if file is not None]
    if not files:
        return
    metrics = {task.name: task.metric for task in matrix.tasks if task.metric}
    comparison = compare_runs(files, published=matrix.published, metrics=metrics)
    comparison.notes += [f"not in the table: {name}: {why}" for name, (file, why) in states.items() if file is None]
    show(comparison, console)
    for ending, format in ENDINGS.items():
        table = output / f"{TABLE}{ending}"
        table.write_text(render(comparison, format), encoding="utf-8")
        console.print(f"wrote {table}", markup=False, highlight=False, soft_wrap=True)
    if html is not None:
        write_page(html, page_of(comparison, title=f"Leaderboard {matrix.name}"))
        console.print(f"page: {html.resolve()}", markup=False, highlight=False, soft_wrap=True)


def _verdict(runs: Sequence[Run], outcomes: Sequence[Outcome]) -> int:
    """0 when every run is done; else 1, with a line on standard error that names those that are not."""
    results = {outcome.run.name: outcome for outcome in outcomes}
    failed = [name for name, outcome in results.items() if outcome.results is None and not outcome.busy]
    busy = [name for name, outcome in results.items() if outcome.busy]
    left = [run.name for run in runs if run.name not in results and done(run)[0] is None]
    said = [
        f"{len(names)} {what} ({', '.join(names)})"
        for names, what in ((failed, "failed"), (busy, "left to another process"), (left, "not tried"))
        if names
    ]
    if not said:
        return 0
    print(
        f"lmms-textweighted: of {len(runs)} runs {', '.join(said)}: the same command goes on from here", file=sys.stderr
    )
    return 1
