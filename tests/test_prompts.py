"""Prompts: LLaVA's own templates, the checkpoint's, where the pictures stand, and which part is the question."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lmms_textweighted.errors import InputError
from lmms_textweighted.families import load
from lmms_textweighted.harness.visuals import chat_message
from lmms_textweighted.prompts import (
    INSTRUCTION_STARTS,
    SHORT_ANSWER_PROMPT,
    SINGLE_PREDICTION_PROMPT,
    TEMPLATES,
    Message,
    make_message,
    question_span,
    render,
    stop_string,
    user_message,
)
from lmms_textweighted.tiny.questions import multiple_choice_text

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
PICTURE = Image.new("RGB", (8, 8))
OWN_TEMPLATES = sorted(set(TEMPLATES) - {"hf"})
WORDS = st.text("ab<s>[]/INST|im_end \n\té", min_size=1, max_size=20)


@pytest.fixture(scope="module")
def processor():
    return load("tiny").processor


@pytest.fixture(scope="module")
def published():
    """The original package's templates by name."""
    from llava.conversation import conv_templates

    return conv_templates


def said(role: str, text: str) -> Message:
    return Message(role, (("text", text),))


def published_prompt(conversation, texts: Sequence[str], system: str | None = None) -> str:
    """What the package writes for questions and answers in turn; an answer that is open is not among the texts.

    In `plain` the package has no separator behind an answer and fails; its training data end with the first one.
    """
    conversation = conversation.copy()
    conversation.sep2 = conversation.sep2 or conversation.sep
    if system is not None:
        # In ChatML the package's system prompt brings its own header.
        header = "<|im_start|>system\n" if conversation.system.startswith("<|im_start|>") else ""
        conversation.system = header + system
    for place, text in enumerate(texts):
        conversation.append_message(conversation.roles[place % 2], text)
    if len(texts) % 2:
        conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt()


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
    assert chat_message(tagged).text == user_message("Q: <image>\nWhy?", [PICTURE]).text == "Q: <image>\nWhy?"
    assert len(chat_message(tagged).images) == 1
    assert chat_message({"role": "user", "content": "Why?"}).text == "Why?"
    with pytest.raises(InputError, match="give text and pictures only"):
        chat_message({"role": "user", "content": [{"type": "video", "url": "clip.mp4"}]})


def test_an_unknown_template_is_named_with_the_nearest():
    with pytest.raises(InputError, match=r"unknown conv_template 'vicuna': did you mean 'vicuna_v1'\?"):
        render("vicuna", [user_message("Why?", [])], None)


# Equality with the original package.


