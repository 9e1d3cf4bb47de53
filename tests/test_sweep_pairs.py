"""Paired tests within a sweep, budgets that are shares, and prefills timed beside the unpruned one."""

from __future__ import annotations

import io
import json
import random

import pytest
from rich.console import Console
from scipy import stats
from statsmodels.stats.multitest import multipletests

from lmms_textweighted import cli
from lmms_textweighted.errors import InputError
from lmms_textweighted.experiment import timing
from lmms_textweighted.experiment.files import experiment_data
from lmms_textweighted.experiment.grid import Point, make_grid
from lmms_textweighted.experiment.outcomes import Outcome, collect
from lmms_textweighted.experiment.pairs import pair
from lmms_textweighted.experiment.ranges import parse_budgets
from lmms_textweighted.experiment.tables import print_tables
from lmms_textweighted.experiment.timing import Prefill, time_points
from lmms_textweighted.families import load
from lmms_textweighted.harness.documents import Documents
from lmms_textweighted.inference import PrunedLlava
from lmms_textweighted.methods import make_plan
from lmms_textweighted.methods.budget import LLAVA_15_7B

META = {"pruning_layer": [1, 2], "num_samples": 200, "checkpoint": "c", "task": "t", "decoder_layers": 8}


def outcome(score: float, flops: float) -> Outcome:
    return Outcome(str(score), score, score == 1, None, None, 576, 64, 128.0, flops)


def curves_of(accuracies: dict[tuple[str, int | None], tuple[float, float]], documents: int = 200, seeds: int = 1):
    """Curves of one budget; accuracies: (strategy, layer) -> (mean score, FLOPs). Documents drawn independently."""
    draw = random.Random(1)
    plan = make_plan("fastv", keep_tokens=64)
    points, rows = [], []
    for (strategy, layer), (mean, flops) in accuracies.items():
        for seed in range(seeds) if strategy == "random" and seeds > 1 else (None,):
            points.append(Point(strategy, 64, plan, layer, seed))
            rows.append([outcome(float(draw.random() < mean), flops) for _ in range(documents)])
    return collect(points, list(zip(*rows, strict=True)))


def test_a_point_is_tested_against_the_reference_of_its_budget_with_the_closest_flops():
    curves = curves_of(
        {
            ("text_weighted", 1): (0.9, 0.35),
            ("text_weighted", 2): (0.9, 0.45),
            ("fastv", 1): (0.5, 0.35),
            ("fastv", 2): (0.9, 0.45),
            ("himap", None): (0.5, 0.39),
        }
    )
    found = {(one.curve.strategy, one.curve.layer): one for one in pair(curves, "text_weighted")}
    assert {key: one.against_layer for key, one in found.items()} == {
        ("fastv", 1): 1,
        ("fastv", 2): 2,
        ("himap", None): 1,
    }
    assert [one.is_different for one in found.values()] == [True, False, True]


def test_at_matched_flops_a_point_is_tested_against_its_own_layer():
    curves = curves_of(
        {("text_weighted", 1): (0.9, 0.4501), ("text_weighted", 2): (0.9, 0.4499), ("fastv", 2): (0.5, 0.45011)}
    )
    assert [one.against_layer for one in pair(curves, "text_weighted")] == [2]


def test_p_values_are_mcnemars_over_the_same_documents_with_holms_correction():
    curves = curves_of({("random", 2): (0.6, 0.4), ("fastv", 2): (0.75, 0.4), ("dart", 2): (0.62, 0.4)})
    found = pair(curves, "random")
    base = curves[0].document_scores(0)
    expected = []
    for curve in curves[1:]:
        scores = curve.document_scores(0)
        won = sum(a > b for a, b in zip(scores, base, strict=True))
        lost = sum(a < b for a, b in zip(scores, base, strict=True))
        expected.append(stats.binomtest(won, won + lost).pvalue)
    assert [one.p for one in found] == pytest.approx(expected)
    assert [one.adjusted_p for one in found] == pytest.approx(multipletests(expected, method="holm")[1])
    assert {one.test for one in found} == {"McNemar exact"}


def test_against_several_seeds_each_documents_mean_counts():
    curves = curves_of({("random", 2): (0.5, 0.4), ("fastv", 2): (0.9, 0.4)}, seeds=3)
    (one,) = pair(curves, "random")
    means = [sum(scores) / 3 for scores in zip(*([o.score for o in row] for row in curves[0].outcomes[0]), strict=True)]
    assert one.test == "paired permutation"
    assert one.difference == pytest.approx(sum(curves[1].document_scores(0)) / 200 - sum(means) / 200)
    assert one.is_different


