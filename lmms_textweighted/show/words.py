"""Text with a colour behind every piece of it, in lines that fit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache

from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path

POINTS = 72  # an inch
_BREAK = "↵"
_OTHER_LETTERS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Arial Unicode MS",
)


@dataclass(frozen=True)
class Word:
    """A piece of text on a line: where it begins and how wide it is, in inches, and its weight (None: it has none)."""

    text: str
    line: int
    left: float
    width: float
    weight: float | None


def font(points: float, *, bold: bool = False) -> FontProperties:
    """The one font of these pictures, and for letters that it lacks others, where they are installed."""
    return FontProperties(family=_families(), size=points, weight="bold" if bold else "normal")


@contextmanager
def missing_letters() -> Iterator[None]:
    """While open, a letter that no font has is drawn as a box, and matplotlib says nothing of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


@cache
def _families() -> list[str]:
    installed = {entry.name for entry in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _OTHER_LETTERS if name in installed)]


@lru_cache(maxsize=20_000)
def width_of(text: str, points: float, *, bold: bool = False) -> float:
    """How wide a text is, in inches."""
    if not text:
        return 0.0
    with missing_letters():
        return text_to_path.get_text_width_height_descent(text, font(points, bold=bold), ismath=False)[0] / POINTS


def lay_out(pieces: Sequence[tuple[str, float | None]], width: float, points: float) -> list[Word]:
    """Pieces of text one after the other, in lines of at most `width` inches.

    A line breaks in front of a piece that does not fit, and behind a line break of the text, which is shown as a sign.
    A piece that is wider than a line is cut into parts of the same weight.
    """
    words: list[Word] = []
    line, left = 0, 0.0
    for text, weight in pieces:
        for part in _parts(text, width, points):
            wide = width_of(part, points)
            if left and left + wide > width:
                line, left = line + 1, 0.0
            words.append(Word(part, line, left, wide, weight))
            left += wide
            if part.endswith(_BREAK):
                line, left = line + 1, 0.0
    return words


def lines_of(words: Sequence[Word]) -> int:
    return max((word.line for word in words), default=-1) + 1


def draw_words(
    axes: Axes, words: Sequence[Word], points: float, line_height: float, colors: Colormap, norm: Normalize
) -> None:
    """Draw words on axes whose units are inches, y downwards from 0."""
    for word in words:
        top = word.line * line_height
        color = "black"
        if word.weight is not None:
            shade = colors(norm(word.weight))
            axes.add_patch(Rectangle((word.left, top), word.width, line_height * 0.86, color=shade, linewidth=0))
            color = "white" if _luminance(shade) < 0.45 else "black"
        axes.text(
            word.left,
            top + line_height * 0.62,
            word.text,
            color=color,
            fontproperties=font(points),
            va="baseline",
            parse_math=False,
        )


def wrapped(text: str, width: float, points: float, *, bold: bool = False) -> list[str]:
    """A plain text in lines of at most `width` inches, broken at spaces where there are some."""
    lines: list[str] = []
    for paragraph in "".join(char if char.isprintable() or char == "\n" else " " for char in text).split("\n"):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if width_of(longer, points, bold=bold) <= width:
                line = longer
                continue
            lines += [line] if line else []
            *full, line = _cut(word, width, points)
            lines += full
        lines.append(line)
    return lines


def _parts(text: str, width: float, points: float) -> list[str]:
    """A piece, each of its line breaks shown at the end of a part of its own line, none wider than a line."""
    shown = "".join(_BREAK + "\n" if char == "\n" else char if char.isprintable() else " " for char in text)
    return [part for line in shown.split("\n") if line for part in _cut(line, width, points)]


def _cut(text: str, width: float, points: float) -> list[str]:
    parts = [""]
    for char in text:
        if parts[-1] and width_of(parts[-1] + char, points) > width:
            parts.append("")
        parts[-1] += char
    return parts if len(parts) > 1 else [text]


def _luminance(color: tuple[float, ...]) -> float:
    red, green, blue = color[:3]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
