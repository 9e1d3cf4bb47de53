"""`lmms-textweighted verify` of what lmms-eval wrote: its own files hold, falsified ones do not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lmms_textweighted.errors import InputError
from lmms_textweighted.harness.local import IMAGE_FOLDER, QUESTION_FILE
from lmms_textweighted.verify.verdict import draw
from lmms_textweighted.verify.verify import verify_result
from tests.kills import run
from tests.lmms_eval_runs import lmms_eval
from tests.question_files import export_questions

COUNT = 6
FILES = {QUESTION_FILE: "questions.json", IMAGE_FOLDER: "images"}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    """Two tasks in one run, one of them over a question file, with the store of traces that its ranks are read from."""
    folder = tmp_path_factory.mktemp("evaluated")
    export_questions(folder, COUNT)
    words = ("--model", "llava_textweighted", "--model_args", "pretrained=tiny,keep_tokens=16", "--batch_size", "4")
    done = lmms_eval(folder, *words, "--tasks", "shapes_mcq,mcq_local", "--limit", str(COUNT), environment=dict(FILES))
    assert done.results["n-samples"].keys() == {"shapes_mcq", "mcq_local"}
    return folder


def results(folder: Path) -> Path:
    (found,) = folder.rglob("*_results.json")
    return found


def samples(folder: Path, task: str = "shapes_mcq") -> Path:
    (found,) = folder.rglob(f"*_samples_{task}.jsonl")
    return found


def verify(folder: Path, *words: str):
    result = results(folder).relative_to(folder)
    return run(folder, "lmms_textweighted", "verify", str(result), *words, environment=FILES)


@pytest.mark.slow
def test_a_run_of_two_tasks_holds(evaluated):
    done = verify(evaluated, "--share", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"holds: {2 * COUNT} answers to {2 * COUNT} of {2 * COUNT} documents, seed 0"


@pytest.mark.nightly
def test_falsified_answers_budgets_and_scores_are_named(evaluated, tmp_path):
    """Scores are held against the aggregate, so that those of documents that are not drawn are seen, too."""
    shutil.copytree(evaluated, tmp_path, dirs_exist_ok=True)
    lines = [json.loads(line) for line in samples(tmp_path).read_text().splitlines()]
    drawn = [place for place in draw(range(2 * COUNT), 0.5, 0) if place < COUNT]
    (spared, *_) = set(range(COUNT)) - set(drawn)
    lines[drawn[0]]["filtered_resps"] = "Z"
    lines[drawn[1]]["token_counts"][0]["kept_tokens"] = 17
    lines[spared]["exact_match"] = 1 - lines[spared]["exact_match"]
    samples(tmp_path).write_text("".join(json.dumps(line) + "\n" for line in lines))
    wrong = verify(tmp_path, "--share", "0.5")
    assert wrong.returncode == 1, wrong.stderr
    mean, answer, budget, *rest = wrong.stdout.splitlines()
    assert mean.startswith("shapes_mcq: exact_match is ")
    assert answer.startswith(f"shapes_mcq, document {drawn[0]}: filtered_resps is '")
    assert answer.endswith("recorded is 'Z'")
    assert budget == f"shapes_mcq, document {drawn[1]}: kept_tokens is 16, recorded is 17"
    assert all(line.startswith("not checked: ") for line in rest[:-1])
    assert rest[-1] == f"does not hold: {COUNT} answers to {COUNT} of {2 * COUNT} documents, seed 0"


@pytest.mark.slow
def test_what_cannot_be_verified_is_refused_in_one_line(evaluated, tmp_path, monkeypatch):
    shutil.copytree(evaluated, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name, value in {**FILES, "HF_DATASETS_CACHE": str(tmp_path / "datasets")}.items():
        monkeypatch.setenv(name, value)
    whole = json.loads(results(tmp_path).read_text())

    def refused(words: str, **changes) -> None:
        results(tmp_path).write_text(json.dumps({**whole, **changes}))
        with pytest.raises(InputError, match=words) as found:
            verify_result(results(tmp_path), share=0.05, seed=0)
        assert "\n" not in str(found.value)

    asked = whole["config"]["resolved_cli_args"]
    other = {**whole["config"], "resolved_cli_args": {**asked, "model": "llava_hf"}}
    refused("is of model 'llava_hf': only those of llava_textweighted, vlm_textweighted", config=other)
    refused("does not record lmms-eval's arguments", config={})
    sampled = {**whole["configs"]["shapes_mcq"], "generation_kwargs": {"do_sample": True, "temperature": 0.8}}
    refused(r"draws its answers at random \(do_sample, temperature 0.8\)", configs={"shapes_mcq": sampled})
    elsewhere = {**whole["config"], "resolved_cli_args": {**asked, "include_path": None}}
    refused("lmms-eval does not find here: its --include_path was None", config=elsewhere)
    more = {**whole["n-samples"], "shapes_mcq": {"original": 7, "effective": 6}}
    refused("shapes_mcq has 500 documents here and 7 there", **{"n-samples": more})
    samples(tmp_path).unlink()
    refused("has no samples of shapes_mcq: only runs with --log_samples")
    with pytest.raises(InputError, match="is a folder: give one file, as "):
        verify_result(tmp_path, share=0.05, seed=0)
    with pytest.raises(InputError, match="are a sweep's, leave them out"):
        verify_result(results(tmp_path), share=0.05, seed=0, image_folder=tmp_path)
