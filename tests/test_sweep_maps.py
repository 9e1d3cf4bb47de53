"""Maps of layers and budgets, the cut-off, several seeds, plans of several stages: what the sweep runs and writes."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from scipy import stats

from lmms_textweighted import cli
from lmms_textweighted.compare.folders import read_runs
from lmms_textweighted.compare.naming import name_runs
from lmms_textweighted.compare.records import leave_after
from lmms_textweighted.engine.layers import EMBEDDINGS
from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.errors import InputError, PlanError
from lmms_textweighted.experiment import tables
from lmms_textweighted.experiment.alone import answer_alone
from lmms_textweighted.experiment.draws import seeded_plan
from lmms_textweighted.experiment.files import blocks_of, experiment_data
from lmms_textweighted.experiment.grid import Point, make_grid, make_points
from lmms_textweighted.experiment.maps import map_rows
from lmms_textweighted.experiment.outcomes import Outcome, collect
from lmms_textweighted.experiment.pareto import measured, pareto_front
from lmms_textweighted.experiment.picture import draw
from lmms_textweighted.experiment.points import run_document
from lmms_textweighted.experiment.ranges import parse_layers, parse_seeds, parse_tokens
from lmms_textweighted.experiment.styles import styles
from lmms_textweighted.experiment.tables import print_tables
from lmms_textweighted.families import load
from lmms_textweighted.harness.documents import Documents
from lmms_textweighted.inference import Decoding, PrunedLlava
from lmms_textweighted.methods import SCORERS, Method, find_method, make_plan
from lmms_textweighted.methods.budget import LLAVA_15_7B, cost_of

DECODING = Decoding(max_new_tokens=4)


@dataclass(frozen=True)
class TwoStages(Method):
    """Halves what stays after layer 1, and again after layer 4; refuses to keep nothing."""

    name: str = "two_stages"
    label: str = "two stages"
    source: str = "this test"
    layer: int | None = 1

    def stages(self, layer: int, keep_tokens: int | None, keep_ratio: float | None) -> tuple[Stage, ...]:
        if not keep_tokens:
            raise PlanError("two_stages keeps at least 1")
        uniform = SCORERS["uniform"]
        return Stage(uniform, 1, keep_tokens=2 * keep_tokens), Stage(SCORERS["last_row"], 4, keep_tokens=keep_tokens)


@pytest.fixture(scope="module")
def llava():
    return PrunedLlava(*load("tiny"))


@pytest.fixture(scope="module")
def documents():
    return list(Documents.of_task("shapes_mcq", 3, single_prediction_prompt=True))


def swept(llava, document, points: Sequence[Point]) -> list[Outcome]:
    return run_document(
        llava, document.message, points, decoding=DECODING, ranks=True, judge=lambda a: (float(len(a)), a == "A")
    )


def assert_same_outcome(found: Outcome, answer) -> None:
    assert found.answer == answer.text
    assert found.score == len(answer.text)
    assert found.image_tokens == answer.trace.image_tokens == 576
    assert found.kept_tokens == answer.trace.kept_tokens
    assert found.equivalent_tokens == answer.trace.equivalent_tokens
    assert found.flops_ratio == pytest.approx(answer.trace.flops_ratio)
    if answer.trace.ranks is None:
        assert found.effective_rank is None
    else:
        assert found.effective_rank == pytest.approx(answer.trace.ranks.effective_mean, rel=1e-3)


def test_any_plan_in_the_sweep_is_that_plan_through_the_model(llava, documents):
    """Several stages, a share of the tokens, scores from another layer, and renumbered positions, beside `fastv`."""
    weighted, last = make_plan("text_weighted").stages[0].scorer, SCORERS["last_row"]
    plans = [
        TwoStages().plan(keep_tokens=24),
        Plan("share", (Stage(weighted, 2, keep_ratio=0.1),)),
        Plan("elsewhere", (Stage(last, 3, keep_tokens=40, score_layer=1),)),
        Plan("renumbered", (Stage(weighted, 1, keep_tokens=40),), positions="renumber"),
        make_plan("fastv", pruning_layer=2, keep_tokens=40),
    ]
    points = [Point(plan.name, 40, plan) for plan in plans]
    for document in documents:
        for plan, outcome in zip(plans, swept(llava, document, points), strict=True):
            alone = replace(llava, plan=plan).generate([[document.message]], DECODING, ranks=True)[0]
            assert_same_outcome(outcome, alone)
            assert alone.trace.kept_tokens == {"two_stages": 24, "share": 57}.get(plan.name, 40)


def test_a_plan_of_one_stage_by_itself_equals_the_shared_prefix(llava, documents):
    points = make_points(["text_weighted", "fastv", "random", "none"], [40, 0], 2)
    for document in documents:
        for point, shared in zip(points, swept(llava, document, points), strict=True):
            alone = answer_alone(
                llava,
                document.message,
                point.plan,
                decoding=DECODING,
                ranks=True,
                judge=lambda a: (float(len(a)), a == "A"),
            )
            assert (alone.answer, alone.kept_tokens, alone.exact) == (shared.answer, shared.kept_tokens, shared.exact)
            assert alone.flops_ratio == pytest.approx(shared.flops_ratio)
            if point.budget == 0:
                assert alone.effective_rank is shared.effective_rank is None
            else:
                assert alone.effective_rank == pytest.approx(shared.effective_rank, rel=1e-3)


def test_the_cut_off_leaves_no_image_token_and_is_the_same_for_every_method(llava, documents):
    points = make_points(["text_weighted", "fastv", "random"], [16, 0], 3)
    for document in documents:
        outcomes = swept(llava, document, points)
        cut = outcomes[1::2]
        assert [outcome.kept_tokens for outcome in cut] == [0, 0, 0]
        assert {outcome.equivalent_tokens for outcome in cut} == {576 * 4 / 8}
        assert cut[0] == cut[1] == cut[2]
        assert cut[0].effective_rank is None
        assert outcomes[0].effective_rank > 1
        assert cut[0].flops_ratio < outcomes[0].flops_ratio


def test_a_grid_has_every_layer_once_for_each_method_that_takes_one(llava):
    strategies = ["text_weighted", "fastv_k2", TwoStages(), "none"]
    points, left_out = make_grid(strategies, [64, 16, 0], [0, 2])
    assert [(p.strategy, p.layer, p.budget) for p in points] == [
        *(("text_weighted", layer, budget) for layer in (0, 2) for budget in (64, 16, 0)),
        *(("fastv_k2", None, budget) for budget in (64, 16, 0)),
        *(("two_stages", None, budget) for budget in (64, 16)),
        ("none", None, None),
    ]
    assert [stage.layer for p in points[:6] for stage in p.plan.stages] == [0, 0, 0, 2, 2, 2]
    assert [str(one) for one in left_out] == ["two_stages at 0 tokens: two_stages keeps at least 1"]
    with pytest.raises(PlanError, match="keeps at least 1"):
        make_grid([TwoStages()], [0], [2])
    with pytest.raises(PlanError, match="pruning layer is -2"):
        make_grid(["fastv"], [16], [-2])
    with pytest.raises(PlanError, match="keeps at least 1"):
        make_points([TwoStages()], [64, 0], 2)


def test_only_what_draws_has_a_point_for_each_seed(llava, documents):
    points, _ = make_grid(["random", "fastv"], [32], [2], seeds=[7, 3])
    assert [(p.strategy, p.seed) for p in points] == [("random", 7), ("random", 3), ("fastv", None)]
    alone = [replace(llava, seed=seed) for seed in (7, 3)]
    kept = set()
    for document in documents:
        outcomes = swept(llava, document, points)
        for point, outcome, model in zip(points[:2], outcomes[:2], alone, strict=True):
            plan = make_plan("random", pruning_layer=2, keep_tokens=32)
            answer = replace(model, plan=plan).generate([[document.message]], DECODING, ranks=True)[0]
            assert_same_outcome(outcome, answer)
            seeded = replace(llava, plan=point.plan).generate([[document.message]], DECODING)[0]
            assert seeded.trace.stages[0].kept.tolist() == answer.trace.stages[0].kept.tolist()
            kept.add(tuple(answer.trace.stages[0].kept.tolist()))
    assert len(kept) == 2 * len(documents)
    fastv = make_plan("fastv", keep_tokens=32)
    assert seeded_plan(fastv, 5) == fastv
    assert make_grid(["random"], [32], [2], seeds=[4])[0][0].seed is None


def outcome(score: float, flops: float, tokens: int = 64) -> Outcome:
    return Outcome("A", score, bool(score), None, None, 576, tokens, 200.0 + tokens, flops)


def result(
    strategies: Sequence[str],
    layers: Sequence[int] | int,
    budgets: Sequence[int],
    *,
    documents: int = 30,
    seeds: Sequence[int] = (),
) -> dict:
    """A result of a sweep with made-up outcomes."""
    draw_score = random.Random(0)
    asked = [layers] if isinstance(layers, int) else layers
    points, _ = make_grid(strategies, budgets, asked, seeds=seeds)
    rows = [
        [
            outcome(
                float(draw_score.random() < 0.8), 0.1 + (p.layer or 1) / 10 + (p.budget or 576) / 5760, p.budget or 0
            )
            for p in points
        ]
        for _ in range(documents)
    ]
    meta = {
        "checkpoint": "tiny",
        "model_type": "llava",
        "task": "shapes_mcq",
        "pruning_layer": layers,
        "num_samples": documents,
        "decoder_layers": 8,
        "chance": 0.25,
    }
    return experiment_data(collect(points, rows), meta, layers=8, image_tokens=576)


def test_a_result_of_several_layers_has_a_block_for_each():
    data = result(["text_weighted", "fastv_k2", "none"], [0, 3], [64, 0])
    assert set(data) == {"strategies", "meta"}
    assert list(data["strategies"]["text_weighted"]) == ["0", "3"]
    assert list(data["strategies"]["fastv_k2"]) == list(data["strategies"]["none"]) == ["own"]
    block = data["strategies"]["text_weighted"]["3"]
    assert (block["layer"], block["tokens"], len(block["accuracies"])) == (3, [64, 0], 2)
    assert [plan["stages"][0]["leave_after"] for plan in block["plans"]] == [3, 3]
    assert [(name, block["layer"]) for name, block in blocks_of(data)] == [
        ("text_weighted", 0),
        ("text_weighted", 3),
        ("fastv_k2", None),
        ("none", None),
    ]
    single = result(["text_weighted", "none"], 3, [64, 0])
    assert set(single) >= {"tokens", "accuracies", "layer7_numeric_ranks", "layer7_effective_ranks"}
    assert single["strategies"]["text_weighted"]["tokens"] == single["tokens"] == [64, 0]
    assert single["strategies"]["none"]["tokens"] == [576]


def test_several_seeds_are_one_curve_whose_interval_is_of_the_documents_means():
    scores = np.array([[1, 0, 1], [1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=float)  # documents x seeds
    points, _ = make_grid(["random"], [64], [2], seeds=[0, 1, 2])
    data = experiment_data(
        collect(points, [[outcome(score, 0.5) for score in row] for row in scores]),
        {"pruning_layer": 2, "decoder_layers": 8},
        layers=8,
        image_tokens=576,
    )
    block = data["strategies"]["random"]
    assert block["seeds"] == [0, 1, 2]
    assert block["accuracies"] == [pytest.approx(scores.mean())]
    assert block["accuracies_by_seed"] == {str(s): [pytest.approx(scores[:, s].mean())] for s in range(3)}
    assert block["accuracy_spread"] == [pytest.approx(stdev(scores.mean(axis=0)))]
    expected = stats.ttest_1samp(scores.mean(axis=1), 0).confidence_interval(0.95)
    assert (block["accuracy_low"][0], block["accuracy_high"][0]) == (
        pytest.approx(expected.low),
        pytest.approx(expected.high),
    )


@pytest.mark.parametrize(
    ("strategies", "layers", "budgets", "seeds"),
    [
        (["text_weighted", "text_weighted_debiased", "fastv", "fastv_k2", "random", "none"], 2, [192, 64, 16, 0], ()),
        (["text_weighted", "text_weighted_debiased", "fastv", "random", "none"], 2, range(576, 6, -10), ()),
        (["text_weighted", "text_weighted_debiased", "fastv_k2", "random"], [0, 1, 5], range(576, 6, -30), [0, 1]),
        (["fastv", "random", "none"], 2, [64, 16], [0, 1]),
    ],
)
def test_a_table_breaks_no_name_and_no_number_at_80_columns(strategies, layers, budgets, seeds):
    data = result(strategies, layers, budgets, seeds=seeds)
    console = Console(width=80, record=True, file=io.StringIO())
    print_tables(data, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    words = text.replace("│", " ").replace("┃", " ").split()
    for strategy in set(strategies) - {"none"}:
        assert strategy in words
    for name, block in blocks_of(data):
        for tokens, accuracy in zip(block["tokens"], block["accuracies"], strict=True):
            assert str(tokens) in words or name == "none"
            assert {f"{100 * accuracy:.1f}", f"{accuracy:.1%}", f"{accuracy:.1%};"} & set(words)
    assert "…" not in text


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_the_front_is_what_no_other_point_beats(points):
    beaten = {
        place
        for place, (cost, value) in enumerate(points)
        if any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)
    }
    front = pareto_front(points)
    assert {points[place] for place in front} == {p for place, p in enumerate(points) if place not in beaten}
    assert [points[place] for place in front] == sorted(points[place] for place in front)
    assert len({points[place] for place in front}) == len(front)


def test_the_pictures_data_are_all_points_and_every_map(tmp_path):
    data = result(["text_weighted", "fastv", "fastv_k2", "random", "none"], [0, 2, 3], [64, 32, 0], seeds=[0, 1])
    assert [(title, rows) for title, rows, _ in map_rows(data)] == [
        *((name, ["layer 0", "layer 2", "layer 3"]) for name in ("text-weighted", "FastV", "random")),
        ("layers of their own", ["FastV (K=2)"]),
    ]
    assert len(measured(data)) == 3 * 3 * 3 + 3 + 1
    assert str(measured(data)[3]).startswith("text-weighted, layer 2, 64 tokens: ")
    draw(tmp_path / "map.png", data)
    draw(tmp_path / "line.png", result(["text_weighted", "fastv_k2", "none"], 2, [64, 32, 0]))
    for name in ("map", "line"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 1000
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_no_two_of_many_strategies_look_alike():
    names = [*(f"method_{number}" for number in range(40)), "fastv", "random", "text_weighted"]
    found = styles(names)
    assert len(set(found.values())) == len(names)
    assert styles(["fastv"])["fastv"] == found["fastv"]


def test_lists_of_layers_and_seeds():
    assert parse_layers("2") == parse_layers(2) == [2]
    assert parse_layers("5,0:2,1") == [0, 1, 2, 5]
    assert parse_layers("all") is None
    assert parse_seeds("3,0:2,3") == [3, 0, 1, 2]
    assert parse_tokens("64,0") == [64, 0]
    for text in ("two", "", "0:", "0:1:0"):
        with pytest.raises(InputError, match="pruning_layer is"):
            parse_layers(text)
    with pytest.raises(InputError, match="pruning layer is -1"):
        parse_layers("-1")


@pytest.mark.slow
def test_a_map_is_written_and_compared(tmp_path, monkeypatch, capsys):
    def run(*arguments: str) -> dict:
        monkeypatch.setattr("sys.argv", ["lmms-textweighted", "sweep", "--num-samples", "4", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        folder = tmp_path / arguments[arguments.index("--output-dir") + 1]
        return json.loads(next(folder.glob("*_experiment.json")).read_text())

    monkeypatch.chdir(tmp_path)
    options = ("--strategies", "fastv,fastv_k2,random,none", "--tokens", "64,0")
    data = run(*options, "--pruning-layer", "1,3", "--seed", "0,1", "--output-dir", "map")
    assert (tmp_path / "map" / "fastv_textweighted_layers_experiment.png").stat().st_size > 10_000
    assert (data["meta"]["pruning_layer"], data["meta"]["seed"]) == ([1, 3], [0, 1])
    single = run(*options, "--pruning-layer", "3", "--seed", "1", "--output-dir", "one")
    assert single["strategies"]["fastv"] == data["strategies"]["fastv"]["3"]
    assert single["strategies"]["random"]["accuracies"] == data["strategies"]["random"]["3"]["accuracies_by_seed"]["1"]
    alone, mapped = single["strategies"]["fastv_k2"], data["strategies"]["fastv_k2"]["own"]
    tested = alone.pop("paired"), mapped.pop("paired")  # against random after layer 3, and where it may after layer 1
    assert [one["random"]["against_layer"] for one in tested] == [[3, None], [1, None]]
    assert alone == mapped
    assert data["strategies"]["fastv"]["1"]["accuracies"] == data["strategies"]["fastv_k2"]["own"]["accuracies"]
    lines = [json.loads(line) for line in next((tmp_path / "map").glob("*.answers.jsonl")).read_text().splitlines()]
    assert len(lines) == 4 * (2 * 2 + 2 + 2 * 2 * 2 + 1)
    assert {(line["layer"], line["seed"]) for line in lines if line["strategy"] == "random"} == {
        (layer, seed) for layer in (1, 3) for seed in (0, 1)
    }
    runs = read_runs([tmp_path / "map"])
    names = [name for name, _ in name_runs(runs)]
    assert sorted(names) == sorted(
        [
            *(f"{name}@{tokens} leave_after={n}" for name in ("fastv", "random") for tokens in (64, 0) for n in (1, 3)),
            *(f"fastv_k2@{tokens} leave_after=1" for tokens in (64, 0)),
            "unpruned",
        ]
    )
    block = data["strategies"]["random"]["3"]
    random_run = runs[names.index("random@64 leave_after=3")]
    assert random_run.tasks["shapes_mcq"].value == pytest.approx(block["accuracies"][0])
    by_document = random_run.tasks["shapes_mcq"].documents
    for number in range(4):
        scores = [
            x["score"]
            for x in lines
            if (x["strategy"], x["layer"], x["tokens"], x["document"]) == ("random", 3, 64, number)
        ]
        assert by_document[number].score == fmean(scores)


def test_a_methods_own_layer_is_no_row_of_the_map():
    assert find_method("fastv_k2").layer == 1
    data = result(["fastv_k2", "none"], [0, 2], [64])
    assert [title for title, _, _ in map_rows(data)] == ["layers of their own"]


def test_a_mean_over_the_layers_is_solved_for_the_model_and_a_preset_has_one_point(tmp_path, monkeypatch):
    """Every strategy's equivalent tokens come within a token a layer of what was asked, or it is said why not."""
    small = replace(LLAVA_15_7B, decoder=replace(LLAVA_15_7B.decoder, layers=8))
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text("name: mine\nstages: [{scorer: uniform, layer: 1, keep_tokens: 9}]\n")
    points, left_out = make_grid(
        ["fastv", "pyramiddrop", "plan.yaml", "none"],
        [400, 300, 100],
        [0, 2],
        kind="equivalent_tokens",
        geometry=small,
    )
    for point in points:
        if point.budget is not None:
            assert cost_of(point.plan, small).equivalent_tokens == pytest.approx(point.budget, abs=1)
    found = [(point.strategy, point.layer, point.budget) for point in points]
    assert found == [
        *(("fastv", layer, budget) for layer, budgets in ((0, (400, 300, 100)), (2, (400, 300))) for budget in budgets),
        *(("pyramiddrop", None, budget) for budget in (400, 300)),
        ("mine", None, None),
        ("none", None, None),
    ]
    assert [(one.strategy, one.layer, one.budget) for one in left_out] == [
        ("fastv", 2, 100),
        ("pyramiddrop", None, 100),
    ]
    assert all("cannot go below a mean of" in one.reason for one in left_out)
    with pytest.raises(PlanError, match="himap_paper is a setting for 32 decoder layers, but the model has 8: use him"):
        make_grid(["himap_paper"], [64], [2], geometry=small)
    assert len(make_grid(["himap_paper"], [64, 32], [0, 2])[0]) == 1


def test_places_before_and_in_the_model_are_said_in_words():
    assert tables._where(()) == "nothing leaves"
    assert tables._where((EMBEDDINGS,)) == "before layer 0"
    assert tables._where((EMBEDDINGS, 2)) == "before layer 0, then after layer 2"
    assert tables._where((7, 15)) == "after layers 7, 15"
    stages = [{"leave_after": layer} for layer in (EMBEDDINGS, 7, 15)]
    assert [leave_after(stages[:end]) for end in (0, 1, 3)] == [None, "before", "before+7+15"]
