"""Tiny checkpoints of every listed kind with the real processors: what becomes of conversations and pictures."""

from __future__ import annotations

import json
import shutil
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from lmms_textweighted import load, make_plan, prune
from lmms_textweighted.errors import CheckpointError, InputError, PlanError, PromptError
from lmms_textweighted.experiment.alone import answer_alone
from lmms_textweighted.experiment.grid import make_points
from lmms_textweighted.experiment.points import run_document
from lmms_textweighted.families import LoadOptions
from lmms_textweighted.inference import Decoding, PrunedLlava
from lmms_textweighted.prompts import SINGLE_PREDICTION_PROMPT, Message, make_message, user_message
from tests.oracles import removed_by, run_masked
from tests.vlm_checkpoints import make_checkpoint, without_num2words
from tests.vlms import MODELS

QUESTION = "What is the colour of the circle?"
TEXT = f"{QUESTION}\nA. red\nB. blue{SINGLE_PREDICTION_PROMPT}"
PLAN = make_plan("text_weighted", pruning_layer=1, keep_tokens=3)
GRIDS = ("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen2_vl", "glm4v", "glm46v")


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


CONVERSATIONS = [
    [user_message(TEXT, [picture(100, 60, 1), picture(120, 150, 2)])],
    [user_message("How many shapes are there?", [picture(64, 64, 3)])],
    [user_message("Which of these is true?", [])],
]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """kind -> its checkpoint's folder, made once."""

    @cache
    def folder(kind: str):
        return make_checkpoint(kind, tmp_path_factory.mktemp("vlm") / kind)

    return folder


@pytest.fixture
def folder_of(folders, monkeypatch):
    without_num2words(monkeypatch)
    return folders


@pytest.fixture(params=MODELS)
def kind(request):
    return request.param


@pytest.fixture
def vlm(kind, folder_of):
    return PrunedLlava(*load(str(folder_of(kind))), PLAN)


def text_of(vlm, encoded, row):
    """A row's text tokens."""
    ids = encoded.inputs["input_ids"][row][encoded.inputs["attention_mask"][row].bool()]
    return ids[ids != vlm.model.config.image_token_id]


