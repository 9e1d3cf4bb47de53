"""lmms-eval's response cache tells two contents of one file apart, and finds what a killed run left.

It keys answers by the words of --model_args, so that a `plan.yaml` or a `my_method.py` that was edited would be
answered from what the earlier one said. The key also holds lmms-eval's own version: the commit of the git checkout that
the package lies in, or where git finds none, what LMMS_EVAL_GIT_COMMIT says. So while a run whose strategy is a file
goes on, git is shown no checkout, and that variable says the version with the file's digest behind it. Nothing else
reads it in that time: the results' own `git_hash` is asked for after the model has let go of it.

Answers of a run that has not ended lie in a folder of its own, whose name lmms-eval makes up anew each time: the same
command would never find them. So its name is that of the command. What the same command left there of continuations is
taken out before lmms-eval reads it: it cannot score what it reads back (see `scored`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.utils import get_lmms_eval_cache_version

from lmms_textweighted.errors import InputError

_COMMIT, _CHECKOUT, _RUN_ID = "LMMS_EVAL_GIT_COMMIT", "GIT_DIR", "LMMS_CACHE_RUN_ID"
_BEFORE: dict[str, str | None] = {}


def add_to_cache_key(digest: str | None, runs: Sequence[Mapping[str, Any]]) -> None:
    """From now on cached answers are those of this digest; None: those of the words alone, as lmms-eval has it.

    runs: lmms-eval's options, empty where it is not its command that runs: then who calls it names the cache's run, by
    LMMS_CACHE_RUN_ID, which is never overruled. Raises InputError where they name a cache and lmms-eval's key no longer
    takes the digest.
    """
    restore_cache_key()
    if any(run.get("use_cache") for run in runs) and not os.environ.get(_RUN_ID):
        _BEFORE[_RUN_ID] = os.environ.get(_RUN_ID)
        os.environ[_RUN_ID] = _name_of(runs)
    for run in runs:
        if run.get("use_cache"):
            _forget_continuations(Path(run["use_cache"]) / "runs" / os.environ[_RUN_ID])
    if digest is None:
        return
    wanted = f"{get_lmms_eval_cache_version()}+{digest}"
    _BEFORE.update({name: os.environ.get(name) for name in (_COMMIT, _CHECKOUT)})
    os.environ.update({_COMMIT: wanted, _CHECKOUT: os.devnull})
    if get_lmms_eval_cache_version() != wanted and any(run.get("use_cache") for run in runs):
        restore_cache_key()
        raise InputError(
            "use_cache is given, but this lmms-eval cannot tell an edited file's answers from older ones: leave it out"
        )


def restore_cache_key() -> None:
    """Undo `add_to_cache_key`."""
    while _BEFORE:
        name, value = _BEFORE.popitem()
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _name_of(runs: Sequence[Mapping[str, Any]]) -> str:
    """The same for the same command, and for all of its processes."""
    text = json.dumps([dict(run) for run in runs], sort_keys=True, default=str)
    return f"command-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _forget_continuations(folder: Path) -> None:
    """Leave them out of this process's log of a run's answers, from which lmms-eval fills its store.

    It logs what a continuation scored, which it does not store (see `scored.Scored`), and reads that back when a run of
    the same name begins.
    """
    log = folder / f"rank_{os.environ.get('RANK', '0')}.audit.jsonl"
    if not log.is_file():
        return
    lines = log.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if not _is_continuation(line)]
    if len(kept) < len(lines):
        beside = log.with_name(f"{log.name}.part")
        beside.write_bytes(b"".join(kept))
        beside.replace(log)


def _is_continuation(line: bytes) -> bool:
    try:
        record = json.loads(line)
    except ValueError:  # a torn last line: lmms-eval leaves it out, too
        return False
    return isinstance(record, dict) and record.get("request_type") == "loglikelihood"
