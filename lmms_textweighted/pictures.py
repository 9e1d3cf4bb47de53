"""Pictures, read whole or refused, and made RGB in one way, wherever they come from.

lmms-eval tells Pillow, for the whole process, to fill up what a truncated file lacks; a model would then be asked about
a grey half. And a small file may say that it is a picture of many gigabytes. Neither is let through here.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageFile, UnidentifiedImageError

from lmms_textweighted.errors import InputError, first_line

# How large a picture may become, as the model arguments are called: see `families.LoadOptions`.
PICTURE_LIMITS = ("min_pixels", "max_pixels", "min_patches", "max_patches")


@dataclass(frozen=True)
class CheckedPicture:
    """A picture file's SHA-256, and why it cannot be used; reason None: it can."""

    sha256: str
    reason: str | None


@contextmanager
def strict_pillow() -> Iterator[None]:
    """While open, Pillow fills nothing up, and refuses a picture of more than Image.MAX_IMAGE_PIXELS by its header.

    Not only what is opened here: also what a data set or a task's own function decodes meanwhile.
    """
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def open_picture(path: Path | str) -> Image.Image:
    """The picture in RGB, decoded to its last pixel. Raises InputError that names the file."""
    named = repr(str(path))
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{_unread(named, error)}: give the path of a picture") from error
    with _named(named), strict_pillow():
        picture = _decoded(data)
    return as_rgb(picture)


def as_rgb(picture: Image.Image) -> Image.Image:
    """The picture in RGB, on white where it is transparent, as transformers' image processors have it.

    (`Image.convert` alone drops the transparency and shows the colours behind it.) Raises InputError where its file
    cannot be read: Pillow reads a file when the first pixel is asked for.
    """
    with _named("a picture"), strict_pillow():
        if "A" not in picture.getbands() and picture.info.get("transparency") is None:
            return picture.convert("RGB")
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def check_pictures(paths: Iterable[Path]) -> dict[Path, CheckedPicture]:
    """Decode every picture to its last pixel, in threads."""
    distinct = list(dict.fromkeys(paths))
    with strict_pillow(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(distinct, pool.map(_check, distinct), strict=True))


def _check(path: Path) -> CheckedPicture:
    named = repr(str(path))
    try:
        data = path.read_bytes()
    except OSError as error:
        return CheckedPicture("", _unread(named, error))
    reason = None
    try:
        _decoded(data)
    except Exception as error:  # the decoders raise many kinds
        reason = _broken(named, error)
    return CheckedPicture(hashlib.sha256(data).hexdigest(), reason)


def _decoded(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as picture:
        picture.verify()
    picture = Image.open(io.BytesIO(data))  # verify leaves nothing to load
    picture.load()
    return picture


@contextmanager
def _named(named: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the decoders raise many kinds
        raise InputError(
            f"{_broken(named, error)}: give a whole picture, of a format and size that Pillow takes"
        ) from error


def _unread(named: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{named} is missing"
    return f"{named} cannot be read: {error.strerror or error}"


def _broken(named: str, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own text names an address in memory
        return f"{named} is no picture"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"{named} has more than {Image.MAX_IMAGE_PIXELS} pixels"
    return f"{named} is broken: {first_line(error)}"
