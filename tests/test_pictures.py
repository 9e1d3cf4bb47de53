"""Pictures: whole or refused, RGB in one way, and the same limit on their size, in every way in."""

from __future__ import annotations

import io

import numpy as np
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from lmms_eval.api.instance import Instance
from PIL import Image, ImageFile
from transformers.image_transforms import convert_to_rgb

from lmms_textweighted.errors import InputError
from lmms_textweighted.harness.documents import Documents
from lmms_textweighted.harness.model import LlavaTextweighted, LlavaTextweightedChat
from lmms_textweighted.harness.stops import RunEnded
from lmms_textweighted.harness.visuals import picture
from lmms_textweighted.pictures import as_rgb, open_picture, strict_pillow
from lmms_textweighted.tiny.testset import load_testset
from tests.test_harness import ask


@pytest.fixture(autouse=True)
def _as_lmms_eval_leaves_it(tmp_path, monkeypatch):
    """lmms-eval lets Pillow fill up truncated files."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setenv("LMMS_TEXTWEIGHTED_CACHE", str(tmp_path / "textweighted"))


def encoded(kind="JPEG", size=(64, 64), seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def broken(tmp_path):
    """name -> (path, words of the complaint)."""
    (tmp_path / "cut.jpg").write_bytes(encoded()[: len(encoded()) // 2])
    (tmp_path / "cut.png").write_bytes(encoded("PNG")[: len(encoded("PNG")) // 2])
    (tmp_path / "text.png").write_text("no picture")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "bomb.png")
    return {
        "cut.jpg": "is broken: image file is truncated",
        "cut.png": "is broken: ",
        "text.png": "is no picture",
        "bomb.png": "has more than 89478485 pixels",
    }


def test_a_file_is_read_whole_or_refused_and_named(tmp_path, broken):
    for name, words in broken.items():
        for way in (open_picture, picture):
            with pytest.raises(InputError) as refused:
                way(str(tmp_path / name))
            assert f"{name}' {words}" in str(refused.value)
            assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match=r"gone.png' is missing"):
        open_picture(tmp_path / "gone.png")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_a_picture_that_somebody_else_opened_is_read_whole_too(broken, tmp_path):
    """Pillow reads a file when the first pixel is asked for."""
    with pytest.raises(InputError, match="a picture is broken: image file is truncated"):
        as_rgb(Image.open(tmp_path / "cut.jpg"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMMS_TEXTWEIGHTED_CACHE", str(tmp_path_factory.mktemp("cache")))
        return [kind(pretrained="tiny", keep_tokens=16) for kind in (LlavaTextweighted, LlavaTextweightedChat)]


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "text.png", "bomb.png"])
def test_a_document_with_a_broken_picture_ends_the_run_and_is_named(tmp_path, broken, models, name):
    documents = load_testset().select([0, 1])
    for model in models:
        with pytest.raises(RunEnded, match=rf"task shapes, document 0: .*{name}' {broken[name]}"):
            ask(model, documents, visuals=lambda document: [str(tmp_path / name)])


def test_a_picture_that_a_data_set_decodes_is_read_whole_too(models):
    """`datasets` opens and reads it where the document is asked for, under whatever Pillow has been told."""
    rows = [{"image": {"bytes": data, "path": None}} for data in (encoded(seed=1), encoded(seed=2)[:1000])]
    features = Features({"image": ImageFeature()})
    fields = load_testset().select([0, 1]).remove_columns("image")
    documents = Dataset.from_list([{**row, **more} for row, more in zip(rows, fields, strict=True)])
    documents = documents.cast(Features({**fields.features, **features}))
    assert documents[1]["image"].size == (64, 64)  # filled up, and nobody would notice
    whole = ask(models[0], documents.select([0]))
    assert whole[0].text
    models[0].task_dict = {"shapes": {"test": documents}}
    arguments = ("Which?", {"max_new_tokens": 2}, lambda document: [document["image"]], 1, "shapes", "test")
    request = Instance("generate_until", arguments, 0, {"task": "shapes", "doc_id": 1, "repeats": 1})
    with pytest.raises(RunEnded, match="task shapes, document 1: OSError: image file is truncated"):
        list(models[0].generate_until([request]))


def test_the_sweep_reads_a_tasks_pictures_in_the_same_way(tmp_path, broken, monkeypatch):
    documents = Documents.of_task("shapes_mcq", 2, single_prediction_prompt=False)
    monkeypatch.setattr(documents.task, "doc_to_visual", lambda fields: [str(tmp_path / "cut.jpg")])
    with pytest.raises(InputError, match=r"task shapes_mcq, document 1: .*cut.jpg' is broken"):
        _ = documents[1]
    (tmp_path / "whole.jpg").write_bytes(encoded())
    monkeypatch.setattr(documents.task, "doc_to_visual", lambda fields: [str(tmp_path / "whole.jpg")])
    assert documents[1].message.images[0].size == (64, 64)


def transparent(mode):
    """A picture of noise whose transparency is noise, too, where its mode has any."""
    noise = np.random.default_rng(5).integers(0, 256, (12, 9, 4), dtype=np.uint8)
    whole = Image.fromarray(noise, "RGBA")
    if mode == "P":
        paletted = whole.convert("RGB").quantize(16)
        paletted.info["transparency"] = 3
        return paletted
    if mode == "RGB with a transparent colour":
        plain = whole.convert("RGB")
        plain.info["transparency"] = plain.getpixel((2, 2))
        return plain
    return whole.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB with a transparent colour", "RGB", "L", "1", "CMYK"])
def test_transparency_is_put_on_white_as_transformers_does_it(mode):
    given = transparent(mode)
    expected = convert_to_rgb(given, return_numpy=True)
    assert np.array_equal(np.asarray(as_rgb(given)), expected)
    dropped = np.asarray(given.convert("RGB"))
    assert np.array_equal(dropped, expected) == (mode in ("RGB", "L", "1", "CMYK"))


def test_a_limit_of_the_tasks_own_is_kept(tmp_path, broken, monkeypatch):
    """Some of lmms-eval's tasks have pictures of satellites, and say so to Pillow."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**9)
    with strict_pillow():
        assert open_picture(tmp_path / "bomb.png").size == (10_000, 10_000)
