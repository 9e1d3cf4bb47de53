"""A user's own question file as an lmms-eval task."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from lmms_eval.caching.response_cache import ResponseCache
from lmms_eval.tasks import TaskManager, get_task_dict
from PIL import ExifTags, Image

from lmms_textweighted.errors import InputError
from lmms_textweighted.harness import command_line
from lmms_textweighted.harness.command_line import asked_runs
from lmms_textweighted.harness.local import (
    IMAGE_FOLDER,
    QUESTION_FILE,
    SKIP_MISSING,
    QuestionDocuments,
    check_local_questions,
)
from lmms_textweighted.harness.stops import RunEnded
from lmms_textweighted.paths import data_folder
from tests.lmms_eval_runs import lmms_eval
from tests.question_files import export_questions

COUNT = 12
FILES = {QUESTION_FILE: "questions.json", IMAGE_FOLDER: "images"}
OURS = ("--model", "llava_textweighted", "--model_args", "pretrained=tiny,keep_tokens=64", "--batch_size", "4")
SINGLE_PREDICTION = "\nAnswer with the option's letter from the given choices directly."


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A question file and its pictures in the working directory, named by the environment."""
    export_questions(tmp_path, COUNT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv(QUESTION_FILE, "questions.json")
    monkeypatch.setenv(IMAGE_FOLDER, "images")
    return tmp_path


def load(name, kind="simple", model="llava_textweighted", folder=None):
    manager = TaskManager(
        "ERROR", include_path=str(folder or data_folder("tasks")), include_defaults=False, model_name=model
    )
    return get_task_dict([name], manager, kind)[name]


def fingerprint(folder, task):
    """What lmms-eval keys cached answers of a task by."""
    cache = ResponseCache.create(str(folder / "cache"), model="m", task_dict={task.config.task: task})
    cache.close()
    return cache._task_fingerprints[task.config.task]


@pytest.mark.parametrize("kind", ["simple", "chat"])
def test_the_task_has_the_files_prompts_pictures_and_targets(files, kind):
    task = load("mcq_local", kind)
    assert len(task.eval_docs) == COUNT
    for number, (entry, document) in enumerate(
        zip(json.loads((files / "questions.json").read_text()), task.eval_docs, strict=True)
    ):
        value, label = (turn["value"] for turn in entry["conversations"])
        text = value.removeprefix("<image>\n") + SINGLE_PREDICTION
        with Image.open(files / "images" / f"{number}.png") as picture:
            assert [image.tobytes() for image in task.doc_to_visual(document)] == [picture.convert("RGB").tobytes()]
        assert task.doc_to_text(document) == text
        assert task.doc_to_target(document) == label
        assert task.process_results(document, [f" {label} "]) == {"exact_match": 1.0}
        assert task.process_results(document, ["?"]) == {"exact_match": 0.0}
        if kind == "chat":
            (message,) = task.doc_to_messages(document)
            assert [piece["type"] for piece in message["content"]] == ["image", "text"]
            assert message["content"][1]["text"] == text


def test_the_prompt_is_not_appended_twice(files):
    entries = json.loads((files / "questions.json").read_text())
    entries[0]["conversations"][0]["value"] += SINGLE_PREDICTION
    (files / "questions.json").write_text(json.dumps(entries))
    task = load("mcq_local")
    assert [task.doc_to_text(document).count(SINGLE_PREDICTION) for document in task.eval_docs] == [1] * COUNT


def test_task_and_sweep_see_the_same_pixels_however_a_picture_says_it_is_turned(files):
    """As LLaVA's own scripts: the EXIF orientation is not looked at."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.effect_noise((40, 20), 80).convert("RGB").save(files / "images" / "0.png", exif=exif)
    task = load("mcq_local")
    (picture,) = task.doc_to_visual(task.eval_docs[0])
    documents = QuestionDocuments.read(
        Path("questions.json"), Path("images"), 1, skip_missing=False, single_prediction_prompt=True
    )
    (document,) = documents
    assert picture.size == (40, 20)
    assert picture.tobytes() == document.message.images[0].tobytes()
    assert document.message.text == f"<image>\n{task.doc_to_text(task.eval_docs[0])}"
    assert documents.decoding.max_new_tokens == task.config.generation_kwargs["max_new_tokens"]
    assert list(documents.decoding.until) == task.config.generation_kwargs["until"]


@pytest.mark.parametrize(("name", "ranks"), [("mcq_local", None), ("mcq_local_rank", True)])
def test_only_our_model_gets_its_own_generation_kwargs(files, name, ranks):
    ours = load(name).config.generation_kwargs
    assert (ours["image_aspect_ratio"], ours.get("ranks")) == ("square", ranks)
    theirs = load(name, model="llava_hf").config.generation_kwargs
    assert "image_aspect_ratio" not in theirs
    assert "ranks" not in theirs


@pytest.mark.parametrize("name", ["mcq_local", "mcq_local_rank"])
def test_cached_answers_are_keyed_by_the_questions_and_the_pictures(files, name):
    found = [fingerprint(files, load(name))]
    assert fingerprint(files, load(name)) == found[0]
    shutil.copy(files / "images" / "3.png", files / "images" / "5.png")
    found.append(fingerprint(files, load(name)))
    (files / "questions.json").write_text((files / "questions.json").read_text() + "\n")
    found.append(fingerprint(files, load(name)))
    assert len(set(found)) == 3


def test_a_task_of_your_own_names_its_files_itself(files, monkeypatch):
    """And what it leaves out, the environment says."""
    (files / "my").mkdir()
    shutil.copytree(files / "images", files / "pictures")
    (files / "pictures" / "2.png").unlink()
    row = {"question_file": "questions.json", "image_folder": "pictures", "skip_missing": True}
    (files / "my" / "my.json").write_text(json.dumps(row, indent=2))
    config = {
        "include": str(data_folder("tasks") / "mcq_local" / "mcq_local.yaml"),
        "task": "my_questions",
        "dataset_kwargs": {"data_files": {"test": "my.json"}},
    }
    (files / "my" / "my.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv(QUESTION_FILE, "nowhere.json")
    for kind in ("simple", "chat"):
        task = load("my_questions", kind, folder=files / "my")
        assert [document["id"] for document in task.eval_docs] == [f"scene {n}" for n in range(COUNT) if n != 2]
    (files / "my" / "my.json").write_text(json.dumps({"question_file": "questions.json"}))
    assert len(load("my_questions", folder=files / "my").eval_docs) == COUNT


def test_wrong_data_end_the_run_with_one_line(files, monkeypatch):
    """At once: lmms-eval tries five times to load what raises an Exception."""
    (files / "images" / "7.png").unlink()
    with pytest.raises(
        RunEnded, match=r"^lmms-textweighted: question file 'questions.json': 1 of 12 pictures .* is missing"
    ):
        load("mcq_local")
    monkeypatch.setenv(SKIP_MISSING, "1")
    assert len(load("mcq_local_rank").eval_docs) == COUNT - 1
    monkeypatch.setenv(SKIP_MISSING, "yes")
    with pytest.raises(RunEnded, match=f"{SKIP_MISSING} is 'yes': give 1"):
        load("mcq_local")
    monkeypatch.delenv(QUESTION_FILE)
    with pytest.raises(RunEnded, match=f"no question file is named: set {QUESTION_FILE}"):
        load("mcq_local")


def test_requests_of_earlier_questions_are_refused(files, monkeypatch):
    monkeypatch.setattr(command_line, "_is_running", lambda: True)
    monkeypatch.setattr("sys.argv", ["lmms_eval", "--tasks", "mcq_local", "--cache_requests", "true"])
    with pytest.raises(RunEnded, match="cache_requests is true"):
        load("mcq_local")
    monkeypatch.setattr("sys.argv", ["lmms_eval", "--tasks", "mcq_local", "--cache_requests", "refresh"])
    load("mcq_local")


def test_data_are_checked_before_the_model_when_a_local_task_is_asked_for(files, monkeypatch):
    def check(arguments):
        monkeypatch.setattr("sys.argv", ["lmms-eval", *arguments])
        check_local_questions(asked_runs())

    monkeypatch.setattr(command_line, "_is_running", lambda: True)
    asking = [
        ["--tasks", "mcq_local"],
        ["--tasks=pope,mcq_local_rank"],
        ["--tasks", "mcq*", "--model", "x"],
        ["--config", "runs.yaml"],
        ["--config", "runs.yaml", "--tasks", "mcq_local"],
    ]
    not_asking = [[], ["--tasks", "shapes_mcq"], ["--config", "runs.yaml", "--tasks", "pope"], ["--config", "one.yaml"]]
    (files / "runs.yaml").write_text(yaml.safe_dump([{"tasks": "pope"}, {"tasks": "pope,mcq_local"}]))
    (files / "one.yaml").write_text(yaml.safe_dump({"tasks": "my_mcq_local_task"}))
    for arguments in asking:
        check(arguments)
    shutil.rmtree(files / "images")
    for arguments in asking:
        with pytest.raises(InputError, match="image folder 'images' is no folder"):
            check(arguments)
    for arguments in not_asking:
        check(arguments)


@pytest.mark.nightly
@pytest.mark.slow
def test_every_interface_answers_like_the_sweep(files):
    """Chat and simple, one process and two; and as the sweep of the same file at the same budget."""
    from typer.testing import CliRunner

    from lmms_textweighted.cli import app

    done = CliRunner().invoke(
        app,
        [
            *("sweep", "--question-file", "questions.json", "--image-folder", "images", "--single-pred-prompt"),
            *("--num-samples", "all", "--tokens", "64", "--strategies", "text_weighted"),
        ],
    )
    assert done.exit_code == 0, done.output
    start = files / "runs" / "sweep" / "fastv_textweighted_layer2_experiment"
    swept = json.loads(start.with_suffix(".json").read_text())["strategies"]["text_weighted"]
    answers = [json.loads(line)["answer"] for line in start.with_suffix(".answers.jsonl").read_text().splitlines()]

    chat = lmms_eval(files, *OURS, "--tasks", "mcq_local,mcq_local_rank", name="chat", environment=FILES)
    assert chat.code == 0, chat.output[-3000:]
    simple = lmms_eval(files, *OURS, "--force_simple", "--tasks", "mcq_local", name="simple", environment=FILES)
    two = lmms_eval(files, *OURS, "--tasks", "mcq_local_rank", processes=2, name="two", environment=FILES)
    for run, task in ((chat, "mcq_local"), (chat, "mcq_local_rank"), (simple, "mcq_local"), (two, "mcq_local_rank")):
        assert run.metrics(task)["exact_match"] == swept["accuracies"][0]
        assert [sample["filtered_resps"] for sample in run.samples(task)] == answers
    for run in (chat, two):
        figures = run.metrics("mcq_local_rank")
        assert figures["traces_missing"] == 0
        assert figures["kept_image_tokens"] == 64
        assert figures["effective_rank"] == pytest.approx(swept["effective_ranks"][0], rel=1e-4)
    assert 0.5 <= swept["accuracies"][0] <= 1
    assert "digest" in chat.results["configs"]["mcq_local"]["process_docs"]


@pytest.mark.nightly
def test_a_changed_picture_is_answered_anew(files):
    """A cached answer to another picture would be right by its key's text alone."""
    arguments = (*OURS, "--tasks", "mcq_local", "--use_cache", "cache")
    first = lmms_eval(files, *arguments, name="first", environment=FILES)
    again = lmms_eval(files, *arguments, name="again", environment=FILES)
    assert f"all {COUNT} requests served from cache" in again.output, again.output[-3000:]
    assert [s["filtered_resps"] for s in again.samples("mcq_local")] == [
        s["filtered_resps"] for s in first.samples("mcq_local")
    ]
    for number in range(COUNT):
        Image.new("RGB", (336, 336), "white").save(files / "images" / f"{number}.png")
    changed = lmms_eval(files, *arguments, name="changed", environment=FILES)
    assert changed.code == 0, changed.output[-3000:]
    assert "served from cache" not in changed.output
    assert [s["filtered_resps"] for s in changed.samples("mcq_local")] != [
        s["filtered_resps"] for s in first.samples("mcq_local")
    ]


@pytest.mark.nightly
def test_other_models_run_the_task_and_the_data_may_be_named_in_a_config(files):
    runs = [
        {
            "model": "dummy",
            "model_args": "response=A",
            "tasks": "mcq_local,mcq_local_rank",
            "include_path": str(data_folder("tasks")),
            "env": {QUESTION_FILE: "questions.json", IMAGE_FOLDER: "images"},
            "output_path": "out",
            "log_samples": True,
        }
    ]
    (files / "runs.yaml").write_text(yaml.safe_dump(runs))
    done = lmms_eval(files, "--config", "runs.yaml", environment={QUESTION_FILE: "", IMAGE_FOLDER: ""})
    assert done.code == 0, done.output[-3000:]
    labels = [entry["conversations"][1]["value"] for entry in json.loads((files / "questions.json").read_text())]
    for task in ("mcq_local", "mcq_local_rank"):
        assert done.metrics(task)["exact_match"] == labels.count("A") / COUNT
    assert done.metrics("mcq_local_rank")["traces_missing"] == COUNT


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [OURS, pytest.param(("--model", "dummy"), marks=pytest.mark.nightly)], ids=["ours", "dummy"]
)
def test_the_real_command_ends_with_one_line(files, model):
    (files / "images" / "4.png").write_bytes((files / "images" / "4.png").read_bytes()[:200])
    done = lmms_eval(files, *model, "--tasks", "mcq_local", environment=FILES)
    assert done.code == 1
    assert "Traceback" not in done.output
    lines = done.output.splitlines()
    (place,) = [number for number, line in enumerate(lines) if line.startswith("lmms-textweighted:")]
    assert "1 of 12 pictures cannot be used: " in lines[place]
    assert ": 'images/4.png' is broken" in lines[place]
