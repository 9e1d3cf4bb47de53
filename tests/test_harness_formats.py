"""The registered model on other checkpoints than transformers' LLaVA-1.5: formats, templates, picture preparation."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from lmms_eval.api.instance import Instance
from lmms_eval.models.model_utils.gen_metrics import reset_logged_metrics, summarize_logged_metrics
from loguru import logger
from PIL import Image

from lmms_textweighted.families.liuhaotian.convert import convert
from lmms_textweighted.harness.generation import asked_aspect_ratio
from lmms_textweighted.harness.model import LlavaTextweighted, LlavaTextweightedChat
from lmms_textweighted.harness.stops import RunEnded
from tests.checkpoints import make_checkpoint, make_tower
from tests.test_loaders import picture

DOCUMENTS = [
    {"text": "What is this ?\nA. red\nB. blue", "pictures": [picture(100, 60)]},
    {"text": "the colour ?", "pictures": [picture(60, 200), picture(56, 56)]},
    {"text": "What ?", "pictures": []},
    {"text": "green <image> and <image> ?", "pictures": [picture(56, 56), picture(300, 50)]},
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMMS_TEXTWEIGHTED_CACHE", str(tmp_path / "textweighted"))
    monkeypatch.setattr("sys.argv", ["lmms-eval"])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("checkpoints")
    tower = make_tower(root / "clip")
    return {
        "1.5": str(make_checkpoint(root / "1.5", tower=tower)),
        "1.6": str(make_checkpoint(root / "1.6", tower=tower, anyres=True)),
    }


def model_of(checkpoint: str, *, chat: bool = True, **arguments: Any) -> LlavaTextweighted:
    kind = LlavaTextweightedChat if chat else LlavaTextweighted
    return kind(pretrained=checkpoint, **{"keep_tokens": 5, "pruning_layer": 1, **arguments})


def ask(model: LlavaTextweighted, **kwargs: Any) -> list[Any]:
    kwargs = {"max_new_tokens": 5, "temperature": 0, "do_sample": False, **kwargs}
    model.task_dict = {"local": {"test": DOCUMENTS}}

    def messages(document: dict[str, Any]) -> list[dict[str, Any]]:
        pieces = [{"type": "image", "url": image} for image in document["pictures"]]
        return [{"role": "user", "content": [*pieces, {"type": "text", "text": document["text"]}]}]

    requests = []
    for number, document in enumerate(DOCUMENTS):
        where = (number, "local", "test")
        arguments = (
            (document["text"], kwargs, lambda d: d["pictures"], *where)
            if model.is_simple
            else (document["text"], messages, kwargs, *where)
        )
        metadata = {"task": "local", "doc_id": number, "repeats": 1}
        requests.append(Instance(request_type="generate_until", arguments=arguments, idx=0, metadata=metadata))
    return list(model.generate_until(requests))


def figures(answers: list[Any]) -> list[tuple[str, Any, Any]]:
    data = [answer.token_counts.to_dict() for answer in answers]
    return [(a.text, d["kept_positions"], d["input_tokens"]) for a, d in zip(answers, data, strict=True)]


@pytest.mark.parametrize("kind", ["1.5", "1.6"])
def test_loaders_interfaces_and_batches_answer_alike(checkpoints: dict[str, str], kind: str) -> None:
    expected = figures(ask(model_of(checkpoints[kind], loader="llava")))
    assert [len(kept[0]) for _, kept, _ in expected] == [5, 10, 0, 10]
    for loader in ("auto", "hf", "llava"):
        for chat in (True, False):
            for batch_size in ("1", "4"):
                model = model_of(checkpoints[kind], chat=chat, loader=loader, batch_size=batch_size)
                assert figures(ask(model)) == expected


def test_smaller_pictures_answer_alike_in_both_formats(checkpoints: dict[str, str], tmp_path: Path) -> None:
    """Converted in memory, and converted on disk and loaded by transformers alone; a package's model is refused."""
    convert(checkpoints["1.5"], tmp_path / "hf")
    small = {"strategy": "downsample", "keep_tokens": 5, "pruning_layer": None}
    expected = ask(model_of(str(tmp_path / "hf"), **small))
    for batch_size in ("1", "4"):
        found = ask(model_of(checkpoints["1.5"], loader="hf", batch_size=batch_size, **small))
        assert figures(found) == figures(expected)
    data = [answer.token_counts.to_dict() for answer in expected]
    assert [(d["image_tokens"], d["kept_tokens"]) for d in data] == [(16, 4), (32, 8), (0, 0), (32, 8)]
    with pytest.raises(RunEnded, match=r"cannot be downsampled .*\(loader=hf\)"):
        model_of(checkpoints["1.5"], loader="llava", **small)
    with pytest.raises(RunEnded, match="an image's tokens depends on the picture"):
        model_of(checkpoints["1.6"], loader="hf", **small)


def test_what_acted_is_logged_with_every_answer(checkpoints: dict[str, str]) -> None:
    answers = ask(model_of(checkpoints["1.6"], text_scope="all", keep_scope="prompt"))
    data = [answer.token_counts.to_dict() for answer in answers]
    assert data[0]["settings"]["image_aspect_ratio"] == "anyres"
    assert data[0]["settings"]["conv_template"] == "vicuna_v1"
    assert {(d["text_scope"], d["keep_scope"]) for d in data} == {("all", "prompt")}
    assert [d["kept_tokens"] for d in data] == [5, 5, 0, 5]
    assert len(data[0]["text_positions"][0]) == data[0]["input_tokens"] - data[0]["image_tokens"]


