"""Several processes, on one machine and on two, answer like one; and when one is lost, all end and say so."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from contextlib import closing
from types import SimpleNamespace

import datasets
import pytest
import torch
from torch.distributed import HashStore

from lmms_textweighted.errors import InputError
from lmms_textweighted.families import LoadOptions
from lmms_textweighted.parallel.processes import check_joined, named, placed, share
from lmms_textweighted.parallel.watch import Watch
from lmms_textweighted.paths import data_folder
from lmms_textweighted.tiny.testset import load_testset
from tests.launches import launch
from tests.lmms_eval_runs import Run, lmms_eval, same

TASK = "shapes_mcq_rank"
START = "fastv_textweighted_layer2_experiment"
SWEEP = ("lmms_textweighted", "sweep", "--strategies", "text_weighted,none", "--tokens", "64,16")


def ours(*rest: str, tasks: str = TASK) -> list[str]:
    return [
        *("lmms_eval", "--model", "llava_textweighted", "--model_args", "pretrained=tiny,keep_tokens=48"),
        *(
            "--tasks",
            tasks,
            "--output_path",
            "out",
            "--log_samples",
            "--include_path",
            str(data_folder("tasks")),
            *rest,
        ),
    ]


def traces(folder) -> int:
    """Records in the run's trace store so far."""
    path = next((folder / "textweighted" / "traces").glob("*.sqlite"), None)
    if path is None:
        return 0
    with closing(sqlite3.connect(path, timeout=60)) as database:
        made = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'traces'").fetchone()
        return database.execute("SELECT count(*) FROM traces").fetchone()[0] if made else 0


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Run:
    """One process."""
    run = lmms_eval(tmp_path_factory.mktemp("one"), *ours("--limit", "5", "--batch_size", "2")[1:])
    run.folder = run.folder.parent / "out"
    return run


@pytest.mark.nightly  # a sweep's two nodes are below, and a process of lmms-eval that fails
@pytest.mark.parametrize(("nodes", "processes"), [(1, 2), (2, 1)])
def test_two_processes_answer_like_one(one, tmp_path, nodes, processes):
    started = launch(tmp_path, *ours("--limit", "5", "--batch_size", "2"), nodes=nodes, processes=processes)
    assert started.wait(180) == [0] * nodes, started.output[-3000:]
    two = Run(0, started.output, tmp_path / "out")
    assert len(list(two.folder.rglob("*_results.json"))) == len(list(two.folder.rglob("*_samples_*.jsonl"))) == 1
    first, second = one.metrics(TASK), two.metrics(TASK)
    assert first.keys() == second.keys()
    assert all(same(first[name], second[name]) for name in first), (first, second)
    assert second["traces_missing"] == 0
    singles, doubles = one.samples(TASK), two.samples(TASK)
    assert [sample["doc_id"] for sample in doubles] == list(range(5))
    for single, double in zip(singles, doubles, strict=True):
        assert single["filtered_resps"] == double["filtered_resps"]
        single, double = single["token_counts"][0], double["token_counts"][0]
        assert single["kept_positions"] == double["kept_positions"]
        assert all(same(single[name], double[name]) for name in ("numeric_rank", "effective_rank"))
    # lmms-eval pads rank 1's two documents to three: what pads is no timing and no trace.
    assert sorted(re.findall(r"total_requests: (\d+)", two.output)) == ["2", "3"]
    assert traces(tmp_path) == 5


@pytest.mark.slow
def test_a_document_that_cannot_be_answered_ends_all_processes(tmp_path):
    """Only rank 1 is given the one without its picture."""
    target = tmp_path / "lmms-lab-encoder" / "POPE"
    target.mkdir(parents=True)
    images = load_testset().select(range(100)).cast_column("image", datasets.Image(decode=False))["image"]
    rows = {
        "image": [picture if number != 5 else None for number, picture in enumerate(images)],
        "question": ["Is there a red circle in the image?"] * 100,
        "answer": ["yes"] * 100,
        "question_id": [str(number) for number in range(100)],
    }
    images = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    images.to_parquet(str(target / "test.parquet"))
    started = launch(tmp_path, *ours(tasks="pope"), processes=2)
    assert started.wait(180) == [1]
    assert any("rank 1 of 2: task pope, document 5: " in line for line in started.lines)
    assert "rank      : 1" in started.output.split("Root Cause")[1]
    assert not list(tmp_path.rglob("*_results.json"))


@pytest.mark.nightly
@pytest.mark.slow
def test_a_process_killed_on_another_node_ends_the_run(tmp_path):
    """torchrun tells no other node, and lmms-eval exits with 0 where a collective fails."""
    environment = {"LMMS_TEXTWEIGHTED_PATIENCE": "5"}
    started = launch(tmp_path, *ours("--limit", "500"), nodes=2, environment=environment)
    started.kill(1, lambda: traces(tmp_path) > 2)
    assert started.wait(60) == [1, 1]
    assert any("rank 0 of 2: rank 1 of 2 has died or is out of reach" in line for line in started.lines)
    assert "rank      : 1" in started.output
    assert "SIGKILL" in started.output
    assert not list(tmp_path.rglob("*_results.json"))


