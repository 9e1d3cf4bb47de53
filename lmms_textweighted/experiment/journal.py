"""What a sweep has answered, on disk as it goes, so that a run that is killed goes on after its last whole document.

A file a process, of JSON lines. The first says what the run is, see `experiment.head`; each further one is a document
with all its outcomes. A line is `{"crc": …, "entry": …}`, crc being the CRC-32 of the entry's text, and is on the disk
before the next document is begun. Numbers come back as they were: JSON writes a float so that reading gives the same
bits.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from lmms_textweighted.errors import InputError
from lmms_textweighted.experiment.files import on_disk
from lmms_textweighted.experiment.head import difference
from lmms_textweighted.experiment.outcomes import Answered, Outcome
from lmms_textweighted.parallel.locks import taken
from lmms_textweighted.parallel.processes import world

_ENDING = ".answers.jsonl"
_ANEW = "--overwrite starts anew, another --output-dir leaves it alone"


class Journal:
    """This process's journal, open to be added to, and what all journals of the run say so far.

    found: documents that are answered, by number, whichever process answered them: a run may go on with another number
    of processes.
    """

    def __init__(self, result: Path, head: Mapping[str, Any], *, overwrite: bool) -> None:
        """The journal of the result `result`, for the run that `head` says.

        overwrite: nothing is taken from what is there. Raises InputError when another process has it open, when what
        is there is of another run, is damaged, or cannot be read or written, and when the result is there already: with
        no journal beside it that says that it was to be replaced.
        """
        rank, size = world()
        name = f"{_ENDING}.part" if size == 1 else f"{_ENDING}.rank{rank}of{size}.part"
        self.path, self._read = result.with_name(f"{result.stem}{name}"), set(journals(result))
        self._points = len(head["points"])
        self.found: dict[int, Answered] = {}
        try:
            # Never renamed or made anew: who has it open must be the only one who writes it.
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._problem(error) from error
        try:
            if not taken(self._file):
                raise InputError(f"another sweep writes {str(result)!r} just now: give another --output-dir")
            self._end = 0 if overwrite else self._resume(result, head)
            os.ftruncate(self._file, self._end)
            if not self._end:
                self._write(dict(head))
                on_disk(self.path.parent)
            if overwrite and rank == 0:
                self._remove_others(size)
        except OSError as error:
            os.close(self._file)
            raise self._problem(error) from error
        except InputError:
            os.close(self._file)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._file)

    def add(self, answered: Answered) -> None:
        """Note a document; when this returns it is on the disk. Raises InputError when it cannot be written."""
        try:
            self._write(asdict(answered))
        except OSError as error:
            raise self._problem(error) from error

    def remove(self) -> None:
        """The result is there: nothing is to go on from."""
        for path in {*self._read, self.path}:
            path.unlink(missing_ok=True)

    def _resume(self, result: Path, head: Mapping[str, Any]) -> int:
        """Read all journals of the result into `found`; the length of this process's own, without a torn last line."""
        end, this_run = 0, False
        for path in sorted({*self._read, self.path}, key=lambda path: path == self.path):  # its own goes last, and wins
            entries, length = _entries(path)
            if entries and (other := difference(entries[0], head)):
                if len(entries) == 1 and not result.exists():
                    continue  # it was killed before its first answer: there is nothing to lose
                raise InputError(f"journal {str(path)!r} is of another run: {other}: {_ANEW}")
            this_run = this_run or bool(entries)
            for entry in entries[1:]:
                answered = self._answered(path, entry)
                self.found[answered.row["document"]] = answered
            end = length if path == self.path else end
        if result.exists() and not this_run:
            raise InputError(f"result {str(result)!r} is there already: give another --output-dir, or --overwrite")
        return end

    def _answered(self, path: Path, entry: dict[str, Any]) -> Answered:
        try:
            outcomes = [Outcome(**outcome) for outcome in entry.pop("outcomes")]
            answered = Answered(**entry, outcomes=outcomes)
            whole = len(outcomes) == self._points and isinstance(answered.row["document"], int)
        except (KeyError, TypeError) as error:
            raise InputError(f"journal {str(path)!r} holds no answers of this version: {_ANEW}") from error
        if not whole:
            raise InputError(f"journal {str(path)!r} lacks answers of a document: {_ANEW}")
        return answered

    def _write(self, entry: dict[str, Any]) -> None:
        """Add a line, or leave the journal as it was."""
        text = json.dumps(entry)
        line = f'{{"crc": {zlib.crc32(text.encode())}, "entry": {text}}}\n'.encode()
        try:
            done = 0
            while done < len(line):
                done += os.pwrite(self._file, line[done:], self._end + done)
            os.fsync(self._file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise
        self._end += len(line)

    def _remove_others(self, size: int) -> None:
        """What runs of other numbers of processes left. Those of this number are emptied by their own processes."""
        own = re.compile(rf"rank\d+of{size}\.part$" if size > 1 else r"jsonl\.part$")
        for path in self._read:
            if not own.search(path.name):
                path.unlink(missing_ok=True)

    def _problem(self, error: OSError) -> InputError:
        return InputError(
            f"journal {str(self.path)!r} cannot be read or written: {error.strerror or error}: when that is mended, "
            f"the same command goes on after the last whole document"
        )


def journals(result: Path) -> list[Path]:
    """The journals that killed runs of a result left, of any number of processes."""
    pattern = re.compile(rf"{re.escape(result.stem + _ENDING)}(\.rank\d+of\d+)?\.part")
    return sorted(path for path in result.parent.glob(f"{result.stem}*.part") if pattern.fullmatch(path.name))


def _entries(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(the whole lines' entries, their length in bytes). Raises InputError where whole lines follow on a damaged one.

    A killed process's last line may be half, and on a machine that lost power it may be anything.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # another process has just finished with it
        return [], 0
    entries, length = [], 0
    lines = content.split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        entry = _entry(line)
        if entry is None:
            if any(_entry(later) for later in lines[number:]) or (number == 1 and _is_json(line)):
                raise InputError(f"journal {str(path)!r} is damaged in line {number}: {_ANEW}")
            break
        entries.append(entry)
        length += len(line) + 1
    return entries, length


def _entry(line: bytes) -> dict[str, Any] | None:
    """A line's entry; None where the line is not whole."""
    try:
        loaded = json.loads(line)
        text = line[line.index(b'"entry": ') + len(b'"entry": ') : -1]
        return loaded["entry"] if zlib.crc32(text) == loaded["crc"] else None
    except (ValueError, KeyError, TypeError):
        return None


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
