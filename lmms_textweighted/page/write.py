"""From sections to one HTML file that holds everything it needs."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from lmms_textweighted import __version__
from lmms_textweighted.errors import InputError
from lmms_textweighted.page.documents import detail_of, points_of
from lmms_textweighted.page.sections import Curves, Documents, Section

_SCRIPTS = ("base.js", "curves.js", "table.js", "draw.js", "documents.js", "start.js")
# `<` could end a script element, and `&` is escaped with it so that the text is the same in HTML and in XHTML.
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


@dataclass(frozen=True)
class Page:
    """A page. subtitle: a sentence below the title. facts: (name, value), shown in a row."""

    title: str
    sections: Sequence[Section]
    subtitle: str = ""
    facts: Sequence[tuple[str, str]] = ()


def check_page(path: Path | None) -> None:
    """Raises InputError where a page could not be written: to be known before the work. None: no page is asked for."""
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"html is {str(path)!r}, which is a folder: give the page a name in it, as {path}/page.html")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"page {str(path)!r} cannot be written ({error.strerror}): name another file") from error


def write_page(path: Path, page: Page) -> None:
    """Write the page. Raises InputError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(page), encoding="utf-8")
    except OSError as error:
        raise InputError(f"page {str(path)!r} cannot be written ({error.strerror}): name another file") from error


def render(page: Page) -> str:
    """The page's HTML. Every text is escaped, every script is named by its hash, and none other may run."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    script = "(() => {\n" + "\n".join(map(_asset, _SCRIPTS)) + "\n})();\n"
    drawn = any(isinstance(section, Curves) for section in page.sections)
    library, digest = plotly() if drawn else ("", "")
    allowed = [_hash(script.encode()), *([digest] if drawn else [])]
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(_asset("page.html")).render(
        title=page.title,
        subtitle=page.subtitle,
        facts=page.facts,
        version=__version__,
        policy="; ".join(
            [
                "default-src 'none'",
                f"script-src {' '.join(allowed)}",
                "style-src 'unsafe-inline'",
                "img-src data: blob:",
                "base-uri 'none'",
                "form-action 'none'",
            ]
        ),
        style=Markup(_asset("style.css")),
        script=Markup(script),
        plotly=library,
        sections=[_section(place, page.sections) for place in range(len(page.sections))],
    )


def _section(place: int, sections: Sequence[Section]) -> dict[str, Any]:
    """A section for the template. named: in the navigation, which has the first of several of one kind."""
    from markupsafe import Markup

    section, short = sections[place], _short(sections[place])
    details = []
    if isinstance(section, Documents):
        points = points_of([shown.view for shown in section.documents])
        details = [Markup(embedded(detail_of(shown, points))) for shown in section.documents]
    return {
        "id": f"section-{place}",
        "kind": section.kind,
        "title": section.title,
        "short": short,
        "named": short not in map(_short, sections[:place]),
        "json": Markup(embedded(section.data())),
        "details": details,
    }


def _short(section: Section) -> str:
    return section.title.partition(":")[0]


def embedded(data: Any) -> str:
    """Data as JSON that may stand in a script element. Raises ValueError for a number that JSON does not have."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(_ESCAPES)


@cache
def plotly() -> tuple[str, str]:
    """Plotly's JavaScript, compressed and in base64, and the hash by which it may run: it is 4.8 MB, so 2 MB here."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs().encode()
    # Without a time in its head, so that equal results are equal files.
    return base64.b64encode(gzip.compress(script, 9, mtime=0)).decode("ascii"), _hash(script)


def _hash(script: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode('ascii')}'"


def _asset(name: str) -> str:
    return resources.files("lmms_textweighted.page").joinpath("assets", name).read_text(encoding="utf-8")
