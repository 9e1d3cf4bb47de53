"""The sweep against lmms-eval's path through the engine: same answers, same figures, the task's own scoring."""

from __future__ import annotations

import pytest

from lmms_textweighted.errors import InputError, PlanError
from lmms_textweighted.experiment.points import make_points, run_document
from lmms_textweighted.families import load
from lmms_textweighted.harness.documents import Documents
from lmms_textweighted.inference import Decoding, PrunedLlava, cut
from lmms_textweighted.methods import make_plan
from lmms_textweighted.statistics import mean_interval


@pytest.fixture(scope="module")
def llava():
    return PrunedLlava(*load("tiny"))


@pytest.fixture(scope="module")
def documents():
    return Documents.of_task("shapes_mcq", 4, single_prediction_prompt=True)


def test_every_point_answers_as_the_pruned_model_alone(llava, documents):
    points = make_points(["text_weighted", "fastv", "fastv_k2", "random", "none"], [576, 48, 16], pruning_layer=2)
    decoding = Decoding(max_new_tokens=6)
    for document in documents:
        outcomes = run_document(
            llava,
            document.message,
            points,
            decoding=decoding,
            ranks=True,
            judge=lambda a, d=document: (0.0, a == d.target),
        )
        assert len(outcomes) == len(points) == 13
        for point, outcome in zip(points, outcomes, strict=True):
            if point.stage is None:
                llava.plan = make_plan("none")
            else:
                llava.plan = make_plan(point.strategy, pruning_layer=point.stage.layer, keep_tokens=point.budget)
            alone = llava.generate([[document.message]], decoding, ranks=True)[0]
            assert outcome.answer == alone.text
            assert outcome.equivalent_tokens == alone.trace.equivalent_tokens
            assert outcome.flops_ratio == pytest.approx(alone.trace.flops_ratio)
            assert outcome.effective_rank == pytest.approx(alone.trace.ranks.effective_mean, rel=1e-3)


def test_answers_stop_where_the_task_says(documents, monkeypatch):
    """lmms-eval gives tasks that name no stop string a blank line: the sweep must cut there too."""
    assert cut(" A\n\nThe figure shows", ("\n\n",)) == "A"
    assert cut(" A. red ", ()) == "A. red"
    monkeypatch.setitem(documents.task.config.generation_kwargs, "until", ["\n\n"])
    assert documents.decoding.until == ("\n\n",)
    monkeypatch.setitem(documents.task.config.generation_kwargs, "num_beams", 3)
    with pytest.raises(InputError, match="decodes greedily"):
        _ = documents.decoding


def test_scores_are_the_tasks_own(documents):
    document = next(iter(documents))
    assert documents.metric == "exact_match"
    assert documents.score(document, document.target) == 1.0
    assert documents.score(document, f"{document.target}. because") == 1.0
    assert documents.score(document, "none of them") == 0.0


def test_points_that_cannot_be_are_refused():
    with pytest.raises(PlanError, match="strategies is empty"):
        make_points([], [64], 2)
    with pytest.raises(PlanError, match="did you mean 'fastv'"):
        make_points(["fastw"], [64], 2)


def test_intervals_are_wilsons_for_hits_and_normal_otherwise():
    low, high = mean_interval([1.0] * 93 + [0.0] * 7)
    assert (low, high) == (pytest.approx(0.8627, abs=1e-3), pytest.approx(0.9657, abs=1e-3))
    low, high = mean_interval([0.5, 0.7, 0.9])
    assert low < 0.7 < high
