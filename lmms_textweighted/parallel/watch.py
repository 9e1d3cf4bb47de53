"""Several processes end together: none waits for hours for one that is gone, and none exits with 0 where one was lost.

The launcher ends a machine's other processes when one dies. It does not tell other machines', and where lmms-eval
catches an error it sees a process that ended well. So every process says in the launcher's store, every few seconds,
that it is there, that it has left, or what ended it, and ends when another is gone.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from typing import Any

from lmms_textweighted.errors import InputError
from lmms_textweighted.parallel.processes import named, world

PATIENCE = "LMMS_TEXTWEIGHTED_PATIENCE"
_DEFAULT_PATIENCE = 300  # seconds, as long as torchrun's own wait for other machines
_LEFT, _ENDED = "left", "ended: "
_WATCH: list[Watch] = []


class Watch(threading.Thread):
    """A thread that writes this process's state and reads the others'.

    A process that is silent, or has left, for `patience` seconds while this one still runs is lost: this one then ends
    with a line that names it and exit code 1.
    """

    def __init__(self, store: Any, patience: float) -> None:
        super().__init__(name="watch", daemon=True)
        self.rank, self.size = world()
        self.store, self.patience = store, patience
        self.others = [rank for rank in range(self.size) if rank != self.rank]
        self.heard: dict[int, tuple[str, float]] = {}
        self.beats = 0
        self.leaving = False
        self.saying = threading.Lock()  # a beat must not follow the last word
        self._beat()

    def run(self) -> None:
        while not self.leaving:
            try:
                self._beat()
                lost = self._lost()
            except RuntimeError:  # the store is gone, and with it the process or launcher that held it
                time.sleep(self.patience)
                lost = "the launcher's store is gone"
            if lost and not self.leaving:
                _end(f"{lost}: this process ends, too")
            time.sleep(self.patience / 20)

    def leave(self) -> None:
        """At a normal exit: wait until all others have left, too, so that the exit code tells of a lost one."""
        try:
            self._say_last(_LEFT)
            while any(state != _LEFT for state in self._states().values()):
                lost = self._lost()
                if lost:
                    _end(lost)
                time.sleep(0.05)
        except RuntimeError:  # the store went with its process, which had waited for this one
            return

    def end(self, message: str) -> None:
        """Tell the others what ends this process."""
        atexit.unregister(self.leave)
        try:
            self._say_last(_ENDED + message)
        except RuntimeError:
            return

    def _beat(self) -> None:
        with self.saying:
            if not self.leaving:
                self.beats += 1
                self.store.set(_key(self.rank), str(self.beats))

    def _say_last(self, state: str) -> None:
        with self.saying:
            self.leaving = True
            self.store.set(_key(self.rank), state)

    def _states(self) -> dict[int, str]:
        """The others' states; waits for those that have said nothing yet."""
        values = self.store.multi_get([_key(rank) for rank in self.others])
        return {rank: value.decode() for rank, value in zip(self.others, values, strict=True)}

    def _lost(self) -> str | None:
        now = time.monotonic()
        for rank, state in self._states().items():
            if state.startswith(_ENDED):
                return f"rank {rank} of {self.size} has ended the run: {state.removeprefix(_ENDED)}"
            before, since = self.heard.get(rank, ("", now))
            if state != before:
                self.heard[rank] = (state, now)
            elif now - since > self.patience and not (self.leaving and state == _LEFT):
                what = "has left the run" if state == _LEFT else "has died or is out of reach"
                return f"rank {rank} of {self.size} {what}, {self.patience:g} seconds ago"
        return None


def watch_others() -> None:
    """Start this process's watch, once; to be called when torch's process group is made. One process needs none.

    Raises InputError when the environment names a patience that is no number of seconds.
    """
    if world()[1] == 1 or _WATCH:
        return
    from datetime import timedelta

    from torch.distributed import PrefixStore
    from torch.distributed.distributed_c10d import _get_default_store

    said = os.environ.get(PATIENCE, str(_DEFAULT_PATIENCE))
    try:
        patience = float(said)
    except ValueError:
        patience = 0
    if not patience > 0:
        raise InputError(f"{PATIENCE} is {said!r}: give seconds")
    # A connection of its own: the main one is held while a collective waits in it.
    store = PrefixStore("textweighted", _get_default_store().clone())
    store.set_timeout(timedelta(seconds=patience))
    watch = Watch(store, patience)
    _WATCH.append(watch)
    atexit.register(watch.leave)
    watch.start()


def tell_others(message: str) -> None:
    """What ends this process ends all of them."""
    for watch in _WATCH:
        watch.end(message)


def _key(rank: int) -> str:
    return f"state/{rank}"


def _end(message: str) -> None:
    print(f"lmms-textweighted: {named(message)}", file=sys.stderr, flush=True)
    os._exit(1)
