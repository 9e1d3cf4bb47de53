"""Questions in LLaVA's own format: a JSON list and a folder of pictures, checked before anything heavy is loaded.

    [{"id": "5", "image": "5/image.png",
      "conversations": [{"from": "human", "value": "<image>\\nWhich is red?\\nA. the disc\\nB. the square"},
                        {"from": "gpt", "value": "B"}]}, …]

`image` may be left out, and so may the `<image>` tag. Options are lines from `A. …` to at most `H. …`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmms_textweighted.errors import InputError, first_line
from lmms_textweighted.pictures import check_pictures
from lmms_textweighted.prompts import IMAGE_TAG

LETTERS = "ABCDEFGH"
_OPTION = re.compile(rf"[ \t]*([{LETTERS}])\.(?:[ \t]+(.*))?")
_LISTED = 20  # of a long list in an error, the rest is counted


@dataclass(frozen=True)
class Question:
    """One question. text: the human's words as they stand. image: None where the question has no picture.

    label: the right option's letter. options: their texts, A first.
    """

    id: str
    text: str
    image: Path | None
    label: str
    options: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The text without its tag, wherever that stands, and without white space around it.

        The picture goes in front, as in LLaVA's own scripts (model_vqa_science.py).
        """
        return self.text.replace(IMAGE_TAG, "").strip()

    @property
    def answer(self) -> int:
        """The right option's place, from 0."""
        return LETTERS.index(self.label)


@dataclass(frozen=True)
class QuestionSet:
    """What was read. skipped: (id, reason) of the questions left out. sha256: the question file's.

    picture_hashes: id -> SHA-256 of its picture's file, where pictures were checked.
    """

    questions: tuple[Question, ...]
    skipped: tuple[tuple[str, str], ...]
    sha256: str
    picture_hashes: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of the file, the pictures, and which questions are left out."""
        parts = [self.sha256, sorted(self.picture_hashes.items()), [key for key, _ in self.skipped]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read_questions(
    question_file: Path | str,
    image_folder: Path | str | None,
    *,
    skip_missing: bool = False,
    check_images: bool = True,
) -> QuestionSet:
    """Read and check a question file and its pictures.

    skip_missing leaves out the questions whose picture is missing or broken; without it they are an error that lists
    them. check_images=False looks at no picture, and needs no folder. Raises InputError for everything that is wrong.
    """
    question_file = Path(question_file)
    folder = None if image_folder is None else Path(image_folder)
    named = f"question file {str(question_file)!r}"
    data = _read(question_file, named)
    entries = _parse(data, named)
    questions = [_question(entry, number, named, folder) for number, entry in enumerate(entries)]
    repeated = [key for key, count in Counter(question.id for question in questions).items() if count > 1]
    if repeated:
        raise InputError(f"{named} has more than one entry with id {_some(map(repr, repeated))}: make the ids unique")
    sha256 = hashlib.sha256(data).hexdigest()
    if not check_images:
        return QuestionSet(tuple(questions), (), sha256)
    _check_folder(folder, questions, named)
    checked = check_pictures([question.image for question in questions if question.image])
    failed = {key.id: checked[key.image].reason for key in questions if key.image and checked[key.image].reason}
    usable = tuple(question for question in questions if question.id not in failed)
    skipped = tuple((key, reason) for key, reason in failed.items() if reason)
    if skipped and (not skip_missing or not usable):
        listed = [f"{reason} (id {key!r})" for key, reason in skipped]
        # One stands in the line; of many, each has a line of its own, to be found and counted.
        text = f" {listed[0]}" if len(listed) == 1 else "".join(f"\n  {line}" for line in listed)
        advice = (
            f"put the pictures into {str(folder)!r}"
            if skip_missing
            else f"put the pictures into {str(folder)!r}, or leave these questions out with --skip-missing "
            "(in lmms-eval LMMS_TEXTWEIGHTED_SKIP_MISSING=1)"
        )
        raise InputError(f"{named}: {len(skipped)} of {len(questions)} pictures cannot be used: {advice}:{text}")
    hashes = {question.id: checked[question.image].sha256 for question in usable if question.image}
    return QuestionSet(usable, skipped, sha256, hashes)


def find_options(text: str) -> tuple[str, ...]:
    """The texts of the last lines `A. …`, `B. …`, … that follow each other in order, if there are at least two."""
    found: list[str] = []
    last: tuple[str, ...] = ()
    for line in text.split("\n"):
        match = _OPTION.fullmatch(line.rstrip("\r"))
        if match is None:
            continue
        letter, option = match.group(1), (match.group(2) or "").strip()
        if letter == "A":
            found = []
        if letter == LETTERS[len(found) % len(LETTERS)]:
            found = [*found, option]
            if len(found) > 1:
                last = tuple(found)
        else:
            found = []
    return last


def _read(path: Path, named: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{named} does not exist: give the path of a JSON file") from None
    except OSError as error:
        raise InputError(f"{named} cannot be read: {error.strerror or error}") from error


def _parse(data: bytes, named: str) -> list[Any]:
    encoding = json.detect_encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{named} is no {encoding} text (byte {error.start}): save it as UTF-8") from error
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{named} is no JSON: {error.msg}, line {error.lineno}, column {error.colno}: it must be one list"
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deeply, a number of too many digits
        raise InputError(f"{named} cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(entries, list):
        raise InputError(f'{named} holds {_kind(entries)}, not a list: write [{{"id": …, "conversations": …}}, …]')
    if not entries:
        raise InputError(f"{named} holds an empty list: give at least one question")
    return entries


def _question(entry: Any, number: int, named: str, folder: Path | None) -> Question:
    where = f"{named}, entry {number}"
    if not isinstance(entry, dict):
        raise InputError(f'{where} is {_kind(entry)}, not an object: write {{"id": …, "conversations": …}}')
    key = _field(entry, "id", (str, int), where)
    where += f" (id {str(key)!r})"
    text, label = _turns(entry, where)
    name = _field(entry, "image", str, where) if entry.get("image") is not None else None
    tags = text.count(IMAGE_TAG)
    if name is None and tags:
        raise InputError(f"{where} has an {IMAGE_TAG} tag but no image: name its file in image, or take the tag out")
    if tags > 1:
        raise InputError(f"{where} has {tags} {IMAGE_TAG} tags for its one image: leave one of them")
    options = find_options(text.replace(IMAGE_TAG, ""))
    if len(options) < 2:
        raise InputError(f"{where} has no two options: write them as the lines `A. …`, `B. …` of the human's value")
    letters = LETTERS[: len(options)]
    if len(label) != 1 or label not in letters:
        raise InputError(f"{where} has the answer {label!r}, which is none of its options {', '.join(letters)}")
    image = None if name is None else _picture_path(name, folder, where)
    return Question(str(key), text, image, label, options)


def _turns(entry: dict[str, Any], where: str) -> tuple[str, str]:
    """The human's text and the label."""
    turns = _field(entry, "conversations", list, where)
    if len(turns) != 2:
        raise InputError(f"{where} has {len(turns)} conversations: give two, the human's question and gpt's letter")
    values = []
    for place, (turn, speaker) in enumerate(zip(turns, ("human", "gpt"), strict=True)):
        here = f"{where}, conversations[{place}]"
        if not isinstance(turn, dict):
            raise InputError(f"{here} is {_kind(turn)}, not an object with from and value")
        said = _field(turn, "from", str, here)
        if said != speaker:
            raise InputError(f"{here} is from {said!r}: it must be from {speaker!r}")
        values.append(_field(turn, "value", str, here))
    return values[0], values[1].strip()


