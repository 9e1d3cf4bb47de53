"""The channel from the model to the post-processor."""

from __future__ import annotations

import math

import datasets
import pytest
from PIL import Image

from lmms_textweighted.errors import InputError
from lmms_textweighted.harness.stops import RunEnded
from lmms_textweighted.harness.tasks import add_trace_columns, count_missing, mean_of_known, score_with_trace
from lmms_textweighted.harness.traces import TraceStore, current_key, find_record, leave_current, make_current
from lmms_textweighted.paths import expanded

RECORD = {"kept_tokens": 8, "equivalent_tokens": 20.0, "flops_ratio": 0.5, "numeric_rank": 8.0, "effective_rank": 3.0}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LMMS_TEXTWEIGHTED_CACHE", str(tmp_path))


def documents():
    pictures = [Image.new("RGB", (4, 4), color) for color in ("red", "red", "blue")]
    return datasets.Dataset.from_dict(
        {"image": pictures, "question": ["Why?"] * 3, "choices": [["a", "b"]] * 3, "hint": [""] * 3, "answer": [0] * 3},
        features=datasets.Features(
            {
                "image": datasets.Image(),
                "question": datasets.Value("string"),
                "choices": datasets.List(datasets.Value("string")),
                "hint": datasets.Value("string"),
                "answer": datasets.Value("int64"),
            }
        ),
    )


def test_documents_are_told_apart_by_their_pictures():
    first, same, other = add_trace_columns(documents())["uid"]
    assert first == same != other


def test_a_document_belongs_to_the_model_that_was_there_when_it_was_loaded():
    store = TraceStore({"plan": 1})
    make_current(store)
    mine = add_trace_columns(documents())[0]
    leave_current(store)
    assert current_key() == ""
    foreign = add_trace_columns(documents())[0]
    store.put(mine["uid"], "prompt", RECORD)
    scores = score_with_trace(mine, ["A"])
    assert (scores["exact_match"], scores["kept_image_tokens"], scores["traces_missing"]) == (1.0, 8.0, 0.0)
    scores = score_with_trace(foreign, ["B"])
    assert (scores["exact_match"], scores["traces_missing"]) == (0.0, 1.0)
    assert math.isnan(scores["effective_rank"])


def test_stores_of_other_settings_and_later_processes():
    one, two = TraceStore({"plan": 1}), TraceStore({"plan": 2})
    one.put("uid", "prompt", RECORD)
    assert two.get("uid") is None
    again = TraceStore({"plan": 1})  # as another process would open it
    assert again.get("uid") == RECORD
    make_current(again)
    assert find_record(again.key, "uid") == RECORD
    assert find_record("", "uid") is None


@pytest.mark.parametrize("reopen", [False, True])
def test_a_document_asked_with_two_prompts_has_no_record_rather_than_the_wrong_one(reopen):
    store = TraceStore({"plan": 1})
    store.put("uid", "first prompt", RECORD)
    store.put("uid", "second prompt", {**RECORD, "kept_tokens": 9})
    assert (TraceStore({"plan": 1}) if reopen else store).get("uid") is None


def test_ranks_that_were_not_measured_are_missing_but_text_only_documents_are_not():
    store = TraceStore({"plan": 1})
    make_current(store)
    document = add_trace_columns(documents())[0]
    store.put(document["uid"], "prompt", {**RECORD, "numeric_rank": None})
    assert score_with_trace(document, ["A"])["traces_missing"] == 1.0
    store.put(document["uid"], "prompt", {**RECORD, "numeric_rank": None, "unranked": "pool merges tokens"})
    assert score_with_trace(document, ["A"])["traces_missing"] == 0.0
    store.put(document["uid"], "prompt", {**RECORD, "kept_tokens": 0, "numeric_rank": None})
    assert score_with_trace(document, ["A"])["traces_missing"] == 0.0


def test_means_leave_out_what_is_not_known():
    assert mean_of_known([1.0, math.nan, 3.0]) == 2.0
    assert math.isnan(mean_of_known([math.nan]))
    assert count_missing([0.0, 1.0, 1.0]) == 2


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LMMS_TEXTWEIGHTED_CACHE", str(tmp_path / "file"))
    store = TraceStore({})  # most tasks never ask for one
    with pytest.raises(InputError, match="set LMMS_TEXTWEIGHTED_CACHE"):
        store.open()
    make_current(store)
    with pytest.raises(RunEnded, match="set LMMS_TEXTWEIGHTED_CACHE"):
        current_key()
    leave_current(store)
    assert current_key() == ""


def test_without_a_home_folder_the_variable_is_named(monkeypatch):
    """As in a container under a bare user id."""
    for name in ("HOME", "XDG_CACHE_HOME", "LMMS_TEXTWEIGHTED_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: (_ for _ in ()).throw(KeyError(number)))
    with pytest.raises(InputError, match=r"no home folder is known.*set LMMS_TEXTWEIGHTED_CACHE"):
        TraceStore({}).open()
    with pytest.raises(InputError, match="path '~/llava' begins with ~"):
        expanded("~/llava")
