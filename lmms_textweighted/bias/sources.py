"""The sweeps that a report is of: their points, documents and answers, of one model, one set and one prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lmms_textweighted.compare.runs import read_json, read_lines
from lmms_textweighted.errors import InputError
from lmms_textweighted.experiment.again import check_recorded, recorded_experiment
from lmms_textweighted.experiment.grid import Point
from lmms_textweighted.experiment.names import RESULT_PATTERN, budget_text
from lmms_textweighted.experiment.options import Experiment
from lmms_textweighted.methods.budget import Geometry

Place = tuple[str, int | None, float | None]  # strategy, layer, budget

_MUST_AGREE: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{
        name: lambda meta, name=name: meta.get(name)  # type: ignore[misc]
        for name in ("weights", "dtype", "task", "conv_mode", "image_aspect_ratio", "budget", "text_scope")
    },
    "system_prompt": lambda meta: meta["provenance"]["model"].get("system_prompt"),
    "single_pred_prompt": lambda meta: meta["options"]["single_pred_prompt"],
    "first seed": lambda meta: meta["options"]["seeds"][0],
}


@dataclass(frozen=True)
class Source:
    """One sweep. scores: each point's score of each document, the mean over the seeds. digests: of each document."""

    path: Path
    meta: dict[str, Any]
    experiment: Experiment
    scores: dict[Place, dict[int, float]]
    digests: dict[int, str]


def read_sources(paths: Sequence[Path], question_file: Path | None, image_folder: Path | None) -> list[Source]:
    """The sweeps in folders, or of single files. Raises InputError where there is none, where one cannot be read or did
    not record its options, and where two are of different models, sets or prompts."""
    if not paths:
        raise InputError("no result is given: name a folder that a sweep wrote, as runs/sweep")
    files = list(dict.fromkeys(file for path in paths for file in result_files(path)))
    sources = [_read(file, question_file, image_folder) for file in files]
    first = sources[0]
    for other in sources[1:]:
        for name, of in _MUST_AGREE.items():
            if of(first.meta) != of(other.meta):
                raise InputError(
                    f"result {str(other.path)!r} has {name} {of(other.meta)!r}, but {str(first.path)!r} has "
                    f"{of(first.meta)!r}: give results of one model, set and prompt"
                )
        for number in first.digests.keys() & other.digests.keys():
            if first.digests[number] != other.digests[number]:
                raise InputError(
                    f"results {str(first.path)!r} and {str(other.path)!r} have another document {number}: give results "
                    f"of one set"
                )
    return sources


def points_of(sources: Sequence[Source], geometry: Geometry, tokens: Sequence[float] | None) -> list[Point]:
    """Every point of the sweeps once, of several seeds the first one's. tokens: the budgets to take; None is all.

    Raises InputError for a budget that no sweep has, and where nothing is left.
    """
    found: dict[Place, Point] = {}
    for source in sources:
        points, _ = source.experiment.grid(geometry)
        for point in points:
            found.setdefault((point.strategy, point.layer, point.budget), point)
    known = sorted({point.budget for point in found.values() if point.budget is not None}, reverse=True)
    for budget in tokens or ():
        if budget not in known:
            texts = ", ".join(budget_text(one, sources[0].meta) for one in known)
            raise InputError(f"tokens is {budget:g}, which no result has: they have {texts}")
    return [point for point in found.values() if tokens is None or point.budget is None or point.budget in tokens]


def scores_of(sources: Sequence[Source]) -> dict[Place, dict[int, float]]:
    """Each point's score of each document, of the first sweep that has the point."""
    found: dict[Place, dict[int, float]] = {}
    for source in sources:
        for place, scores in source.scores.items():
            found.setdefault(place, scores)
    return found


def result_files(path: Path) -> list[Path]:
    """The sweeps' JSON files of a path. Raises InputError where there is none."""
    if path.is_file():
        if not path.match(RESULT_PATTERN):
            raise InputError(f"result {str(path)!r} is no {RESULT_PATTERN}: give a sweep's, or its folder")
        return [path]
    if not path.is_dir():
        raise InputError(f"result {str(path)!r} does not exist: give a folder that a sweep wrote")
    found = sorted(path.rglob(RESULT_PATTERN))
    if not found:
        raise InputError(f"result {str(path)!r} has no {RESULT_PATTERN}: give a folder that a sweep wrote")
    return found


def _read(path: Path, question_file: Path | None, image_folder: Path | None) -> Source:
    data = read_json(path)
    if "strategies" not in data or not isinstance(data.get("meta"), dict):
        raise InputError(f"result {str(path)!r} is no sweep's JSON: give the file that `sweep` wrote")
    meta = data["meta"]
    check_recorded(path, meta, {"question_file": question_file, "image_folder": image_folder})
    scores: dict[Place, dict[int, list[float]]] = {}
    digests: dict[int, str] = {}
    try:
        for line in read_lines(path.with_name(f"{path.stem}.answers.jsonl")):
            place = (line["strategy"], line["layer"], line["tokens"])
            scores.setdefault(place, {}).setdefault(line["document"], []).append(float(line["score"]))
            digests[line["document"]] = line["digest"]
        experiment = recorded_experiment(meta, question_file, image_folder)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"result {str(path)!r} is of another version ({type(error).__name__}: {error}): run the sweep again"
        ) from error
    means = {place: {number: fmean(own) for number, own in found.items()} for place, found in scores.items()}
    return Source(path, meta, experiment, means, digests)
