"""A sweep's files have fixed names: one sweep at a time writes them, and a finished result stays unless asked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmms_textweighted.errors import InputError
from lmms_textweighted.parallel.locks import file_lock
from lmms_textweighted.parallel.processes import world


@contextmanager
def claimed(result: Path, *, overwrite: bool) -> Iterator[None]:
    """Hold the place of a result, whatever its process's fate. Of several processes of one run the first one does.

    Raises InputError where another run writes it just now, and where it is there and overwrite is False.
    """
    if world()[0] != 0:
        yield
        return
    # Never taken away: another process may have it open already, and would then hold what nobody else sees.
    with file_lock(result.with_name(f".{result.stem}.lock")) as held:
        if held is None:
            raise InputError(f"another sweep writes {str(result)!r} just now: give another --output-dir")
        if result.exists() and not overwrite:
            raise InputError(f"result {str(result)!r} is there already: give another --output-dir, or --overwrite")
        yield


def claiming(target: Callable[[Any], Path]) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """A function of an experiment that holds the place of its result, `target` of it, while it runs."""

    def decorate(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @functools.wraps(run)
        def held(experiment: Any) -> Any:
            with claimed(target(experiment), overwrite=experiment.overwrite):
                return run(experiment)

        return held

    return decorate
