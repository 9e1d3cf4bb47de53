"""The tasks `…_qwen3_vl` say to every model what lmms-eval's own say to its model `qwen3_vl`; nothing else is changed.

Both are made by lmms-eval from their files, over a few documents of our own in the data set's columns.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from lmms_eval import tasks as their_tasks
from lmms_eval.api.task import ConfigurableMessagesTask, ConfigurableTask
from lmms_eval.utils import load_yaml_config
from PIL import Image

from lmms_textweighted.errors import InputError
from lmms_textweighted.harness.documents import Documents
from lmms_textweighted.harness.prompts_of import prompts_of
from lmms_textweighted.paths import data_folder
from tests.lmms_eval_runs import lmms_eval
from tests.vlm_checkpoints import make_checkpoint

THEIRS = Path(their_tasks.__file__).parent
OURS = data_folder("tasks") / "qwen3_vl"
COPIES = sorted(path.stem.removesuffix("_qwen3_vl") for path in OURS.glob("*.yaml"))
# Tasks that give qwen3_vl words of its own, and have no copy: those of videos, and one whose words are the default's.
NO_COPY = {"snsbench"}
VIDEOS = {"neptune", "perceptioncomp", "video_holmes", "videomme", "videomme_v2"}


def encoded(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def rows(task: str) -> list[dict[str, Any]]:
    """Two documents in the columns of a task's data set."""
    pictures = [Image.new("RGB", (20 + 10 * number, 30), (60 * number, 90, 120)) for number in range(2)]
    options = str(["red", "blue", "green"])
    if task == "mmmu_val":
        about = {"options": options, "answer": "B", "image_1": pictures[0], "image_2": pictures[1]}
        return [
            {**about, "id": "validation_Art_1", "question": "What is in <image 1> and <image 2>?",
             "question_type": "multiple-choice"},
            {**about, "id": "validation_Art_2", "question": "How many are in <image 1>?", "question_type": "open"},
        ]  # fmt: skip
    if task == "mmmu_pro_standard":
        about = {"options": options, "answer": "B", "image_1": pictures[0], "image_2": pictures[1], "subject": "Art"}
        return [{**about, "id": f"{n}", "question": f"Which of <image {n}>?"} for n in (1, 2)]
    if task == "mmmu_pro_vision":
        return [
            {"id": f"{n}", "options": options, "answer": "B", "image": pictures[n], "subject": "Art"} for n in (0, 1)
        ]
    if task == "mmstar_oc":
        about = {"category": "math", "l2_category": "geometry", "answer": "B"}
        options_of = {"A": "red", "B": "blue", "C": "green", "D": "black"}
        return [{**about, **options_of, "question": f"{n}: <image 1>?", "image": encoded(pictures[n])} for n in (0, 1)]
    question = "What colour is it?\nOptions: A: red, B: blue, C: green, D: black"
    about = {"question": question, "answer": "B", "category": "math", "l2_category": "geometry"}
    return [{**about, "image": pictures[n], "index": n} for n in (0, 1)]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Writes a task's documents where this process finds them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return lambda task, config: write_data(tmp_path, task, config)


def write_data(folder: Path, task: str, config: dict[str, Any]) -> None:
    """A task's documents, in `folder`, where its data set's name then is a local folder for who runs there."""
    place = folder / config["dataset_path"]
    place.mkdir(parents=True)
    datasets.Dataset.from_list(rows(task)).to_parquet(str(place / "data.parquet"))
    files = [{"split": config["test_split"], "path": "data.parquet"}]
    head = {"configs": [{"config_name": config.get("dataset_name", "default"), "data_files": files}]}
    (place / "README.md").write_text(f"---\n{yaml.safe_dump(head)}---\n")


def their_file(task: str) -> Path:
    (path,) = THEIRS.glob(f"*/{task}.yaml")
    return path


def made(path: Path, model: str, kind: type[ConfigurableTask] = ConfigurableTask) -> ConfigurableTask:
    return kind(config=load_yaml_config(str(path)), model_name=model)


