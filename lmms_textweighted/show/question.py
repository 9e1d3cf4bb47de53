"""A question of a user's own, and the options of its answer."""

from __future__ import annotations

from collections.abc import Sequence

from lmms_textweighted.errors import InputError
from lmms_textweighted.prompts import SINGLE_PREDICTION_PROMPT

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def options_of(choices: str | None) -> list[str]:
    """`red,blue` -> its options; none where none are given. Raises InputError for one alone, and for too many."""
    if choices is None:
        return []
    options = [choice.strip() for choice in choices.split(",") if choice.strip()]
    if not 2 <= len(options) <= len(LETTERS):
        raise InputError(f"choices is {choices!r}: give 2 to {len(LETTERS)} options with commas between them")
    return options


def asked_for(question: str, options: Sequence[str]) -> str:
    """The prompt's text: with options, they and the words that ask for a letter stand behind the question."""
    if not options:
        return question
    lines = "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return question + lines + SINGLE_PREDICTION_PROMPT


def letter_of(target: str | None, options: Sequence[str]) -> str | None:
    """The answer that is right: an option's letter. Raises InputError for a target that is no option."""
    if target is None or not options:
        return target
    if target in options:
        return LETTERS[list(options).index(target)]
    if target not in LETTERS[: len(options)] or not target:
        raise InputError(f"target is {target!r}, which is none of the choices: give an option or its letter")
    return target
