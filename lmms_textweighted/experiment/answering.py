"""The documents of a sweep, one after the other, at every point."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lmms_textweighted.errors import InputError, describe
from lmms_textweighted.experiment.grid import Point
from lmms_textweighted.experiment.journal import Journal
from lmms_textweighted.experiment.options import Experiment
from lmms_textweighted.experiment.outcomes import Answered, Outcome
from lmms_textweighted.experiment.points import run_document
from lmms_textweighted.experiment.progress import progress_on
from lmms_textweighted.experiment.recording import Recorder, recorder_for, reference_of
from lmms_textweighted.experiment.timing import Prefill, time_points
from lmms_textweighted.families import LoadOptions, load
from lmms_textweighted.harness.documents import Document, Documents
from lmms_textweighted.harness.local import QuestionDocuments
from lmms_textweighted.inference import Decoding, PrunedLlava, geometry_of
from lmms_textweighted.parallel.processes import gather, share
from lmms_textweighted.prompts import render

FILE_ASPECT_RATIO = "square"  # a question file's pictures, as the published experiment had them
_LINE: dict[str, Any] = {"soft_wrap": True, "markup": False, "highlight": False}


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


def model_of(experiment: Experiment, options: LoadOptions) -> PrunedLlava:
    """The checkpoint, with the template, seed, stated lengths, pictures and text tower of the sweep. Raises as `load`
    and `PrunedLlava.with_text_tower` do."""
    model, processor = load(experiment.model_path, options)
    llava = PrunedLlava(
        model,
        processor,
        template=experiment.conv_mode,
        seed=experiment.seeds[0],
        stated=experiment.stated,
        system_prompt=experiment.system_prompt,
    )
    points, _ = experiment.grid(geometry_of(model))
    llava = llava.with_text_tower(experiment.text_tower, (point.plan for point in points))
    if experiment.question_file and not options.image_aspect_ratio and llava.takes(FILE_ASPECT_RATIO):
        return llava.with_aspect_ratio(FILE_ASPECT_RATIO)
    return llava


def answer_all(
    experiment: Experiment,
    points: Sequence[Point],
    llava: PrunedLlava,
    documents: Documents,
    decoding: Decoding,
    journal: Journal,
    console: Console,
) -> list[Answered]:
    """This process's share of the documents at every point: from the journal what it has, into the journal what is new.

    Raises InputError for a document that is another one now than when the journal was written.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    numbers, answered, unrecorded = share(len(documents)), [], ""
    described = documents.describe()
    if journal.found:
        console.print(f"goes on after {len(journal.found)} of {len(documents)} documents: {journal.path}", **_LINE)
    with progress_on(console, *columns) as progress:
        label = f"{len(numbers)} documents x {len(points)} points"
        for number in progress.track(numbers, description=label):
            document = documents[number]
            row = {"document": document.number, "id": document.id, "digest": document.digest, "target": document.target}
            if number in journal.found:
                answered.append(_as_it_was(journal, document, row))
                continue
            recorder = None
            if number < experiment.views and not unrecorded:
                recorder, unrecorded = recorder_for(llava, document, points, experiment.budget)
            outcomes = _answer(experiment, points, llava, documents, document, decoding, recorder)
            answered.append(
                Answered(
                    row=row,
                    choices=len(document.fields.get("choices") or ()),
                    prompt=None if number else render(str(llava.template), [document.message], llava.processor),
                    outcomes=outcomes,
                    view=recorder.view(outcomes, reference_of(document, described)) if recorder else None,
                    pictures=recorder.pictures() if recorder else None,
                )
            )
            journal.add(answered[-1])
    if unrecorded:
        console.print(f"documents are not recorded: {unrecorded}", **_LINE)
    return answered


def _as_it_was(journal: Journal, document: Document, row: dict[str, Any]) -> Answered:
    """A document's answers of before. Raises InputError where it is another document now."""
    found = journal.found[document.number]
    if found.row != row:
        raise InputError(
            f"{document.name} is another one than when journal {str(journal.path)!r} was written: --overwrite starts "
            f"anew, another --output-dir leaves it alone"
        )
    return found


def time_all(
    experiment: Experiment, points: Sequence[Point], llava: PrunedLlava, documents: Documents, console: Console
) -> list[list[Prefill]]:
    """By point, of the first documents of the set; empty where none is asked for. Each process times its share."""
    if not experiment.timed:
        return []
    numbers = share(experiment.timed)
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
    recorder: Recorder | None,
) -> list[Outcome]:
    """One document at every point. Raises InputError that names the document, whatever went wrong with it."""
    try:
        return run_document(
            llava,
            document.message,
            points,
            decoding=decoding,
            ranks=experiment.ranks,
            judge=partial(documents.judge, document),
            record=recorder,
        )
    except Exception as error:
        raise InputError(f"{document.name}: {describe(error)}") from error
