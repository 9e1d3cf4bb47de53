"""The second embedded model: a Qwen3-VL that sees, on pictures of several sizes, and how it was trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from scipy.stats import binomtest

from lmms_textweighted.families import load
from lmms_textweighted.inference import Decoding, PrunedLlava
from lmms_textweighted.methods import make_plan
from lmms_textweighted.paths import checkpoint_folder
from lmms_textweighted.prompts import user_message
from lmms_textweighted.tiny import questions, scenes, train_qwen
from lmms_textweighted.tiny.evaluate import answers
from lmms_textweighted.tiny.qwen_architecture import build_processor, build_tokenizer


@pytest.fixture(scope="module")
def qwen():
    return PrunedLlava(*load("tiny-qwen"))


def asked(scene, rng, size=(24, 24)):
    """A question about the scene as drawn on that canvas, and the right letter."""
    item = questions.make_question(scene, rng)
    picture = Image.fromarray(scenes.render(scene, *size))
    return user_message(questions.multiple_choice_text(item), [picture]), questions.LETTERS[item["answer"]]


def test_it_is_a_qwen3_vl_with_the_processor_that_its_training_code_builds(qwen):
    config = qwen.model.config
    assert config.model_type == "qwen3_vl"
    assert config.vision_config.deepstack_visual_indexes == [1, 2]
    assert type(qwen.processor).__name__ == "Qwen3VLProcessor"
    built = build_processor(build_tokenizer())
    assert qwen.processor.tokenizer.get_vocab() == built.tokenizer.get_vocab()
    assert qwen.processor.chat_template == built.chat_template
    shipped = load_file(checkpoint_folder("tiny-qwen") / "model.safetensors")
    assert {tensor.dtype for tensor in shipped.values()} == {torch.float16}


def test_training_packs_the_prompt_that_the_model_is_asked_with(qwen):
    rng = np.random.default_rng(0)
    scene = scenes.random_scene(rng, held_out=False)
    item = questions.make_question(scene, rng)
    text = questions.multiple_choice_text(item)
    ids = qwen.encode([[user_message(text, [Image.fromarray(scenes.render(scene))])]]).inputs["input_ids"][0]
    wording = train_qwen.CHATML
    packed = train_qwen.PREFIX + "<|image_pad|>" * 144 + wording.before + text + wording.answer
    assert ids.tolist() == qwen.processor.tokenizer(packed).input_ids


@given(st.integers(0, 10**6), st.sampled_from(train_qwen.SIDES), st.sampled_from(train_qwen.SIDES))
def test_on_another_canvas_a_scene_keeps_its_objects_and_their_cells(seed, rows, columns):
    rng = np.random.default_rng(seed)
    scene = scenes.random_scene(rng, held_out=False)
    moved = scenes.on_canvas(scene, rows, columns, rng)
    assert scenes.render(moved, rows, columns).shape == (14 * rows, 14 * columns, 3)
    labels = scenes.patch_labels(moved, rows, columns)
    for before, after in zip(scene.objects, moved.objects, strict=True):
        assert replace(after, row=before.row, column=before.column) == before
        mine = labels[labels[:, 0] == scenes.SHAPES.index(after.shape)]
        assert len(mine) == after.width**2
        assert set(mine[:, 2]) == {scenes.PLACES.index(after.place)}
    # 2 x 2 patches never show two objects.
    tokens = train_qwen.merged(labels, columns)[..., 0]
    assert all(len(set(token[token >= 0].tolist())) <= 1 for token in tokens)


def test_image_tokens_patches_stand_in_the_processors_order():
    """A picture of 4 x 6 patches, each of its own grey level."""
    grey = np.arange(24, dtype=np.uint8) * 10
    picture = np.repeat(np.repeat(np.repeat(grey.reshape(4, 6), 14, 0), 14, 1)[..., None], 3, 2)
    processor = build_processor(build_tokenizer())
    pixels = processor.image_processor(images=[picture], do_resize=False, return_tensors="pt")["pixel_values"]
    levels = ((pixels[:, 0] * 0.5 + 0.5) * 255).round().long()
    assert levels.tolist() == train_qwen.merged(grey[:, None], 6).flatten().tolist()


@pytest.mark.slow
@pytest.mark.parametrize("count", [80, pytest.param(200, marks=pytest.mark.nightly)])
def test_the_model_sees_and_loses_what_it_cannot_see(count):
    """144 image tokens each."""
    right = answers("tiny-qwen", count=count, strategies=["random"], budgets=(16,))
    accuracy = {name: sum(hits) / len(hits) for name, hits in right.items()}
    blank = binomtest(sum(right["blank picture"]), count).proportion_ci(method="wilson")
    assert accuracy["all"] >= 0.85
    assert blank.low <= 0.3208 <= blank.high
    assert accuracy["all"] - accuracy["random 16"] >= 0.25


@pytest.mark.slow
@pytest.mark.parametrize("size", [(18, 30), (30, 18), (30, 30)])
def test_it_answers_on_pictures_of_other_sizes(qwen, size):
    rng = np.random.default_rng(5)
    drawn = [scenes.on_canvas(scenes.random_scene(rng, held_out=True), *size, rng) for _ in range(40)]
    pairs = [asked(scene, rng, size) for scene in drawn]
    said = qwen.generate([[message] for message, _ in pairs], Decoding(max_new_tokens=4))
    assert {answer.trace.image_tokens for answer in said} == {size[0] * size[1] // 4}
    assert sum(answer.text.strip() == letter for answer, (_, letter) in zip(said, pairs, strict=True)) >= 30


def test_its_budget_is_met_as_every_familys(qwen):
    rng = np.random.default_rng(1)
    message, _ = asked(scenes.random_scene(rng, held_out=True), rng)
    pruned = replace(qwen, plan=make_plan("text_weighted", keep_tokens=32))
    assert pruned.generate([[message]], Decoding(max_new_tokens=2))[0].trace.kept_tokens == 32


@pytest.mark.slow
def test_the_training_script_runs_in_any_order_of_its_first_stages(tmp_path):
    """Two steps a stage, two pictures: the tower's and the decoder's stage one after the other, or each by itself."""
    stages = {name: replace(stage, steps=2, pictures=2, warmup=1) for name, stage in train_qwen.STAGES.items()}
    train_qwen.train(tmp_path / "whole", seed=0, stages=stages)
    for only in ("decoder", "tower", "joint"):
        train_qwen.train(tmp_path / "pieces", seed=0, stages=stages, only=only)
    whole, pieces = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("whole", "pieces"))
    assert whole.keys() == pieces.keys()
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
    assert load(str(tmp_path / "whole" / "checkpoint")).model.config.model_type == "qwen3_vl"
