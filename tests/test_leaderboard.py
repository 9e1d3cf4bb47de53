"""The leaderboard: its files, its runs, what they cost, and that only whole results count."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import psutil
import pytest
import torch
import yaml
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from lmms_textweighted import cli
from lmms_textweighted.engine.plan import NONE, Plan, Stage
from lmms_textweighted.errors import InputError, TextweightedError
from lmms_textweighted.families import load
from lmms_textweighted.families.attach import prune
from lmms_textweighted.harness.documents import Documents
from lmms_textweighted.inference import PrunedLlava
from lmms_textweighted.leaderboard.commands import command, config_text_of, expand, shell_line
from lmms_textweighted.leaderboard.documents import check_tasks, count_documents
from lmms_textweighted.leaderboard.estimate import (
    Rates,
    document_cost,
    estimate,
    image_lengths,
    limited,
    vision_flops,
)
from lmms_textweighted.leaderboard.geometry import Geometry, VisionShape, WindowedShape, read_geometry
from lmms_textweighted.leaderboard.results import ACTING, cached_answers, done
from lmms_textweighted.leaderboard.runner import LOG, run_missing
from lmms_textweighted.leaderboard.schema import Matrix, Part, read_matrix
from lmms_textweighted.methods import SCORERS, find_method, make_plan, method_names, paper_variants, preset_names
from lmms_textweighted.methods.budget import LLAVA_15_7B
from lmms_textweighted.parallel.locks import run_lock
from lmms_textweighted.paths import config_names, data_folder
from tests.conftest import IMAGE, build_llava, make_inputs
from tests.vlms import MODELS

SMALL = """
name: small
output: board
model_args: {pretrained: tiny}
tasks: [{name: shapes_mcq, documents: 500}]
budgets: [64]
methods: [none, {strategy: text_weighted, model_args: {pruning_layer: 2}}]
options: {include_path: "${TASKS}", batch_size: 4}
"""


def small(folder: Path, text: str = SMALL) -> Matrix:
    (folder / "small.yaml").write_text(text)
    return read_matrix(str(folder / "small.yaml"))


def quiet() -> Console:
    return Console(record=True, file=io.StringIO(), width=200)


# What a leaderboard's file becomes.


def test_the_standard_set_is_expanded_to_one_command_a_method_and_budget():
    matrix = read_matrix("llava15-7b")
    runs = expand(matrix, output=Path("out"))
    assert [run.name for run in runs[:7]] == [
        "none",
        *(f"text_weighted-{budget}" for budget in (192, 128, 64, "flops0.39", "flops0.29", "flops0.2")),
    ]
    layers = {run.method: run.settings.plan().stages[0].layer for run in runs if run.settings.plan().stages}
    assert (layers["fastv_k2"], layers["fastv"], layers["random"]) == (1, 2, 2)
    known = {*method_names(), *preset_names()} - {*paper_variants()}
    assert known <= {run.method for run in runs}, "a method or a paper's setting is not in the ready leaderboard"
    assert runs[0].settings.plan() == NONE
    words = command(runs[3])
    assert words[:3] == [sys.executable, "-m", "lmms_eval"]
    options = dict(zip(words[3::2], words[4::2], strict=False))
    assert options["--model"] == "llava_textweighted"
    assert options["--model_args"] == (
        "pretrained=llava-hf/llava-1.5-7b-hf,conv_template=vicuna_v1,strategy=text_weighted,pruning_layer=2,"
        "keep_tokens=64"
    )
    assert "keep_tokens" not in " ".join(command(runs[0]))
    assert words[-5:] == [
        "--log_samples",
        "--output_path",
        f"out/{runs[3].name}",
        "--use_cache",
        "out/text_weighted-64/cache",
    ]
    assert len({run.folder for run in runs}) == len(runs)


def test_every_task_of_the_ready_leaderboards_is_in_lmms_evals_own_files():
    (place,) = importlib.util.find_spec("lmms_eval").submodule_search_locations
    texts = [
        path.read_text() for path in [*Path(place, "tasks").rglob("*.yaml"), *data_folder("tasks").rglob("*.yaml")]
    ]
    known = {name for text in texts for name in re.findall(r"""^task:\s*["']?([\w-]+)""", text, flags=re.MULTILINE)}
    for name in config_names("leaderboard"):
        names = [task.name for task in read_matrix(name).tasks]
        assert set(names) <= known
    standard = "gqa mmbench_en_dev mme pope scienceqa_img vqav2_val textvqa_val seedbench mmmu_val vizwiz_vqa_val"
    assert [task.name for task in read_matrix("llava15-7b").tasks] == standard.split()


