"""One process at a time at a place, on this machine and on others that share its disk."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def file_lock(path: Path) -> Iterator[int | None]:
    """Hold the lock that `path` is; gives its file descriptor, or None when another process holds it.

    A child that inherits the descriptor holds the lock, too: it stays taken when this process is killed and its
    lmms-eval goes on. A process that dies lets go of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        yield file.fileno() if taken(file.fileno()) else None


@contextmanager
def run_lock(folder: Path) -> Iterator[int | None]:
    """The lock of a run's folder, as `file_lock` gives it."""
    with file_lock(folder / "lock") as held:
        yield held


def taken(file: int) -> bool:
    """Whether this process now holds the lock on an open file, until it closes it: False where another one does."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
