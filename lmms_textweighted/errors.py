"""The errors a user can act on. Each message is one line that names the input, its value and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class TextweightedError(ValueError):
    """Base of every error that this package raises on purpose. exit_code: the command line's."""

    exit_code = 1


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something, with the next where it ends with a colon, or its type's
    name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def first_problem(error: Any) -> str:
    """A pydantic ValidationError's first complaint in one line: where, the value, and what should be."""
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    value = problem["input"]
    if isinstance(value, str | int | float):
        where += f" is {value!r}"
    return f"{where}: {problem['msg']}" if where else problem["msg"]


def describe(error: BaseException) -> str:
    """An error of ours says it itself; any other is named by its type in front of its first line."""
    return str(error) if isinstance(error, TextweightedError) else f"{type(error).__name__}: {first_line(error)}"


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The text for a name that is not known: the nearest one, and all of them."""
    names = list(known)
    nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)
    return f"unknown {kind} {name!r}: did you mean {nearest[0]!r}? Known: {', '.join(names)}"


class PlanError(TextweightedError):
    """A pruning plan, or a plan and an input, that do not fit together."""


class CheckpointError(TextweightedError):
    """A checkpoint that is missing, unreachable or no LLaVA."""


class InputError(TextweightedError):
    """A question, picture, option or folder that cannot be used."""


class PromptError(InputError):
    """One prompt of a batch that cannot be used. row: its place in the batch."""

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message)
        self.row = row


class NotComparableError(TextweightedError):
    """What `regress` cannot compare: no verdict, as opposed to a regression, which is exit code 1."""

    exit_code = 2