def plain(value: Any) -> Any:
    """Functions by their names: lmms-eval imports the same file as several modules."""
    if callable(value):
        return value.__name__
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("task", COPIES)
def test_a_copy_says_what_lmms_eval_says_to_qwen3_vl(task, data):
    copy = OURS / f"{task}_qwen3_vl.yaml"
    data(task, load_yaml_config(str(copy)))
    for kind in (ConfigurableTask, ConfigurableMessagesTask):
        theirs, default = made(their_file(task), "qwen3_vl", kind), made(their_file(task), "vlm_textweighted", kind)
        for model in ("vlm_textweighted", "llava_textweighted", "qwen3_vl"):
            ours = made(copy, model, kind)
            assert len(ours.eval_docs) == len(theirs.eval_docs) == 2
            for mine, their in zip(ours.eval_docs, theirs.eval_docs, strict=True):
                assert ours.doc_to_text(mine) == theirs.doc_to_text(their)
                assert ours.doc_to_target(mine) == theirs.doc_to_target(their)
                pairs = zip(ours.doc_to_visual(mine), theirs.doc_to_visual(their), strict=True)
                assert all(one.tobytes() == other.tobytes() for one, other in pairs)
                if kind is ConfigurableMessagesTask:
                    assert contents(ours.doc_to_messages(mine)) == contents(theirs.doc_to_messages(their))
        assert theirs.doc_to_text(theirs.eval_docs[0]) != default.doc_to_text(default.eval_docs[0])


def contents(messages: list[dict[str, Any]]) -> list[Any]:
    return [
        (turn["role"], [part["url"].tobytes() if part["type"] == "image" else part for part in turn["content"]])
        for turn in messages
    ]


@pytest.mark.parametrize("task", COPIES)
def test_a_copy_changes_nothing_but_its_name(task):
    ours = load_yaml_config(str(OURS / f"{task}_qwen3_vl.yaml"))
    theirs = load_yaml_config(str(their_file(task)))
    assert ours.pop("task") == f"{theirs.pop('task')}_qwen3_vl"
    assert list(ours.pop("lmms_eval_specific_kwargs")) == ["default"]
    for name in ("lmms_eval_specific_kwargs", "tag"):
        theirs.pop(name, None)
    assert plain(ours) == plain(theirs)


def test_every_task_of_pictures_with_words_for_qwen3_vl_has_a_copy():
    found = set()
    for path in [*THEIRS.glob("*/*.yaml"), *THEIRS.glob("*/*/*.yaml")]:
        if "qwen3_vl" not in "".join(part.read_text() for part in path.parent.glob("*yaml")):
            continue
        config = load_yaml_config(str(path), mode="simple")
        said = config.get("lmms_eval_specific_kwargs") or {}
        if "qwen3_vl" in said and path.parent.name not in VIDEOS:
            found.add(config["task"])
    assert found - NO_COPY == set(COPIES)
    assert found >= NO_COPY


def test_the_sweep_finds_a_copy_by_name(data):
    data("mmmu_val", load_yaml_config(str(OURS / "mmmu_val_qwen3_vl.yaml")))
    documents = Documents.of_task("mmmu_val_qwen3_vl", 2, single_prediction_prompt=False)
    assert documents[0].message.text.endswith("\nAnswer with the option letter only.")
    assert len(documents[0].message.images) == 2


def test_a_model_or_a_task_without_words_is_said():
    with pytest.raises(InputError, match=r"lmms-eval's mmmu/mmmu_val.yaml has no prompt for 'qwen9_vl'"):
        prompts_of("qwen9_vl", "mmmu/mmmu_val.yaml")


def test_every_task_of_ours_says_the_same_under_both_names_of_the_model():
    """lmms-eval looks up the exact name that the command has; the sweep and regress use the first."""
    named = 0
    for path in data_folder("tasks").glob("*/*.yaml"):
        config = load_yaml_config(str(path), mode="simple")
        for field in ("lmms_eval_specific_kwargs", "model_specific_generation_kwargs"):
            said = config.get(field) or {}
            assert said.get("llava_textweighted") == said.get("vlm_textweighted"), (path, field)
            named += "llava_textweighted" in said
    assert named


@pytest.mark.nightly
def test_lmms_eval_runs_a_copy_under_our_name(tmp_path):
    write_data(tmp_path, "mmmu_val", load_yaml_config(str(OURS / "mmmu_val_qwen3_vl.yaml")))
    make_checkpoint("qwen3_vl", tmp_path / "qwen3_vl")
    run = lmms_eval(
        tmp_path, "--model", "vlm_textweighted", "--tasks", "mmmu_val_qwen3_vl", "--batch_size", "2",
        "--model_args", f"pretrained={tmp_path / 'qwen3_vl'},keep_ratio=0.5,pruning_layer=1",
    )  # fmt: skip
    assert run.code == 0, run.output[-3000:]
    assert "mmmu_acc" in run.metrics("mmmu_val_qwen3_vl")
    first, second = run.samples("mmmu_val_qwen3_vl")
    assert first["input"].startswith("Question: What is in <image 1> and <image 2>?\nOptions:\nA. red")
    assert first["input"].endswith("Answer with the option letter only.")
    assert [sample["token_counts"][0]["kept_tokens"] > 0 for sample in (first, second)] == [True, True]
