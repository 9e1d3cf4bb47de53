"""What a sweep records of its documents is what the engine's own traces say, whichever way a point was run."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

from lmms_textweighted.errors import InputError
from lmms_textweighted.experiment.grid import make_grid
from lmms_textweighted.experiment.outcomes import Answered
from lmms_textweighted.experiment.points import run_document
from lmms_textweighted.experiment.recorded import recorded, write_recorded
from lmms_textweighted.experiment.recording import Recorder, recorder_for, reference_of
from lmms_textweighted.families import load
from lmms_textweighted.harness.documents import Documents
from lmms_textweighted.inference import Decoding, PrunedLlava, geometry_of
from lmms_textweighted.page.pictures import LONGEST, data_uri
from lmms_textweighted.view.compact import from_data

DECODING = Decoding(max_new_tokens=6)
# Shared prefix, reading no text, drawing, in stages, before the model, merging, with a smaller picture.
STRATEGIES = ["text_weighted", "fastv", "random", "pyramiddrop", "sparsevlm", "visionzip", "downsample", "none"]


@pytest.fixture(scope="module")
def llava():
    return PrunedLlava(*load("tiny"))


@pytest.fixture(scope="module")
def documents():
    return Documents.of_task("shapes_mcq", 2, single_prediction_prompt=False)


@pytest.fixture(scope="module")
def first(llava, documents):
    """The first document's points, outcomes, view and pictures."""
    points, _ = make_grid(STRATEGIES, [256], [2], geometry=geometry_of(llava.model))
    recorder = Recorder(llava, documents[0], points)
    outcomes = run_document(
        llava,
        documents[0].message,
        points,
        decoding=DECODING,
        ranks=False,
        judge=partial(documents.judge, documents[0]),
        record=recorder,
    )
    data = json.loads(json.dumps(recorder.view(outcomes, reference_of(documents[0], documents.describe()))))
    return points, outcomes, data, recorder.pictures()


def close(found, exact) -> None:
    """Equal but for the record's 8 bits."""
    assert len(found) == len(exact)
    span = np.ptp(exact) if len(exact) else 0
    assert np.abs(np.subtract(found, exact)).max(initial=0) <= span / 510 + 1e-7


def test_kept_sets_scores_and_weights_are_those_of_the_trace(llava, documents, first):
    points, outcomes, data, _ = first
    view = from_data(data)
    assert len(view.strategies) == len(points)
    assert {point.strategy for point in points} == set(STRATEGIES)
    sources = 0
    for point, outcome, strategy in zip(points, outcomes, view.strategies, strict=True):
        assert (strategy.strategy, strategy.budget) == (point.strategy, point.budget)
        assert (strategy.answer, strategy.score) == (outcome.answer, outcome.score)
        (answer,) = replace(llava, plan=point.plan).generate([[documents[0].message]], DECODING)
        assert answer.text == strategy.answer
        given = Recorder(replace(llava, plan=point.plan), documents[0], points).given
        assert len(strategy.stages) == len(answer.trace.stages)
        for stage, traced in zip(strategy.stages, answer.trace.stages, strict=True):
            assert stage.layer == traced.layer
            assert [given.image[token] for token in stage.kept] == sorted(traced.kept.tolist())
            order = traced.candidates.argsort()
            assert [given.image[token] for token in stage.candidates] == traced.candidates[order].tolist()
            weights = traced.text_weights.tolist()
            close(stage.scores or (), traced.scores[order].tolist())
            close(stage.weights, weights)
            if len(weights):
                assert [given.text[token] for token in stage.text] == traced.text.tolist()
            sources += len(stage.sources)
            assert {given.image[to]: sorted(given.image[one] for one in of) for to, of in stage.sources.items()} == {
                to: sorted(of) for to, of in traced.sources.items()
            }
        if strategy.stages and point.plan.picture is None:
            assert len(strategy.stages[-1].kept) == outcome.kept_tokens
    assert sources


def test_a_document_says_where_its_picture_is_and_what_was_asked(documents, first):
    view = from_data(first[2])
    assert view.reference == {"task": "shapes_mcq", "document": 0}
    assert view.target == documents[0].target
    assert documents[0].digest.startswith(view.uid)
    assert "<image>" not in view.question
    assert view.question in "".join(view.pieces)
    assert {strategy.strategy for strategy in view.strategies if strategy.pictures} == {"downsample"}


def test_pictures_are_those_that_the_tower_was_given(llava, documents, first):
    ((uri,),) = first[3]
    kind, _, content = uri.partition(",")
    assert kind in ("data:image/webp;base64", "data:image/png;base64")
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        found = np.asarray(picture.convert("RGB"), dtype=float)
    seen = np.asarray(Recorder(llava, documents[0], []).given.images()[0][0], dtype=float)
    assert found.shape == seen.shape == (336, 336, 3)
    assert np.abs(found - seen).mean() < 2


def test_large_pictures_are_kept_smaller():
    content = data_uri(Image.effect_noise((3000, 1500), 50)).partition(",")[2]
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        assert picture.size == (LONGEST, LONGEST // 2)


def test_a_model_whose_tokens_have_no_known_place_is_swept_without_views(llava, documents, monkeypatch):
    def unknown(*_):
        raise InputError("where the image tokens of a Thing lie is not known")

    monkeypatch.setattr(type(llava.family), "pictured", unknown)
    why = "where the image tokens of a Thing lie is not known"
    assert recorder_for(llava, documents[0], [], "keep_tokens") == (None, why)


def answered(view: dict, pictures: list) -> Answered:
    return Answered({}, 0, None, [], view, pictures)


def test_files_give_back_what_was_recorded(tmp_path, first):
    result = tmp_path / "r.json"
    _, _, view, pictures = first
    both = [answered(view, pictures), Answered({}, 0, None, [])]
    write_recorded(tmp_path / "r.views.jsonl", tmp_path / "r.pictures.jsonl", both)
    assert list(recorded(result)) == [(from_data(view), pictures)]
    (tmp_path / "r.pictures.jsonl").unlink()
    assert list(recorded(result)) == [(from_data(view), [])]
    (tmp_path / "r.views.jsonl").unlink()
    assert list(recorded(result)) == []


@pytest.mark.parametrize("line", ["{", "[]", '{"uid": 1}', '{"uid": "a", "pictures": [["http://x/a.png"]]}'])
def test_pictures_that_are_none_are_refused_in_one_line(tmp_path, first, line):
    write_recorded(tmp_path / "r.views.jsonl", tmp_path / "r.pictures.jsonl", [answered(first[2], [])])
    (tmp_path / "r.pictures.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=r"pictures '.*r\.pictures\.jsonl' cannot be read"):
        list(recorded(tmp_path / "r.json"))
