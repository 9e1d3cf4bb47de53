"""The real lmms-eval command, from folders that are not the repository."""

from __future__ import annotations

import math
import shutil

import pytest
import yaml

from lmms_textweighted.paths import data_folder
from lmms_textweighted.tiny.testset import export_scienceqa, load_testset
from tests.lmms_eval_runs import lmms_eval, same

pytestmark = pytest.mark.slow

RANK_METRICS = ("kept_image_tokens", "equivalent_image_tokens", "flops_ratio", "numeric_rank", "effective_rank")


def ours(arguments: str, *rest: str) -> list[str]:
    return ["--model", "llava_textweighted", "--model_args", arguments, "--tasks", "shapes_mcq_rank", *rest]


def make_pope(folder):
    """Four documents under the data set name of lmms-eval's stock `pope`."""
    target = folder / "lmms-lab-encoder" / "POPE"
    target.mkdir(parents=True)
    images = load_testset().select(range(4)).select_columns(["image"])
    questions = ["Is there a red circle in the image?", "Is there a dog in the image?"] * 2
    images = images.add_column("question", questions).add_column("answer", ["yes", "no"] * 2)
    images = images.add_column("question_id", [str(number) for number in range(4)])
    images.to_parquet(str(target / "test.parquet"))


def test_the_users_command_runs_on_a_scienceqa_folder_beside_it(tmp_path):
    """And another stock task in the same run."""
    export_scienceqa(tmp_path)
    make_pope(tmp_path)
    run = lmms_eval(
        tmp_path, "--model", "llava_textweighted", "--tasks", "scienceqa_img,pope",
        "--model_args", "pretrained=tiny", "--limit", "8",
        "--include_path", str(tmp_path),
    )  # fmt: skip
    assert run.code == 0, run.output[-3000:]
    assert "|scienceqa_img|" in run.output
    assert 0.75 <= run.metrics("scienceqa_img")["exact_match"] <= 1.0
    counts = run.samples("scienceqa_img")[0]["token_counts"][0]
    assert counts["kept_tokens"] == 192
    assert counts["lengths"] == [counts["input_tokens"]] * 3 + [counts["input_tokens"] - 384] * 5
    assert counts["settings"]["conv_template"] == "vicuna_v1"
    assert run.results["throughput"]["avg_kept_tokens"] == 192
    other = run.samples("pope")
    assert len(other) == 4
    assert all(sample["token_counts"][0]["kept_tokens"] == 192 for sample in other)
    assert all(isinstance(sample["filtered_resps"], str | list) for sample in other)


def test_cached_answers_keep_their_ranks_or_say_how_many_are_missing(tmp_path):
    arguments = ours(
        "pretrained=tiny,keep_tokens=32", "--limit", "6", "--batch_size", "4", "--use_cache", str(tmp_path / "c")
    )
    first = lmms_eval(tmp_path, *arguments, name="first")
    assert first.code == 0, first.output[-3000:]
    figures = first.metrics("shapes_mcq_rank")
    assert figures["traces_missing"] == 0
    assert figures["kept_image_tokens"] == 32
    assert 1 < figures["effective_rank"] < 32

    second = lmms_eval(tmp_path, *arguments, name="second")
    assert "served from cache" in second.output
    again = second.metrics("shapes_mcq_rank")
    assert all(same(again[name], figures[name]) for name in (*RANK_METRICS, "exact_match", "traces_missing"))

    shutil.rmtree(tmp_path / "textweighted")
    third = lmms_eval(tmp_path, *arguments, name="third")
    assert third.code == 0
    lost = third.metrics("shapes_mcq_rank")
    assert lost["traces_missing"] == 6
    assert all(math.isnan(lost[name]) for name in RANK_METRICS)
    assert lost["exact_match"] == figures["exact_match"]
    assert "6 of 6 documents have no pruning trace" in third.output


@pytest.mark.nightly
def test_models_of_one_config_list_do_not_share_traces(tmp_path):
    """Ours, a model that is not ours, ours again with another budget: each scores with its own traces or none."""
    common = {
        "tasks": "shapes_mcq_rank",
        "include_path": str(data_folder("tasks")),
        "limit": 4,
        "offset": 3,
        "log_samples": True,
        "process_docs_parallel": 8,
    }
    runs = [
        {**common, "model": "llava_textweighted", "model_args": "pretrained=tiny,keep_tokens=16", "output_path": "a"},
        {**common, "model": "dummy", "model_args": "response=A", "output_path": "b"},
        {**common, "model": "llava_textweighted", "model_args": "pretrained=tiny,strategy=none", "output_path": "c"},
    ]
    (tmp_path / "runs.yaml").write_text(yaml.safe_dump(runs))
    done = lmms_eval(tmp_path, "--config", "runs.yaml")
    assert done.code == 0, done.output[-3000:]
    found = {}
    for name in "abc":
        done.folder = tmp_path / name
        found[name] = done.metrics("shapes_mcq_rank")
        assert [sample["doc_id"] for sample in done.samples("shapes_mcq_rank")] == [3, 4, 5, 6]
    assert found["a"]["kept_image_tokens"] == 16
    assert found["c"]["kept_image_tokens"] == 576
    assert found["c"]["flops_ratio"] == 1
    assert found["b"]["traces_missing"] == 4
    assert math.isnan(found["b"]["kept_image_tokens"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model_args", "pretrained=tiny,keep_tokens=577"], "keep_tokens is 577, but the image has 576 tokens"),
        pytest.param(
            ["--model_args", "pretrained=tiny", "--output_path", "taken/out"],
            "output folder 'taken/out' cannot be written",
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            ["--model_args", "pretrained=tiny,system_length=35"],
            "task shapes_mcq, document 0: system length is stated as 35",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_a_run_that_cannot_be_right_ends_with_one_line(tmp_path, arguments, words):
    (tmp_path / "taken").write_text("a file, not a folder")
    run = lmms_eval(tmp_path, "--model", "llava_textweighted", "--tasks", "shapes_mcq", "--limit", "2", *arguments)
    assert run.code == 1
    lines = [line for line in run.output.splitlines() if line.startswith("lmms-textweighted:")]
    assert len(lines) == 1
    assert words in lines[0]
    assert "Traceback" not in run.output
