"""A real Chromium for the tests of pages: what it complains about, and what it asks the network for, is noted.

`chromium` in conftest.py is the fixture. Where there is no Chromium, or no playwright, its tests are skipped for one
reason.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

MISSING = "no Chromium to drive: install chromium, or name one in $CHROMIUM"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ARGUMENTS = (
    *("--no-sandbox", "--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-dev-shm-usage"),
)


def find_chromium() -> str | None:
    """$CHROMIUM, or the machine's own."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def started() -> Iterator[Any]:
    """A browser of playwright's. Skips the test where there is none."""
    program = find_chromium()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        pytest.skip(MISSING)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(_ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Watched:
    """An open page. said: its console's warnings and errors, and errors of its scripts. asked: addresses that it asked
    for, but for data that it carries."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def check(self, *addresses: str) -> None:
        """It said nothing, and asked for nothing but these."""
        assert self.said == []
        assert [address for address in self.asked if address not in addresses] == []


def _complains(message: Any) -> bool:
    """But for its advice to those who read a canvas's pixels, as tests do."""
    return message.type in ("error", "warning") and "willReadFrequently" not in message.text


@contextmanager
def opened(browser: Any, path: Path, **context: Any) -> Iterator[Watched]:
    """A file's page, from disk. When the block ends, it must have said nothing and asked for nothing but the file."""
    own = browser.new_context(reduced_motion="reduce", **context)
    try:
        watched = Watched(own.new_page())
        page = watched.page
        page.on("console", lambda message: _complains(message) and watched.said.append(message.text))
        page.on("pageerror", lambda error: watched.said.append(str(error)))
        page.on("request", lambda request: request.url.startswith("data:") or watched.asked.append(request.url))
        page.set_default_timeout(20_000)
        address = path.resolve().as_uri()
        page.goto(address)
        yield watched
        watched.check(address)
    finally:
        own.close()
