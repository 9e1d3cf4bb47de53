"""The page in a real browser: it shows what the result says, by pointer and by keyboard, and asks for nothing."""

from __future__ import annotations

import base64
import html
import json
import random
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lmms_textweighted.compare import compare_runs
from lmms_textweighted.compare.webpage import merged
from lmms_textweighted.compare.webpage import page_of as comparison_page
from lmms_textweighted.errors import InputError
from lmms_textweighted.experiment.options import Experiment
from lmms_textweighted.experiment.recorded import recorded
from lmms_textweighted.experiment.run import run_experiment
from lmms_textweighted.experiment.webpage import documents_of
from lmms_textweighted.families import load
from lmms_textweighted.inference import Decoding, PrunedLlava
from lmms_textweighted.methods import make_plan
from lmms_textweighted.page import Cell, Column, Documents, Page, Shown, Table, render, write_page
from lmms_textweighted.prompts import user_message
from lmms_textweighted.tiny.testset import load_testset
from lmms_textweighted.view.build import given_for
from lmms_textweighted.view.files import write_views
from tests.browser import opened
from tests.question_files import export_questions

STRATEGIES, TOKENS = ("text_weighted", "fastv", "random"), (4, 16, 64, 576)
LABELS = {"text_weighted": "text-weighted", "fastv": "FastV", "random": "random"}
COUNT = 6

pytestmark = pytest.mark.slow
HOSTILE = '</script><img src=x onerror="window.hacked=1"><b>&amp;{{ 7*7 }}'
FILE = "<img src=x onerror=window.hacked=2>.json"


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """A folder with a sweep over a question file of a hostile name, whose first question is hostile, and its page."""
    folder = tmp_path_factory.mktemp("swept")
    questions = export_questions(folder, COUNT)
    entries = json.loads(questions.read_text())
    turn = entries[0]["conversations"][0]
    turn["value"] = f"{HOSTILE} {turn['value']}"
    (folder / FILE).write_text(json.dumps(entries))
    options = {
        "model_path": "tiny", "model_base": None, "conv_mode": None, "task": None, "question_file": folder / FILE,
        "image_folder": folder / "images", "skip_missing": False, "num_samples": "all", "pruning_layer": "2",
        "tokens": ",".join(map(str, TOKENS)), "budget": "keep_tokens", "strategies": ",".join([*STRATEGIES, "none"]),
        "against": None, "time": 0, "text_scope": "after", "keep_scope": "image", "single_pred_prompt": False,
        "fast_v_sys_length": None, "fast_v_image_token_length": None, "ranks": True, "seed": "0", "dtype": "auto",
        "device": None, "device_map": None, "attn_implementation": None, "loader": "auto", "vision_tower": None,
        "image_aspect_ratio": None, "system_prompt": None, "text_tower": None, "min_pixels": None, "max_pixels": None,
        "min_patches": None, "max_patches": None, "output_dir": folder / "out", "overwrite": False, "views": 500,
        "html": folder / "page.html",
    }  # fmt: skip
    run_experiment(Experiment.parse(options))
    return folder


@pytest.fixture(scope="module")
def answers(swept) -> dict[tuple[str, int | None, int], dict]:
    """The answers' file: (strategy, budget, document) -> line."""
    (path,) = (swept / "out").glob("*.answers.jsonl")
    lines = map(json.loads, path.read_text().splitlines())
    return {(line["strategy"], line["tokens"], line["document"]): line for line in lines}


@pytest.fixture
def watched(chromium, swept):
    with opened(chromium, swept / "page.html", viewport={"width": 1300, "height": 900}) as found:
        yield found


@pytest.fixture
def page(watched):
    return watched.page


@pytest.fixture(scope="module")
def alone(swept) -> Path:
    """The documents in a page of their own, which is open at once."""
    (result,) = (swept / "out").glob("*experiment.json")
    path = swept / "documents.html"
    write_page(path, Page("Documents", documents_of(recorded(result), "Documents")))
    return path


@pytest.fixture
def browsed(chromium, alone):
    with opened(chromium, alone, viewport={"width": 1300, "height": 900}) as found:
        yield found.page


def slider(page):
    return page.get_by_role("slider", name="Budget")


