"""`views.jsonl`: a line a document, beside the results that it belongs to. Pictures are not in it: see `reference`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from lmms_textweighted.errors import InputError
from lmms_textweighted.view.compact import from_data, to_data
from lmms_textweighted.view.record import DocumentView

NAME = "views.jsonl"


def to_line(view: DocumentView) -> str:
    """A view as one line of the file, without its end."""
    return json.dumps(to_data(view), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def write_views(path: Path, views: Iterable[DocumentView]) -> None:
    """Write the file anew. Raises OSError where it cannot be written."""
    with path.open("w", encoding="utf-8") as file:
        for view in views:
            file.write(to_line(view) + "\n")


def read_views(path: Path) -> Iterator[DocumentView]:
    """The views of a file, one after the other. Raises InputError for a missing file, and for a line that is none."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                yield _read(path, number, line)
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or "it is no UTF-8"
        raise InputError(f"views {str(path)!r} cannot be read ({problem}): give a {NAME} of a sweep") from error


def _read(path: Path, number: int, line: str) -> DocumentView:
    try:
        return from_data(json.loads(line))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"views {str(path)!r}: line {number} is no document's view ({type(error).__name__}: {error}): write the "
            f"file anew"
        ) from error
