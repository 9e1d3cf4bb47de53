"""A document's view: built from real traces, written to `views.jsonl` and read again, against the traces themselves."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from lmms_textweighted import geometry_of, load, make_plan
from lmms_textweighted.errors import InputError
from lmms_textweighted.inference import Decoding, PrunedLlava
from lmms_textweighted.prompts import user_message
from lmms_textweighted.view.build import answer_view, given_for, pieces_of
from lmms_textweighted.view.compact import from_codes, to_codes
from lmms_textweighted.view.files import read_views, to_line, write_views
from lmms_textweighted.view.record import DocumentView
from tests.pictures import noise

# One stage, several, merged tokens, a drawn choice, no rows, smaller pictures, nothing removed.
STRATEGIES = ("text_weighted", "pyramiddrop", "pool", "random", "uniform_grid", "downsample", "none")
QUESTION = "What is in the north? Café, naïve…\nA. red\nB. blue"


@pytest.fixture(scope="module")
def answered():
    """(the view of one document, the answers that it was made of)"""
    llava = PrunedLlava(*load("tiny"))
    message = user_message(QUESTION, [noise(300, 200)])
    given = given_for(llava, [message])
    answers = {}
    for name in STRATEGIES:
        budget = {} if name == "none" else {"keep_tokens": 64}
        plan = make_plan(name, **budget, geometry=geometry_of(llava.model))
        (answers[name],) = replace(llava, plan=plan).generate([[message]], Decoding(max_new_tokens=2))
    views = tuple(
        answer_view(llava, [message], given, answer, name, name, budget=64, right=name != "random", score=0.5)
        for name, answer in answers.items()
    )
    view = DocumentView(
        uid="one",
        question=QUESTION,
        choices=("red", "blue"),
        target="A",
        pictures=tuple(picture.geometry for picture in given.pictures),
        pieces=given.pieces,
        after=given.after,
        strategies=views,
        reference={"task": "shapes_mcq", "document": 3},
    )
    return view, answers


@pytest.fixture
def read_again(answered, tmp_path):
    write_views(tmp_path / "views.jsonl", [answered[0]] * 2)
    first, second = read_views(tmp_path / "views.jsonl")
    assert first == second
    return first


def first_image(answer) -> int:
    return int(answer.trace.stages[0].candidates[0])


def test_what_is_read_is_what_the_traces_say(answered, read_again):
    _, answers = answered
    for strategy in read_again.strategies:
        trace = answers[strategy.strategy].trace
        assert len(strategy.stages) == len(trace.stages)
        for stage, traced in zip(strategy.stages, trace.stages, strict=True):
            start = first_image(answers["text_weighted"])  # one picture: its tokens follow one another
            assert [start + place for place in stage.kept] == sorted(traced.kept.tolist())
            assert [start + place for place in stage.candidates] == sorted(traced.candidates.tolist())
            assert {start + to: [start + part for part in of] for to, of in stage.sources.items()} == traced.sources
            scores = traced.scores.numpy()
            np.testing.assert_allclose(stage.scores, scores, atol=np.ptp(scores) / 509 + 1e-7)
            weights = traced.text_weights.numpy()
            np.testing.assert_allclose(stage.weights, weights, atol=np.ptp(weights) / 509 if len(weights) else 1)
        figures = strategy.figures
        assert figures["kept_tokens"] == trace.kept_tokens == len(read_again.kept(strategy))
        assert figures["flops_ratio"] == pytest.approx(trace.flops_ratio, rel=1e-3)
        assert figures["equivalent_tokens"] == pytest.approx(trace.equivalent_tokens, rel=1e-3)


def test_nothing_else_is_lost(answered, read_again):
    view, _ = answered
    for name in ("uid", "question", "choices", "target", "pieces", "after", "reference"):
        assert getattr(read_again, name) == getattr(view, name)
    assert [strategy.key for strategy in read_again.strategies] == [strategy.key for strategy in view.strategies]
    assert [strategy.answer for strategy in read_again.strategies] == [strategy.answer for strategy in view.strategies]
    assert read_again.places == view.places


def test_the_words_that_weigh_are_those_of_the_question(answered):
    view, _ = answered
    (stage,) = view.strategies[0].stages
    said = "".join(view.pieces[place] for place in stage.text)
    assert QUESTION in said
    assert said == "".join(view.pieces[view.after :])
    assert len(stage.weights) == len(stage.text)
    assert sum(stage.weights) == pytest.approx(1, abs=1e-4)


def test_a_smaller_picture_has_places_of_its_own(answered):
    view, _ = answered
    smaller = next(one for one in view.strategies if one.strategy == "downsample")
    assert smaller.pictures[0].canvases[0].size == (112, 112)
    assert len(view.places_for(smaller)) == 64
    assert len(view.places_for(view.strategies[0])) == len(view.places) == 576


def test_scores_that_budgets_share_stand_once(answered):
    view, _ = answered
    one = view.strategies[0]
    many = replace(view, strategies=tuple(replace(one, budget=budget) for budget in (64, 32, 16)))
    alone = len(to_line(replace(view, strategies=(one,))))
    assert len(to_line(many)) - alone < 2 * 350
    assert len(json.loads(to_line(many))["numbers"]) == 2


def test_five_hundred_documents_of_ten_strategies_and_five_budgets_are_a_few_megabytes(answered):
    view, _ = answered
    (stage,) = view.strategies[0].stages
    varied = []
    for number in range(10):  # each with scores of its own, as methods have them
        scores = tuple(score + place * number for place, score in enumerate(stage.scores))
        own = replace(view.strategies[0], strategy=f"method {number}", stages=(replace(stage, scores=scores),))
        varied += [replace(own, budget=budget) for budget in (192, 128, 64, 32, 16)]
    assert 500 * len(to_line(replace(view, strategies=tuple(varied)))) < 14e6


def test_numbers_are_kept_to_a_510th_of_their_span():
    values = np.random.default_rng(0).normal(size=1000)
    again = np.array(from_codes(to_codes(values)))
    assert np.abs(again - values).max() <= np.ptp(values) / 510 * (1 + 1e-9)
    assert (again.argmax(), again.argmin()) == (values.argmax(), values.argmin())
    assert from_codes(to_codes([0.25, 0.25])) == (0.25, 0.25)
    assert from_codes(to_codes([])) == ()
    with pytest.raises(ValueError, match="not finite"):
        to_codes([0.0, float("nan")])


def test_pieces_join_to_the_text_that_they_are_of():
    _, processor = load("tiny-qwen")
    text = "naïve 漢字 🙂 <b>?"
    ids = processor.tokenizer(text)["input_ids"]
    pieces = pieces_of(processor.tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("line", ["{", "[]", '{"format": 2}', '{"format": 1, "pictures": 3}'])
def test_a_line_that_is_no_view_is_named(tmp_path, line):
    path = tmp_path / "views.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InputError, match="line 1 is no document's view"):
        list(read_views(path))


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        list(read_views(tmp_path / "views.jsonl"))


def test_positions_of_image_tokens_are_the_layouts(answered):
    view, answers = answered
    given = len(view.pieces) + len(view.places)
    assert given == answers["none"].trace.full_length