def shown_answer(page) -> str:
    return page.locator(".answer.here .text").text_content()


def choose(page, strategy: str) -> None:
    page.locator(f".shown input[value='{strategy}']").check()


def move_to(page, tokens: int) -> None:
    slider(page).fill(str(TOKENS.index(tokens)))


def test_every_strategy_and_budget_shows_its_own_answer(browsed, answers):
    for strategy in STRATEGIES:
        choose(browsed, strategy)
        for tokens in TOKENS:
            move_to(browsed, tokens)
            line = answers[strategy, tokens, 0]
            assert shown_answer(browsed) == line["answer"].strip()
            assert browsed.locator("output.budget").text_content() == f"{tokens} tokens"
            assert slider(browsed).get_attribute("aria-valuetext") == f"{tokens} tokens"
            assert f"{tokens} of 576 patches stay" in browsed.locator(".board figcaption").text_content()
    unpruned = browsed.locator(".answer .text").nth(1).text_content()
    assert unpruned == answers["none", None, 0]["answer"].strip()


@pytest.mark.parametrize("name", ["broken", "fixed", "changed", "wrong"])
def test_a_filter_lets_through_what_the_answers_say(browsed, answers, name):
    def passes(strategy: str, tokens: int, number: int) -> bool:
        here, whole = answers[strategy, tokens, number], answers["none", None, number]
        return {
            "broken": whole["score"] == 1 > here["score"],
            "fixed": here["score"] == 1 > whole["score"],
            "changed": here["answer"].strip() != whole["answer"].strip(),
            "wrong": here["score"] < 1,
        }[name]

    browsed.locator(".side select").select_option(name)
    seen = 0
    for strategy in STRATEGIES:
        choose(browsed, strategy)
        for tokens in TOKENS:
            move_to(browsed, tokens)
            expected = [number for number in range(COUNT) if passes(strategy, tokens, number)]
            items = browsed.locator(".items li:not([hidden]) .nr").all_text_contents()
            assert [int(text) - 1 for text in items] == expected
            assert browsed.locator(".count").text_content() == f"{len(expected)} of {COUNT} documents"
            seen += len(expected)
    assert seen or name == "fixed"


def test_words_find_documents(browsed, answers):
    questions = browsed.locator(".asked").all_text_contents()
    browsed.get_by_label("Find").fill("COLOR")
    found = browsed.locator(".items li:not([hidden]) .asked").all_text_contents()
    assert found == [text for text in questions if "color" in text.lower()]
    assert 0 < len(found) < COUNT


def test_keys_do_what_the_pointer_does(browsed, answers):
    def current() -> int:
        return int(browsed.locator(".item[aria-current] .nr").text_content()) - 1

    for key, place in (("n", 1), ("n", 2), ("p", 1)):
        browsed.keyboard.press(key)
        assert current() == place
    browsed.keyboard.press("s")
    assert browsed.locator(".radios input:checked").first.get_attribute("value") == "fastv"
    browsed.keyboard.press("-")
    assert browsed.locator("output.budget").text_content() == "16 tokens"
    assert shown_answer(browsed) == answers["fastv", 16, 1]["answer"].strip()
    browsed.keyboard.press("+")
    slider(browsed).focus()
    browsed.keyboard.press("Home")
    assert browsed.locator("output.budget").text_content() == "4 tokens"
    browsed.locator(".radios input:checked").first.focus()
    browsed.keyboard.press("ArrowRight")
    assert shown_answer(browsed) == answers["random", 4, 1]["answer"].strip()
    browsed.locator(".item[tabindex='0']").focus()
    browsed.keyboard.press("ArrowDown")
    assert current() == 2
    browsed.get_by_label("Find").fill("n")  # a letter that is written is no command
    assert current() in (2, 0)
    browsed.locator(".board canvas").focus()
    browsed.keyboard.press("ArrowDown")
    browsed.keyboard.press("ArrowRight")
    assert "row 1, column 2" in browsed.locator(".pointed").text_content()


def test_focus_is_seen(page):
    for node in (page.locator("th button").first, slider(page), page.locator(".step").last):
        node.focus()
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Tab")
        assert node.evaluate("node => getComputedStyle(node).outlineStyle") != "none"