def alone_pixels(kind, inputs, row, sizes):
    """The part of a batch's pixels that is one row's."""
    if kind in GRIDS:
        patches = [sum(row) * 4 for row in sizes]
        return inputs["pixel_values"][sum(patches[:row]) : sum(patches[: row + 1])]
    if kind in ("idefics3", "smolvlm"):
        return inputs["pixel_values"][row, : inputs["pixel_attention_mask"][row].flatten(1).any(1).sum()]
    per = 4 if kind == "internvl" else None
    counts = [sum(row) // per if per else len(row) for row in sizes]
    return inputs["pixel_values"][sum(counts[:row]) : sum(counts[: row + 1])]


def test_the_processor_and_the_familys_own_rule_agree_on_every_pictures_tokens(kind, vlm):
    encoded = vlm.encode(CONVERSATIONS)
    assert [len(sizes) for sizes in encoded.image_sizes] == [2, 1, 0]
    image = encoded.inputs["input_ids"] == vlm.model.config.image_token_id
    assert [sum(sizes) for sizes in encoded.image_sizes] == image.sum(dim=1).tolist()
    plan = make_plan("text_weighted", pruning_layer=1, keep_ratio=0.4)
    kept = []
    for sizes in (None, encoded.image_sizes):
        with torch.inference_mode(), prune(vlm.model, plan, image_sizes=sizes) as trace:
            vlm.model(**encoded.inputs)
        kept.append([document.stages[0].kept.tolist() for document in trace.documents])
    assert kept[0] == kept[1]
    assert [len(row) for row in kept[0]] == [sum(int(0.4 * size) for size in row) for row in encoded.image_sizes]


def test_sizes_that_do_not_fit_are_refused(kind, vlm):
    encoded = vlm.encode(CONVERSATIONS)
    wrong = [[sizes[0] - 1, *sizes[1:]] if sizes else [] for sizes in encoded.image_sizes]
    for given, words in ((wrong, "they do not fit"), (wrong[:2], "has 2 rows for a batch of 3")):
        with pytest.raises(PlanError, match=words), prune(vlm.model, PLAN, image_sizes=given):
            vlm.model(**encoded.inputs)


def test_a_batch_has_each_rows_own_ids_pixels_and_answer(kind, vlm):
    together = vlm.encode(CONVERSATIONS)
    answers = vlm.generate(CONVERSATIONS, Decoding(max_new_tokens=4))
    for row, conversation in enumerate(CONVERSATIONS):
        alone = vlm.encode([conversation])
        valid = together.inputs["attention_mask"][row].bool()
        assert torch.equal(together.inputs["input_ids"][row][valid], alone.inputs["input_ids"][0])
        assert alone.image_sizes[0] == together.image_sizes[row]
        if alone.image_sizes[0] and kind != "mistral3":  # its pictures are padded to the batch's largest
            own = alone_pixels(kind, alone.inputs, 0, alone.image_sizes)
            assert torch.equal(own, alone_pixels(kind, together.inputs, row, together.image_sizes))
        (answer,) = vlm.generate([conversation], Decoding(max_new_tokens=4))
        assert (answers[row].text, answers[row].output_tokens) == (answer.text, answer.output_tokens)
        assert answers[row].trace.stages[0].kept.tolist() == answer.trace.stages[0].kept.tolist()
        assert answer.trace.image_lengths == [sum(alone.image_sizes[0])] * 2 + [3 * len(alone.image_sizes[0])] * 4


def test_prompts_with_as_many_pictures_each_are_a_batch(kind, vlm):
    """What processors say of them is then rectangular, and some try to make a tensor of it."""
    conversations = [[user_message(f"{number}?", [picture(64, 64, number)])] for number in range(2)]
    together = vlm.encode(conversations)
    alone = [vlm.encode([conversation]) for conversation in conversations]
    assert together.image_sizes == [one.image_sizes[0] for one in alone]
    assert torch.equal(together.inputs["input_ids"], torch.cat([one.inputs["input_ids"] for one in alone]))
    assert torch.equal(together.inputs["pixel_values"], torch.cat([one.inputs["pixel_values"] for one in alone]))


def test_the_question_is_found_among_the_text_that_a_processor_writes(kind, vlm):
    """Its own tags around and between a picture's tokens are text, and no question."""
    encoded = vlm.encode(CONVERSATIONS, question=True)
    asked = [QUESTION, "How many shapes are there?"]
    for row, words in enumerate(asked):
        text = text_of(vlm, encoded, row)
        assert len(encoded.question[row]) == len(text)
        assert vlm.processor.tokenizer.decode(text[encoded.question[row]]) == words
    assert encoded.question[2] is None
    question = PrunedLlava(
        vlm.model, vlm.processor, make_plan("text_weighted", pruning_layer=1, keep_tokens=3, text_scope="question")
    )
    (answer,) = question.generate(CONVERSATIONS[:1], Decoding(max_new_tokens=2))
    assert len(answer.trace.stages[0].text) == int(encoded.question[0].sum())


def test_a_continuations_loss_is_the_masked_models(kind, vlm):
    messages, answer = CONVERSATIONS[0], "The circle is red"
    loss, greedy, document = vlm.loss(messages, answer)
    inputs = vlm.encode([messages]).inputs
    tokenizer = vlm.processor.tokenizer
    target = tokenizer(f"{answer}<|im_end|>\n")["input_ids"]
    logits = run_masked(vlm.model, inputs, removed_by(document), target[:-1]).logits[0, -len(target) :]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(target)).item()
    assert loss == pytest.approx(expected, abs=1e-4)
    assert greedy is (logits.argmax(-1).tolist() == target)
    unpruned, _, _ = PrunedLlava(vlm.model, vlm.processor).loss(messages, answer)
    assert abs(loss - unpruned) > 1e-3


def test_every_point_of_a_sweep_is_the_answer_by_itself(kind, vlm):
    points = make_points(["text_weighted", "random"], [5, 0], 1)
    decoding = Decoding(max_new_tokens=3)
    how = {"decoding": decoding, "ranks": True, "judge": lambda text: (float(len(text)), False)}
    outcomes = run_document(vlm, CONVERSATIONS[0][0], points, **how)
    for point, outcome in zip(points, outcomes, strict=True):
        alone = answer_alone(vlm, CONVERSATIONS[0][0], point.plan, **how)
        assert (outcome.answer, outcome.kept_tokens) == (alone.answer, alone.kept_tokens)
        assert outcome.flops_ratio == alone.flops_ratio
        if alone.effective_rank is not None:
            assert outcome.effective_rank == pytest.approx(alone.effective_rank, rel=1e-3)


def test_pictures_stand_where_the_texts_tags_are(kind, vlm):
    pictures = [picture(64, 64, 4), picture(100, 60, 5)]
    tagged = make_message("user", [*(("image", one) for one in pictures), ("text", "See <image> and <image>. Alike?")])
    parts = (("text", "See "), ("image", pictures[0]), ("text", " and "), ("image", pictures[1]), ("text", ". Alike?"))
    found, expected = vlm.encode([[tagged]]), vlm.encode([[Message("user", parts)]])
    assert torch.equal(found.inputs["input_ids"], expected.inputs["input_ids"])
    assert torch.equal(found.inputs["pixel_values"], expected.inputs["pixel_values"])