def test_many_tests_do_not_hide_a_clear_difference_behind_the_permutations_resolution():
    """600 tests times 1 / 10,000 would be above 5 %, however large the difference."""
    plan = make_plan("fastv", keep_tokens=64)
    points = [Point("random", 64, plan, 2, seed) for seed in (0, 1)]
    points += [Point(f"method {number}", 64, plan, 2) for number in range(600)]
    rows = [[outcome(float((n + seed) % 4 == 0), 0.4) for n in range(60)] for seed in (0, 1)]
    rows += [[outcome(1.0, 0.4) for _ in range(60)] for _ in range(600)]
    found = pair(collect(points, list(zip(*rows, strict=True))), "random")
    assert len(found) == 600
    assert all(one.is_different for one in found)


def test_nothing_is_tested_where_no_token_stays_or_none_leaves():
    plan = make_plan("fastv", keep_tokens=0)
    points = [
        Point("text_weighted", 0, plan, 2),
        Point("fastv", 0, plan, 2),
        Point("none", None, make_plan("none")),
    ]
    curves = collect(points, [[outcome(1.0, 0.4)] * 3] * 5)
    assert pair(curves, "text_weighted") == []


def test_against_no_pruning_every_budget_is_tested():
    plan = make_plan("fastv", keep_tokens=64)
    points = [Point("fastv", 64, plan, 2), Point("fastv", 16, plan, 2), Point("none", None, make_plan("none"))]
    rows = [[outcome(float(n % 3 != 0), 0.4), outcome(float(n % 50 != 0), 0.4), outcome(1.0, 1.0)] for n in range(90)]
    found = pair(collect(points, rows), "none")
    assert [(one.place, one.is_different) for one in found] == [(0, True), (1, False)]


def test_marks_stand_beside_the_accuracies_and_the_note_explains_them():
    curves = curves_of(
        {
            ("text_weighted", 2): (0.9, 0.45),
            ("fastv", 2): (0.5, 0.45),
            ("dart", 2): (0.995, 0.45),
            ("random", 2): (0.5, 0.45),
        }
    )
    data = experiment_data(curves, META, layers=8, image_tokens=576, against=("text_weighted", "random"))
    lines = printed(data).splitlines()

    def cell(name: str) -> str:
        return next(line for line in lines if f" {name} " in line).split("│")[2].strip()

    assert cell("fastv").endswith("-=")
    assert cell("dart").endswith("+")
    assert cell("random").endswith("-")
    assert cell("text_weighted")[-1].isdigit()
    said = " ".join(" ".join(lines).split())
    assert "+ -: better, worse than text_weighted" in said
    assert "=: not told apart from random" in said


def test_a_strategy_without_some_budgets_stands_with_those_that_cost_the_same():
    plan = make_plan("fastv", keep_tokens=64)
    points = [Point("pool", 64, plan, 2), Point("fastv", 64, plan, 2), Point("fastv", 0, plan, 2)]
    curves = collect(points, [[outcome(1.0, 0.4), outcome(0.0, 0.4), outcome(0.0, 0.3)]] * 5)
    text = printed(experiment_data(curves, META, layers=8, image_tokens=576))
    assert text.count("after layer 2") == 1
    assert text.index(" pool ") < text.index(" fastv ")
    (row,) = [line for line in text.splitlines() if "FLOPs  " in line]
    assert [cell.strip() for cell in row.split("│")[2:4]] == ["40%", "30%"]


def printed(data: dict) -> str:
    console = Console(width=80, file=io.StringIO())
    print_tables(data, console)
    return console.file.getvalue()


def test_the_blocks_hold_every_test_beside_its_budget():
    curves = curves_of({("random", 2): (0.6, 0.4), ("fastv", 2): (0.9, 0.4)})
    data = json.loads(json.dumps(experiment_data(curves, META, layers=8, image_tokens=576, against=("random",))))
    block = data["strategies"]["fastv"]["2"]["paired"]["random"]
    assert block["against_layer"] == [2]
    assert block["difference"][0] == pytest.approx(
        data["strategies"]["fastv"]["2"]["accuracies"][0] - data["strategies"]["random"]["2"]["accuracies"][0]
    )
    assert "paired" not in data["strategies"]["random"]["2"]
    assert data["meta"]["against"] == ["random"]


@pytest.mark.parametrize("kind", ["flops_ratio", "keep_ratio"])
def test_shares_are_budgets_largest_first(kind: str):
    assert parse_budgets("0.25,0.5,0.25", kind) == [0.5, 0.25]
    for wrong in ("0", "1.5", "64", "a", ""):
        with pytest.raises(InputError, match="above 0 and at most 1"):
            parse_budgets(wrong, kind)


