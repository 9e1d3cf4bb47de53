"""The two other inputs of a document: its pictures with another document's question, and mirrored left to right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import ImageOps

from lmms_textweighted.prompts import Message


def with_pictures(message: Message, pictures: Sequence[Any]) -> Message:
    """The message with these pictures in the place of its own, in order: as many as it has."""
    given = iter(pictures)
    content = tuple((kind, next(given) if kind == "image" else value) for kind, value in message.content)
    return replace(message, content=content, tagged=tuple(next(given) for _ in message.tagged))


def mirrored(message: Message) -> Message:
    """The message with each picture mirrored left to right."""
    return with_pictures(message, [ImageOps.mirror(picture) for picture in message.images])


def without_pictures(message: Message) -> Message:
    """The message with None for each picture: what `other_question` needs of the others, at no memory."""
    return with_pictures(message, [None] * len(message.images))


def other_question(own: Message, number: int, others: Sequence[Message]) -> Message | None:
    """The pictures of `own`, which is number `number` of `others`, with the text of the next one that has another text
    and as many pictures; after the last comes the first. None where there is none."""
    for step in range(1, len(others)):
        other = others[(number + step) % len(others)]
        if other.text != own.text and len(other.images) == len(own.images):
            return with_pictures(other, own.images)
    return None