def test_the_table_sorts_by_pointer_and_by_keyboard(page):
    table = page.locator("section[data-kind=table]")

    def column(number: int) -> list[float]:
        texts = table.locator(f"tbody tr > :nth-child({number})").all_text_contents()
        return [float(text.rstrip("%")) for text in texts]

    head = table.get_by_role("columnheader", name="accuracy")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column(3) == sorted(column(3), reverse=True)
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(3) == sorted(column(3))
    assert table.get_by_role("status").text_content() == "Sorted by accuracy, ascending"
    budget = table.get_by_role("columnheader", name="budget")
    budget.get_by_role("button").press("Space")
    assert (budget.get_attribute("aria-sort"), head.get_attribute("aria-sort")) == ("descending", "none")
    assert column(2) == sorted(column(2), reverse=True)


def test_the_table_says_what_the_tests_found(page, swept):
    (path,) = (swept / "out").glob("*experiment.json")
    block = json.loads(path.read_text())["strategies"]["random"]["paired"]["text_weighted"]
    named = page.get_by_role("rowheader", name="random", exact=True)
    rows = page.locator("section[data-kind=table] tbody tr", has=named)
    for place, row in enumerate(rows.all()):
        text = row.locator("td").nth(3).text_content()
        assert text.startswith(f"{100 * block['difference'][place]:+.1f}")
        different = block["adjusted_p"][place] < 0.05
        assert ("not told apart" in text) is not different


def test_curves_are_drawn_and_hidden_and_stand_in_a_table(page):
    from playwright.sync_api import expect  # waits: a curve is drawn, and a table filled, after the press

    first = page.locator(".plot").first
    traces, label = first.locator(".scatterlayer .trace"), re.compile("FastV")
    traces.first.wait_for()
    drawn = traces.count()
    chip = page.locator(".chip", has_text="FastV")
    chip.click()
    expect(chip).to_have_attribute("aria-pressed", "false")
    expect(traces).to_have_count(drawn - 2)  # the curve and its band
    expect(first).not_to_have_attribute("aria-label", label)
    page.get_by_role("combobox", name="Show").first.select_option(label="effective rank")
    expect(first).to_have_attribute("aria-label", re.compile("effective rank"))
    page.get_by_text("The numbers as a table").first.click()
    expect(page.locator(".numbers tbody tr")).to_have_count(2 * len(TOKENS) + 1)


def test_what_a_stranger_wrote_stays_text(page):
    assert page.locator("h3.question").text_content().startswith(HOSTILE)
    assert page.locator(".asked").first.text_content().startswith(HOSTILE)
    assert FILE in page.locator("h1").text_content()
    assert page.locator("main img, main b, header img").count() == 0
    assert page.evaluate("window.hacked") is None
    assert FILE in page.title()


@pytest.fixture
def forgiving(chromium, swept):
    """The page, where a test makes it complain on purpose."""
    with opened(chromium, swept / "page.html") as found:
        yield found.page
        found.said.clear()


def test_nothing_but_the_pages_own_scripts_may_run(forgiving):
    """Its policy holds against a script that got in anyway."""
    script = "s => { const n = document.createElement('script'); n.textContent = s; document.body.append(n); }"
    forgiving.evaluate(script, "window.hacked = 3")
    assert forgiving.evaluate("window.hacked") is None
    policy = forgiving.locator("meta[http-equiv]").get_attribute("content")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy.partition("script-src")[2].partition(";")[0]
    assert "connect-src" not in policy


