"""lmms-eval's response cache tells two contents of one file apart.

It keys answers by the words of --model_args, so that a `plan.yaml` or a `my_method.py` that was edited would be
answered from what the earlier one said. The key also holds lmms-eval's own version: the commit of the git checkout that
the package lies in, or where git finds none, what LMMS_EVAL_GIT_COMMIT says. So while a run whose strategy is a file
goes on, git is shown no checkout, and that variable says the version with the file's digest behind it. Nothing else
reads it in that time: the results' own `git_hash` is asked for after the model has let go of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from lmms_eval.utils import get_lmms_eval_cache_version

from lmms_textweighted.errors import InputError

_COMMIT, _CHECKOUT = "LMMS_EVAL_GIT_COMMIT", "GIT_DIR"
_BEFORE: dict[str, str | None] = {}


def add_to_cache_key(digest: str | None, runs: Sequence[Mapping[str, Any]]) -> None:
    """From now on cached answers are those of this digest; None: those of the words alone, as lmms-eval has it.

    runs: lmms-eval's options. Raises InputError where they name a cache and lmms-eval's key no longer takes the digest.
    """
    restore_cache_key()
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
