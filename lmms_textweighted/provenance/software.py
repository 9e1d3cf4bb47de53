"""Which software answers: packages, the lock, this package's own code, and the state of its checkout."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from lmms_textweighted.paths import data_folder
from lmms_textweighted.upstream.known_bad import installed
from lmms_textweighted.upstream.versions import LOCK

# What answers, figures and scores come from.
PACKAGES = ("lmms-textweighted", "lmms-eval", "torch", "transformers", "tokenizers", "accelerate", "numpy", "pillow")

_PACKAGE = Path(__file__).resolve().parent.parent


def versions() -> dict[str, str]:
    """The versions of PACKAGES and of Python, by name; what is not installed is left out."""
    found = {name: str(version) for name in PACKAGES if (version := installed(name)) is not None}
    return {**found, "python": platform.python_version()}


@cache
def code_digest() -> str:
    """The first 16 digits of a SHA-256 over this package's Python files and its tasks, names and contents.

    A version number stays while the code is worked on; this does not.
    """
    digest = hashlib.sha256()
    for name, path in sorted(_sources()):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


@cache
def lock_digest() -> str:
    """The first 16 digits of the SHA-256 of `upstream/constraints.txt`: which lock, not whether it is installed."""
    return hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]


@cache
def git_state() -> dict[str, Any] | None:
    """The commit of the checkout that this package lies in, and whether a file of it was changed since (`dirty`).

    None where it lies in none, as an installed wheel does, where git is not there, or where the checkout is another
    project's: one that a virtual environment lies in, and that ignores it.
    """
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top) != _PACKAGE.parent:
        return None
    commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "dirty": bool(changed)}


def software() -> dict[str, Any]:
    """All of the above, for a result."""
    return {"versions": versions(), "lock": lock_digest(), "code": code_digest(), "git": git_state()}


def _sources() -> Iterator[tuple[str, Path]]:
    for path in _PACKAGE.rglob("*.py"):
        yield path.relative_to(_PACKAGE).as_posix(), path
    tasks = data_folder("tasks")
    for path in tasks.rglob("*"):
        if path.suffix in (".py", ".yaml"):
            yield f"tasks/{path.relative_to(tasks).as_posix()}", path


def _git(*words: str) -> str | None:
    # $GIT_DIR may be set to hide a checkout from lmms-eval: harness.cache_key.
    environment = {name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE")}
    try:
        done = subprocess.run(
            ["git", "-C", str(_PACKAGE), *words],
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
