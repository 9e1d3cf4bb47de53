"""A leaderboard's plan for people: its tasks, its runs, what they cost by the estimate, where the time goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lmms_textweighted.leaderboard.commands import Run, shell_line
from lmms_textweighted.leaderboard.estimate import Cost, Estimate
from lmms_textweighted.leaderboard.results import NOTHING, cached_answers, done
from lmms_textweighted.leaderboard.schema import Matrix

States = dict[str, tuple[Path | None, str]]  # by the run's name: see `results.done`

_HOUR = 3600
_NOTE = (
    "Arithmetic, not a measurement. It leaves out preparing pictures, loading data and weights, scoring and the output "
    "head, and takes the rates for granted: pruned prefills rarely keep them up."
)


def show_plan(matrix: Matrix, runs: Sequence[Run], made: Estimate, console: Console) -> None:
    """Print the tasks, the runs with their state, and the sums."""
    states = {run.name: done(run) for run in runs}
    console.print(_tasks(matrix, made))
    console.print(_runs(runs, made, states))
    for line in [*_not_usable(states), *_sums(made, states)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def show_states(matrix: Matrix, runs: Sequence[Run], why: str, console: Console) -> None:
    """Print the runs with their state, and why there is no estimate."""
    states = {run.name: done(run) for run in runs}
    table = Table(title=f"{matrix.name}: the runs, each over {len(matrix.tasks)} tasks", title_justify="left")
    _columns(table, "run", "state")
    for run in runs:
        table.add_row(escape(run.name), _state(run, *states[run.name]))
    console.print(table)
    for line in [*_not_usable(states), why]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def show_commands(runs: Sequence[Run], launcher: str | None, console: Console) -> None:
    """Print each run's command, as a shell takes it."""
    for run in runs:
        # Not through rich's markup or wrapping: these lines are to be copied.
        console.print(shell_line(run, launcher), markup=False, highlight=False, soft_wrap=True)


def _unless(made: Estimate) -> str:
    return " where the task says nothing else" if made.geometry.fixed_tokens is None else ""


def _tasks(matrix: Matrix, made: Estimate) -> Table:
    sized = made.geometry.fixed_tokens is None
    table = Table(title=f"{matrix.name}: the tasks, unpruned", title_justify="left", padding=0 if sized else (0, 1))
    tokens = ["text\ntokens", "picture\ntokens"] if sized else ["text tokens"]
    _columns(table, "task", "documents", "pictures", *tokens, "PFLOP", "hours", "share")
    whole = made.rates.seconds(sum(made.unpruned.values(), Cost()))
    for task in matrix.tasks:
        cost = made.unpruned[task.name]
        seconds = made.rates.seconds(cost)
        table.add_row(
            task.name,
            f"{made.documents(task.name):,}",
            f"{sum(part.count * part.images for part in made.parts[task.name]):,}",
            str(task.text_tokens or made.assumed.text_tokens),
            *([str(task.image_tokens or made.geometry.image_tokens)] * sized),
            _number(cost.flops / 1e15),
            _number(seconds / _HOUR),
            f"{seconds / whole:.0%}",
        )
    return table


def _runs(runs: Sequence[Run], made: Estimate, states: States) -> Table:
    # Without padding beside the lines: the longest names and all figures in 80 columns.
    table = Table(title="the runs, each over all tasks", title_justify="left", padding=0)
    _columns(table, "run", "tokens\nkept", "equi-\nvalent", "FLOPs", "PFLOP", "hours", "state")
    full = sum(made.unpruned.values(), Cost()).prefill
    for run, cost in zip(runs, made.runs, strict=True):
        table.add_row(
            escape(run.name),
            str(cost.kept),
            f"{cost.equivalent:.0f}",
            f"{cost.total.prefill / full:.0%}",
            _number(cost.total.flops / 1e15),
            _number(made.rates.seconds(cost.total) / _HOUR),
            _state(run, *states[run.name]),
        )
    return table


def _state(run: Run, found: Path | None, why: str) -> str:
    if found is not None:
        return "done"
    answers = cached_answers(run)
    return f"{answers:,} answers" if answers else "missing" if why == NOTHING else "not usable"


def _not_usable(states: States) -> list[str]:
    """Why results that are there do not count."""
    return [f"{name}: not usable: {why}" for name, (found, why) in states.items() if found is None and why != NOTHING]


def _sums(made: Estimate, states: States) -> list[str]:
    rates, total = made.rates, made.total
    seconds = rates.seconds(total)
    kinds: dict[str, Callable[[Cost], float]] = {
        "vision tower": lambda cost: cost.vision / rates.flops_per_second,
        "prefill": lambda cost: cost.prefill / rates.flops_per_second,
        "decoding": lambda cost: cost.decode_seconds,
    }
    shares = ", ".join(f"{name} {of(total) / seconds:.0%}" for name, of in kinds.items())
    documents = sum(made.documents(task) for task in made.parts) * len(made.runs)
    missing = sum(rates.seconds(one.total) for one in made.runs if states[one.run.name][0] is None)
    assumed = made.assumed
    return [
        f"{len(made.runs)} runs, {documents:,} documents, {_number(total.flops / 1e15)} PFLOP, "
        f"{_number(seconds / _HOUR)} hours at {rates.flops_per_second:.3g} FLOP/s and {rates.bytes_per_second:.3g} "
        f"bytes/s ({_number(missing / _HOUR)} of them for what is missing): {shares}.",
        f"Assumed: {made.geometry.image_tokens} tokens a picture{_unless(made)}, {made.geometry.decoder.layers} layers "
        f"({made.geometry.source}), answers of {assumed.answer_tokens} tokens, {assumed.element_size} bytes a weight, "
        f"batches of {rates.batch}. `equivalent` and FLOPs are as `compare` has them: image tokens of a document with "
        f"one picture as a mean over the layers, and the decoder's prefill against unpruned. PFLOP and hours count the "
        f"vision tower, the projector and decoding, too.",
        _NOTE,
    ]


def _columns(table: Table, first: str, *others: str) -> None:
    """Text to the left, numbers to the right."""
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)


def _number(value: float) -> str:
    """Three digits that count: 1,234, 12.3, 0.0123."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
