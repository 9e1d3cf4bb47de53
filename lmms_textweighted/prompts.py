"""Prompts: the conversation around a question, and which part of it is the question.

A message's content is a list of pieces: ("text", str) or ("image", picture). Rendering gives the prompt with one
`<image>` tag a picture; the processor turns each tag into that picture's image tokens.

The named templates write what the `llava` package writes for `conv_templates[name]`, string for string: a checkpoint
answers best in the words it was trained on.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jinja2

from lmms_textweighted.errors import InputError, first_line, unknown

IMAGE_TAG = "<image>"
SINGLE_PREDICTION_PROMPT = "\nAnswer with the option's letter from the given choices directly."
SHORT_ANSWER_PROMPT = "\nAnswer the question using a single word or phrase."

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_LLAVA_LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
_CHATML_SYSTEM = "Answer the questions."

# How the last lines of a prompt begin that say how to answer, not what is asked: those of LLaVA's own evaluation and
# of lmms-eval's picture tasks.
INSTRUCTION_STARTS = (
    "Answer with the option",
    "Answer with a single",
    "Answer the question using",
    "Answer the question with",
    "Answer:",
    "Please answer",
    "Please select",
    "Only give the best option",
    "When the provided information is insufficient",
)
_INSTRUCTIONS = (SINGLE_PREDICTION_PROMPT.strip(), SHORT_ANSWER_PROMPT.strip())

# `A. red`, `A) red`, `A: red` or `(A) red` at the start of a line, with a heading in front of it where there is one.
_OPTION = re.compile(r"^[ \t]*(?:(?:Options|Choices):\s*)?(?:\((?P<round>[A-Z])\)|(?P<bare>[A-Z])[.):])", re.MULTILINE)
_TAGS_AND_SPACE = re.compile(rf"(?:\s|{IMAGE_TAG})*")


@dataclass(frozen=True)
class Message:
    """One turn. role: `system`, `user` or `assistant`. content: pieces in order. tagged: the pictures of the `<image>`
    tags that stand in the text itself, which is then left as it is."""

    role: str
    content: tuple[tuple[str, Any], ...]
    tagged: tuple[Any, ...] = ()

    @property
    def images(self) -> list[Any]:
        """The turn's pictures, in the order of their tags."""
        return [value for kind, value in self.content if kind == "image"] + list(self.tagged)

    @property
    def text(self) -> str:
        """The turn as LLaVA writes it: `<image> <image>`, a new line, then the text."""
        parts: list[str] = []
        for place, (kind, value) in enumerate(self.content):
            if kind == "text":
                parts.append(value)
                continue
            follows = self.content[place + 1][0] if place + 1 < len(self.content) else None
            parts.append(IMAGE_TAG + {"image": " ", "text": "\n", None: ""}[follows])
        return "".join(parts)


def make_message(role: str, pieces: Sequence[tuple[str, Any]]) -> Message:
    """A turn from its pieces. Where the text has `<image>` tags of its own, the pictures stand there.

    Raises InputError when such tags are not as many as the pictures.
    """
    text = "".join(value for kind, value in pieces if kind == "text")
    images = tuple(value for kind, value in pieces if kind == "image")
    if IMAGE_TAG not in text:
        return Message(role, tuple(pieces))
    if text.count(IMAGE_TAG) != len(images):
        raise InputError(
            f"the text has {text.count(IMAGE_TAG)} <image> tags of its own, but {len(images)} pictures: give one for "
            f"each, or leave the tags out"
        )
    return Message(role, (("text", text),), images)


def untagged(message: Message) -> Message:
    """The same turn with pictures as pieces where its text has `<image>` tags: for templates with tags of their own."""
    if not message.tagged:
        return message
    texts = "".join(value for kind, value in message.content if kind == "text").split(IMAGE_TAG)
    pieces: list[tuple[str, Any]] = [("text", texts[0])]
    for picture, text in zip(message.tagged, texts[1:], strict=True):
        pieces += [("image", picture), ("text", text)]
    return Message(message.role, tuple(piece for piece in pieces if piece != ("text", "")))


def user_message(text: str, images: Sequence[Any]) -> Message:
    """A question with its pictures in front, or where its own `<image>` tags stand."""
    return make_message("user", [*(("image", image) for image in images), ("text", text)])


@dataclass(frozen=True)
class Template:
    """write: (conversation, processor) -> prompt, which ends with the assistant's turn: open, or closed where the
    conversation has its answer. stop: the string at which an answer ends, None where only the checkpoint knows."""

    write: Callable[[Sequence[Message], Any], str]
    stop: str | None