def test_ready_leaderboards_are_listed_and_a_copy_says_the_same(tmp_path, monkeypatch, capsys):
    for arguments in ([], ["leaderboard/tiny", "--output", str(tmp_path / "mine.yaml")]):
        monkeypatch.setattr("sys.argv", ["lmms-textweighted", "config", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
    listed = capsys.readouterr().out.split()
    assert {"leaderboard/tiny", "leaderboard/llava15-7b", "shapes"} <= set(listed)
    assert not [name for name in listed if name.startswith("published/")]
    assert f"include_path: {data_folder('tasks')}" in (tmp_path / "mine.yaml").read_text()
    assert read_matrix(str(tmp_path / "mine.yaml")) == read_matrix("leaderboard/tiny") == read_matrix("tiny")


def test_a_config_file_and_a_shell_line_say_the_same(tmp_path):
    runs = expand(small(tmp_path), output=tmp_path / "a b", limit=3)
    entries = yaml.safe_load(config_text_of(runs, "made by a test"))
    assert [entry["limit"] for entry in entries] == [3, 3]
    for entry, run in zip(entries, runs, strict=True):
        environment = entry.pop("env")
        assert environment == run.environment
        assert environment["LMMS_CACHE_RUN_ID"] == "small"
        line = subprocess.run(
            ["sh", "-c", f"set -- {shell_line(run, 'echo')}; printf '%s\\n' \"$@\""],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        assert line[:3] == [*(f"{name}={value}" for name, value in environment.items()), "echo"]
        expected = [
            word
            for name, value in entry.items()
            for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
        ]
        assert line[3:] == expected == command(run, "echo")[1:]
        assert entry["batch_size"] == "4"
        assert entry["include_path"] == str(data_folder("tasks"))


def test_git_looks_no_further_up_than_lmms_evals_own_checkout(tmp_path, monkeypatch):
    """Its commit keys the response cache: that of a project around a virtual environment must not."""
    (ceiling,) = {run.environment["GIT_CEILING_DIRECTORIES"] for run in expand(small(tmp_path), output=tmp_path)}
    (place,) = importlib.util.find_spec("lmms_eval").submodule_search_locations
    assert Path(ceiling) == Path(place).resolve().parents[1]
    packages = tmp_path / "project" / "lib" / "site-packages"
    packages.mkdir(parents=True)
    found = []
    for ceiling, repository in (
        (tmp_path, tmp_path / "project"),
        (packages.parent, packages.parent),
        (packages.parent, packages),
    ):
        subprocess.run(["git", "init", "--quiet", str(repository)], check=True)
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(ceiling))
        looked = subprocess.run(
            ["git", "-C", str(packages), "rev-parse", "--git-dir"], capture_output=True, check=False
        )
        found.append(looked.returncode == 0)
    assert found == [True, False, True]


def test_a_launcher_takes_the_place_of_this_python(tmp_path):
    run = expand(small(tmp_path), output=tmp_path)[0]
    words = command(run, "accelerate launch --num_processes 8 -m lmms_eval")
    assert words[:7] == ["accelerate", "launch", "--num_processes", "8", "-m", "lmms_eval", "--model"]
    assert words[6:] == command(run)[3:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("budgets: [64]", "budgets: [64, many]"), "budgets.1.keep_tokens is 'many': input should be a valid integer"),
        (("budgets: [64]", "budgets: [64, 64]"), "budgets names '64' twice"),
        (("budgets: [64]", "budgets: [64, {keep_tokens: 64}]"), "budgets names '64' twice"),
        (("budgets: [64]", "budgets: [{flop_ratio: 0.5}]"), "unknown field 'flop_ratio': did you mean 'flops_ratio'"),
        (("budgets: [64]", "budgets: [{flops_ratio: 0.5, keep_ratio: 1}]"), "give exactly one of keep_tokens, keep_ra"),
        (("budgets: [64]", "budgets: [{flops_ratio: 5}]"), "flops_ratio is 5: give a number above 0 and at most 1"),
        (("budgets: [64]", "budget: [64]"), "budgets is missing"),
        (("documents: 500", "documents: 0"), "tasks.0.documents"),
        (("documents: 500", "document: 500"), "unknown field 'document': did you mean 'documents'?"),
        (("batch_size: 4", "batchsize: 4"), "unknown field 'batchsize': did you mean 'batch_size'?"),
        (("methods: [none,", "methods: [nine,"), "unknown strategy 'nine'"),
        (("pruning_layer: 2", "prune_layer: 2"), "unknown model argument 'prune_layer'"),
        (("pretrained: tiny", "pretrained: 'a,b'"), "model argument pretrained is 'a,b'"),
        (("name: small", "name: small: x"), "is no YAML"),
        (("methods: [none,", "methods: [none, none,"), "methods names 'none' twice"),
        (("output: board", "output: [board]"), "output is ['board']"),
    ],
)
def test_a_file_that_cannot_be_is_named_with_field_and_value_in_a_line(tmp_path, change, words):
    assert change[0] in SMALL
    with pytest.raises(TextweightedError) as error:
        expand(small(tmp_path, SMALL.replace(*change)), output=tmp_path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tinny"], "leaderboard config 'tinny' is no file; unknown ready one 'tinny': did you mean 'tiny'?"),
        (["tiny", "--limit", "0"], "limit is 0"),
        (["tiny", "--only", "fast-64"], "unknown run 'fast-64': did you mean 'fastv-64'?"),
        (["tiny", "--flops-per-second", "0"], "flops_per_second is 0"),
        (["tiny", "--write", "taken/runs.yaml"], "'taken/runs.yaml' cannot be written"),
    ],
)
def test_a_command_that_cannot_be_ends_with_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    (tmp_path / "taken").write_text("a file")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lmms-textweighted", "leaderboard", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert words in said
    assert len([line for line in said.splitlines() if line.startswith("lmms-textweighted: ")]) == 1


