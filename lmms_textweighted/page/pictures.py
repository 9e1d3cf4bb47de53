"""Pictures as the page holds them: as small as they can be without a difference that one sees."""

from __future__ import annotations

import base64
import io

from PIL import Image, features

LONGEST = 1344  # pixels of a side: of larger canvases a smaller copy is kept
_QUALITY = 82


def data_uri(image: Image.Image) -> str:
    """The picture as a data URI: WebP where this Pillow writes it, else JPEG; PNG where that is smaller."""
    image = image.convert("RGB")
    if max(image.size) > LONGEST:
        image = image.copy()
        image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    lossy = "webp" if features.check("webp") else "jpeg"
    made = [(lossy, _encoded(image, lossy, quality=_QUALITY))]
    if len(image.getcolors(256) or ()):  # drawn, not photographed
        made.append(("png", _encoded(image, "png", optimize=True)))
    kind, content = min(made, key=lambda one: len(one[1]))
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _encoded(image: Image.Image, kind: str, **options: int | bool) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
