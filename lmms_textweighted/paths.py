"""Where the package's data folders are, in a wheel as in an editable install, and where its cache is."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """`tasks` or `configs`: inside the package when installed, beside it in a checkout."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def checkpoint_folder() -> Path:
    """The embedded model's checkpoint."""
    return _PACKAGE / "tiny" / "checkpoint"


def cache_folder() -> Path:
    """$LMMS_TEXTWEIGHTED_CACHE, or lmms-textweighted under the user's cache folder."""
    named = os.environ.get("LMMS_TEXTWEIGHTED_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmms-textweighted"