# What it costs.


def naive_flops(geometry: Geometry, plan: Plan, text: int, images: int, answer: int) -> dict[str, int]:
    """Every matrix product of one document, one after the other: 2 m k n each."""
    d, v = geometry.decoder, geometry.vision
    tokens, wide = v.patches + 1, v.hidden
    vision = 0
    for _ in range(images):
        vision += 2 * v.patches * v.pixels * wide
        for _ in range(v.layers):
            for _ in ("q", "k", "v", "o"):
                vision += 2 * tokens * wide * wide
            vision += 2 * tokens * wide * tokens + 2 * tokens * tokens * wide
            vision += 2 * tokens * wide * v.intermediate + 2 * tokens * v.intermediate * wide
        vision += 2 * v.patches * wide * v.output + 2 * v.patches * v.output * v.output
    prefill = decode = 0
    for layer in range(d.layers):
        left = geometry.image_tokens
        for stage in plan.stages:
            if layer > stage.layer:
                left = stage.keep(left)
        for new, seen in [(text + images * left, text + images * left)] + [
            (1, text + images * left + step) for step in range(1, answer)
        ]:
            query, key = d.heads * d.head_dim, d.kv_heads * d.head_dim
            cost = 2 * new * d.hidden * query * 2 + 2 * new * d.hidden * key * 2
            for _ in range(d.heads):
                cost += 2 * new * d.head_dim * seen + 2 * new * seen * d.head_dim
            for _ in ("gate", "up", "down"):
                cost += 2 * new * d.hidden * d.intermediate
            if new == 1:
                decode += cost
            else:
                prefill += cost
    return {"vision": vision, "prefill": prefill, "decode": decode}


PLANS = [
    NONE,
    make_plan("fastv", keep_tokens=64),
    make_plan("fastv_k2", keep_tokens=192),
    Plan("staged", (Stage(SCORERS["uniform"], 1, keep_tokens=288), Stage(SCORERS["last_row"], 3, keep_ratio=0.25))),
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
@pytest.mark.parametrize("images", [0, 1, 8])
def test_a_documents_cost_is_the_sum_of_its_matrix_products(plan, images):
    geometry = read_geometry("llava-hf/llava-1.5-7b-hf", "main", read_matrix("llava15-7b").estimate.config)
    assert (geometry.decoder.layers, geometry.decoder.intermediate, geometry.image_tokens) == (32, 11008, 576)
    cost = document_cost(
        geometry, plan, text=70, images=images, answer=3, element_size=2, rates=Rates(1e14, 1e12, batch=8)
    )
    naive = naive_flops(geometry, plan, 70, images, 3)
    assert {name: getattr(cost, name) for name in naive} == naive
    # A step of a batch of eight reads the weights once, and each document's keys and values.
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008) * 2
    keys = sum(70 + images * kept for kept in image_lengths(plan, 32, 576)) * 2 * 4096 * 2
    assert cost.decode_seconds == pytest.approx(2 * (weights / 8 + keys) / 1e12, rel=0.01)


def test_the_prefills_cost_is_what_the_engine_counts_for_a_real_one():
    model = build_llava(layers=6, image_size=112)
    plan = make_plan("text_weighted", keep_tokens=9)
    with prune(model, plan) as trace:
        model(**make_inputs(model, [(5, IMAGE, 7)]))
    (document,) = trace.documents
    geometry = Geometry(document.shape, VisionShape(2, 16, 32, 64, 588, 32), "a test")
    cost = document_cost(geometry, plan, text=12, images=1, answer=1, element_size=4, rates=Rates(1.0, 1.0))
    assert (cost.prefill, cost.decode, cost.decode_seconds) == (document.flops, 0, 0)
    assert image_lengths(plan, 6, 64) == document.image_lengths


def test_the_vision_towers_cost_is_what_torch_counts():
    model = build_llava(image_size=112, attn="eager")
    shape = VisionShape(layers=2, hidden=16, intermediate=32, patches=64, pixels=588, output=32)
    pixels = make_inputs(model, [(1, IMAGE)])["pixel_values"]
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.get_image_features(pixel_values=pixels)
    assert vision_flops(shape) == counter.get_total_flops()


