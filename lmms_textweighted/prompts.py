"""Prompts: the conversation around a question, and the single-prediction instruction.

A message's content is a list of pieces: ("text", str) or ("image", picture). Rendering gives the prompt with one
`<image>` tag a picture; the processor turns each tag into that picture's image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmms_textweighted.errors import InputError, unknown

IMAGE_TAG = "<image>"
SINGLE_PREDICTION_PROMPT = "\nAnswer with the option's letter from the given choices directly."
SHORT_ANSWER_PROMPT = "\nAnswer the question using a single word or phrase."

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


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
        raise InputError(f"the text has {text.count(IMAGE_TAG)} <image> tags of its own, but {len(images)} pictures")
    return Message(role, (("text", text),), images)


def user_message(text: str, images: Sequence[Any]) -> Message:
    """A question with its pictures in front, or where its own `<image>` tags stand."""
    return make_message("user", [*(("image", image) for image in images), ("text", text)])


def vicuna_v1(messages: Sequence[Message], _processor: Any) -> str:
    """LLaVA-1.5's own template: system prompt, ` USER: `, ` ASSISTANT:`."""
    system = VICUNA_SYSTEM
    parts, space = [], " "
    for message in messages:
        if message.role == "system":
            system = message.text
        elif message.role == "user":
            parts.append(f"{space}USER: {message.text}")
        else:
            parts.append(f" ASSISTANT: {message.text}</s>")
            space = ""  # the end of a turn takes the place of the space
    return system + "".join(parts) + (" ASSISTANT:" if messages[-1].role != "assistant" else "")


def hf(messages: Sequence[Message], processor: Any) -> str:
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
    return processor.apply_chat_template(plain, tokenize=False, add_generation_prompt=messages[-1].role != "assistant")


TEMPLATES = {"vicuna_v1": vicuna_v1, "hf": hf}
DEFAULT_TEMPLATE = "vicuna_v1"


def check_template(name: str) -> str:
    """The name itself, if there is such a template; InputError with the nearest one if not."""
    if name not in TEMPLATES:
        raise InputError(unknown("conv_template", name, TEMPLATES))
    return name


def render(template: str, messages: Sequence[Message], processor: Any) -> str:
    """The prompt of a conversation, ready for the processor."""
    return TEMPLATES[check_template(template)](messages, processor)