@pytest.mark.parametrize("system", [None, "", "Be brief."])
@pytest.mark.parametrize("turns", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", OWN_TEMPLATES)
def test_a_template_writes_what_the_llava_package_writes(published, name, turns, system):
    texts = ["<image>\nWhy?", "So.", "And <b>this</b>?", "Also so.", "<image> <image>\nWhich?"][:turns]
    messages = [said(("user", "assistant")[place % 2], text) for place, text in enumerate(texts)]
    told = [said("system", system)] if system is not None else []
    assert render(name, told + messages, None) == published_prompt(published[name], texts, system)


@pytest.mark.parametrize("name", OWN_TEMPLATES)
def test_any_text_is_written_as_the_llava_package_writes_it(published, name):
    @given(st.lists(WORDS, min_size=1, max_size=5), st.none() | st.just("") | WORDS)
    def check(texts, system):
        messages = [said(("user", "assistant")[place % 2], text) for place, text in enumerate(texts)]
        told = [said("system", system)] if system is not None else []
        assert render(name, told + messages, None) == published_prompt(published[name], texts, system)

    check()


@pytest.mark.parametrize("name", sorted(set(OWN_TEMPLATES) - {"llava_llama_2", "mistral_instruct"}))
def test_an_empty_question_is_written_as_the_llava_package_writes_it(published, name):
    assert render(name, [said("user", "")], None) == published_prompt(published[name], [""])


@pytest.mark.parametrize("name", OWN_TEMPLATES)
def test_an_answer_goes_on_where_the_open_prompt_stops_and_ends_with_the_stop_string(name):
    question = user_message("Why?", [PICTURE])
    prompt = render(name, [question], None)
    whole = render(name, [question, said("assistant", "So.")], None)
    assert whole.startswith(prompt)
    assert whole[len(prompt) :].strip(" ").startswith("So.")
    assert whole.endswith(stop_string(name))
    assert stop_string(name) not in whole[len(prompt) :].removesuffix(stop_string(name))


def test_the_stop_strings_are_the_published_ones(published):
    for name in OWN_TEMPLATES:
        assert stop_string(name) in (published[name].sep, published[name].sep2)
    assert stop_string("hf") is None
    with pytest.raises(InputError, match=r"unknown conv_template 'mistral': did you mean 'mistral_instruct'\?"):
        stop_string("mistral")


@pytest.mark.parametrize("name", OWN_TEMPLATES)
def test_a_conversation_that_the_user_does_not_begin_is_refused(name):
    for messages in ([], [said("system", "Be brief.")], [said("assistant", "So."), said("user", "Why?")]):
        with pytest.raises(InputError, match="does not begin with the user"):
            render(name, messages, None)
    for messages in ([said("user", "Why?"), said("system", "Be brief.")], [said("user", "Why?"), said("tool", "So.")]):
        with pytest.raises(InputError, match=r"turn 2 has the role '(system|tool)'"):
            render(name, messages, None)


@pytest.mark.parametrize("name", ["llava_llama_2", "mistral_instruct"])
def test_turns_that_the_llama_2_form_cannot_write_are_refused(name):
    with pytest.raises(InputError, match="user and assistant alternate"):
        render(name, [said("user", "Why?"), said("user", "Why?")], None)
    with pytest.raises(InputError, match="first message is empty"):
        render(name, [said("user", "")], None)


# The question in a prompt.

HINT = "Context: The picture shows some objects."
QUESTION = "What is red?"
OPTIONS = "A. the cube\nB. the ball\nC. both"


def question_of(text: str) -> str:
    start, end = question_span(text)
    return text[start:end]


@pytest.mark.parametrize(
    "text",
    [
        QUESTION,
        f"<image>\n{QUESTION}",
        f"<image> <image>\n{QUESTION}\n",
        f"{QUESTION}\n<image>",
        f"<image>\n{QUESTION}\n{OPTIONS}{SINGLE_PREDICTION_PROMPT}",
        f"{QUESTION}{SHORT_ANSWER_PROMPT}",
        f"{QUESTION}\n\n{OPTIONS}\n",
        f"{QUESTION}\n(A) the cube\n(B) the ball",
        f"{QUESTION}\nChoices:\n(A) the cube\n(B) the ball",
        f"{QUESTION}\nOptions: A. the cube\nB. the ball\nAnswer:",
        f"{QUESTION}\nA) the cube,\nwhich is small\nB) the ball",
        f"{OPTIONS}\n{QUESTION}{SINGLE_PREDICTION_PROMPT}",
        f"{QUESTION}{SINGLE_PREDICTION_PROMPT}\n{OPTIONS}",
        f"{QUESTION}\nWhen the provided information is insufficient, respond with 'Unanswerable'.{SHORT_ANSWER_PROMPT}",
        f"{QUESTION}\n  Please answer yes or no. \n",
    ],
)
def test_tags_options_and_instructions_are_not_part_of_the_question(text):
    assert question_of(text) == QUESTION


def test_what_stands_in_front_of_the_question_is_part_of_it():
    assert question_of(f"<image>\n{HINT}\n{QUESTION}\n{OPTIONS}{SINGLE_PREDICTION_PROMPT}") == f"{HINT}\n{QUESTION}"
    assert question_of(f"See <image> here.\n{QUESTION}") == f"See <image> here.\n{QUESTION}"


def test_the_question_is_found_in_the_tasks_own_wording():
    item = {"hint": "Two objects.", "question": QUESTION, "choices": ["the cube", "the ball"]}
    assert question_of(user_message(multiple_choice_text(item), [PICTURE]).text) == f"Context: Two objects.\n{QUESTION}"
    assert question_of(multiple_choice_text({**item, "hint": ""})) == QUESTION


def test_lines_that_only_look_like_options_are_part_of_the_question():
    spoken = "A. Lincoln spoke here.\nWhere is it?"
    assert question_of(spoken) == spoken
    assert question_of(f"{spoken}\n{OPTIONS}") == spoken
    assert question_of(f"{OPTIONS}\n{spoken}") == spoken
    assert question_of("A. Lincoln and B. Franklin: who is older?") == "A. Lincoln and B. Franklin: who is older?"


@pytest.mark.parametrize("text", ["", " \n", "<image>\n", OPTIONS, f"<image>{SINGLE_PREDICTION_PROMPT}"])
def test_a_prompt_without_a_question_is_refused(text):
    with pytest.raises(InputError, match="has no question"):
        question_span(text)


@given(
    st.text("abc?. ", min_size=1).map(str.strip).filter(bool),
    st.lists(st.text("abc,.\t ", max_size=8), min_size=2, max_size=8) | st.just([]),
    st.sampled_from(["{}. ", "({}) ", "{}) "]),
    st.sampled_from(["", *INSTRUCTION_STARTS]),
    st.integers(0, 3),
)
def test_the_question_is_found_whatever_is_put_around_it(question, choices, form, instruction, images):
    parts = [question, *(form.format(letter) + choice for letter, choice in zip("ABCDEFGH", choices, strict=False))]
    text = "<image>\n" * images + "\n".join([*parts, instruction])
    assert question_of(text) == question


@given(st.lists(st.sampled_from(["a", "B", "\n", " ", "A. ", "\nB. ", "(A) ", "<image>", "Answer:", "?"]), max_size=15))
def test_a_question_has_no_tags_or_white_space_around_it(parts):
    text = "".join(parts)
    try:
        found = question_of(text)
    except InputError:
        return
    assert found
    assert found == found.strip()
    assert not found.startswith("<image>")
    assert not found.endswith("<image>")


def test_a_line_that_only_begins_like_an_instruction_may_be_the_question():
    text = "Please answer me: what is red?\nA. this\nB. that"
    start, end = question_span(text)
    assert text[start:end] == "Please answer me: what is red?"