def test_at_matched_flops_every_method_comes_close_or_is_left_out_with_its_bound():
    points, left_out = make_grid(
        ["text_weighted", "fastv_k2", "himap"], [0.5, 0.2], [2, 10], kind="flops_ratio", geometry=LLAVA_15_7B
    )
    assert {(p.strategy, p.layer, p.budget) for p in points} == {
        ("text_weighted", 2, 0.5),
        ("text_weighted", 10, 0.5),
        ("text_weighted", 2, 0.2),
        ("fastv_k2", None, 0.5),
        ("fastv_k2", None, 0.2),
        ("himap", None, 0.5),
        ("himap", None, 0.2),
    }
    assert [str(one)[:44] for one in left_out] == ["text_weighted at flops_ratio=0.2 after layer"]


@pytest.fixture(scope="module")
def llava():
    return PrunedLlava(*load("tiny"))


def test_prefills_are_timed_beside_the_unpruned_one(llava, monkeypatch):
    """The clock is the test's: an unpruned prefill takes 2 s, a pruned one 1 s, and 0.5 s of that is the selection."""
    documents = list(Documents.of_task("shapes_mcq", 3, single_prediction_prompt=True))
    asked = []

    def fake(llava, message, plan):
        asked.append((message.text, plan.stages))
        return (1.0, 0.5) if plan.stages else (2.0, 0.0)

    monkeypatch.setattr(timing, "_prefill", fake)
    plan = make_plan("fastv", keep_tokens=64)
    points = [Point("fastv", 64, plan, 2), Point("again", 64, plan, 2), Point("none", None, make_plan("none"))]
    found = time_points(llava, [document.message for document in documents], points)
    assert [Prefill.median_of(one) for one in found] == [
        Prefill(1.0, 0.5, 0.5),
        Prefill(1.0, 0.5, 0.5),
        Prefill(2.0, 0.0, 1.0),
    ]
    assert [len(one) for one in found] == [3, 3, 3]
    assert len(asked) == (3 + 1) * 2  # two plans, three documents and a warm-up


def test_a_timed_prefill_is_the_models_own(llava):
    (document,) = Documents.of_task("shapes_mcq", 1, single_prediction_prompt=True)
    plan = make_plan("text_weighted", keep_tokens=64)
    ((found,),) = time_points(llava, [document.message], [Point("text_weighted", 64, plan, 2)])
    assert isinstance(found, Prefill)
    assert 0 < found.selection < found.seconds
    assert found.ratio > 0


def test_more_timed_documents_than_there_are_is_refused(monkeypatch, tmp_path, capsys):
    """Timing fewer in silence would put another number of documents behind the medians."""
    words = ["sweep", "--num-samples", "2", "--time", "3", "--tokens", "64", "--output-dir", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["lmms-textweighted", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "time is 3, but the sweep has 2 documents: give at most as many" in capsys.readouterr().err


def test_points_slower_than_the_unpruned_model_are_said_in_words():
    plan = make_plan("fastv", keep_tokens=64)
    points = [Point("fastv", 64, plan, 2), Point("dart", 64, plan, 2), Point("none", None, make_plan("none"))]
    prefills = [[Prefill(2.2, 0.3, 1.1)], [Prefill(1.0, 0.1, 0.5)], [Prefill(2.0, 0.0, 1.0)]]
    curves = collect(points, [[outcome(1.0, 0.4)] * 3] * 5, prefills)
    data = experiment_data(curves, {**META, "timed_documents": 1}, layers=8, image_tokens=576)
    said = " ".join(printed(data).split())
    assert "slower than the unpruned model, with the selection in it: fastv after layer 2 at 64 (1.10)" in said
    assert "dart after layer 2 at" not in said


@pytest.mark.slow
def test_a_sweep_at_matched_flops_with_tests_and_times(tmp_path, monkeypatch):
    arguments = ["--num-samples", "4", "--budget", "flops_ratio", "--tokens", "0.5,0.3", "--no-ranks", "--time", "2"]
    arguments += ["--strategies", "text_weighted,fastv,random,himap,none", "--pruning-layer", "0,2"]
    monkeypatch.setattr("sys.argv", ["lmms-textweighted", "sweep", *arguments, "--output-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    (result,) = tmp_path.glob("*.json")
    data = json.loads(result.read_text(encoding="utf-8"))
    assert data["meta"]["budget"] == "flops_ratio"
    assert data["meta"]["against"] == ["text_weighted", "random"]
    for strategy in ("text_weighted", "fastv", "random"):
        assert data["strategies"][strategy]["0"]["tokens"] == [0.5, 0.3]
        assert data["strategies"][strategy]["2"]["tokens"] == [0.5]
        assert data["strategies"][strategy]["0"]["flops_ratio"] == pytest.approx([0.5, 0.3], abs=0.02)
    assert all(ratio > 0 for ratio in data["strategies"]["himap"]["own"]["prefill_ratio"])
    assert data["strategies"]["fastv"]["0"]["paired"]["random"]["p"][0] <= 1
