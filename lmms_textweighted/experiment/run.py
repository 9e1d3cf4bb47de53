"""`lmms-textweighted sweep`: options -> documents, model, points -> files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from statistics import fmean
from typing import Any

from rich.console import Console

from lmms_textweighted.errors import InputError
from lmms_textweighted.experiment.answering import answer_all, documents_of, model_of, time_all
from lmms_textweighted.experiment.claim import claiming
from lmms_textweighted.experiment.files import experiment_data, unranked, whole_file, write_answers, write_json
from lmms_textweighted.experiment.grid import Point, check_points
from lmms_textweighted.experiment.head import head_of
from lmms_textweighted.experiment.journal import Journal
from lmms_textweighted.experiment.meta import meta_of
from lmms_textweighted.experiment.options import Experiment
from lmms_textweighted.experiment.outcomes import Answered, collect
from lmms_textweighted.experiment.recorded import PICTURES, VIEWS, recorded, views_in, write_recorded
from lmms_textweighted.experiment.tables import print_tables
from lmms_textweighted.experiment.webpage import page_of
from lmms_textweighted.harness.quiet import quiet_libraries
from lmms_textweighted.inference import geometry_of
from lmms_textweighted.page import write_page
from lmms_textweighted.parallel.processes import gather, join, placed, world
from lmms_textweighted.parallel.watch import watch_others

__all__ = ["Experiment", "run_experiment"]


@claiming(lambda experiment: experiment.target("json"))
def run_experiment(experiment: Experiment) -> dict[str, Any]:
    """Run the sweep and write its files; returns the JSON's content.

    Of several processes each answers its share and notes it in a journal of its own as it goes; then the first one
    writes the result, in the documents' order. No file has its final name before it is whole. A run that was killed
    goes on from its journals. Raises InputError as `claim.claimed` and `journal.Journal` do, and where a file cannot be
    written.
    """
    state = join() if world()[1] > 1 else None
    watch_others()
    main = state is None or state.is_main_process
    console = Console(quiet=not main)
    quiet_libraries()
    documents = documents_of(experiment)  # wrong data should cost no loading of a model
    decoding = documents.decoding
    if experiment.timed > len(documents):
        raise InputError(
            f"time is {experiment.timed}, but the sweep has {len(documents)} documents: give at most as many"
        )
    options = experiment.load_options if state is None else placed(experiment.load_options, state)
    llava = model_of(experiment, options)
    layers = llava.model.config.get_text_config().num_hidden_layers
    points, left_out = experiment.grid(geometry_of(llava.model))
    check_points(points, llava)
    for point in left_out:
        console.print(f"left out: {point}", soft_wrap=True, markup=False, highlight=False)
    head = head_of(experiment, points, llava, documents)
    with Journal(experiment.target("json"), head, overwrite=experiment.overwrite) as journal:
        own = answer_all(experiment, points, llava, documents, decoding, journal, console)
    answered = sorted(gather(own), key=lambda document: document.row["document"])
    prefills = time_all(experiment, points, llava, documents, console)
    outcomes = [document.outcomes for document in answered]
    # Where the number differs from picture to picture, no pruning stands at its mean.
    seen_tokens = [row[0].image_tokens for row in outcomes if row[0].image_tokens]
    image_tokens = llava.tokens_per_image or round(fmean(seen_tokens or [0]))
    data = experiment_data(
        collect(points, outcomes, prefills),
        meta_of(experiment, llava, head["model"], documents, answered, left_out, layers),
        layers=layers,
        image_tokens=image_tokens,
        against=experiment.references(points),
    )
    if main:
        write_result(experiment, points, data, answered)
        print_tables(data, console)
        if experiment.ranks:
            for name, why in unranked(data).items():
                console.print(f"no ranks of {name}: {why}", soft_wrap=True, markup=False, highlight=False)
        for name in ("json", "png", *((VIEWS,) if views_in(answered) else ())):
            console.print(f"wrote {experiment.target(name)}", soft_wrap=True)
        if experiment.html is not None:
            write_page(experiment.html, page_of(data, recorded(experiment.target("json"))))
            console.print(f"page: {experiment.html.resolve()}", soft_wrap=True)
    if state is not None:
        state.wait_for_everyone()
        state.end_training()
    journal.remove()
    return data


def write_result(
    experiment: Experiment, points: Sequence[Point], data: dict[str, Any], answered: list[Answered]
) -> None:
    """The result's files, the JSON last: where it is new, so are the others."""
    from lmms_textweighted.experiment.picture import draw  # matplotlib is slow to import

    try:
        with ExitStack() as files:
            json_file, picture, answers = (
                files.enter_context(whole_file(experiment.target(name))) for name in ("json", "png", "answers.jsonl")
            )
            if views_in(answered):
                views, images = (files.enter_context(whole_file(experiment.target(name))) for name in (VIEWS, PICTURES))
                write_recorded(views, images, answered)
            else:  # those of a result that is replaced
                for name in (VIEWS, PICTURES):
                    experiment.target(name).unlink(missing_ok=True)
            with answers.open("w", encoding="utf-8") as file:
                for document in answered:
                    write_answers(file, document.row, points, document.outcomes)
            draw(picture, data)
            write_json(json_file, data)
    except OSError as error:
        raise InputError(
            f"result {str(experiment.target('json'))!r} cannot be written: {error.strerror or error}: nothing is lost, "
            f"the same command goes on when that is mended"
        ) from error