def test_removed_patches_are_dim_where_they_lie_and_kept_ones_are_the_pictures_own(browsed, swept):
    (result,) = (swept / "out").glob("*experiment.json")
    view, _ = next(recorded(result))
    strategy = next(s for s in view.strategies if (s.strategy, s.budget) == ("text_weighted", 64))
    move_to(browsed, 64)
    middle = """places => { const c = document.querySelector('.board canvas'), x = c.getContext('2d');
        return places.map(([a, b]) => [...x.getImageData(a * c.width, b * c.height, 1, 1).data].slice(0, 3)); }"""
    places = [((place.box[0] + 7) / 336, (place.box[1] + 7) / 336) for place in view.places]
    browsed.wait_for_function("document.querySelector('.board canvas').width > 100")
    browsed.wait_for_timeout(200)
    over = np.array(browsed.evaluate(middle, places), dtype=float)
    browsed.get_by_label("Picture", exact=True).check()
    plain = np.array(browsed.evaluate(middle, places), dtype=float)
    assert np.ptp(plain) > 50
    kept = np.zeros(576, dtype=bool)
    kept[list(strategy.stages[0].kept)] = True
    assert np.abs(over[kept] - plain[kept]).max() <= 1
    dimmed = 0.2 * plain + 0.8 * np.array([247, 248, 250])
    assert np.abs(over[~kept] - dimmed[~kept]).max() <= 2


