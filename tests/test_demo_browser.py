"""The demo in a real browser: it answers, asks no other host for anything, and shows hostile texts as texts."""

from __future__ import annotations

import pytest

from lmms_textweighted import load
from lmms_textweighted.inference import PrunedLlava
from tests.browser import started
from tests.demo_server import HOSTILE, served
from tests.pictures import noise

FILE_NAME = "<img src=x onerror=document.title='owned'>.png"


@pytest.fixture(scope="module")
def address():
    pytest.importorskip("gradio")
    with served(PrunedLlava(*load("tiny")), HOSTILE) as found:
        yield found


@pytest.mark.slow
def test_a_browser_gets_pictures_and_times_and_nothing_from_elsewhere(address, tmp_path):
    """With a question, a file name and a model's name that would be markup, if they were not texts."""
    noise(200, 150).save(tmp_path / FILE_NAME)
    with started() as browser:
        page = browser.new_page()
        elsewhere, errors = [], []
        page.on("request", lambda one: one.url.startswith((address, "data:", "blob:")) or elsewhere.append(one.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_default_timeout(60_000)
        page.goto(address)
        page.get_by_role("button", name="Answer").wait_for()
        page.locator("input[type=file]").first.set_input_files(tmp_path / FILE_NAME)
        page.get_by_label("Question").fill(HOSTILE)
        page.locator("img[src*='/file=']").first.wait_for()  # the upload is there
        page.get_by_role("button", name="Answer").click()
        page.locator("figure img").nth(4).wait_for()
        assert page.locator("figure").count() == 5
        assert page.locator("table tbody tr").count() == 4
        assert "64 of 576" in page.locator("table tbody tr").nth(1).inner_text()
        assert all(alt.strip() for alt in page.locator("figure img").evaluate_all("all => all.map(one => one.alt)"))
        assert HOSTILE in page.locator(".lmms-textweighted p").first.inner_text()
        assert page.locator("b").count() == 0
        assert page.title() == "What stays of a picture"
        assert elsewhere == []
        assert errors == []
