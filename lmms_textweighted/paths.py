"""Where the package's data folders are, in a wheel as in an editable install, and where its cache is."""

from __future__ import annotations

import os
from pathlib import Path

from lmms_textweighted.errors import InputError

_PACKAGE = Path(__file__).resolve().parent
EMBEDDED = {"tiny": "checkpoint", "tiny-qwen": "checkpoint_qwen"}  # name of an embedded model -> its folder


def data_folder(name: str) -> Path:
    """`tasks` or `configs`: inside the package when installed, beside it in a checkout."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def config_names(folder: str = "") -> list[str]:
    """The ready configs, or those of one of their folders, without `.yaml`: `shapes`, `leaderboard/tiny`."""
    root = data_folder("configs") / folder
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def config_text(config: str | Path) -> str:
    """A ready config by name, or a file's text, with this installation's absolute paths filled in for `${TASKS}`.

    Raises InputError when a file cannot be read.
    """
    path = config if isinstance(config, Path) else data_folder("configs") / f"{config}.yaml"
    try:
        return path.read_text(encoding="utf-8").replace("${TASKS}", str(data_folder("tasks")))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config {str(path)!r} cannot be read: {error}") from error


def checkpoint_folder(name: str = "tiny") -> Path:
    """An embedded model's checkpoint; `name` is one of EMBEDDED."""
    return _PACKAGE / "tiny" / EMBEDDED[name]


def cache_folder() -> Path:
    """$LMMS_TEXTWEIGHTED_CACHE, or lmms-textweighted under the user's cache folder.

    Raises InputError where neither is known, as in a container under a bare user id.
    """
    named = os.environ.get("LMMS_TEXTWEIGHTED_CACHE")
    if named:
        return Path(named)
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "lmms-textweighted"
    try:
        home = Path.home()
    except RuntimeError:  # neither $HOME nor an entry for the user
        home = Path()
    if not home.is_absolute():
        raise InputError("no home folder is known, and so no cache folder: set LMMS_TEXTWEIGHTED_CACHE")
    return home / ".cache" / "lmms-textweighted"


def expanded(path: str) -> Path:
    """The path with a leading `~` filled in. Raises InputError where no home folder is known for it."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"path {path!r} begins with ~, but that home folder is not known: write it out") from error
