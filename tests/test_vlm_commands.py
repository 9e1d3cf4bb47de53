"""`sweep`, `regress` and question files as a user runs them, on tiny checkpoints of the new kinds with real processors.

The oracle answers every document at every point by itself, without the sweep's shared prefill and without batches.
"""

from __future__ import annotations

import json
from functools import cache

import matplotlib.figure
import pytest

from lmms_textweighted import cli, load, make_plan
from lmms_textweighted.families import LoadOptions
from lmms_textweighted.harness.documents import Documents
from lmms_textweighted.harness.local import QuestionDocuments
from lmms_textweighted.inference import PrunedLlava
from lmms_textweighted.regress.baseline import read_baseline
from lmms_textweighted.regress.compact import to_ranges, to_runs
from tests.lmms_eval_runs import lmms_eval
from tests.question_files import export_questions
from tests.vlm_checkpoints import make_checkpoint

pytestmark = pytest.mark.slow

# What bounds a kind's pictures, and how many tokens the 336 x 336 pixels of our scenes then have.
LIMITS = {
    "qwen2_5_vl": ({"min_pixels": 28 * 28 * 100, "max_pixels": 28 * 28 * 130}, 121),
    "qwen3_vl": ({"min_pixels": 32 * 32 * 50, "max_pixels": 32 * 32 * 90}, 81),
    "internvl": ({"max_patches": 4}, 20),
}


def each(*always: str):
    """These kinds in every run, the others in the nightly one."""
    marks = {kind: () if kind in always else pytest.mark.nightly for kind in LIMITS}
    return pytest.mark.parametrize("kind", [pytest.param(kind, marks=mark) for kind, mark in marks.items()])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return cache(lambda kind: make_checkpoint(kind, tmp_path_factory.mktemp("commands") / kind))


@pytest.fixture
def titles(monkeypatch):
    """The titles of the pictures that are drawn."""
    found: list[str] = []
    plain = matplotlib.figure.Figure.suptitle
    monkeypatch.setattr(
        "matplotlib.figure.Figure.suptitle",
        lambda figure, text, **how: found.append(text) or plain(figure, text, **how),
    )
    return found