def results_in(folder) -> list[str]:
    """What a sweep left, without the lock that tells other sweeps to keep away."""
    return sorted(name for name in os.listdir(folder) if not name.endswith(".lock"))


@pytest.mark.slow
def test_a_sweep_over_two_nodes_writes_the_files_of_one_process(tmp_path):
    options = ("--num-samples", "3", "--seed", "1")
    alone = launch(tmp_path, *SWEEP, *options, "--output-dir", "one")
    assert alone.wait(120) == [0], alone.output[-3000:]
    both = launch(tmp_path, *SWEEP, *options, "--output-dir", "two", nodes=2)
    assert both.wait(120) == [0, 0], both.output[-3000:]
    endings = ("answers.jsonl", "json", "pictures.jsonl", "png", "views.jsonl")
    assert results_in(tmp_path / "two") == [f"{START}.{ending}" for ending in endings]
    for name in os.listdir(tmp_path / "one"):
        # The command stands in the result, and names the folder.
        files = [(tmp_path / folder / name).read_bytes() for folder in ("one", "two")]
        assert files[0] == files[1].replace(b"--output-dir two", b"--output-dir one"), name
    assert both.output.count("accuracy of the pruned model") == 1


@pytest.mark.nightly
def test_a_sweep_that_loses_a_process_leaves_nothing_that_looks_whole(tmp_path):
    out = tmp_path / "out"
    part = out / f"{START}.answers.jsonl.rank1of2.part"
    started = launch(tmp_path, *SWEEP, "--num-samples", "500", "--output-dir", "out", processes=2)
    started.kill(1, lambda: part.exists() and part.stat().st_size > 0)
    assert started.wait(60) == [1]
    assert "rank      : 1" in started.output.split("Root Cause")[1]
    assert "SIGKILL" in started.output
    assert part in set(out.iterdir())  # its answers are not lost
    assert all(name.endswith(".part") for name in results_in(out))


@pytest.mark.nightly
def test_a_sweep_whose_processes_do_not_know_of_each_other_ends_with_one_line_each(tmp_path):
    started = launch(tmp_path, *SWEEP, processes=2, environment={"ACCELERATE_USE_CPU": "false"})
    assert started.wait(60) == [1]
    assert started.lines
    assert all("2 processes, but accelerate runs 1: without a GPU set ACCELERATE_USE_CPU" in x for x in started.lines)
    assert "Traceback" not in started.output.split("lmms-textweighted:")[0]


def state(processes: int, device: str = "cuda:1"):
    return SimpleNamespace(num_processes=processes, device=torch.device(device))


def test_each_process_takes_a_card_of_its_own(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert placed(LoadOptions(), state(1)) == LoadOptions()
    assert placed(LoadOptions(), state(2)).device == "cuda:1"
    assert placed(LoadOptions(device="cuda"), state(2)).device == "cuda:1"
    assert placed(LoadOptions(device="cpu"), state(2)).device == "cpu"
    with pytest.raises(InputError, match="device is 'cuda:0' with 2 processes on this machine"):
        placed(LoadOptions(device="cuda:0"), state(2))


def test_a_model_over_all_cards_goes_with_one_process_a_machine(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match="device_map is 'auto' with 2 processes on this machine"):
        placed(LoadOptions(device_map="auto"), state(2))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert placed(LoadOptions(device_map="auto"), state(2)) == LoadOptions(device_map="auto")


def test_documents_are_dealt_and_errors_headed_by_rank(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert list(share(3)) == [0, 1, 2]
    assert named("wrong") == "wrong"
    check_joined(state(1))
    monkeypatch.setenv("WORLD_SIZE", "4")
    parts = []
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        parts.append(list(share(6)))
    assert parts == [[0, 4], [1, 5], [2], [3]]
    assert named("wrong") == "rank 3 of 4: wrong"
    with pytest.raises(InputError, match="4 processes, but accelerate runs 1"):
        check_joined(state(1))


@pytest.fixture
def watches(monkeypatch):
    """Two processes' watches over one store, not running by themselves. Patience: 0.2 seconds."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    store, found = HashStore(), []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        found.append(Watch(store, 0.2))
    return found


def test_a_silent_process_is_lost_and_a_beating_one_is_not(watches):
    first, second = watches
    for _ in range(3):
        assert first._lost() is None
        second._beat()
        time.sleep(0.15)
    assert first._lost() is None
    time.sleep(0.25)
    assert "rank 1 of 2 has died or is out of reach" in first._lost()


def test_a_process_that_left_is_waited_for_by_none(watches):
    """lmms-eval leaves after an error that it caught, while the others wait in a collective."""
    first, second = watches
    second._say_last("left")
    assert first._lost() is None
    time.sleep(0.25)
    assert "rank 1 of 2 has left the run" in first._lost()
    first.leave()  # but where this one leaves too, all is well
    second._beat()  # and a late beat does not undo the last word
    assert first._states() == {1: "left"}


def test_an_error_of_one_process_is_told_to_the_others_at_once(watches):
    first, second = watches
    second.end("task gqa, document 3: no picture")
    assert first._lost() == "rank 1 of 2 has ended the run: task gqa, document 3: no picture"
