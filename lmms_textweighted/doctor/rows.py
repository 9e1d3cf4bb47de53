"""A check's outcome, and how the checks are run: none of them can end the others."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lmms_textweighted.errors import describe

OK, WARN, BAD = "ok", "warn", "bad"


@dataclass(frozen=True)
class Row:
    """status: OK; WARN, something cannot be used, the rest can; BAD, runs fail. advice: what to do, "" when OK."""

    name: str
    status: str
    found: str
    advice: str = ""


Check = Callable[[], "Row | list[Row]"]


@dataclass(frozen=True)
class Checked:
    """A check under the name that its row has when it fails itself, and what to do then."""

    name: str
    check: Check
    advice: str


def run_checks(checks: Sequence[Checked]) -> Iterator[Row]:
    """Each check's rows, as they come. One that raises is a BAD row with the first line of its error.

    What the libraries print meanwhile is left out: of a failure, the row tells.
    """
    for checked in checks:
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                rows = checked.check()
        except (Exception, SystemExit) as error:  # a broken installation fails in every possible way
            rows = Row(checked.name, BAD, describe(error), checked.advice)
        yield from [rows] if isinstance(rows, Row) else rows
