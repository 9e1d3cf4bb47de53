"""What a task hands over, pictures or messages, as ours. To be used inside `pictures.strict_pillow`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from lmms_textweighted.errors import InputError
from lmms_textweighted.pictures import as_rgb, open_picture
from lmms_textweighted.prompts import Message, make_message


def pictures(visuals: Any) -> list[Image.Image]:
    """A task's visuals as RGB pictures. Raises InputError for what is no picture, or a broken one."""
    return [picture(visual) for visual in visuals or []]


def picture(visual: Any) -> Image.Image:
    """One visual: a picture, or the path of one."""
    if isinstance(visual, Image.Image):
        return as_rgb(visual)
    if isinstance(visual, str | Path) and Path(visual).is_file():
        return open_picture(visual)
    raise InputError(f"a visual is {str(visual)[:80]!r}: llava_textweighted takes pictures only")


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
            raise InputError(f"a message holds {piece['type']!r}: llava_textweighted takes text and pictures only")
    return make_message(item["role"], pieces)
