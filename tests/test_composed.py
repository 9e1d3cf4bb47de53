"""One method before the model and one in it: names, budgets, refusals. `vscan` is one in every other test."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lmms_eval.utils import simple_parse_args_string

from lmms_textweighted import prune
from lmms_textweighted.errors import PlanError
from lmms_textweighted.experiment.grid import make_points
from lmms_textweighted.families import load
from lmms_textweighted.harness.settings import Settings
from lmms_textweighted.inference import geometry_of
from lmms_textweighted.leaderboard.commands import expand
from lmms_textweighted.leaderboard.schema import read_matrix
from lmms_textweighted.methods import SCORERS, find_method, label_of, make_plan, strategy_digest
from lmms_textweighted.methods.budget import LLAVA_15_7B, cost_of
from lmms_textweighted.methods.files import plan_text
from tests.conftest import IMAGE, make_inputs
from tests.replay import replay, replay_generate
from tests.test_method_properties import LAYERS, ONE, SIDE, TWO, assert_decisions, plan_of, replay_stages
from tests.test_pruner import answers

FIRST = "name: mine\nstages: [{scorer: divprune, layer: -1, keep_tokens: 96}]\n"
OWN = """
from lmms_textweighted.methods import OneStage
from lmms_textweighted.methods.uniform import LAST_ROW
MINE = OneStage("own", "own", "a test", LAST_ROW)
"""


def counts(name: str, **budget: float) -> list[tuple[int, int | None]]:
    plan = make_plan(name, geometry=LLAVA_15_7B, **budget)
    plan.check(32, 576)
    return [(stage.layer, stage.keep_tokens) for stage in plan.stages]


def test_the_first_leaves_three_times_the_budget_and_at_most_all():
    assert counts("divprune+text_weighted", keep_tokens=64) == [(-1, 192), (2, 64)]
    assert counts("divprune+text_weighted", keep_tokens=300) == [(-1, 576), (2, 300)]
    assert counts("visionzip+himap", keep_tokens=64) == [(-1, 192), (1, 192), (7, 64)]
    assert counts("vscan", keep_tokens=32) == [(-1, 96), (15, 32)]


def test_a_preset_in_front_keeps_its_count():
    assert counts("divprune_192+text_weighted", keep_tokens=64) == [(-1, 192), (2, 64)]
    assert counts("divprune_192+fastv_k2", keep_tokens=16) == [(-1, 192), (1, 16)]
    with pytest.raises(PlanError, match="keep_tokens is 100, but divprune_64 leaves 64: give at most 64"):
        counts("divprune_64+fastv", keep_tokens=100)


@pytest.mark.parametrize("name", ["divprune+text_weighted", "divprune_192+text_weighted", "fastervlm+pyramiddrop"])
@pytest.mark.parametrize("budget", [{"flops_ratio": 0.25}, {"equivalent_tokens": 110}])
def test_a_mean_and_a_share_of_the_flops_are_solved_for_both(name, budget):
    plan = make_plan(name, geometry=LLAVA_15_7B, **budget)
    ((kind, value),) = budget.items()
    assert cost_of(plan, LLAVA_15_7B).get(kind) == pytest.approx(value, rel=0.01)


def positions(name: str, **asked: str) -> list[str]:
    plan = make_plan(name, keep_tokens=8, **asked)
    return [plan.positions_of(stage) for stage in plan.stages]


def test_each_half_does_with_positions_what_it_does_alone(tmp_path):
    """What is asked for holds for both; what a first plan states is not overruled by halves."""
    assert positions("divprune+fastv") == ["renumber", "keep"]
    assert positions("divprune+pyramiddrop") == ["renumber"] * 4
    for asked in ("keep", "renumber"):
        assert positions("divprune+fastv", positions=asked) == [asked, asked]
        assert positions("divprune+pyramiddrop", positions=asked) == [asked] * 4
    assert positions("divprune_192+fastv") == ["renumber", "keep"]
    with pytest.raises(PlanError, match="positions is 'keep', but divprune_192 states 'renumber': leave it out"):
        make_plan("divprune_192+fastv", keep_tokens=8, positions="keep")
    file = tmp_path / "first.yaml"
    file.write_text(FIRST + "positions: keep\nkeep_scope: prompt\n")
    plan = make_plan(f"{file}+pyramiddrop", keep_ratio=0.1, text_scope="question")
    assert [plan.positions_of(stage) for stage in plan.stages] == ["keep", *["renumber"] * 3]
    assert (plan.keep_scope, plan.text_scope) == ("prompt", "question")
    file.write_text(FIRST + "text_scope: all\n")
    with pytest.raises(PlanError, match="text_scope is 'question', but mine states 'all': leave it out"):
        make_plan(f"{file}+pyramiddrop", keep_tokens=8, text_scope="question")


MIXED = ("divprune+text_weighted", "visionzip+fastv", "divprune+pyramiddrop")


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("prompt", [ONE, TWO], ids=["one image", "two images"])
def test_both_halves_and_the_answer_are_those_of_float64_formulas(small_llava, name, prompt):
    model = small_llava(layers=LAYERS, image_size=14 * SIDE, tower_layers=4)
    plan = plan_of(find_method(name), 6)
    inputs = make_inputs(model, [prompt], seed=7)
    with prune(model, plan) as trace:
        logits = model(**inputs).logits[0, -1]
        found = answers(model, inputs, 5)
    stages = replay_stages(plan, trace.documents[0])
    expected = replay(model, inputs, stages)
    assert_decisions(trace.documents[0], expected.decisions)
    torch.testing.assert_close(logits.double(), expected.logits, atol=1e-4, rtol=0)
    assert found == [replay_generate(model, inputs, stages, 5)]


@pytest.mark.parametrize("second", ["text_weighted", "fastv", "pyramiddrop"])
def test_behind_a_first_that_leaves_all_a_second_is_what_it_is_alone(small_llava, second):
    """Bit for bit, also while decoding: `divprune+fastv` at 300 of 576 tokens is `fastv`."""
    model = small_llava(layers=LAYERS, image_size=14 * SIDE, tower_layers=4)
    inputs = make_inputs(model, [TWO, ONE], seed=9)
    seen = []
    for name in (f"divprune+{second}", second):
        with prune(model, plan_of(find_method(name), 20)) as trace:
            seen.append(
                (model(**inputs).logits, answers(model, inputs, 5), trace.documents[0].stages[-1].kept.tolist())
            )
    (logits, told, kept), (alone, told_alone, kept_alone) = seen
    assert torch.equal(logits, alone)
    assert (told, kept) == (told_alone, kept_alone)


def test_a_file_may_be_either_method_and_its_path_may_have_the_sign(tmp_path):
    folder = tmp_path / "a+b"
    folder.mkdir()
    (folder / "first+.yaml").write_text(FIRST)
    (folder / "own.py").write_text(OWN)
    assert find_method(f"{folder}/first+.yaml").name == "mine"
    assert find_method(f"{folder}/own.py:MINE").name == "own"
    assert find_method(f"{folder}/first+.yaml+fastv").name == "mine+fastv"
    assert find_method(f"divprune+{folder}/own.py:MINE").name == "divprune+own"
    assert find_method(f"{folder}/first+.yaml+{folder}/own.py:MINE").name == "mine+own"
    with pytest.raises(PlanError, match="mine is no method that removes in the model by a budget"):
        find_method(f"divprune+{folder}/first+.yaml")


@pytest.mark.parametrize("changed", ["first.yaml", "own.py"])
def test_an_edited_file_of_either_half_is_another_strategy_to_every_cache(tmp_path, changed):
    (tmp_path / "first.yaml").write_text(FIRST)
    (tmp_path / "own.py").write_text(OWN)
    strategy = f"{tmp_path}/first.yaml+{tmp_path}/own.py:MINE"
    settings = {"pretrained": "tiny", "strategy": strategy, "keep_tokens": 8}
    before, plain = Settings.parse(settings).digest(), strategy_digest("divprune+fastv")
    file = tmp_path / changed
    file.write_text(file.read_text().replace("96", "97"))
    after = Settings.parse(settings).digest()
    assert plain is None
    assert before is not None
    if changed == "first.yaml":
        assert before != after
    else:
        file.write_text(file.read_text() + "# edited\n")
        assert before != Settings.parse(settings).digest()


def test_a_composition_goes_into_a_plan_file_and_comes_out_the_same(tmp_path):
    plan = make_plan("visionzip+fastv", flops_ratio=0.3, geometry=LLAVA_15_7B)
    file = tmp_path / "both.yaml"
    file.write_text(plan_text(plan, SCORERS, name="both", source="a test"))
    assert make_plan(str(file)) == replace(plan, name="both")


def test_model_arguments_of_lmms_eval_take_the_sign():
    arguments = simple_parse_args_string("pretrained=tiny,strategy=divprune+text_weighted,flops_ratio=0.3")
    plan = Settings.parse(arguments).plan(geometry_of(load("tiny")[0]))
    assert plan.name == "divprune+text_weighted"
    assert [stage.layer for stage in plan.stages] == [-1, 2]


def test_a_leaderboard_names_its_runs_for_it(tmp_path):
    (tmp_path / "board.yaml").write_text(
        "name: pairs\noutput: out\nmodel_args: {pretrained: tiny}\ntasks: [shapes_mcq]\n"
        "budgets: [64, {flops_ratio: 0.3}]\n"
        "methods: [none, divprune+text_weighted]\n"
    )
    runs = expand(read_matrix(str(tmp_path / "board.yaml")), output=tmp_path)
    assert [run.name for run in runs] == ["none", "divprune+text_weighted-64", "divprune+text_weighted-flops0.3"]
    assert "strategy=divprune+text_weighted,keep_tokens=64" in runs[1].options["model_args"]
    assert [path.name for path in (run.folder for run in runs[1:])] == [run.name for run in runs[1:]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("text_weighted+divprune", "text_weighted does not remove before the model: name one that does first"),
        ("fastervlm+none", "none is no method that removes in the model by a budget"),
        ("fastervlm+fastv_k3_half", "fastv_k3_half is no method that removes in the model by a budget"),
        ("fastervln+fastv", "unknown strategy 'fastervln': did you mean 'fastervlm'"),
    ],
)
def test_what_does_not_compose_is_said_in_a_line(name, words):
    with pytest.raises(PlanError, match=words):
        find_method(name)


def test_a_sweep_has_it_under_its_name():
    points = make_points(["divprune+text_weighted", "vscan"], [64, 16], None, geometry=LLAVA_15_7B)
    assert [(point.strategy, point.plan.stages[0].keep_tokens) for point in points] == [
        ("divprune+text_weighted", 192),
        ("divprune+text_weighted", 48),
        ("vscan", 192),
        ("vscan", 48),
    ]


def test_both_choose_as_they_would_alone(small_llava):
    """The first as before the model alone; the second the best of what it left, on the shorter sequence."""
    model = small_llava(image_size=84)
    inputs = make_inputs(model, [(3, IMAGE, 5)], seed=1)
    with prune(model, find_method("divprune+fastv").fitted(6, 36).plan(keep_tokens=4, pruning_layer=2)) as both:
        model(**inputs)
    with prune(model, make_plan("divprune", keep_tokens=12)) as first:
        model(**inputs)
    (before, after) = both.documents[0].stages
    assert before.kept.tolist() == first.documents[0].stages[0].kept.tolist()
    assert after.candidates.tolist() == before.kept.tolist()
    assert both.documents[0].image_lengths == [12, 12, 12, 4, 4, 4]


def test_pictures_call_it_by_both_labels():
    assert label_of("divprune+text_weighted") == "DivPrune, then text-weighted"
    assert label_of("mine+fastv") == "mine+fastv"