def _turns(messages: Sequence[Message], system: str) -> tuple[str, list[tuple[str, str]]]:
    """The system prompt, and (role, text) of each turn. A system message takes the place of the template's own.

    The last turn is the assistant's; as in the llava package, one without a text is open. Raises InputError when
    the user does not begin.
    """
    if messages and messages[0].role == "system":
        system, messages = messages[0].text, messages[1:]
    turns = [(message.role, message.text) for message in messages]
    for place, (role, _) in enumerate(turns, start=1):
        if role not in ("user", "assistant"):
            raise InputError(
                f"turn {place} has the role {role!r}: only user and assistant follow a first system message"
            )
    if not turns or turns[0][0] != "user":
        raise InputError(
            "the conversation does not begin with the user: put a user message first, or behind the system's"
        )
    if turns[-1][0] == "user":
        turns.append(("assistant", ""))
    return system, turns


def _vicuna_v1(messages: Sequence[Message], _processor: Any) -> str:
    """LLaVA-1.5's own template: system prompt, ` USER: `, ` ASSISTANT:`. An answer ends with `</s>`, not a space."""
    system, turns = _turns(messages, VICUNA_SYSTEM)
    prompt = f"{system} "
    for role, text in turns:
        end = " " if role == "user" else "</s>"
        prompt += f"{role.upper()}: {text}{end}" if text else f"{role.upper()}:"
    return prompt


def _llama_2(messages: Sequence[Message], _processor: Any, *, system: str, begin: str) -> str:
    """Llama 2's `[INST] question [/INST] answer </s>`, the system prompt inside of the first question.

    Raises InputError when user and assistant do not take turns, or the first question is empty.
    """
    system, turns = _turns(messages, system)
    if any(role == following for (role, _), (following, _) in itertools.pairwise(turns)):
        raise InputError("two turns in a row are of the same role: in this conv_template user and assistant alternate")
    if not turns[0][1]:
        raise InputError("the user's first message is empty: this conv_template has no form for that")
    prompt = ""
    for place, (role, text) in enumerate(turns):
        if not text:
            continue
        if role == "assistant":
            # The package has a space in front of the end token, too.
            prompt += f" {text} </s>"
            continue
        if place == 0 and system:
            text = f"<<SYS>>\n{system}\n<</SYS>>\n\n{text}"
        # The package writes `begin` in front of every question and then takes it from the prompt's left
        # (`lstrip(sep)`), because the tokenizer begins the prompt with that token. So only later ones stay.
        prompt += f"{begin if place else ''}[INST] {text} [/INST]"
    return prompt


def _chatml_direct(messages: Sequence[Message], _processor: Any) -> str:
    """ChatML, without a new line between the turns. The package keeps the system's header in its system prompt."""
    system, turns = _turns(messages, _CHATML_SYSTEM)
    prompt = f"<|im_start|>system\n{system}<|im_end|>"
    for role, text in turns:
        prompt += f"<|im_start|>{role}\n" + (f"{text}<|im_end|>" if text else "")
    return prompt


def _plain(messages: Sequence[Message], _processor: Any) -> str:
    """The texts, each with a new line behind it: for a checkpoint whose projector alone was trained.

    The package cannot close an answer here (its second separator is unset); its training texts end with a new line.
    """
    system, turns = _turns(messages, "")
    return system + "".join(f"{text}\n" for _, text in turns if text)


def _hf(messages: Sequence[Message], processor: Any) -> str:
    """The checkpoint's own chat template."""
    if not getattr(processor, "chat_template", None):
        raise InputError("the checkpoint has no chat template: use conv_template=vicuna_v1")
    plain = [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": value} if kind == "text" else {"type": "image"}
                for kind, value in message.content
            ],
        }
        for message in messages
    ]
    try:
        return processor.apply_chat_template(
            plain, tokenize=False, add_generation_prompt=messages[-1].role != "assistant"
        )
    except (TypeError, jinja2.TemplateError) as error:
        raise InputError(
            f"the checkpoint's chat template does not take this conversation ({first_line(error)}): use another "
            f"conv_template, as vicuna_v1"
        ) from error


# vicuna_v1 in the form that processors keep: a converted checkpoint without a template of its own is given it.
VICUNA_CHAT_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% for item in messages[0]['content'] if item['type'] == 'text' %}{{ item['text'] }}{% endfor %}"
    "{% else %}" + VICUNA_SYSTEM + "{% endif %}"
    "{% for message in messages if message['role'] != 'system' %}"
    "{% if message['role'] == 'user' %}"
    "{% if loop.first or loop.previtem['role'] != 'assistant' %} {% endif %}USER: "
    "{% for item in message['content'] if item['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] }}{% endfor %}"
    "{% else %} ASSISTANT: "
    "{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] }}{% endfor %}</s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)

