"""`lmms-textweighted verify`: a sweep's own files hold, falsified ones do not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lmms_textweighted.errors import InputError
from lmms_textweighted.verify.verdict import draw
from lmms_textweighted.view.files import read_views, write_views
from tests.kills import run
from tests.question_files import export_questions

NAME = "fastv_textweighted_layer2_experiment"


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    words = ["sweep", "--num-samples", "3", "--tokens", "64,16", "--strategies", "text_weighted,random,none"]
    done = run(folder, "lmms_textweighted", *words, "--no-ranks", "--output-dir", "out")
    assert done.returncode == 0, done.stderr
    return folder


def verify(folder: Path, share: str = "1"):
    return run(folder, "lmms_textweighted", "verify", f"out/{NAME}.json", "--share", share)


def falsified(swept: Path, folder: Path, **changes: object) -> Path:
    """A copy in which the answers' second line says something else."""
    shutil.copytree(swept, folder, dirs_exist_ok=True)
    answers = folder / "out" / f"{NAME}.answers.jsonl"
    lines = answers.read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), **changes})
    answers.write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_a_sweep_holds_and_one_with_a_falsified_answer_does_not(swept, tmp_path):
    done = verify(swept)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["holds: 15 answers to 3 of 3 documents, seed 0"]
    wrong = verify(falsified(swept, tmp_path, answer="Z"))
    assert wrong.returncode == 1, wrong.stderr
    first, last = wrong.stdout.splitlines()
    assert first.startswith("document 0, text_weighted after layer 2 at 16")
    assert first.endswith("recorded is 'Z'")
    assert last == "does not hold: 15 answers to 3 of 3 documents, seed 0"


@pytest.mark.nightly
def test_a_falsified_score_is_seen_though_its_document_is_not_drawn(swept, tmp_path):
    (number,) = draw(range(3), 0.05, 0)
    assert number != 0
    wrong = verify(falsified(swept, tmp_path, score=0.5), "0.05")
    assert wrong.returncode == 1, wrong.stderr
    assert "text_weighted at 16: accuracy is" in wrong.stdout
    assert "to 1 of 3 documents" in wrong.stdout


@pytest.mark.slow
def test_a_recorded_view_that_shows_other_tokens_is_seen(swept, tmp_path):
    shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "out" / f"{NAME}.views.jsonl"
    first, *others = read_views(path)
    (stage,) = first.strategies[0].stages
    moved = replace(stage, kept=(*stage.kept[:-1], next(n for n in range(576) if n not in stage.kept)))
    changed = replace(first, strategies=(replace(first.strategies[0], stages=(moved,)), *first.strategies[1:]))
    write_views(path, [changed, *others])
    wrong = verify(tmp_path)
    assert wrong.returncode == 1, wrong.stderr
    said = "document 0, text_weighted after layer 2 at 64: the tokens that stay are others than recorded in its view"
    assert wrong.stdout.splitlines()[0] == said


def test_a_share_is_drawn_by_its_seed_and_is_one_at_least():
    assert draw(range(100), 0.05, 3) == draw(range(100), 0.05, 3)
    assert len(draw(range(100), 0.05, 3)) == 5
    assert len({tuple(draw(range(100), 0.05, seed)) for seed in range(5)}) > 1
    assert len(draw(range(3), 0.05, 0)) == 1
    assert draw([4, 2], 1, 0) == [2, 4]
    for share in (0, 1.1, float("nan")):
        with pytest.raises(InputError, match="give a share of the documents in"):
            draw(range(3), share, 0)
    with pytest.raises(InputError, match="no documents"):
        draw([], 0.05, 0)


@pytest.mark.nightly
def test_a_sweep_over_a_question_file_holds_where_the_file_is_said(tmp_path):
    export_questions(tmp_path, 2)
    source = ["--question-file", "questions.json", "--image-folder", "images"]
    words = ["--tokens", "64", "--strategies", "text_weighted", "--no-ranks", "--output-dir", "out"]
    done = run(tmp_path, "lmms_textweighted", "sweep", *source, *words)
    assert done.returncode == 0, done.stderr
    result = f"out/{NAME}.json"
    held = run(tmp_path, "lmms_textweighted", "verify", result, "--share", "1", *source)
    assert held.returncode == 0, held.stdout + held.stderr
    assert held.stdout.splitlines()[-1] == "holds: 2 answers to 2 of 2 documents, seed 0"
    silent = run(tmp_path, "lmms_textweighted", "verify", result)
    assert silent.returncode == 1
    assert (
        "of question_file 'questions.json', whose place it does not tell: say it with --question-file" in silent.stderr
    )