def run(monkeypatch, *words: str) -> int:
    """A command of ours; its exit code."""
    monkeypatch.setattr("sys.argv", ["lmms-textweighted", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


def bounded(kind: str) -> list[str]:
    limits, _ = LIMITS[kind]
    return [word for name, value in limits.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def alone(vlm, documents, document, line, **scopes):
    """The answer to one document by itself, as one line of a sweep's answers says it was pruned."""
    plan = {"pruning_layer": line["layer"], "keep_tokens": line["tokens"], **scopes}
    vlm.plan = make_plan(line["strategy"], **{name: value for name, value in plan.items() if value is not None})
    (answer,) = vlm.generate([[document.message]], documents.decoding)
    return answer


def held_against_single_answers(result, vlm, documents, **scopes) -> int:
    """How many of a sweep's answers are those of single runs: text, tokens kept, figures. All are, or it fails."""
    lines = [json.loads(line) for line in result.with_suffix(".answers.jsonl").read_text().splitlines()]
    whole = {document.number: document for document in documents}
    for line in lines:
        answer = alone(vlm, documents, whole[line["document"]], line, **scopes)
        assert line["answer"] == answer.text
        found = (line["image_tokens"], line["kept_tokens"], line["equivalent_tokens"])
        assert found == (answer.trace.image_tokens, answer.trace.kept_tokens, answer.trace.equivalent_tokens)
        assert line["flops_ratio"] == pytest.approx(answer.trace.flops_ratio)
        assert line["score"] == documents.score(whole[line["document"]], answer.text)
    return len(lines)


@each("qwen2_5_vl")
def test_a_sweep_over_a_task_gives_each_points_own_answer(kind, folders, tmp_path, monkeypatch, titles, capsys):
    folder, (limits, tokens) = str(folders(kind)), LIMITS[kind]
    given = [*bounded(kind), "--system-prompt", "Be brief.", "--num-samples", "3", "--tokens", "12,3"]
    given += ["--pruning-layer", "1", "--text-scope", "question", "--output-dir", str(tmp_path / "out")]
    assert run(monkeypatch, "sweep", "--model-path", folder, *given) == 0
    assert "wrote" in capsys.readouterr().out
    result = tmp_path / "out" / "fastv_textweighted_layer1_experiment.json"
    meta = json.loads(result.read_text())["meta"]
    assert (meta["model_type"], meta["conv_mode"]) == (kind, "hf")
    assert meta["prompt_example"].count("Be brief.") == 0  # the question; the system prompt stands beside it
    assert meta["provenance"]["model"]["system_prompt"] == "Be brief."
    assert f"{folder} ({kind})\nshapes_mcq · 3 questions · pruned after layer 1" in titles
    documents = Documents.of_task("shapes_mcq", 3, single_prediction_prompt=False)
    vlm = PrunedLlava(*load(folder, LoadOptions(**limits)), system_prompt="Be brief.")
    assert held_against_single_answers(result, vlm, documents, text_scope="question") == 3 * 7
    lines = [json.loads(line) for line in result.with_suffix(".answers.jsonl").read_text().splitlines()]
    assert {line["image_tokens"] for line in lines} == {tokens}
    # The recorded options are enough to answer again.
    assert run(monkeypatch, "verify", str(result), "--share", "1") == 0


@each("qwen3_vl")
def test_a_sweep_over_a_question_file_gives_each_points_own_answer(kind, folders, tmp_path, monkeypatch):
    """Prepared by the checkpoint's own processor: there is no `square` for these kinds."""
    questions, folder = export_questions(tmp_path / "mine", 3), str(folders(kind))
    given = ["--question-file", str(questions), "--image-folder", str(tmp_path / "mine" / "images")]
    given += ["--pruning-layer", "0,2", "--tokens", "9,0", "--strategies", "text_weighted,fastv,none"]
    assert run(monkeypatch, "sweep", "--model-path", folder, *given, "--output-dir", str(tmp_path / "out")) == 0
    result = tmp_path / "out" / "fastv_textweighted_layers_experiment.json"
    assert json.loads(result.read_text())["meta"]["image_aspect_ratio"] == "processor"
    documents = QuestionDocuments.read(
        questions, tmp_path / "mine" / "images", None, skip_missing=False, single_prediction_prompt=False
    )
    vlm = PrunedLlava(*load(folder))
    assert held_against_single_answers(result, vlm, documents) == 3 * 9


@each("qwen3_vl")
def test_regress_measures_single_answers_and_finds_a_changed_one(kind, folders, tmp_path, monkeypatch, capsys):
    folder, (limits, _) = str(folders(kind)), LIMITS[kind]
    file = tmp_path / "baseline.json"
    given = [*bounded(kind), "--num-samples", "3", "--keep-tokens", "10", "--pruning-layer", "1"]
    update = ("regress", "--baseline", str(file), "--update", "--model-path", folder)
    assert run(monkeypatch, *update, *given, "--strategies", "text_weighted,none") == 0
    made = read_baseline(file)
    documents = Documents.of_task("shapes_mcq", 3, single_prediction_prompt=False)
    vlm = PrunedLlava(*load(folder, LoadOptions(**limits)))
    for strategy in ("text_weighted", "none"):
        pruned = strategy != "none"
        vlm.plan = make_plan(strategy, **({"pruning_layer": 1, "keep_tokens": 10} if pruned else {}))
        for document, outcome in zip(documents, made.at("text_weighted@10" if pruned else "none"), strict=True):
            (answer,) = vlm.generate([[document.message]], documents.decoding)
            assert outcome.answer == answer.text
            assert outcome.lengths == to_runs(answer.trace.lengths)
            assert outcome.kept == tuple(to_ranges(stage.kept.tolist()) for stage in answer.trace.stages)
    check = ("regress", "--baseline", str(file))
    assert run(monkeypatch, *check, "--batch-size", "2", "--strict") == 0
    changed = json.loads(file.read_text())
    changed["outcomes"][0]["kept"] = ["20-29"]
    file.write_text(json.dumps(changed))
    assert run(monkeypatch, *check) == 1
    assert "regression" in capsys.readouterr().out


@pytest.mark.nightly
def test_lmms_eval_answers_a_question_file_with_ranks(tmp_path):
    """`mcq_local` asks LLaVA for square pictures; a kind with a preparation of its own keeps that."""
    make_checkpoint("qwen3_vl", tmp_path / "qwen3_vl")
    questions = export_questions(tmp_path / "mine", 4)
    run = lmms_eval(
        tmp_path, "--model", "vlm_textweighted", "--tasks", "mcq_local_rank", "--batch_size", "3",
        "--model_args", f"pretrained={tmp_path / 'qwen3_vl'},keep_tokens=16,pruning_layer=1",
        environment={
            "LMMS_TEXTWEIGHTED_QUESTION_FILE": str(questions),
            "LMMS_TEXTWEIGHTED_IMAGE_FOLDER": str(tmp_path / "mine" / "images"),
        },
    )  # fmt: skip
    assert run.code == 0, run.output[-3000:]
    found = run.metrics("mcq_local_rank")
    assert (found["kept_image_tokens"], found["traces_missing"], found["numeric_rank"]) == (16, 0, 16)
    documents = QuestionDocuments.read(
        questions, tmp_path / "mine" / "images", None, skip_missing=False, single_prediction_prompt=True
    )
    plan = make_plan("text_weighted", keep_tokens=16, pruning_layer=1)
    vlm = PrunedLlava(*load(str(tmp_path / "qwen3_vl")), plan)
    samples = run.samples("mcq_local_rank")
    for document, sample in zip(documents, samples, strict=True):
        (answer,) = vlm.generate([[document.message]], documents.decoding)
        assert sample["filtered_resps"] == answer.text
        assert sample["token_counts"][0]["image_tokens"] == answer.trace.image_tokens == 100
