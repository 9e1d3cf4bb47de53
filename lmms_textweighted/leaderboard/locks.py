"""One process at a time in a run's folder, on this machine and on others that share its disk."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def run_lock(folder: Path) -> Iterator[int | None]:
    """Hold `folder`'s lock; gives its file descriptor, or None when another process holds it.

    A child that inherits the descriptor holds the lock, too: it stays taken when this process is killed and its
    lmms-eval goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file.fileno()