def test_the_embedded_models_geometry_is_read_from_its_checkpoint():
    geometry = read_geometry("tiny", "main", None)
    assert geometry.decoder.layers == 8
    assert (geometry.vision.layers, geometry.vision.hidden, geometry.image_tokens) == (4, 128, 576)
    assert "tiny" in geometry.source


def test_a_checkpoint_that_is_not_here_needs_a_stated_config():
    with pytest.raises(InputError, match=r"'nobody/llava' is not on this machine: state estimate\.config"):
        read_geometry("nobody/llava", "main", None)


def test_a_leaderboards_cost_is_that_of_its_runs_and_hours_are_flops_at_the_rate(tmp_path):
    matrix = small(tmp_path)
    runs = expand(matrix, output=tmp_path)
    geometry = read_geometry("tiny", "main", None)
    rates = Rates(flops_per_second=1e9, bytes_per_second=1e30)
    made = estimate(matrix, runs, geometry, rates, {"shapes_mcq": [Part(count=10), Part(count=3, images=2)]})
    none, pruned = made.runs
    assert (none.kept, none.equivalent, pruned.kept, pruned.equivalent) == (576, 576, 64, (3 * 576 + 5 * 64) / 8)
    naive = [naive_flops(geometry, NONE, 64, images, 4) for images in (1, 2)]
    expected = sum(count * (one["vision"] + one["prefill"]) for count, one in zip((10, 3), naive, strict=True))
    assert rates.seconds(none.total) == pytest.approx(expected / 1e9)
    assert made.unpruned["shapes_mcq"] == none.total
    assert made.total.flops == none.total.flops + pruned.total.flops
    with pytest.raises(TextweightedError, match="keep_tokens is 577, but the image has 576"):
        estimate(
            matrix,
            expand(small(tmp_path, SMALL.replace("[64]", "[577]")), output=tmp_path),
            geometry,
            rates,
            made.parts,
        )


def test_a_budget_may_be_a_mean_or_a_share_of_the_flops_and_a_preset_has_its_own(tmp_path):
    text = SMALL.replace("[64]", "[64, {equivalent_tokens: 300}, {flops_ratio: 0.6}]")
    matrix = small(tmp_path, text.replace("methods: [none,", "methods: [none, fastv_k2_mean192,"))
    runs = expand(matrix, output=tmp_path)
    assert [run.name for run in runs] == [
        "none",
        "fastv_k2_mean192",
        "text_weighted-64",
        "text_weighted-equivalent300",
        "text_weighted-flops0.6",
    ]
    assert [run.options["model_args"].rpartition(",")[2] for run in runs[1:]] == [
        "strategy=fastv_k2_mean192",
        "keep_tokens=64",
        "equivalent_tokens=300",
        "flops_ratio=0.6",
    ]
    geometry = read_geometry("tiny", "main", None)
    rates = Rates(flops_per_second=1e9, bytes_per_second=1e30)
    parts = {"shapes_mcq": [Part(count=10)]}
    of_tiny = [run for run in runs if run.method != "fastv_k2_mean192"]
    made = estimate(matrix, of_tiny, geometry, rates, parts).runs
    assert made[2].equivalent == pytest.approx(300, abs=576 / 8)
    assert made[3].total.prefill == pytest.approx(0.6 * made[0].total.prefill, rel=0.01)
    with pytest.raises(TextweightedError, match="fastv_k2_mean192 is a setting for 32 decoder layers"):
        estimate(matrix, runs, geometry, rates, parts)


def test_a_changed_plan_file_is_another_run_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = []
    for keep in (64, 64, 65):
        Path("plan.yaml").write_text(f"name: mine\nstages: [{{scorer: uniform, layer: 2, keep_tokens: {keep}}}]\n")
        (run,) = expand(small(tmp_path, SMALL.replace("[none, ", "[plan.yaml, ")), output=tmp_path)[:1]
        assert (run.name, run.budget) == ("mine", None)
        folders.append(run.folder)
    assert folders[0] == folders[1] != folders[2]
    assert all(folder.name.startswith("mine-") for folder in folders)


def test_a_limit_takes_the_kinds_of_documents_by_their_share():
    parts = [Part(count=14233), Part(count=3757, images=8)]
    assert limited(parts, None) == limited(parts, 20000) == parts
    assert [(part.count, part.images) for part in limited(parts, 100)] == [(80, 1), (20, 8)]
    assert [(part.count, part.images) for part in limited(parts, 1)] == [(1, 1)]


def test_what_cannot_be_estimated_is_planned_all_the_same(tmp_path, monkeypatch, capsys, offline):
    small(tmp_path, SMALL.replace("pretrained: tiny", "pretrained: nobody/llava"))
    monkeypatch.setattr("lmms_textweighted.leaderboard.main.check_tasks", lambda names, include_path: None)
    leaderboard(monkeypatch, "small.yaml", "--dry-run")
    said = capsys.readouterr().out
    assert "No estimate: the config of 'nobody/llava' is not on this machine" in said
    assert said.count("LMMS_CACHE_RUN_ID=small") == 2


