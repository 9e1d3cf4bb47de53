"""What a processor writes into a prompt for its pictures, and where every character of it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Written:
    """One picture in a prompt: its placeholder's range of characters, and the text that stands there instead."""

    span: tuple[int, int]
    text: str

    @classmethod
    def read(cls, offsets: Sequence[dict[str, Any]]) -> list[Written]:
        """One prompt's entries of a processor's `text_replacement_offsets`."""
        return [cls((int(entry["span"][0]), int(entry["span"][1])), entry["replacement"]) for entry in offsets]


def expanded(prompt: str, written: Sequence[Written]) -> str:
    """The prompt with every picture's text in the place of its placeholder."""
    parts, start = [], 0
    for one in written:
        parts += [prompt[start : one.span[0]], one.text]
        start = one.span[1]
    return "".join([*parts, prompt[start:]])


def spans_before(spans: Sequence[tuple[int, int]], written: Sequence[Written]) -> list[tuple[int, int]]:
    """Ranges of the expanded prompt, ascending, as ranges of the prompt itself.

    What lies in a picture's text is given its placeholder's range.
    """
    found, place, grown = [], 0, 0
    for first, last in spans:
        while place < len(written) and first >= written[place].span[0] + grown + len(written[place].text):
            one = written[place]
            grown += len(one.text) - (one.span[1] - one.span[0])
            place += 1
        inside = place < len(written) and last > written[place].span[0] + grown
        found.append(written[place].span if inside else (first - grown, last - grown))
    return found
