"""What a task hands over, pictures or messages, as ours. To be used inside `pictures.strict_pillow`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from lmms_textweighted.errors import InputError
from lmms_textweighted.pictures import as_rgb, open_picture
from lmms_textweighted.prompts import Message, make_message, user_message


def pictures(visuals: Any) -> list[Image.Image]:
    """A task's visuals as RGB pictures. Raises InputError for what is no picture, or a broken one."""
    return [picture(visual) for visual in visuals or []]


def picture(visual: Any) -> Image.Image:
    """One visual: a picture, or the path of one."""
    if isinstance(visual, Image.Image):
        return as_rgb(visual)
    if isinstance(visual, str | Path) and Path(visual).is_file():
        return open_picture(visual)
    raise InputError(f"a visual is {str(visual)[:80]!r}: give pictures, or the paths of files")


def chat_message(item: dict[str, Any]) -> Message:
    """One message of lmms-eval's chat interface. Raises InputError where it holds more than text and pictures."""
    content = item["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    pieces: list[tuple[str, Any]] = []
    for piece in content:
        if piece["type"] == "text":
            pieces.append(("text", piece["text"]))
        elif piece["type"] == "image":
            pieces.append(("image", picture(piece["url"])))
        else:
            raise InputError(f"a message holds {piece['type']!r}: give text and pictures only")
    return make_message(item["role"], pieces)


def check_examples(given_by: Any, images: Sequence[Any]) -> None:
    """Raise InputError for few-shot examples in a task with pictures. given_by: the task's function of the request."""
    shots = getattr(getattr(getattr(given_by, "__self__", None), "config", None), "num_fewshot", None)
    if shots and images:
        raise InputError(f"num_fewshot is {shots}: lmms-eval gives the examples without their pictures: leave it out")


def asked_in_front(messages: list[Message], context: Any, doc_to_messages: Any, document: Any) -> list[Message]:
    """The messages with what the simple interface's text has in front of the question, where a system instruction was
    asked for.

    context: that text. lmms-eval hands it over in both interfaces, but leaves it out of the messages. What a task alone
    has there (its description) stays as lmms-eval's chat interface has it, so that its own models get the same prompt.
    Raises InputError where it cannot be told which part of the text that is.
    """
    task: Any = getattr(doc_to_messages, "__self__", None)
    if not isinstance(context, str) or not hasattr(task, "fewshot_context"):
        return messages
    if task.config.doc_to_visual is None and not callable(task.config.doc_to_messages):  # examples and all
        return [user_message(context, [])]
    question = task.doc_to_text(document)
    if context == task.fewshot_context(document, task.config.num_fewshot or 0):
        return messages
    users = [place for place, message in enumerate(messages) if message.role == "user"]
    if not isinstance(question, str) or not context.endswith(question) or not users:
        raise InputError("system_instruction: this task's text does not show where it ends: use --force_simple")
    front, first = context.removesuffix(question), messages[users[0]]
    pieces, place = list(first.content), next((i for i, (kind, _) in enumerate(first.content) if kind == "text"), None)
    if place is None:
        pieces.append(("text", front))
    else:
        pieces[place] = ("text", front + pieces[place][1])
    return [replace(first, content=tuple(pieces)) if i == users[0] else message for i, message in enumerate(messages)]
