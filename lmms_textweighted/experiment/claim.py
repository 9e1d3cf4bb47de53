"""A sweep's files have fixed names: one sweep at a time writes them, and a finished result stays unless asked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmms_textweighted.errors import InputError
from lmms_textweighted.experiment.files import DRAFT
from lmms_textweighted.experiment.journal import journals
from lmms_textweighted.parallel.locks import file_lock
from lmms_textweighted.parallel.processes import world


@contextmanager
def claimed(result: Path, *, overwrite: bool) -> Iterator[None]:
    """Hold the place of a result, whatever its process's fate. Of several processes of one run the first one does.

    Raises InputError where another run writes it just now, and where it is there, overwrite is False, and no journal
    lies beside it: one that does is of a run that was to replace it, or that was killed when it had just done so.
    """
    if world()[0] != 0:
        yield
        return
    # Never taken away: another process may have it open already, and would then hold what nobody else sees.
    with file_lock(result.with_name(f".{result.stem}.lock")) as held:
        if held is None:
            raise InputError(f"another sweep writes {str(result)!r} just now: give another --output-dir")
        if result.exists() and not overwrite and not journals(result):
            raise InputError(f"result {str(result)!r} is there already: give another --output-dir, or --overwrite")
        for draft in result.parent.glob(f"{result.stem}.*{DRAFT}"):  # of a run that was killed while it wrote them
            draft.unlink(missing_ok=True)
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
