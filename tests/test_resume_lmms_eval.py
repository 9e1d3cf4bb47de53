"""lmms-eval with `--use_cache`, and a leaderboard, go on after a kill: answers and scores are those of a whole run.

What its cache does not keep is figures of pruning and of time: those are of the documents answered since.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from lmms_textweighted.harness.cache_key import add_to_cache_key, restore_cache_key
from lmms_textweighted.paths import data_folder
from tests.kills import kill_when, run, start

LIMIT = 6
LMMS_EVAL = [
    *("lmms_eval", "--model", "llava_textweighted", "--model_args", "pretrained=tiny,keep_tokens=64"),
    *("--tasks", "shapes_mcq", "--include_path", str(data_folder("tasks")), "--limit", str(LIMIT)),
    *("--batch_size", "1", "--output_path", "out", "--log_samples", "--use_cache", "out/cache"),
]
BOARD = f"""
name: small
output: out
model_args: {{pretrained: tiny}}
tasks: [{{name: shapes_mcq, documents: {LIMIT}}}]
budgets: [64]
methods: [none, text_weighted]
options: {{include_path: "${{TASKS}}", batch_size: 1}}
"""
LEADERBOARD = ["lmms_textweighted", "leaderboard", "small.yaml", "--limit", str(LIMIT), "--output-dir", "out"]


def cached(folder: Path) -> int:
    """Answers that are in the caches' logs."""
    logs = [*folder.glob("**/cache/cache.audit.jsonl"), *folder.glob("**/cache/runs/*/*.audit.jsonl")]
    try:
        return sum(log.read_bytes().count(b"\n") for log in logs)
    except FileNotFoundError:  # just merged
        return 0


def outcome(folder: Path) -> dict[str, Any]:
    """Of each run in a folder, by the folder's name: scores, what was run, and every document with its answer.

    A run that was killed after it had written its results, and was then given once more, has two of them.
    """
    found: dict[str, Any] = {}
    for file in folder.rglob("*_results.json"):
        data = json.loads(file.read_text())
        (logged,) = file.parent.glob(file.name.replace("_results.json", "_samples_*.jsonl"))
        samples = sorted(map(json.loads, logged.read_text().splitlines()), key=lambda sample: sample["doc_id"])
        assert [sample["doc_id"] for sample in samples] == list(range(LIMIT))
        for sample in samples:
            sample.pop("token_counts", None)
        scores = {task: _known(scores) for task, scores in data["results"].items()}
        name = str(file.parent.parent.relative_to(folder))
        said = [scores, data["n-samples"], data["versions"], samples]
        assert found.setdefault(name, said) == said
    return found


def _known(scores: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in scores.items() if name in ("alias", "samples") or "," in name}


def go_on(folder: Path, words: list[str], answers: int, then: float) -> bool:
    """Start, kill when so many answers are cached and a moment later, and give the same command again."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "small.yaml").write_text(BOARD)
    process = start(folder, *words)
    killed = kill_when(process, lambda: cached(folder) >= answers, then)
    done = run(folder, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    return killed


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A command -> what it ends with when nothing kills it."""
    found: dict[str, dict[str, Any]] = {}

    def get(words: list[str]) -> dict[str, Any]:
        if words[0] not in found:
            folder = tmp_path_factory.mktemp("whole")
            (folder / "small.yaml").write_text(BOARD)
            done = run(folder, *words)
            assert done.returncode == 0, done.stderr[-3000:]
            found[words[0]] = outcome(folder)
        return found[words[0]]

    return get


COMMANDS = pytest.mark.parametrize("words", [LMMS_EVAL, LEADERBOARD], ids=["lmms-eval", "leaderboard"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [LMMS_EVAL, pytest.param(LEADERBOARD, marks=pytest.mark.nightly)], ids=["lmms-eval", "leaderboard"]
)  # a leaderboard is killed in tests/test_leaderboard.py, too
def test_a_killed_run_goes_on_from_the_cache_to_the_same_answers_and_scores(tmp_path, whole, words):
    draw = random.Random(3)
    count = LIMIT if words is LMMS_EVAL else 2 * LIMIT
    answers = draw.randrange(1, count - 2)
    assert go_on(tmp_path / "run", words, answers, draw.uniform(0, 0.01))
    logs = [*(tmp_path / "run").rglob("*.audit.jsonl")]
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    assert len({line["cache_key"] for line in lines}) == count
    assert outcome(tmp_path / "run") == whole(words)


@pytest.mark.nightly
@pytest.mark.slow
@COMMANDS
def test_twenty_kills_at_random_moments_change_no_answer_and_no_score(tmp_path, whole, words):
    draw, kills = random.Random(4), 0
    count = LIMIT if words is LMMS_EVAL else 2 * LIMIT
    while kills < 20:
        kills += go_on(tmp_path / "run", words, draw.randrange(count + 1), draw.uniform(0, 2))
        assert outcome(tmp_path / "run") == whole(words)


def test_a_caches_run_is_named_for_the_command_and_never_overruled(monkeypatch):
    names = []
    for runs in ([{"use_cache": "c", "limit": 1}], [{"limit": 1, "use_cache": "c"}], [{"use_cache": "c", "limit": 2}]):
        monkeypatch.delenv("LMMS_CACHE_RUN_ID", raising=False)
        add_to_cache_key(None, runs)
        names.append(os.environ["LMMS_CACHE_RUN_ID"])
        restore_cache_key()
        assert "LMMS_CACHE_RUN_ID" not in os.environ
    assert names[0] == names[1] != names[2]
    add_to_cache_key(None, [{"use_cache": None}])
    assert "LMMS_CACHE_RUN_ID" not in os.environ
    monkeypatch.setenv("LMMS_CACHE_RUN_ID", "mine")
    add_to_cache_key(None, [{"use_cache": "c"}])
    assert os.environ["LMMS_CACHE_RUN_ID"] == "mine"
    restore_cache_key()
