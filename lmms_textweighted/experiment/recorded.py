"""The two files of recorded documents beside a sweep's result: their views, and their pictures by the views' uid."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lmms_textweighted.errors import InputError
from lmms_textweighted.experiment.outcomes import Answered
from lmms_textweighted.view.files import NAME, read_views
from lmms_textweighted.view.record import DocumentView

VIEWS, PICTURES = NAME, "pictures.jsonl"  # endings of the result's files


def write_recorded(views: Path, pictures: Path, answered: Iterable[Answered]) -> None:
    """Write both files anew, a line a recorded document. Raises OSError where they cannot be written."""
    with views.open("w", encoding="utf-8") as seen, pictures.open("w", encoding="utf-8") as images:
        for document in answered:
            if document.view is not None:
                seen.write(_line(document.view))
                images.write(_line({"uid": document.view["uid"], "pictures": document.pictures or []}))


def recorded(result: Path) -> Iterator[tuple[DocumentView, list[list[str]]]]:
    """(view, its pictures' canvases as data URIs) of every recorded document of a result; nothing where none was.

    Raises InputError for a file that cannot be read.
    """
    views = result.with_name(f"{result.stem}.{VIEWS}")
    if not views.is_file():
        return
    pictures = _pictures(result.with_name(f"{result.stem}.{PICTURES}"))
    for view in read_views(views):
        yield view, pictures.get(view.uid, [])


def _pictures(path: Path) -> dict[str, list[list[str]]]:
    """By uid; nothing where there is no such file: the views go without."""
    if not path.is_file():
        return {}
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {line["uid"]: [list(map(_checked, canvases)) for canvases in line["pictures"]] for line in lines}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"pictures {str(path)!r} cannot be read ({type(error).__name__}: {error}): run the sweep again, or take "
            f"the file away to go without"
        ) from error


def _checked(uri: Any) -> str:
    if not isinstance(uri, str) or not uri.startswith("data:image/"):
        raise ValueError(f"{str(uri)[:40]!r} is no picture")
    return uri


def _line(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"


def views_in(answered: Sequence[Answered]) -> bool:
    """Whether any of these documents was recorded."""
    return any(document.view is not None for document in answered)