@pytest.mark.slow
def test_documents_that_are_not_stated_are_counted_in_the_local_data(tmp_path, offline):
    matrix = small(tmp_path, SMALL.replace("{name: shapes_mcq, documents: 500}", "shapes_mcq"))
    assert count_documents(matrix, None) == {"shapes_mcq": [Part(count=500)]}
    assert count_documents(matrix, 7) == {"shapes_mcq": [Part(count=7)]}
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    absent = small(tmp_path, SMALL.replace("{name: shapes_mcq, documents: 500}", "scienceqa_img_rank"))
    with pytest.raises(InputError, match="documents of task 'scienceqa_img_rank' are not stated and not here"):
        count_documents(absent, None)
    assert before == huggingface_hub.constants.HF_HUB_OFFLINE


# What counts as done.


def write_results(run, *, lines: int | None = None, tail: str = "", name: str = "20260101_000000", **changes) -> Path:
    """Files as lmms-eval writes them: results, then samples."""
    used = {**ACTING, **{name: value for name, value in run.options.items() if name in ACTING}, **changes}
    folder = run.folder / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "results": {task: {"exact_match,none": 1.0} for task in run.tasks},
        "n-samples": {task: {"original": 500, "effective": 3} for task in run.tasks},
        "config": {"resolved_cli_args": used},
    }
    file = folder / f"{name}_results.json"
    file.write_text(json.dumps(data))
    for task in run.tasks:
        text = "".join(f'{{"doc_id": {number}}}\n' for number in range(3 if lines is None else lines))
        (folder / f"{name}_samples_{task}.jsonl").write_text(text + tail)
    return file


def test_whole_results_of_the_runs_own_settings_are_done(tmp_path):
    run = expand(small(tmp_path), output=tmp_path)[1]
    assert done(run) == (None, "no results yet")
    file = write_results(run)
    assert done(run) == (file, "")
    # The order of tasks and arguments, batches and places make no other run.
    turned = ",".join(reversed(run.options["model_args"].split(",")))
    newer = write_results(run, model_args=turned, batch_size="1", output_path="x", name="20260102_000000")
    os.utime(newer, (time.time() + 10, time.time() + 10))
    assert done(run) == (newer, "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lines": 2}, "2 of 3 samples of shapes_mcq are written"),
        ({"lines": 2, "tail": '{"doc_id": 2, "tar'}, "2 of 3 samples"),
        ({"limit": 3.0}, "made with limit=3.0, not None"),
        ({"model_args": "pretrained=tiny,strategy=none"}, "made with model_args="),
        ({"tasks": "shapes_mcq_rank"}, "made with tasks='shapes_mcq_rank', not 'shapes_mcq'"),
        ({"predict_only": True}, "made with predict_only=True"),
        ({"gen_kwargs": "temperature=1"}, "made with gen_kwargs='temperature=1'"),
    ],
)
def test_results_that_are_not_whole_or_of_other_settings_are_not_done(tmp_path, changes, words):
    run = expand(small(tmp_path), output=tmp_path)[1]
    file = write_results(run, **changes)
    found, why = done(run)
    assert found is None
    assert words in why
    assert file.name in why


def test_a_broken_results_file_is_not_done_and_an_older_whole_one_is(tmp_path):
    run = expand(small(tmp_path), output=tmp_path)[1]
    older = write_results(run)
    newer = write_results(run, name="20260102_000000")
    newer.write_text(newer.read_text()[:200])
    os.utime(newer, (time.time() + 10, time.time() + 10))
    assert done(run) == (older, "")
    older.unlink()
    assert done(run) == (None, f"{newer.name}: it is not whole")
    # MMBench writes files of its own with such names.
    newer.unlink()
    (run.folder / "submissions").mkdir()
    (run.folder / "submissions" / "mmbench_en_dev_results.json").write_text("{}")
    assert done(run) == (None, "no results yet")


# How it is run.


def test_a_run_without_results_has_failed_though_it_exits_with_0(tmp_path):
    runs = expand(small(tmp_path), output=tmp_path / "board")
    console = quiet()
    outcomes = run_missing(runs, console=console, launcher="echo 'lmms-textweighted: no such model'")
    assert [outcome.run.name for outcome in outcomes] == ["none"]
    assert outcomes[0].results is None
    assert outcomes[0].why.startswith("no such model --model llava_textweighted")
    assert f"(exit code 0; no results yet; log: {runs[0].folder / LOG})" in outcomes[0].why
    assert "[1/2] none: failed: no such model" in console.export_text()

    outcomes = run_missing(runs, console=console, launcher="false", keep_going=True)
    assert [(outcome.run.name, outcome.results) for outcome in outcomes] == [("none", None), ("text_weighted-64", None)]
    # Of this try, not of the one before, which stands in the same log.
    assert all(outcome.why.startswith("it said nothing (exit code 1") for outcome in outcomes)