def test_the_pages_data_are_the_traces(swept):
    """Kept sets, scores and weights, taken out of the HTML by a reader of its own, against the engine's."""
    text = (swept / "page.html").read_text()
    scripts = dict(re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', text))
    name = next(key for key, text in scripts.items() if key.endswith("-data") and '"documents":' in text)
    index, document = json.loads(scripts[name]), json.loads(scripts[name.replace("-data", "-1")])
    llava = PrunedLlava(*load("tiny")).with_aspect_ratio("square")
    entry = json.loads((swept / FILE).read_text())[1]
    text = entry["conversations"][0]["value"].replace("<image>\n", "")
    message = user_message(text, [load_testset()[1]["image"]])
    given = given_for(llava, [message])
    compared = 0
    for point, found in zip(index["points"], document["points"], strict=True):
        if point["strategy"] == "none" or point["budget"] not in (16, 64):
            continue
        plan = make_plan(point["strategy"], pruning_layer=2, keep_tokens=int(point["budget"]))
        (answer,) = replace(llava, plan=plan).generate([[message]], Decoding(max_new_tokens=16))
        (traced,), (place,) = answer.trace.stages, found[3]
        stage = document["stages"][place]
        bits = np.unpackbits(np.frombuffer(base64.b64decode(stage["kept"]), dtype=np.uint8))[:576]
        assert [given.image[token] for token in np.flatnonzero(bits)] == sorted(traced.kept.tolist())
        assert document["answers"][found[0]] == answer.text
        for numbers, exact in (("scores", traced.scores), ("weights", traced.text_weights)):
            if numbers in stage:
                table = document["numbers"][stage[numbers]]
                codes = np.frombuffer(base64.b64decode(table["codes"]), dtype=np.uint8)
                span = table["largest"] - table["least"]
                values = table["least"] + codes / 255 * span
                assert np.abs(values - exact.numpy()).max() <= span / 510 + 1e-6
                compared += 1
        if "text" in stage:
            assert [given.text[piece] for piece in document["texts"][stage["text"]]] == traced.text.tolist()
    assert compared >= 5 * 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_the_button(chromium, alone, scheme):
    def dark(page) -> bool:
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", color)[:3])) < 200

    with opened(chromium, alone, color_scheme=scheme) as found:
        button = found.page.locator("#theme")
        assert dark(found.page) is (scheme == "dark")
        button.click()
        assert (dark(found.page), button.text_content()) == (False, "Light")
        button.click()
        assert (dark(found.page), button.text_content()) == (True, "Dark")
        found.page.reload()
        assert dark(found.page)


@pytest.mark.parametrize(("width", "curves"), [(320, False), (390, True), (768, False)])
def test_nothing_is_cut_at_the_width_of_a_phone(chromium, swept, alone, width, curves):
    path = swept / "page.html" if curves else alone
    with opened(chromium, path, viewport={"width": width, "height": 800}) as found:
        if curves:
            found.page.locator(".plot .trace").first.wait_for()
        assert found.page.evaluate("document.documentElement.scrollWidth") == width
        assert found.page.locator(".board canvas").bounding_box()["width"] > width / 2


def test_everything_has_a_name_for_those_who_do_not_see_it(page):
    names = page.evaluate(
        """() => [...document.querySelectorAll('main button, main input, main select, main canvas, main [role=img]')]
        .filter(node => node.checkVisibility()).map(node => [node.tagName, [node.getAttribute('aria-label'),
            node.textContent, ...[...(node.labels || [])].map(label => label.textContent)].join('')])"""
    )
    assert len(names) > 30
    assert [tag for tag, text in names if not text.strip()] == []
    heard = page.locator(".board canvas").get_attribute("aria-label")
    assert "64 of 576 patches stay" in heard
    assert "Most of them:" in heard
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(node => Number(node.tagName[1]))")
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_pages_have_no_name_of_a_folder_of_this_machine(swept):
    text = (swept / "page.html").read_text()
    assert str(swept) not in text
    assert html.escape(FILE) in text


def test_500_documents_stay_below_15_mb(swept):
    """As many points as `make demo` has: 3 strategies at 12 budgets, and unpruned. A tenth of them, times ten."""
    (result,) = (swept / "out").glob("*experiment.json")
    few, draw, shown = list(recorded(result)), random.Random(0), []

    def drawn(stage, draw) -> tuple[int, ...]:
        """Another set of as many: what is equal would stand in the page once."""
        return tuple(sorted(draw.sample(stage.candidates, len(stage.kept))))

    for number in range(50):
        view, pictures = few[number % len(few)]
        pruned = [strategy for strategy in view.strategies if strategy.strategy != "none"]
        more = [
            replace(strategy, budget=strategy.budget + again, stages=(replace(stage, kept=drawn(stage, draw)),))
            for strategy in pruned
            for again in range(3)
            for stage in strategy.stages
        ]
        whole = [strategy for strategy in view.strategies if strategy.strategy == "none"]
        shown.append(Shown(replace(view, uid=str(number), strategies=(*more, *whole)), pictures))
    assert len(shown[0].view.strategies) == 37
    size = len(render(Page("Large", [Documents("Documents", shown)])).encode())
    assert 10 * size < 13_000_000  # with the plotting library's two


def test_a_comparisons_page_has_its_cells_its_tests_and_the_sweeps_documents(swept, chromium):
    comparison = compare_runs([swept / "out"])
    path = swept / "comparison.html"
    write_page(path, comparison_page(comparison))
    with opened(chromium, path) as found:
        page = found.page
        rows = page.locator("section[data-kind=table] tbody tr")
        assert rows.count() == len(comparison.rows) == len(STRATEGIES) * len(TOKENS) + 1
        (column,) = comparison.columns
        for row, node in zip(comparison.rows, rows.all(), strict=True):
            cell, text = row.cells[column.task], node.locator("td").nth(3).text_content()
            assert text.startswith(f"{cell.value:.1f}  [{cell.low:.1f}, {cell.high:.1f}]")
            said = "" if cell.different is None else "significantly" if cell.different else "not told apart"
            assert said in text
        assert page.locator(".count").text_content() == f"{COUNT} of {COUNT} documents"
        assert page.locator("section[data-kind=curves]").count() == 2  # the sweep's has ranks


def test_documents_of_several_sweeps_are_one_with_the_strategies_of_all(swept, tmp_path):
    (result,) = (swept / "out").glob("*experiment.json")
    first, *_ = (view for view, _ in recorded(result))
    fastv = [strategy for strategy in first.strategies if strategy.strategy == "fastv"]
    other = [replace(strategy, answer="Z") for strategy in fastv[:1]] + [replace(fastv[1], budget=99)] + fastv[2:]
    for name, strategies in (("a", first.strategies), ("b", tuple(other))):
        (tmp_path / name).mkdir()
        write_views(tmp_path / name / "r.views.jsonl", [replace(first, strategies=strategies)])
    ((view, pictures),) = merged([tmp_path / "a" / "r.json", tmp_path / "b" / "r.json"])
    assert pictures == []
    more = view.strategies[len(first.strategies) :]
    assert [(one.strategy, one.label, one.budget) for one in more] == [
        ("fastv (b)", "FastV (b)", fastv[0].budget),
        ("fastv", "FastV", 99),
    ]


def test_a_page_without_curves_carries_no_plotting_library():
    table = Table("T", [Column("a", number=False)], [[Cell("x")]])
    assert len(render(Page("P", [table]))) < 100_000


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match=r"page '.*/taken/p\.html' cannot be written"):
        write_page(tmp_path / "taken" / "p.html", Page("P", []))
