"""Prompts: LLaVA-1.5's own template, the checkpoint's, and where the pictures stand."""

from __future__ import annotations

import pytest
from PIL import Image

from lmms_textweighted.errors import InputError
from lmms_textweighted.harness.model import _chat_message
from lmms_textweighted.loaders.hf import load
from lmms_textweighted.prompts import Message, make_message, render, user_message

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
PICTURE = Image.new("RGB", (8, 8))


@pytest.fixture(scope="module")
def processor():
    return load("tiny").processor


def test_vicuna_v1_is_llavas_own_format():
    one = render("vicuna_v1", [user_message("Why?", [PICTURE])], None)
    assert one == f"{SYSTEM} USER: <image>\nWhy? ASSISTANT:"
    turns = [
        user_message("Why?", [PICTURE]),
        Message("assistant", (("text", "So."),)),
        user_message("And?", []),
    ]
    assert render("vicuna_v1", turns, None) == f"{SYSTEM} USER: <image>\nWhy? ASSISTANT: So.</s>USER: And? ASSISTANT:"
    told = [Message("system", (("text", "Be brief."),)), user_message("Why?", [])]
    assert render("vicuna_v1", told, None) == "Be brief. USER: Why? ASSISTANT:"


@pytest.mark.parametrize("pictures", [0, 1])
def test_the_embedded_checkpoints_template_is_vicuna_v1(processor, pictures):
    turns = [
        user_message("Why?", [PICTURE] * pictures),
        Message("assistant", (("text", "So."),)),
        user_message("And?", []),
    ]
    for messages in (turns[:1], turns[:2], turns):
        assert render("hf", messages, processor) == render("vicuna_v1", messages, processor)
    told = [Message("system", (("text", "Be brief."),)), *turns]
    assert render("hf", told, processor) == render("vicuna_v1", told, processor)


def test_several_pictures_stand_in_front_and_interleaved_ones_where_they_are():
    assert user_message("Which?", [PICTURE, PICTURE]).text == "<image> <image>\nWhich?"
    mixed = make_message("user", [("text", "First "), ("image", PICTURE), ("text", "then "), ("image", PICTURE)])
    assert mixed.text == "First <image>\nthen <image>"
    assert len(mixed.images) == 2


def test_tags_in_the_text_take_the_pictures_and_stay_as_they_are():
    message = user_message("See <image> here: <image>\nWhich?", [PICTURE, PICTURE])
    assert message.text == "See <image> here: <image>\nWhich?"
    assert len(message.images) == 2
    with pytest.raises(InputError, match="the text has 2 <image> tags of its own, but 1 pictures"):
        user_message("<image> and <image>", [PICTURE])


def test_chat_messages_place_pictures_as_the_simple_interface_does():
    """lmms-eval puts the picture in front of a text that may name its place itself."""
    tagged = {
        "role": "user",
        "content": [{"type": "image", "url": PICTURE}, {"type": "text", "text": "Q: <image>\nWhy?"}],
    }
    assert _chat_message(tagged).text == user_message("Q: <image>\nWhy?", [PICTURE]).text == "Q: <image>\nWhy?"
    assert len(_chat_message(tagged).images) == 1
    assert _chat_message({"role": "user", "content": "Why?"}).text == "Why?"
    with pytest.raises(InputError, match="takes text and pictures only"):
        _chat_message({"role": "user", "content": [{"type": "video", "url": "clip.mp4"}]})


def test_an_unknown_template_is_named_with_the_nearest():
    with pytest.raises(InputError, match=r"unknown conv_template 'vicuna': did you mean 'vicuna_v1'\?"):
        render("vicuna", [user_message("Why?", [])], None)
