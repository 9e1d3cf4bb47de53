"""Two methods as one, and methods that merge, through every command: names with a plus, and ranks that cannot be."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lmms_textweighted import cli
from lmms_textweighted.harness.settings import Settings
from lmms_textweighted.leaderboard.commands import command, expand
from lmms_textweighted.leaderboard.schema import read_matrix
from lmms_textweighted.methods import make_plan
from lmms_textweighted.methods.budget import LLAVA_15_7B
from lmms_textweighted.regress.baseline import read_baseline
from lmms_textweighted.regress.command import regress
from tests.lmms_eval_runs import lmms_eval

NAMES = ("divprune+text_weighted", "visionzip+fastv")


def run(monkeypatch, *words: str) -> None:
    """A command of ours, which must end well."""
    monkeypatch.setattr("sys.argv", ["lmms-textweighted", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LMMS_TEXTWEIGHTED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_sweep_its_files_and_a_comparison_have_compositions(folder, monkeypatch, capsys):
    run(monkeypatch, "sweep", "--num-samples", "3", "--tokens", "48,16", "--strategies", f"{','.join(NAMES)},none")
    said = capsys.readouterr().out
    assert all(name in said for name in NAMES)
    assert "no ranks of visionzip+fastv: visionzip merges tokens" in said
    (result,) = folder.rglob("*_experiment.json")
    data = json.loads(result.read_text())
    assert result.with_suffix(".png").stat().st_size > 10_000
    kept, merged = (data["strategies"][name] for name in NAMES)
    assert [[stage["keep_tokens"] for stage in plan["stages"]] for plan in kept["plans"]] == [[144, 48], [48, 16]]
    assert kept["equivalent_tokens"] == [(3 * 144 + 5 * 48) / 8, (3 * 48 + 5 * 16) / 8]
    assert all(1 <= rank <= count for rank, count in zip(kept["effective_ranks"], (48, 16), strict=True))
    assert "unranked" not in kept
    assert (merged["numeric_ranks"], merged["effective_ranks"]) == ([None, None], [None, None])
    assert merged["unranked"].startswith("visionzip merges tokens: ")

    run(monkeypatch, "compare", str(result.parent), "--format", "csv")
    table = capsys.readouterr().out
    assert all(name in table for name in NAMES)


def test_a_share_of_the_flops_is_one_of_both_in_a_sweep(folder, monkeypatch, capsys):
    words = ("--num-samples", "1", "--budget", "flops_ratio", "--tokens", "0.3", "--no-ranks")
    run(monkeypatch, "sweep", *words, "--strategies", "divprune+fastv,divprune,none", "--output-dir", "out")
    (result,) = folder.rglob("*_experiment.json")
    blocks = json.loads(result.read_text())["strategies"]
    assert blocks["divprune+fastv"]["flops_ratio"][0] == pytest.approx(0.3, abs=0.01)
    assert blocks["divprune"]["flops_ratio"][0] == pytest.approx(0.3, abs=0.01)


def test_a_baseline_of_a_composition_is_kept_and_compared(folder):
    path = folder / "b.json"
    options = {"keep_tokens": "32", "strategies": NAMES[0], "num_samples": 2}
    assert regress(path, options, update=True) == 0
    made = read_baseline(path)
    assert [point.name for point in made.points] == ["divprune+text_weighted@32"]
    assert [[len(kept) for kept in outcome.kept_sets()] for outcome in made.outcomes] == [[96, 32]] * 2
    assert regress(path, {}) == 0


BOARD = """
name: both
output: board
model_args: {pretrained: tiny}
tasks: [{name: shapes_mcq_rank, documents: 500}]
budgets: [32]
methods: [divprune+text_weighted, visionzip+fastv]
options: {include_path: "${TASKS}", batch_size: 4}
"""


def test_a_leaderboard_names_a_run_of_one_and_its_command_makes_the_same_plan(folder):
    (folder / "both.yaml").write_text(BOARD)
    runs = expand(read_matrix("both.yaml"), output=folder)
    assert [one.name for one in runs] == [f"{name}-32" for name in NAMES]
    words = command(runs[0])
    given = dict(pair.split("=") for pair in words[words.index("--model_args") + 1].split(","))
    made = Settings.parse({"strategy": given["strategy"], "keep_tokens": int(given["keep_tokens"])})
    assert made.plan(LLAVA_15_7B) == make_plan(NAMES[0], keep_tokens=32, geometry=LLAVA_15_7B)


def test_lmms_eval_runs_one_and_a_ranked_task_says_what_merging_leaves_unmeasured(tmp_path):
    run = lmms_eval(
        tmp_path, "--model", "llava_textweighted", "--tasks", "shapes_mcq_rank", "--limit", "3",
        "--model_args", "pretrained=tiny,keep_tokens=32,strategy=visionzip+fastv",
    )  # fmt: skip
    assert run.code == 0, run.output[-3000:]
    found = run.metrics("shapes_mcq_rank")
    assert (found["kept_image_tokens"], found["traces_missing"]) == (32, 0)
    assert math.isnan(float(found["effective_rank"]))
    assert "ranks are not measured: visionzip merges tokens" in run.output
    counts = run.samples("shapes_mcq_rank")[0]["token_counts"][0]
    assert [len(kept) for kept in counts["kept_positions"]] == [96, 32]
