"""Run what a leaderboard lacks, one lmms-eval process after the other."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.markup import escape

from lmms_textweighted.errors import InputError
from lmms_textweighted.harness.output import check_writable
from lmms_textweighted.leaderboard.commands import Run, command
from lmms_textweighted.leaderboard.results import cached_answers, done
from lmms_textweighted.parallel.locks import run_lock

LOG = "lmms-eval.log"
_STOP_SECONDS = 20  # for lmms-eval to end by itself when we are told to


@dataclass(frozen=True)
class Outcome:
    """What became of a run: its results file, or why there is none. busy: another process is at it."""

    run: Run
    results: Path | None
    why: str = ""
    busy: bool = False


def run_missing(
    runs: Sequence[Run], *, console: Console, launcher: str | None = None, keep_going: bool = False
) -> list[Outcome]:
    """Run those of `runs` that are not done, in order; an outcome for each that was looked at.

    What lmms-eval prints goes to a log in the run's folder. A run that leaves no whole results file of its settings has
    failed, whatever its exit code. The first one ends it, unless keep_going. Raises InputError when a folder cannot be
    written or the launcher's program is not there.
    """
    outcomes: list[Outcome] = []
    for number, run in enumerate(runs, start=1):
        head = f"[{number}/{len(runs)}] {escape(run.name)}"
        check_writable(run.folder)
        with run_lock(run.folder) as lock:
            outcome = Outcome(run, None, "another process is at it", busy=True)
            if lock is not None:
                outcome = _one(run, head, lock, console, launcher)
        outcomes.append(outcome)
        if outcome.busy:
            console.print(f"{head}: another process is at it, left to that one")
        elif outcome.results is None:
            console.print(f"{head}: [red]failed[/red]: {escape(outcome.why)}", soft_wrap=True)
            if not keep_going:
                break
    return outcomes


def _one(run: Run, head: str, lock: int, console: Console, launcher: str | None) -> Outcome:
    found, why = done(run)
    if found is not None:
        console.print(f"{head}: done before")
        return Outcome(run, found)
    answered = cached_answers(run)
    begin = f"goes on, {answered} answers are cached" if answered else "begins"
    console.print(f"{head}: {begin} ({escape(why)}); log: {escape(str(run.folder / LOG))}", soft_wrap=True)
    began = time.monotonic()
    log = run.folder / LOG
    before = log.stat().st_size if log.exists() else 0
    code = _call(command(run, launcher), run, lock)
    found, why = done(run)
    if found is None:
        last = _last_words(log.read_bytes()[before:].decode(errors="replace"))
        return Outcome(run, None, f"{last or 'it said nothing'} (exit code {code}; {why}; log: {log})")
    console.print(f"{head}: done in {time.monotonic() - began:.0f} s")
    return Outcome(run, found)


def _call(words: list[str], run: Run, lock: int) -> int:
    """The exit code of lmms-eval, whose output is added to the log. When we are ended, it is ended first."""
    with (run.folder / LOG).open("a") as log, _ended_by_signals():
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **run.environment},
                pass_fds=(lock,),
                start_new_session=True,  # so that a launcher's workers can be ended with it
            )
        except OSError as error:
            raise InputError(f"launcher {words[0]!r} cannot be started: {error.strerror or error}") from error
        try:
            return process.wait()
        except BaseException:
            _end(process)
            raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process and its children to end; make them after a while."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_STOP_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """While open, SIGTERM ends us as Ctrl-C does, with cleaning up, and not at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _last_words(log: str) -> str:
    """The line of a failed run's log that says most: our own error, else the last one that names an error."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for wanted in ("lmms-textweighted: ", "Error"):
        said = [line for line in lines if wanted in line]
        if said:
            return said[-1].removeprefix("lmms-textweighted: ")
    return lines[-1] if lines else ""
