"""Which of a prompt's tokens are the question's, and what the user says in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from lmms_textweighted.errors import InputError
from lmms_textweighted.families.base import IMAGE_TAG_ID, Family
from lmms_textweighted.families.written import Written
from lmms_textweighted.prompts import IMAGE_TAG, Message, question_span, render


def users_text(messages: Sequence[Message]) -> str:
    """What the last user turn says, without `<image>` tags and white space around it; "" without a user turn."""
    turns = [message.text for message in messages if message.role == "user"]
    return turns[-1].replace(IMAGE_TAG, " ").strip() if turns else ""


def question_tokens(
    family: Family, prompt: str, messages: Sequence[Message], template: str, written: Sequence[Written] | None = None
) -> torch.Tensor:
    """Which of a prompt's text tokens are its question's: bool, one a text token in order (images not counted).

    written: what the processor wrote for the prompt's pictures, which has text tokens, too; None where it does not say.
    The question is that of the last user turn, see `prompts.question_span`. Raises InputError when it is not found.
    """
    turns = [message.text for message in messages if message.role == "user"]
    if not turns:
        raise InputError("text_scope=question: the conversation has no user turn")
    first, last = question_span(turns[-1])
    # From the end of the turn: an earlier one or the system prompt may hold the same words, and so may a role's tag
    # behind it. A template may trim the turn.
    behind = _end_of_last_question(family.processor, messages, template)
    start = prompt.rfind(turns[-1][first:].rstrip(), 0, behind)
    if start < 0:
        start = prompt.rfind(turns[-1][first:last], 0, behind)
    if start < 0:
        raise InputError("text_scope=question: the template changes the question's text, so its tokens are not known")
    end = start + last - first
    if written is None:
        ids, spans = family.pieces(prompt, template, offsets=True)
    else:
        ids, spans = family.expanded_pieces(prompt, template, written)
    marks = [
        begin < end and finish > start
        for token, (begin, finish) in zip(ids, spans, strict=True)
        if token != IMAGE_TAG_ID
    ]
    return torch.tensor(marks, dtype=torch.bool)


def _end_of_last_question(processor: Any, messages: Sequence[Message], template: str) -> int:
    """Where the last user turn ends in the rendered prompt: where a mark stands that is added to it."""
    mark, place = "\ue000", max(number for number, message in enumerate(messages) if message.role == "user")
    marked = list(messages)
    marked[place] = replace(messages[place], content=(*messages[place].content, ("text", mark)))
    return render(template, marked, processor).rfind(mark)