def test_a_tasks_picture_preparation_is_honoured_and_a_stated_one_goes_before_it(checkpoints: dict[str, str]) -> None:
    def prepared(asked: dict[str, Any], **arguments: Any) -> tuple[str, Any]:
        answer = ask(model_of(checkpoints["1.5"], loader="hf", **arguments), **asked)[0]
        data = answer.token_counts.to_dict()
        return data["settings"]["image_aspect_ratio"], data["kept_positions"]

    square, padded = prepared({"image_aspect_ratio": "square"}), prepared({})
    assert (square[0], padded[0]) == ("square", "pad")
    assert square[1] != padded[1]
    assert prepared({"image_aspect_ratio": "original"}) == padded  # lmms-eval's llava leaves it to the checkpoint, too
    assert prepared({"image_aspect_ratio": "square"}, image_aspect_ratio="pad") == padded
    assert prepared({}, image_aspect_ratio="square") == square


def test_a_preparation_that_a_checkpoint_cannot_take_is_left_out_with_one_warning(checkpoints: dict[str, str]) -> None:
    lines: list[str] = []
    handler = logger.add(lines.append, level="WARNING", format="{message}")
    try:
        answers = ask(model_of(checkpoints["1.6"], loader="hf"), image_aspect_ratio="square")
    finally:
        logger.remove(handler)
    assert answers[0].token_counts.to_dict()["settings"]["image_aspect_ratio"] == "anyres"
    assert len([line for line in lines if "image_aspect_ratio=square" in line]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text_scope": "befor"}, "unknown text_scope 'befor'"),
        ({"keep_scope": "images"}, "unknown keep_scope 'images': did you mean 'image'?"),
        ({"image_aspect_ratio": "padded"}, "unknown image_aspect_ratio 'padded'"),
        ({"loader": "transformers"}, "unknown loader 'transformers'"),
        ({"vision_tower": "./nowhere"}, "vision_tower is './nowhere'"),
        ({"keep_tokens": 17}, "keep_tokens is 17, but the image has 16 tokens"),
        ({"loader": "hf", "image_aspect_ratio": "anyres"}, "takes pad or square"),
    ],
)
def test_arguments_that_cannot_be_end_the_run_with_one_line(
    checkpoints: dict[str, str], arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(RunEnded) as ended:
        model_of(checkpoints["1.5"], **arguments)
    assert words in str(ended.value)
    assert "\n" not in str(ended.value)


def test_the_budget_of_a_grid_is_a_limit_that_a_small_picture_may_stay_below(checkpoints: dict[str, str]) -> None:
    data = [answer.token_counts.to_dict() for answer in ask(model_of(checkpoints["1.6"], keep_tokens=45))]
    assert all(d["kept_tokens"] <= d["image_tokens"] for d in data)
    assert data[0]["kept_tokens"] == min(45, data[0]["image_tokens"])
    assert data[3]["kept_tokens"] < 90  # the square one has fewer than 45


def test_an_unknown_preparation_asked_by_a_task_is_an_error() -> None:
    assert asked_aspect_ratio({}) is None
    assert asked_aspect_ratio({"image_aspect_ratio": "pad"}) == "pad"
    with pytest.raises(ValueError, match="unknown image_aspect_ratio 'pda': did you mean 'pad'"):
        asked_aspect_ratio({"image_aspect_ratio": "pda"})


def test_the_loss_of_continuations_works_in_both_formats(checkpoints: dict[str, str]) -> None:
    found = []
    for loader in ("llava", "hf"):
        model = model_of(checkpoints["1.6"], chat=False, loader=loader)
        model.task_dict = {"local": {"test": DOCUMENTS}}
        requests = [
            Instance(
                request_type="loglikelihood",
                arguments=(document["text"], "red", lambda d: d["pictures"], number, "local", "test"),
                idx=0,
                metadata={"task": "local", "doc_id": number, "repeats": 1},
            )
            for number, document in enumerate(DOCUMENTS)
        ]
        found.append([result.text for result in model.loglikelihood(requests)])
    for ours, theirs in zip(*found, strict=True):
        assert ours[0] == pytest.approx(theirs[0], abs=1e-4)
        assert ours[1] == theirs[1]


def test_pictures_in_every_mode_are_taken(checkpoints: dict[str, str], tmp_path: Path) -> None:
    grey = Image.new("L", (40, 30), 128)
    saved = tmp_path / "grey.png"
    grey.save(saved)
    model = model_of(checkpoints["1.5"], chat=False)
    model.task_dict = {"local": {"test": [{"pictures": [grey, str(saved)]}]}}
    request = Instance(
        request_type="generate_until",
        arguments=("What ?", {"max_new_tokens": 2}, lambda d: d["pictures"], 0, "local", "test"),
        idx=0,
        metadata={"task": "local", "doc_id": 0, "repeats": 1},
    )
    answer = next(iter(model.generate_until([request])))
    assert answer.token_counts.to_dict()["kept_tokens"] == 10


@pytest.mark.parametrize("batch_size", ["1", "4"])
def test_waiting_times_reach_the_summary_and_every_logged_sample(checkpoints: dict[str, str], batch_size: str) -> None:
    reset_logged_metrics()
    began = time.perf_counter()
    answers = ask(model_of(checkpoints["1.5"], batch_size=batch_size), max_new_tokens=3)
    took = time.perf_counter() - began
    data = [answer.token_counts.to_dict() for answer in answers]
    assert all(0 < d["prefill_seconds"] < took for d in data)
    assert {d["batch_rows"] for d in data} == {int(batch_size)}
    summary = summarize_logged_metrics()
    assert 0 < summary["avg_ttft"] < summary["avg_e2e"] <= took
    assert 0 < summary["avg_tpot"] < summary["avg_e2e"]
    # A request of a batch waits for the whole batch: the waits add up to as many times the work.
    assert summary["avg_e2e"] * 4 / int(batch_size) == pytest.approx(summary["total_elapsed_time"], rel=0.25)