# mistral_instruct in that form.
MISTRAL_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] "
    "{% if loop.previtem is defined and loop.previtem['role'] == 'system' %}<<SYS>>\n"
    "{% for item in loop.previtem['content'] if item['type'] == 'text' %}{{ item['text'] }}{% endfor %}"
    "\n<</SYS>>\n\n{% endif %}"
    "{% for item in message['content'] if item['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] }}{% endfor %} [/INST]"
    "{% elif message['role'] == 'assistant' %} "
    "{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] }}{% endfor %} </s>"
    "{% endif %}{% endfor %}"
)

TEMPLATES = {
    "vicuna_v1": Template(_vicuna_v1, "</s>"),
    "plain": Template(_plain, "\n"),
    "llava_llama_2": Template(partial(_llama_2, system=_LLAVA_LLAMA_2_SYSTEM, begin="<s>"), "</s>"),
    # Its `begin` is empty in the package: a later question does not begin with the begin token.
    "mistral_instruct": Template(partial(_llama_2, system="", begin=""), "</s>"),
    "chatml_direct": Template(_chatml_direct, "<|im_end|>"),
    "hf": Template(_hf, None),
}
DEFAULT_TEMPLATE = "vicuna_v1"


def check_template(name: str) -> str:
    """The name itself, if there is such a template; InputError with the nearest one if not."""
    if name not in TEMPLATES:
        raise InputError(unknown("conv_template", name, TEMPLATES))
    return name


def check_system_prompt(text: Any) -> Any:
    """The text itself, or None; InputError for what a file or a command line took for something else."""
    if text is not None and not isinstance(text, str):
        raise InputError(f"system_prompt is {text!r}: give a text")
    return text


def render(template: str, messages: Sequence[Message], processor: Any) -> str:
    """The prompt of a conversation, ready for the processor."""
    return TEMPLATES[check_template(template)].write(messages, processor)


def stop_string(template: str) -> str | None:
    """The string at which an answer ends in a template; None for `hf`, where the checkpoint's end token says it."""
    return TEMPLATES[check_template(template)].stop


def question_span(text: str) -> tuple[int, int]:
    """(start, end) of the question itself in a user's text: no `<image>` tags around it, no options, no instruction.

    Options are lines such as `A. red`, `B. blue`, …; the question is what stands in front of the first of them, or
    behind the last where nothing stands in front. A hint or context in front of the question belongs to it; last lines
    that say how to answer (INSTRUCTION_STARTS) do not. Raises InputError when nothing is left.
    """
    first, last = _options(text) or (len(text), len(text))
    # Where an instruction would be all there is, a line that only begins like one is the question.
    for openings in (INSTRUCTION_STARTS, _INSTRUCTIONS):
        for start, end in ((0, first), (last, len(text))):
            start, end = _without_instruction(text, start, end, openings)
            if start < end:
                return start, end
    raise InputError(
        f"the prompt {text[-80:]!r} has no question: only tags, options and instructions are in it, "
        f"leave text_scope=question out"
    )


def _options(text: str) -> tuple[int, int] | None:
    """(start of the first option's line, end of the last one's); None without an A that a B follows.

    A line that only looks like an option (`A. Lincoln spoke here.`) is none: no B comes next.
    """
    lines = [(match["round"] or match["bare"], match) for match in _OPTION.finditer(text)]
    for place, ((letter, first), (following, _)) in enumerate(itertools.pairwise(lines)):
        if letter + following != "AB":
            continue
        last = first
        for expected, (letter, match) in enumerate(lines[place:], start=ord("A")):
            if letter != chr(expected):
                break
            last = match
        end = text.find("\n", last.end())
        return first.start(), len(text) if end < 0 else end
    return None


def _without_instruction(text: str, start: int, end: int, openings: tuple[str, ...]) -> tuple[int, int]:
    """The range without tags and white space around it and without last lines that begin with one of the openings."""
    start = _TAGS_AND_SPACE.match(text, start, end).end()  # type: ignore[union-attr]  # it matches nothing as well
    while True:
        end = start + len(text[start:end].rstrip())
        line = max(start, text.rfind("\n", start, end) + 1)
        if text.endswith(IMAGE_TAG, start, end):
            end -= len(IMAGE_TAG)
        elif text[line:end].lstrip().startswith(openings):
            end = line
        else:
            return start, end
