"""What a document is, apart from how it is asked: a hash that a changed prompt leaves alone."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lmms_textweighted.harness.documents import Document


def content_hash(document: Document) -> str:
    """16 hex digits of SHA-256 over the document's fields, target and decoded pictures.

    Absolute paths count by their name alone, so that the same data elsewhere have the same hash. Values that are
    neither plain data nor bytes (a picture's object, a video's decoder) count by their type: the pictures that the
    model is given are hashed as pixels.
    """
    plain = json.dumps([_plain(document.fields), document.target], sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(plain.encode())
    for image in document.message.images:
        digest.update(repr(image.size).encode())
        digest.update(image.tobytes())
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, str):
        return Path(value).name if os.path.isabs(value) else value
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return value if isinstance(value, int | float | None) else type(value).__name__