def _field(entry: dict[str, Any], name: str, kinds: type | tuple[type, ...], where: str) -> Any:
    """An entry's value, which must be there, of the right type, and no empty or broken text."""
    if name not in entry:
        raise InputError(f"{where} has no {name}: add it")
    value = entry[name]
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, kinds) or isinstance(value, bool):
        needed = " or ".join(_NAMES[kind] for kind in kinds)
        raise InputError(f"{where} has {_kind(value)} as {name}: give {needed}")
    if isinstance(value, str):
        if not value.strip():
            raise InputError(f"{where} has an empty {name}: fill it in")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{where} has half a character (position {error.start}) in {name}: correct it") from error
    return value


def _picture_path(name: str, folder: Path | None, where: str) -> Path:
    """Where the picture is. Raises InputError for a path that leaves the folder, by itself or by a symbolic link."""
    inside = os.path.normpath(name)
    if "\0" in name or os.path.isabs(name) or inside == os.pardir or inside.startswith(os.pardir + os.sep):
        raise InputError(f"{where} has the image {name!r}: give a path inside the image folder")
    if folder is None:
        return Path(name)
    path = folder / name
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError):  # a loop of links, a name too long: reading it will say so
        return path
    if not resolved.is_relative_to(folder.resolve()):
        raise InputError(
            f"{where} has the image {name!r}, a link that leads out of the image folder: copy the file there"
        )
    return path


def _check_folder(folder: Path | None, questions: Sequence[Question], named: str) -> None:
    count = sum(question.image is not None for question in questions)
    if folder is None and count:
        raise InputError(
            f"{named} names {count} {'picture' if count == 1 else 'pictures'}, but no image folder is given: give "
            "--image-folder (in lmms-eval LMMS_TEXTWEIGHTED_IMAGE_FOLDER)"
        )
    if folder is not None and not folder.is_dir():
        raise InputError(f"image folder {str(folder)!r} is no folder: give the one that the images of {named} are in")


_NAMES: dict[type, str] = {
    str: "a text",
    int: "a whole number",
    list: "a list",
    dict: "an object",
    bool: "true or false",
}


def _kind(value: Any) -> str:
    """A JSON value's type in words, and the value where it is short."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return json.dumps(value)[:40]
    return _NAMES.get(type(value), type(value).__name__)


def _some(texts: Iterable[str]) -> str:
    listed = list(texts)
    rest = f", … and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + rest