def test_what_is_done_is_not_run_again_whatever_the_launcher(tmp_path):
    runs = expand(small(tmp_path), output=tmp_path / "board")
    files = [write_results(run) for run in runs]
    outcomes = run_missing(runs, console=quiet(), launcher="false")
    assert [outcome.results for outcome in outcomes] == files
    assert not (runs[0].folder / LOG).exists()


def test_a_launcher_that_is_not_there_is_named(tmp_path):
    runs = expand(small(tmp_path), output=tmp_path / "board")
    with pytest.raises(InputError, match="launcher 'no-such-program' cannot be started"):
        run_missing(runs, console=quiet(), launcher="no-such-program -m lmms_eval")


def test_a_leaderboard_that_is_told_to_end_ends_its_run_first(tmp_path):
    runs = expand(small(tmp_path), output=tmp_path / "board")
    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_missing(runs, console=quiet(), launcher="sh -c 'sleep 61 & wait' --")
    assert time.monotonic() - began < 15
    assert not [process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"] == ["sleep", "61"]]
    with run_lock(runs[0].folder) as lock:
        assert lock is not None


def test_a_run_of_another_process_is_left_to_it(tmp_path):
    runs = expand(small(tmp_path), output=tmp_path / "board")
    with run_lock(runs[0].folder) as held:
        assert held is not None
        outcomes = run_missing(runs, console=quiet(), launcher="false")
    assert outcomes[0].busy
    assert outcomes[0].results is None
    assert [outcome.run.name for outcome in outcomes] == ["none", "text_weighted-64"]
    assert not outcomes[1].busy


def test_a_lock_lives_on_in_the_child_of_a_killed_process(tmp_path):
    code = (
        "import subprocess, sys; from pathlib import Path\n"
        "from lmms_textweighted.parallel.locks import run_lock\n"
        "with run_lock(Path(sys.argv[1])) as lock:\n"
        "    child = subprocess.Popen(['sleep', '60'], pass_fds=(lock,))\n"
        "    print(child.pid, flush=True); child.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
    with run_lock(tmp_path) as lock:
        assert lock is None
    os.kill(child, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(child)] if psutil.pid_exists(child) else [], timeout=10)
    with run_lock(tmp_path) as lock:
        assert lock is not None


# The real thing.

LIMIT = 12


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("LMMS_TEXTWEIGHTED_CACHE", str(tmp_path / "textweighted"))
    monkeypatch.chdir(tmp_path)


def kill_after(run, answers: int) -> threading.Thread:
    """Kill our child (lmms-eval) as soon as the run's cache holds some answers."""

    def watch() -> None:
        end = time.monotonic() + 300
        while cached_answers(run) < answers and time.monotonic() < end:
            time.sleep(0.02)
        for child in psutil.Process().children():
            if "lmms_eval" in " ".join(child.cmdline()):
                child.kill()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def logged_answers(file: Path) -> list[str]:
    (samples,) = file.parent.glob(file.name.replace("_results.json", "_samples_*.jsonl"))
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    assert [row["doc_id"] for row in rows] == list(range(LIMIT))
    return [row["filtered_resps"] for row in rows]


def direct_answers(plan: Plan) -> list[str]:
    """The same documents without lmms-eval's evaluator, one by one."""
    documents = Documents.of_task("shapes_mcq", LIMIT, single_prediction_prompt=False)
    llava = PrunedLlava(*load("tiny"), plan)
    return [llava.generate([[document.message]], documents.decoding)[0].text for document in documents]


def leaderboard(monkeypatch, *arguments: str) -> None:
    """The command, which must end well."""
    monkeypatch.setattr("sys.argv", ["lmms-textweighted", "leaderboard", "--output-dir", "board", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code


@pytest.mark.nightly
def test_a_killed_run_goes_on_where_it_stopped_also_from_the_config_file(tmp_path, monkeypatch, capsys, offline):
    # One by one: of larger batches, up to four are answered before the first answer goes out.
    matrix = small(tmp_path, SMALL.replace("batch_size: 4", "batch_size: 1"))
    runs = expand(matrix, output=Path(f"board-limit{LIMIT}"), limit=LIMIT)
    watcher = kill_after(runs[1], 4)
    (outcome,) = run_missing(runs[1:], console=quiet())
    watcher.join()
    assert outcome.results is None
    assert f"exit code -{signal.SIGKILL.value}; no results yet" in outcome.why
    assert not list(tmp_path.rglob("*_results.json"))
    before = cached_answers(runs[1])
    assert 4 <= before < LIMIT
    console = quiet()
    run_missing(runs[1:], console=console, launcher="false")
    assert f"text_weighted-64: goes on, {before} answers are cached" in console.export_text()

    leaderboard(monkeypatch, "small.yaml", "--limit", str(LIMIT), "--write", "runs.yaml")
    words = [sys.executable, "-m", "lmms_eval", "--config", "runs.yaml"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    files = [done(run)[0] for run in runs]
    assert all(files), ended.stdout[-3000:] + ended.stderr[-3000:]
    assert f"ResponseCache: {before}/{LIMIT} cache hits" in ended.stdout + ended.stderr
    for run, file in zip(runs, files, strict=True):
        assert logged_answers(file) == direct_answers(run.settings.plan())

    # The leaderboard takes those as done, and ends in the table.
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", "150")
    leaderboard(monkeypatch, "small.yaml", "--limit", str(LIMIT), "--launcher", "false")
    said = capsys.readouterr().out
    assert said.count("done before") == 2
    assert f"shapes_mcq: {LIMIT} of its 500 documents, a --limit" in said
    table = json.loads((runs[0].folder.parent / "leaderboard.json").read_text())
    assert [row["reference"] for row in table["rows"]] == [True, False]
    assert {path.suffix for path in runs[0].folder.parent.glob("leaderboard.*")} >= {".md", ".csv", ".tex", ".json"}


@pytest.mark.parametrize(("name", "depth"), [("tiny", 8), ("llava15-7b", 32)])
def test_the_ready_leaderboards_have_every_method_and_every_preset_that_the_model_takes(name, depth):
    """And a plan for each run, at the model's depth."""
    matrix = read_matrix(name)
    runs = expand(matrix, output=Path("board"))
    geometry = replace(LLAVA_15_7B, decoder=replace(LLAVA_15_7B.decoder, layers=depth))
    for run in runs:
        run.settings.plan(geometry).check(depth, 576)
    counts = {run.method: [str(one.budget) for one in runs if one.method == run.method] for run in runs}
    known = {*method_names(), *(preset_names() if depth == 32 else ())} - {*paper_variants()}
    if name == "tiny":  # nobody has a whole CLIP of its tower
        known -= {"cdpruner", "trim"}
    assert set(counts) == known
    asked = [str(budget) for budget in matrix.budgets]
    takes = [method for method in counts if find_method(method).takes_budget]
    assert all(set(asked) <= set(counts[method]) for method in takes)


@pytest.mark.slow
def test_a_dry_run_prints_plan_cost_and_commands_and_runs_nothing(tmp_path, monkeypatch, capsys, offline):
    monkeypatch.setenv("COLUMNS", "120")
    launcher = "accelerate launch -m lmms_eval"
    leaderboard(monkeypatch, "llava15-7b", "--dry-run", "--flops-per-second", "8e14", "--launcher", launcher)
    said = capsys.readouterr().out
    assert "214,354" in said
    assert "44,289" in said  # SEED-Bench's pictures: 14,233 questions with one, 3,757 with eight
    assert "at 8e+14 FLOP/s and 1e+12 bytes/s" in said
    assert "Arithmetic, not a measurement" in said
    commands = [line for line in said.splitlines() if line.startswith("LMMS_CACHE_RUN_ID=llava15-7b ")]
    runs = expand(read_matrix("llava15-7b"), output=Path("board"))
    assert commands == [shell_line(run, launcher) for run in runs]
    assert f"{len(runs)} runs, {len(runs) * 272_861:,} documents" in said
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="unknown task 'gqqa': did you mean 'gqa'"):
        check_tasks(["gqa", "gqqa"], None)
    # A commit in the project that a virtual environment lies in loses no cached answer.
    from lmms_eval.utils import get_lmms_eval_cache_version

    for name in ("LMMS_EVAL_GIT_COMMIT", "GIT_COMMIT", "GITHUB_SHA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in runs[0].environment.items():
        monkeypatch.setenv(name, value)
    assert get_lmms_eval_cache_version() == importlib.metadata.version("lmms-eval")
    # lmms-eval's own defaults are those that results are held against.
    from lmms_eval.__main__ import parse_eval_args

    monkeypatch.setattr("sys.argv", ["lmms-eval"])
    defaults = vars(parse_eval_args()[1])
    acting = {name: value for name, value in ACTING.items() if name not in ("model", "tasks")}
    assert {name: defaults[name] for name in acting} == acting


# Qwen2.5-VL, whose pictures have no one size.


def test_a_windowed_towers_cost_is_what_torch_counts():
    """Two pictures of whole windows: 8 x 8 patches of 4 pixels, windows of 4 x 4, one layer of two without."""
    model = MODELS["qwen2_5_vl"].build()
    model.set_attn_implementation("eager")
    shape = WindowedShape(
        layers=2, whole=1, hidden=32, intermediate=48, patches=64, pixels=96, window=16, merged=4, output=64
    )
    pixels, grid = torch.randn(2 * 64, 96), torch.tensor([[1, 8, 8], [1, 8, 8]])
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.get_image_features(pixel_values=pixels, image_grid_thw=grid)
    assert 2 * vision_flops(shape) == counter.get_total_flops()


def test_qwens_sizes_are_read_and_a_task_may_state_its_pictures(tmp_path):
    stated = read_matrix("qwen25-vl-7b").estimate.config
    geometry = read_geometry("nobody/qwen", "main", stated, 400)
    assert (geometry.decoder.layers, geometry.decoder.kv_heads, geometry.decoder.intermediate) == (28, 4, 18944)
    assert (geometry.image_tokens, geometry.fixed_tokens, geometry.of_pictures(266).image_tokens) == (400, None, 266)
    assert geometry.vision == WindowedShape(32, 4, 1280, 3420, 1600, 1176, 64, 4, 3584)
    text = SMALL.replace("documents: 500}", "documents: 500, image_tokens: 100}").replace("[64]", "[{keep_ratio: 0.5}]")
    matrix = small(tmp_path, text)
    rates, parts = Rates(flops_per_second=1e9, bytes_per_second=1e30), {"shapes_mcq": [Part(count=10)]}
    made = estimate(matrix, expand(matrix, output=tmp_path), geometry, rates, parts)
    assert [run.kept for run in made.runs] == [400, 200]  # of a document as the leaderboard has it
    half = make_plan("text_weighted", pruning_layer=2, keep_ratio=0.5)
    for run, plan in zip(made.runs, (NONE, half), strict=True):
        whole = {"text": 64, "images": 1, "answer": 4, "element_size": 2, "rates": rates}
        one = document_cost(geometry.of_pictures(100), plan, **whole)
        assert run.total.flops == pytest.approx(10 * one.flops)
    with pytest.raises(InputError, match="image_tokens is 100, but every picture has 576"):
        estimate(matrix, expand(matrix, output=tmp_path), read_geometry("tiny", "main", None), rates, parts)


def test_qwens_released_config_is_read_though_it_is_flat():
    """As the hub has it: the decoder's sizes beside the tower's, and a window that no layer uses."""
    stated = read_matrix("qwen25-vl-7b").estimate.config
    text = {name: value for name, value in stated["text_config"].items() if name != "model_type"}
    flat = {**text, "model_type": "qwen2_5_vl", "vision_config": {**stated["vision_config"], "in_chans": 3}}
    flat.update(use_sliding_window=False, sliding_window=32768, max_window_layers=28)
    flat.update(rope_theta=1e6, rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]})
    assert read_geometry("nobody/qwen", "main", flat, 400) == read_geometry("nobody/qwen", "main", stated, 400)


@pytest.mark.parametrize(
    ("config", "tokens", "words"),
    [
        (
            {"model_type": "qwen2_5_vl", "vision_config": {}},
            None,
            "have no one number of tokens: state estimate.image_t",
        ),
        (
            {"model_type": "qwen3_vl", "vision_config": {}},
            9,
            r"nor a Qwen2.5-VL \(model_type 'qwen3_vl'\): the estimate",
        ),
        ({"vision_config": {"model_type": "clip_vision_model"}}, 9, "image_tokens is 9, but every picture has"),
    ],
)
def test_what_an_estimate_cannot_count_is_said(config, tokens, words):
    with pytest.raises(InputError, match=words):
        read_geometry("nobody/vlm", "main", config, tokens)


def test_qwens_leaderboard_has_every_method_and_fits_into_80_columns(monkeypatch, capsys, offline):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("lmms_textweighted.leaderboard.main.check_tasks", lambda names, include_path: None)
    leaderboard(monkeypatch, "qwen25-vl-7b", "--dry-run")
    plan, _, commands = capsys.readouterr().out.partition("LMMS_CACHE_RUN_ID")
    table = [line for line in plan.splitlines() if line.startswith(tuple("┏┃┡│└"))]
    assert max(map(len, table)) <= 80
    assert not [line for line in table if "…" in line]
    runs = expand(read_matrix("qwen25-vl-7b"), output=Path("out"))
    assert len(runs) == commands.count("-m lmms_eval") == len([line for line in table if line.endswith("missing│")])
    clip_only = {"downsample", "fastervlm", "visionzip", "vispruner", "hiprune", "scope", "holov", "vscan"}
    clip_only |= {"prumerge", "prumerge_plus", "cdpruner", "trim"}
    assert {run.settings.strategy for run in runs} == {*method_names()} - clip_only - {*paper_variants()}
    assert "--model llava_textweighted --model_args pretrained=Qwen/Qwen2.5-VL-7B-Instruct,strategy=none" in commands


def test_results_under_the_models_second_name_are_done(tmp_path):
    run = expand(small(tmp_path), output=tmp_path)[1]
    file = write_results(run, model="vlm_textweighted")
    assert done(run) == (file, "")
    newer = write_results(run, model="llava_hf", name="20260102_000000")
    os.utime(newer, (time.time() + 10, time.time() + 10))
    assert done(run) == (file, "")
