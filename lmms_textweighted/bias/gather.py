"""A document under all points, as the numbers that the report is made of; they go into a file as the documents are
looked at, so that a run that was killed goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmms_textweighted.bias import chance, measures
from lmms_textweighted.bias.figures import KINDS, NO_PICTURE, Figure, PointFigures, figures_of, groups_of
from lmms_textweighted.bias.looks import Looks
from lmms_textweighted.errors import InputError
from lmms_textweighted.experiment.files import on_disk
from lmms_textweighted.experiment.grid import Point
from lmms_textweighted.parallel.processes import world

Pair = tuple[int, int]


@dataclass
class DocumentFigures:
    """number, digest: which document. points: in the points' order. overlaps: of each pair of points (IoU, share,
    random IoU, random share), NaN where one of them keeps no set. words, before: as of `Looks`. smaller:
    the score with a smaller picture, by the budget as text."""

    number: int
    digest: str
    points: list[PointFigures]
    overlaps: list[tuple[float, float, float, float]]
    words: list[str]
    before: int
    smaller: dict[str, float] = field(default_factory=dict)

    def to_line(self) -> str:
        return json.dumps(asdict(self), default=lambda value: value.tolist()) + "\n"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DocumentFigures:
        points = [
            PointFigures(
                {name: Figure(**figure) for name, figure in point["figures"].items()},
                *(np.asarray(point[name], dtype=float) for name in ("rows", "columns", "words")),
            )
            for point in data["points"]
        ]
        overlaps = [(one, two, three, four) for one, two, three, four in data["overlaps"]]
        return cls(**{**data, "points": points, "overlaps": overlaps})


def pairs_of(points: Sequence[Point]) -> tuple[list[Pair], list[Pair]]:
    """(pairs of neighbouring budgets of one strategy and layer, larger first; pairs of strategies at one budget).

    Strategies are compared after the same layer, and with those that have layers of their own.
    """
    budgets: list[Pair] = []
    methods: list[Pair] = []
    for first, one in enumerate(points):
        following = [
            second
            for second, other in enumerate(points)
            if (other.strategy, other.layer) == (one.strategy, one.layer)
            and None not in (one.budget, other.budget)
            and other.budget < one.budget  # type: ignore[operator]
        ]
        if following:
            budgets.append((first, max(following, key=lambda second: points[second].budget or 0)))
        methods += [
            (first, second)
            for second, other in enumerate(points[first + 1 :], start=first + 1)
            if other.budget == one.budget
            and one.budget is not None
            and other.strategy != one.strategy
            and (other.layer == one.layer or None in (one.layer, other.layer))
        ]
    return budgets, methods


def document_figures(
    number: int,
    digest: str,
    points: Sequence[Point],
    pairs: Sequence[Pair],
    looks: Looks,
    exchanged: Looks | None,
    mirrored: Looks,
) -> DocumentFigures:
    """looks, mirrored: the points in the document, and in it with mirrored pictures. exchanged: in it with another
    question, None where there is none."""
    found, overlaps = [], []
    groups = {scope: groups_of(looks.sizes, scope) for scope in ("image", "prompt")}
    for place, point in enumerate(points):
        found.append(
            figures_of(
                looks.looks[place],
                looks.nowhere if looks.places is None else looks.places,
                groups[point.plan.keep_scope],
                None if exchanged is None else exchanged.looks[place],
                mirrored.looks[place],
            )
        )
    for first, second in pairs:
        one, other = looks.looks[first].kept, looks.looks[second].kept
        if one is None or other is None:
            overlaps.append((np.nan,) * 4)
            continue
        expected = chance.expected_overlap(one, other, groups[points[first].plan.keep_scope])
        overlaps.append((*measures.overlap(one, other), *expected))
    return DocumentFigures(number, digest, found, overlaps, list(looks.words), looks.before)


def without_picture(number: int, digest: str, points: int, pairs: int) -> DocumentFigures:
    """A document of text alone: it has no figure, and its line says why."""
    nothing = PointFigures({kind.name: Figure(reason=NO_PICTURE) for kind in KINDS})
    return DocumentFigures(number, digest, [nothing] * points, [(np.nan,) * 4] * pairs, [], 0)


class Notes:
    """What is known of a run so far, one line a document. The first line says what the run is. A file a process; each
    reads those of all, so that a run may go on with another number of processes."""

    def __init__(self, target: Path, head: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """target: the report. Raises InputError for notes of another run, and where they cannot be read."""
        rank, size = world()
        self.target = target
        self.path = target.with_name(f"{target.name}.part" if size == 1 else f"{target.name}.rank{rank}of{size}.part")
        self.found: dict[int, DocumentFigures] = {}
        told = json.loads(json.dumps(head))
        for path in () if overwrite else self._files():
            entries = _entries(path)
            if entries and entries[0] != told:
                raise InputError(
                    f"notes {str(path)!r} are of a run with other options, weights or software: --overwrite starts anew"
                )
            self.found |= {entry["number"]: DocumentFigures.from_dict(entry) for entry in entries[1:]}
        own = [] if overwrite or not self.path.exists() else _entries(self.path)
        self._write("".join(json.dumps(entry) + "\n" for entry in own or [told]), "w")

    def document(self, number: int, digest: str, make: Callable[[], DocumentFigures]) -> DocumentFigures:
        """What is noted of a document, or what `make` finds, noted."""
        known = self.found.get(number)
        if known is None or known.digest != digest:
            known = make()
            self._write(known.to_line(), "a")
        return known

    def remove(self) -> None:
        """The report is there: nothing is to go on from."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.target.parent.glob(f"{self.target.name}*.part"))

    def _write(self, text: str, mode: str) -> None:
        try:
            with self.path.open(mode, encoding="utf-8") as file:
                file.write(text)
            on_disk(self.path)
        except OSError as error:
            raise InputError(
                f"notes {str(self.path)!r} cannot be written ({error.strerror}): name another --output-dir"
            ) from error


def _entries(path: Path) -> list[dict[str, Any]]:
    """A file's whole lines; a torn last one is left out."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"notes {str(path)!r} cannot be read: --overwrite starts anew") from error
    return [entry for line in lines if (entry := _entry(line)) is not None]


def _entry(line: str) -> dict[str, Any] | None:
    """A line's entry; None for a torn one."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
