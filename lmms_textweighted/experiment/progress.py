"""A progress bar behind which a line can follow, on any kind of output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, ProgressColumn


@contextmanager
def progress_on(console: Console, *columns: ProgressColumn) -> Iterator[Progress]:
    """rich's bar, closed with a line's end: in a file rich leaves its last state open, and an error would stand behind
    it."""
    try:
        with Progress(*columns, console=console, disable=console.quiet) as progress:
            yield progress
    finally:
        if not console.is_terminal:
            console.line()