def test_a_placeholder_in_the_users_text_is_refused(kind, vlm):
    text = f"What is {vlm.processor.image_token} here?"
    with pytest.raises(PromptError, match=r"the prompt has 2 .* tags but 1 pictures"):
        vlm.encode([[Message("user", (("image", picture(64, 64)), ("text", text)))]])


def test_the_system_prompt_is_the_kinds_the_users_or_none(kind, vlm):
    def prompt(given, conversation=CONVERSATIONS[1]):
        made = PrunedLlava(vlm.model, vlm.processor, system_prompt=given)
        return vlm.processor.tokenizer.decode(text_of(made, made.encode([conversation]), 0))

    helpful = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    theirs = kind in ("qwen3_vl", "qwen3_vl_moe", "qwen2_vl")
    assert prompt(None).startswith(helpful if theirs else "<|im_start|>user")
    assert prompt("").startswith("<|im_start|>user")
    assert prompt("Be brief.").startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    said = [Message("system", (("text", "Say more."),)), *CONVERSATIONS[1]]
    assert prompt("Be brief.", said).startswith("<|im_start|>system\nSay more.<|im_end|>\n")


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "qwen2_vl"])
def test_pixel_limits_bound_a_pictures_tokens(kind, folder_of):
    """One token is 28 x 28 pixels, for Qwen3-VL 32 x 32."""
    side = 32 if kind == "qwen3_vl" else 28
    options = LoadOptions(min_pixels=40 * side**2, max_pixels=60 * side**2)
    bounded = PrunedLlava(*load(str(folder_of(kind)), options))
    shown = [(32, 32), (300, 200), (600, 900)]
    sizes = bounded.encode([[user_message("What?", [picture(*size) for size in shown])]]).image_sizes[0]
    assert all(40 <= size <= 60 for size in sizes)


def test_tile_limits_bound_a_pictures_tiles(folder_of):
    for most, tiles in ((1, 1), (4, 5)):  # several tiles come with a thumbnail
        bounded = PrunedLlava(*load(str(folder_of("internvl")), LoadOptions(max_patches=most)))
        assert bounded.encode([[user_message("What?", [picture(300, 300)])]]).image_sizes == [(4 * tiles,)]


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (
            "qwen2_5_vl",
            {"min_patches": 2},
            "min_patches is given, but qwen2_5_vl has no such limit: it takes min",
        ),
        ("internvl", {"max_pixels": 2}, "max_pixels is given, but internvl has no such limit"),
        ("mistral3", {"max_pixels": 2}, "but mistral3 has no such limit: it takes none"),
        ("qwen2_5_vl", {"max_pixels": 1000}, "min_pixels is 200704, but max_pixels is 1000: give both"),
        ("qwen3_vl", {"image_aspect_ratio": "pad"}, "a qwen3_vl takes its own preparation only"),
    ],
)
def test_options_that_a_kind_does_not_know_are_refused(folder_of, kind, options, words):
    with pytest.raises(InputError, match=words):
        load(str(folder_of(kind)), LoadOptions(**options))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_pixels": 0}, "min_pixels is 0: give a whole number of at least 1"),
        ({"max_patches": 2.5}, "max_patches is 2.5"),
        ({"min_pixels": 9, "max_pixels": 4}, "min_pixels is 9, but max_pixels is 4"),
    ],
)
def test_limits_that_cannot_be_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        LoadOptions(**options)


def test_a_llava_has_no_picture_limits():
    with pytest.raises(InputError, match="max_pixels is given, but a LLaVA's pictures have no such limit"):
        load("tiny", LoadOptions(max_pixels=100000))


def test_a_checkpoint_of_an_unlisted_kind_is_named_with_those_that_are(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "molmo2"}))
    with pytest.raises(CheckpointError, match=r"'molmo2', known are .*qwen2_5_vl.*internvl"):
        load(str(tmp_path))


def test_a_checkpoint_without_a_chat_template_is_refused(folder_of, tmp_path):
    shutil.copytree(folder_of("qwen3_vl"), tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="has no chat template"):
        load(str(tmp_path / "bare"))


def test_a_picture_that_cannot_be_resized_is_named(folder_of):
    vlm = PrunedLlava(*load(str(folder_of("qwen3_vl"))))
    with pytest.raises(InputError, match="a picture of 2001 x 10 pixels cannot be prepared"):
        vlm.encode([[user_message("What?", [picture(2001, 10)])]])


def test_a_template_of_llavas_is_refused_before_any_document(folder_of):
    loaded = load(str(folder_of("internvl")))
    with pytest.raises(InputError, match="conv_template is 'vicuna_v1', but internvl takes its own chat template"):
        PrunedLlava(*loaded, template="vicuna_v1")
    assert PrunedLlava(*loaded, template="hf").template == "hf"
