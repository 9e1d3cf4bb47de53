"""The documents of a sweep, one after the other, at every point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lmms_textweighted.errors import InputError, describe
from lmms_textweighted.experiment.files import write_answers
from lmms_textweighted.experiment.grid import Point
from lmms_textweighted.experiment.options import Experiment
from lmms_textweighted.experiment.outcomes import Outcome
from lmms_textweighted.experiment.points import run_document
from lmms_textweighted.experiment.progress import progress_on
from lmms_textweighted.experiment.timing import Prefill, time_points
from lmms_textweighted.harness.documents import Document, Documents
from lmms_textweighted.harness.local import QuestionDocuments
from lmms_textweighted.inference import Decoding, PrunedLlava
from lmms_textweighted.parallel.processes import gather, share, world
from lmms_textweighted.prompts import render


@dataclass(frozen=True)
class Answered:
    """What the result needs of a document. Kept whole, their pictures would fill the memory.

    row: what stands in front of each of its answers. prompt: of the first document alone.
    """

    row: dict[str, Any]
    choices: int
    prompt: str | None
    outcomes: list[Outcome]


def documents_of(experiment: Experiment) -> Documents:
    """The task's documents, or the question file's. Raises InputError as their readers do."""
    prompt = experiment.single_pred_prompt
    if experiment.question_file is not None:
        return QuestionDocuments.read(
            experiment.question_file,
            experiment.image_folder,
            experiment.num_samples,
            skip_missing=experiment.skip_missing,
            single_prediction_prompt=prompt,
        )
    return Documents.of_task(experiment.task, experiment.num_samples, single_prediction_prompt=prompt)


def answer_all(
    experiment: Experiment,
    points: Sequence[Point],
    llava: PrunedLlava,
    documents: Documents,
    decoding: Decoding,
    partial: Path,
    console: Console,
) -> list[Answered]:
    """This process's share of the documents at every point. Each is written to `partial` as soon as it is answered."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    numbers, answered = share(len(documents)), []
    with progress_on(console, *columns) as progress, partial.open("w", encoding="utf-8") as file:
        label = f"{len(numbers)} documents x {len(points)} points"
        for number in progress.track(numbers, description=label):
            document = documents[number]
            row = {"document": document.number, "id": document.id, "digest": document.digest, "target": document.target}
            answered.append(
                Answered(
                    row=row,
                    choices=len(document.fields.get("choices") or ()),
                    prompt=None if number else render(str(llava.template), [document.message], llava.processor),
                    outcomes=_answer(experiment, points, llava, documents, document, decoding),
                )
            )
            write_answers(file, row, points, answered[-1].outcomes)
    return answered


def time_all(
    experiment: Experiment, points: Sequence[Point], llava: PrunedLlava, documents: Documents, console: Console
) -> list[list[Prefill]]:
    """By point, of the first documents of the set; empty where none is asked for. Each process times its share."""
    if not experiment.timed:
        return []
    numbers = share(min(experiment.timed, len(documents)))
    with console.status(f"timing {len(numbers)} documents x {len(points)} points"):
        own = time_points(llava, [documents[number].message for number in numbers], points)
    # A row a document, so that `gather` may join the processes' shares.
    rows = gather([list(row) for row in zip(*own, strict=True)])
    return [list(point) for point in zip(*rows, strict=True)]


def _answer(
    experiment: Experiment,
    points: Sequence[Point],
    llava: PrunedLlava,
    documents: Documents,
    document: Document,
    decoding: Decoding,
) -> list[Outcome]:
    """One document at every point. Raises InputError that names the document, whatever went wrong with it."""
    try:
        return run_document(
            llava,
            document.message,
            points,
            decoding=decoding,
            ranks=experiment.ranks,
            judge=lambda answer: (documents.score(document, answer), answer.strip() == document.target.strip()),
        )
    except Exception as error:
        raise InputError(f"{document.name}: {describe(error)}") from error


def partial_file(experiment: Experiment) -> Path:
    """Where this process notes its answers while it runs; a run that dies leaves it behind."""
    rank, size = world()
    return experiment.target("answers.jsonl.part" if size == 1 else f"answers.jsonl.rank{rank}of{size}.part")
