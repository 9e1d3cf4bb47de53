"""`lmms-textweighted bias` on the embedded model: what it looks at, its report in every form, and how it goes on."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from lmms_textweighted import cli
from lmms_textweighted.bias import run as bias_run
from lmms_textweighted.bias.exchanged import mirrored, other_question, without_pictures
from lmms_textweighted.bias.figures import Figure, figures_of, groups_of
from lmms_textweighted.bias.formats import FORMATS, render
from lmms_textweighted.bias.gather import Notes, without_picture
from lmms_textweighted.bias.hard import hard_subset
from lmms_textweighted.bias.looks import KEYS_ONLY, MERGES, NO_TEXT, NOTHING_LEAVES, SMALLER, is_blind, look_at
from lmms_textweighted.bias.run import Asked, read_report, run_bias
from lmms_textweighted.bias.sources import points_of, read_sources
from lmms_textweighted.bias.tables import tables_of
from lmms_textweighted.bias.webpage import page_of
from lmms_textweighted.errors import InputError
from lmms_textweighted.experiment.grid import make_points
from lmms_textweighted.families import LoadOptions, load
from lmms_textweighted.harness.documents import Documents
from lmms_textweighted.inference import Decoding, PrunedLlava, geometry_of
from lmms_textweighted.methods.budget import LLAVA_15_7B
from lmms_textweighted.page import render as render_page
from lmms_textweighted.prompts import user_message
from tests.launches import launch

STRATEGIES = "text_weighted,text_weighted_debiased,fastv,visionzip,divprune,random,none"
EVERY_KIND = [
    "text_weighted",
    "fastv",
    "fastv_all_rows",
    "himap",
    "sparsevlm",
    "dart",
    "divprune",
    "vispruner",
    "random",
]
NAME = "fastv_textweighted_layer2_experiment"


def command(*words: str) -> None:
    with mock.patch("sys.argv", ["lmms-textweighted", *words]), pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, words


@pytest.fixture(scope="module")
def llava() -> PrunedLlava:
    return PrunedLlava(*load("tiny", LoadOptions()))


@pytest.fixture(scope="module")
def documents() -> Documents:
    return Documents.of_task("shapes_mcq", 3, single_prediction_prompt=False)


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    options = ["--num-samples", "3", "--tokens", "64,16", "--strategies", STRATEGIES, "--no-ranks", "--views", "0"]
    command("sweep", *options, "--output-dir", str(folder))
    return folder


@pytest.fixture(scope="module")
def report(swept) -> dict:
    return run_bias(Asked([swept]), Console(quiet=True))


def kept_by_trace(llava, message, plan) -> list[int]:
    """As an answer's own trace has it, numbered among the prompt's image tokens."""
    (answer,) = replace(llava, plan=plan).generate([[message]], Decoding(max_new_tokens=1))
    first = answer.trace.stages[0].candidates.min()
    return sorted((answer.trace.stages[-1].kept - first).tolist())


@pytest.mark.slow
def test_every_look_is_what_the_answers_own_trace_keeps(llava, documents):
    points = make_points(EVERY_KIND, [40], 1, geometry=geometry_of(llava.model))
    looks = look_at(llava, documents[0].message, points)
    assert looks.sizes == (576,)
    assert looks.words[0] == "\n"
    for point, look in zip(points, looks.looks, strict=True):
        if look.kept is not None:
            assert look.kept.tolist() == kept_by_trace(llava, documents[0].message, point.plan)
        if look.words is not None:
            assert look.words.sum() == pytest.approx(1)
            assert len(look.words) == len(looks.words)
    by_name = {point.strategy: look for point, look in zip(points, looks.looks, strict=True)}
    assert by_name["sparsevlm"].why == {"kept": MERGES}
    assert by_name["fastv"].words.tolist() == [0] * (len(looks.words) - 1) + [1]
    assert by_name["dart"].why["words"] == KEYS_ONLY
    assert by_name["random"].why.keys() == {"scores", "words"}
    assert by_name["himap"].words == pytest.approx(np.full(len(looks.words), 1 / len(looks.words)))


@pytest.mark.slow
def test_what_is_called_blind_keeps_the_same_with_another_question(llava, documents):
    points = make_points(["divprune", "vispruner", "random_pre", "fastv"], [32], 2, geometry=geometry_of(llava.model))
    assert [is_blind(point) for point in points] == [True, True, False, False]
    other = other_question(documents[0].message, 0, [documents[n].message for n in range(3)])
    here, there = (look_at(llava, message, points).looks for message in (documents[0].message, other))
    assert [one.kept.tolist() == two.kept.tolist() for one, two in zip(here, there, strict=True)] == [
        True,
        True,
        False,
        False,
    ]


def test_exchanged_questions_keep_the_pictures_and_mirrored_ones_the_text():
    pictures = [Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 6) + number) for number in range(3)]
    first, second = user_message("one?", pictures[:1]), user_message("two <image>?", pictures[1:2])
    same, pair = user_message("one?", pictures[2:]), user_message("three?", pictures[:2])
    others = [without_pictures(message) for message in (first, same, pair, second)]
    assert others[0].images == [None]
    given = other_question(first, 0, others)
    assert given.text == second.text
    assert given.images == pictures[:1]
    assert other_question(pair, 2, others) is None
    turned = mirrored(second)
    assert turned.text == second.text
    assert (np.asarray(turned.images[0]) == np.asarray(pictures[1])[:, ::-1]).all()


@pytest.mark.slow
def test_the_report_is_of_the_documents_own_traces(llava, documents, report):
    points = {(one["strategy"], one["budget"]): one["figures"] for one in report["points"]}
    plan = make_points(["fastv"], [16], 2)[0].plan
    shares, edges = [], []
    for number in range(3):
        own = documents[number].message
        other = other_question(own, number, [documents[n].message for n in range(3)])
        kept, there = (set(kept_by_trace(llava, message, plan)) for message in (own, other))
        shares.append(len(kept & there) / 16)
        edges.append(sum(k // 24 in (0, 23) or k % 24 in (0, 23) for k in kept) / 16)
    entry = points["fastv", 16]["question"]
    assert entry["mean"] == pytest.approx(np.mean(shares))
    assert entry["random"] == pytest.approx(16 / 576)
    assert entry["documents"] == 3
    assert min(shares) <= entry["low"] <= entry["mean"] <= entry["high"] <= max(shares)
    assert points["fastv", 16]["edge"]["mean"] == pytest.approx(np.mean(edges))
    assert points["fastv", 64]["edge"]["random"] == pytest.approx(92 / 576)
    assert points["visionzip", 64]["edge"] == {"reason": MERGES}
    assert points["visionzip", 64]["first_word"] == {"reason": NO_TEXT}
    assert points["none", None]["edge"] == {"reason": NOTHING_LEAVES}
    assert points["random", 64]["same_place"]["mean"] == 1
    assert points["divprune", 64]["question"]["mean"] == 1
    for one in report["between_budgets"]:  # nested by their scores
        if one["first"]["strategy"] in ("text_weighted", "fastv", "random"):
            assert one["share"]["mean"] == 1
    early = report["early_words"]["rows"]
    assert {row["strategy"] for row in early} == {"text_weighted", "text_weighted_debiased"}
    assert early[0]["first_word"]["mean"] < early[0]["even"]["first_word"]["mean"]
    assert report["early_words"]["first_tokens"] == {"\n": 3}


@pytest.mark.slow
def test_the_hard_subset_is_of_the_sweeps_answers_and_a_smaller_picture(swept, report, llava, documents):
    lines = [json.loads(line) for line in (swept / f"{NAME}.answers.jsonl").read_text().splitlines()]
    (point,) = make_points(["downsample"], [16], None, geometry=geometry_of(llava.model))
    found = {"fails": [], "enough": []}
    for number in range(3):
        small = replace(llava, plan=point.plan)
        (answer,) = small.generate([[documents[number].message]], documents.decoding)
        part = "enough" if documents.score(documents[number], answer.text) else "fails"
        found[part] += [
            line["score"]
            for line in lines
            if (line["document"], line["strategy"], line["tokens"]) == (number, "fastv", 16)
        ]
    (at,) = [part for part in report["hard"] if part["budget"] == 16]
    (row,) = [row for row in at["rows"] if row["strategy"] == "fastv"]
    for name, scores in found.items():
        assert at[name] == len(scores)
        assert row[name].get("mean") == (pytest.approx(np.mean(scores)) if scores else None)


def test_documents_are_parted_by_the_smaller_pictures_score():
    scores = {("a", 2, 8): {0: 1.0, 1: 0.0, 2: 1.0}, ("none", None, None): {0: 1.0, 1: 1.0, 2: 1.0}, ("b", 2, 4): {}}
    eight, four = hard_subset(scores, {8: {0: 0.0, 1: 0.4, 2: 1.0}, 4: "nobody can"})
    assert (eight["fails"], eight["enough"]) == (2, 1)
    assert [row["strategy"] for row in eight["rows"]] == ["a", "none"]
    assert eight["rows"][0]["fails"]["mean"] == 0.5
    assert eight["rows"][0]["fails"]["documents"] == 2
    assert eight["rows"][0]["fails"]["low"] == pytest.approx(0.0945, abs=1e-3)  # Wilson, 1 of 2
    assert four == {"budget": 4, "reason": "nobody can"}


@pytest.mark.slow
def test_every_format_and_the_page_have_the_figures(swept, report):
    assert json.loads(render(report, "json")) == json.loads(json.dumps(report))
    share = next(one for one in report["points"] if one["strategy"] == "fastv")["figures"]["edge"]["mean"]
    for format in FORMATS:
        text = render(report, format)
        assert "fastv" in text
        assert format in ("json", "csv") or f"{100 * share:.1f}" in text
        assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    with pytest.raises(InputError, match="markdown"):
        render(report, "markdwn")
    rows = list(csv.DictReader(io.StringIO(render(report, "csv"))))
    assert all(row["mean"] or row["reason"] or row["documents"] == "" for row in rows)
    assert {row["part"] for row in rows} == {"points", "between_budgets", "between_methods", "early_words", "hard"}
    html = unescape(render_page(page_of(report, [swept / f"{NAME}.json"])))
    assert "Curves" in html  # the sweep's own sections stand in front
    assert all(table.title[1:] in html for table in tables_of(report))
    for table in tables_of(report):
        assert all(len(row) == len(table.columns) for row in table.rows)


@pytest.mark.slow
def test_the_files_are_there_and_a_finished_report_stays(swept, report, capsys):
    assert Image.open(swept / "bias.png").width > 1000
    assert not (swept / "bias.json.part").exists()
    written = read_report(swept / "bias.json")
    assert written == json.loads(json.dumps(report))
    assert written["meta"]["provenance"]["software"]["versions"]
    with pytest.raises(InputError, match="is there already"):
        run_bias(Asked([swept]), Console(quiet=True))
    command("bias", str(swept / "bias.json"), "--format", "csv")
    assert capsys.readouterr().out == render(written, "csv")


def test_notes_give_back_what_was_noted_and_drop_a_torn_line(tmp_path):
    one = without_picture(4, "d4", 2, 1)
    one.points[0].figures["edge"] = Figure(0.25, 0.16)
    one.smaller = {"16": 1.0}
    notes = Notes(tmp_path / "bias.json", {"points": [1]})
    assert notes.document(4, "d4", lambda: one) is one
    notes.path.write_text(notes.path.read_text() + '{"number": 5')
    again = Notes(tmp_path / "bias.json", {"points": [1]})
    found = again.document(4, "d4", lambda: pytest.fail("it is known"))
    assert found.to_line() == one.to_line()
    assert found.points[0].figures["edge"] == Figure(0.25, 0.16)
    changed = without_picture(4, "other", 2, 1)
    assert again.document(4, "other", lambda: changed) is changed
    with pytest.raises(InputError, match="--overwrite starts anew"):
        Notes(tmp_path / "bias.json", {"points": [2]})
    assert Notes(tmp_path / "bias.json", {"points": [2]}, overwrite=True).found == {}


@pytest.mark.nightly
def test_a_killed_run_goes_on_and_ends_the_same(swept, report, tmp_path, monkeypatch):
    asked = Asked([swept], output_dir=tmp_path, tokens=[16])
    figures, calls = bias_run._figures, []

    def dies(llava, document, *more):
        calls.append(document.number)
        if calls == [0, 1]:
            raise KeyboardInterrupt
        return figures(llava, document, *more)

    monkeypatch.setattr(bias_run, "_figures", dies)
    monkeypatch.setattr("lmms_textweighted.bias.picture.draw", lambda path, report: path.write_bytes(b"drawn"))
    with pytest.raises(KeyboardInterrupt):
        run_bias(asked, Console(quiet=True))
    with pytest.raises(InputError, match="other options"):
        run_bias(replace(asked, tokens=[64]), Console(quiet=True))
    part = tmp_path / "bias.json.part"
    part.write_text(part.read_text() + '{"number": 1, "dig')  # torn
    found = run_bias(asked, Console(quiet=True))
    assert calls == [0, 1, 1, 2]
    whole = [one for one in report["points"] if one["budget"] in (16, None)]
    assert found["points"] == whole


@pytest.mark.slow
def test_results_that_do_not_belong_together_are_refused(swept, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for file in swept.glob(f"{NAME}*"):
        (other / file.name).write_bytes(file.read_bytes())
    data = json.loads((other / f"{NAME}.json").read_text())
    data["meta"]["weights"] = "0" * 16
    (other / f"{NAME}.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="has weights '0000"):
        run_bias(Asked([swept, other], output_dir=tmp_path), Console(quiet=True))
    with pytest.raises(InputError, match="has weights"):
        run_bias(Asked([other], output_dir=tmp_path), Console(quiet=True))
    with pytest.raises(InputError, match="tokens is 32, which no result has: they have 64, 16"):
        points_of(read_sources([swept], None, None), LLAVA_15_7B, [32])


@pytest.mark.slow
def test_letterbox_padding_and_several_pictures_are_counted_where_they_are(llava):
    padding = llava.with_aspect_ratio("pad")
    wide = Image.new("RGB", (336, 168), "red")
    points = make_points(["text_weighted", "random"], [64], 2)
    looks = look_at(padding, user_message("What is it?", [wide, wide.rotate(90, expand=True)]), points)
    assert looks.sizes == (576, 576)
    rows, columns = np.divmod(np.arange(576), 24)
    expected = [(rows < 6) | (rows > 17), (columns < 6) | (columns > 17)]
    assert (looks.places.padded == np.concatenate(expected)).all()
    assert (looks.places.mirrored()[576:] >= 576).all()
    groups = groups_of(looks.sizes, "image")
    for look in looks.looks:
        found = figures_of(look, looks.places, groups, look, look).figures["padding"]
        assert found.random == 0.5
        assert found.value == sum(looks.places.padded[token] for token in look.kept) / 128


@pytest.mark.nightly
def test_two_processes_make_the_report_of_one(swept, report, tmp_path):
    started = launch(tmp_path, "lmms_textweighted", "bias", str(swept), "--output-dir", "two", processes=2)
    assert started.wait(600) == [0], started.output
    found = read_report(tmp_path / "two" / "bias.json")
    assert list((tmp_path / "two").glob("*.part")) == []
    for name in ("points", "between_budgets", "between_methods", "early_words", "hard"):
        assert found[name] == json.loads(json.dumps(report[name]))


@pytest.mark.nightly
def test_another_kind_of_model_has_its_report(tmp_path):
    options = ["--num-samples", "2", "--tokens", "32", "--no-ranks", "--views", "0"]
    command("sweep", "--model-path", "tiny-qwen", *options, "--output-dir", str(tmp_path))
    found = run_bias(Asked([tmp_path]), Console(quiet=True))
    figures = next(one for one in found["points"] if one["strategy"] == "fastv")["figures"]
    assert figures["edge"]["random"] == pytest.approx(44 / 144)
    assert math.isfinite(figures["same_content"]["mean"])
    assert "depends on the picture" in found["hard"][0]["reason"]


def test_a_smaller_picture_is_no_choice(llava, documents):
    points = make_points(["downsample", "none"], [64], None, geometry=geometry_of(llava.model))
    looks = look_at(llava, documents[0].message, points).looks
    assert looks[0].why == dict.fromkeys(("kept", "scores", "words"), SMALLER)
    assert looks[1].why == dict.fromkeys(("kept", "scores", "words"), NOTHING_LEAVES)
