"""Errors that end an lmms-eval run.

lmms-eval prints the traceback of an `Exception` and exits with 0, as if nothing had happened, and with several
processes the others then wait for hours. A `SystemExit` passes through: one line on standard error, exit code 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lmms_textweighted.errors import describe
from lmms_textweighted.parallel.processes import named
from lmms_textweighted.parallel.watch import tell_others


class RunEnded(SystemExit):
    """Ends the process with one line and exit code 1. The launcher then ends the other processes."""

    def __init__(self, message: str) -> None:
        super().__init__(f"lmms-textweighted: {named(message)}")


@contextmanager
def ending_the_run(where: str = "") -> Iterator[None]:
    """Turn an error into RunEnded, its message headed by `where`. Errors not our own are named by their type."""
    head = f"{where}: " if where else ""
    try:
        yield
    except Exception as error:
        message = f"{head}{describe(error)}"
        tell_others(message)
        raise RunEnded(message) from error
