"""`lmms-textweighted bias`: finished sweeps -> a report, by looking at their documents again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lmms_textweighted.bias.exchanged import mirrored, other_question, without_pictures
from lmms_textweighted.bias.gather import DocumentFigures, Notes, Pair, document_figures, pairs_of, without_picture
from lmms_textweighted.bias.hard import SMALLER, hard_subset, smaller_plans
from lmms_textweighted.bias.looks import is_blind, look_at
from lmms_textweighted.bias.report import CORRECTED, FORMAT, KIND_OF_FILE, PLAIN, named, report_of
from lmms_textweighted.bias.sources import Source, points_of, read_sources, scores_of
from lmms_textweighted.compare.runs import read_json
from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.errors import InputError, describe
from lmms_textweighted.experiment.alone import answer_alone
from lmms_textweighted.experiment.answering import documents_of, model_of
from lmms_textweighted.experiment.files import whole_file, write_json
from lmms_textweighted.experiment.grid import Point, check_points
from lmms_textweighted.experiment.progress import progress_on
from lmms_textweighted.harness.documents import Document, Documents
from lmms_textweighted.harness.output import check_writable
from lmms_textweighted.harness.quiet import quiet_libraries
from lmms_textweighted.inference import PrunedLlava, geometry_of
from lmms_textweighted.parallel.processes import gather, join, placed, share, world
from lmms_textweighted.parallel.watch import watch_others
from lmms_textweighted.prompts import Message
from lmms_textweighted.provenance.model import model_state
from lmms_textweighted.provenance.record import provenance
from lmms_textweighted.provenance.software import code_digest, versions
from lmms_textweighted.statistics import paired_test

NAME = "bias.json"
_LINE: dict[str, Any] = {"soft_wrap": True, "markup": False, "highlight": False}


@dataclass(frozen=True)
class Asked:
    """The command's options. num_samples None: all documents of the sweeps. tokens None: all their budgets."""

    results: Sequence[Path]
    num_samples: int | None = 100
    tokens: Sequence[float] | None = None
    question_file: Path | None = None
    image_folder: Path | None = None
    output_dir: Path | None = None
    overwrite: bool = False


def read_report(path: Path) -> dict[str, Any]:
    """A report that was written before. Raises InputError where it is none, or of another version."""
    data = read_json(path)
    if data.get("kind") != KIND_OF_FILE or data.get("format") != FORMAT:
        raise InputError(
            f"report {str(path)!r} is of kind {data.get('kind')!r} and format {data.get('format')!r}, not "
            f"{KIND_OF_FILE!r} and {FORMAT}: run `lmms-textweighted bias` on its sweep again"
        )
    return data


def run_bias(asked: Asked, console: Console) -> dict[str, Any]:
    """Make the report, and write `bias.json` and `bias.png` into the output folder: the first result's, if none is
    named. A run that was killed goes on after its last whole document; of several processes each looks at its share.

    Raises InputError as `read_sources` and `points_of` do, where the report is there already, where the checkpoint or a
    document is another one than the sweep's, and where a document cannot be looked at.
    """
    quiet_libraries()
    state_of_all = join() if world()[1] > 1 else None
    watch_others()
    main = state_of_all is None or state_of_all.is_main_process
    console.quiet = console.quiet or not main
    sources = read_sources(asked.results, asked.question_file, asked.image_folder)
    target = (asked.output_dir or sources[0].path.parent) / NAME
    check_writable(target.parent)
    if target.exists() and not asked.overwrite:
        raise InputError(f"report {str(target)!r} is there already: give another --output-dir, or --overwrite")
    count = min([len(source.digests) for source in sources] + ([asked.num_samples] if asked.num_samples else []))
    experiment = replace(sources[0].experiment, num_samples=count)
    documents = documents_of(experiment)
    options = experiment.load_options
    llava = model_of(experiment, options if state_of_all is None else placed(options, state_of_all))
    state = model_state(llava)
    if state["weights"] != sources[0].meta["weights"]:
        raise InputError(
            f"checkpoint {experiment.model_path!r} has weights {state['weights']!r}, but the sweep was run with "
            f"{sources[0].meta['weights']!r}: give the checkpoint its old place, or run the sweep again"
        )
    geometry = geometry_of(llava.model)
    points = points_of(sources, geometry, asked.tokens)
    check_points(points, llava)
    budgets = sorted({point.budget for point in points if point.budget is not None}, reverse=True)
    scores = scores_of(sources)
    known = {budget: dict(found) for (strategy, _, budget), found in scores.items() if strategy == SMALLER}
    plans = smaller_plans([budget for budget in budgets if budget not in known], experiment.budget, geometry)
    head = {
        "points": [[*named(point).values(), point.plan.to_dict()] for point in points],
        "smaller": sorted(plans),
        "model": state,
        "count": count,
        "software": [versions(), code_digest()],
    }
    notes = Notes(target, head, overwrite=asked.overwrite)
    found, pairs = _look(llava, documents, points, plans, sources[0], notes, console)
    smaller = {
        budget: known[budget]
        if budget in known
        else plan
        if isinstance(plan := plans[budget], str)
        else {document.number: document.smaller[str(budget)] for document in found}
        for budget in budgets
    }
    report = {
        "kind": KIND_OF_FILE,
        "format": FORMAT,
        "meta": _meta(sources, documents, llava, found, budgets, state),
        **report_of(points, found, *pairs),
        "hard": hard_subset(scores, smaller),
    }
    _add_accuracies(report["early_words"], scores)
    if main:
        write_report(target, report)
    if state_of_all is not None:
        state_of_all.wait_for_everyone()
        state_of_all.end_training()
    if not main:
        return report
    notes.remove()
    for path in (target, target.with_suffix(".png")):
        console.print(f"wrote {path}", **_LINE)
    return report


def write_report(target: Path, report: dict[str, Any]) -> None:
    """The JSON and, beside it, the picture. Raises InputError where they cannot be written."""
    from lmms_textweighted.bias.picture import draw  # matplotlib is slow to import

    try:
        with whole_file(target) as file, whole_file(target.with_suffix(".png")) as picture:
            draw(picture, report)
            write_json(file, report)
    except OSError as error:
        raise InputError(
            f"report {str(target)!r} cannot be written: {error.strerror or error}: when that is mended, the same "
            f"command goes on"
        ) from error


def _look(
    llava: PrunedLlava,
    documents: Documents,
    points: Sequence[Point],
    plans: Mapping[float, Plan | str],
    source: Source,
    notes: Notes,
    console: Console,
) -> tuple[list[DocumentFigures], tuple[list[Pair], list[Pair]]]:
    pairs = pairs_of(points)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    found: list[DocumentFigures] = []
    if notes.found:
        console.print(f"goes on after {len(notes.found)} of {len(documents)} documents: {notes.path}", **_LINE)
    others = [without_pictures(document.message) for document in documents]
    with progress_on(console, *columns, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        numbers = share(len(documents))
        label = f"{len(numbers)} documents x {len(points)} points, 3 inputs each"
        for number in progress.track(numbers, description=label):
            document = documents[number]
            if document.digest != source.digests.get(number):
                raise InputError(f"{document.name} is another one than when {str(source.path)!r} was written")

            def make(document: Document = document) -> DocumentFigures:
                made = _figures(llava, document, others, points, [*pairs[0], *pairs[1]])
                made.smaller = _smaller(llava, documents, document, plans)
                return made

            try:
                found.append(notes.document(number, document.digest, make))
            except InputError as error:
                raise InputError(f"{document.name}: {error}") from error
            except Exception as error:
                raise InputError(f"{document.name}: {describe(error)}") from error
    return sorted(gather(found), key=lambda document: document.number), pairs


def _figures(
    llava: PrunedLlava, document: Document, others: Sequence[Message], points: Sequence[Point], pairs: Sequence[Pair]
) -> DocumentFigures:
    message = document.message
    if not message.images:
        return without_picture(document.number, document.digest, len(points), len(pairs))
    looks = look_at(llava, message, points)
    # What keeps no set of places has nothing to compare, and what sees no text cannot follow it.
    without = {place: look for place, look in enumerate(looks.looks) if look.kept is None}
    blind = {place: look for place, look in enumerate(looks.looks) if is_blind(points[place])}
    exchanged = other_question(message, document.number, others)
    return document_figures(
        document.number,
        document.digest,
        points,
        pairs,
        looks,
        None if exchanged is None else look_at(llava, exchanged, points, {**without, **blind}),
        look_at(llava, mirrored(message), points, without),
    )


def _smaller(
    llava: PrunedLlava, documents: Documents, document: Document, plans: Mapping[float, Plan | str]
) -> dict[str, float]:
    """The smaller picture's score at each budget that no sweep has it at."""
    return {
        str(budget): answer_alone(
            llava,
            document.message,
            plan,
            decoding=documents.decoding,
            ranks=False,
            judge=lambda answer: documents.judge(document, answer),
        ).score
        for budget, plan in plans.items()
        if not isinstance(plan, str)
    }


def _add_accuracies(early: dict[str, Any], scores: Mapping[Any, Mapping[int, float]]) -> None:
    """The sweeps' own accuracy beside each row of early words, and the corrected method's paired test."""
    for row in early["rows"]:
        own = scores.get((row["strategy"], row["layer"], row["budget"]), {})
        row["accuracy"] = sum(own.values()) / len(own) if own else None
        plain = scores.get((PLAIN, row["layer"], row["budget"]), {})
        shared = sorted(own.keys() & plain.keys())
        if row["strategy"] == CORRECTED and shared:
            test = paired_test([own[number] for number in shared], [plain[number] for number in shared])
            row["against_plain"] = {"difference": test.difference, "p": test.p, "test": test.name}
            row["against_plain"]["documents"] = test.documents


def _meta(
    sources: Sequence[Source],
    documents: Documents,
    llava: PrunedLlava,
    found: Sequence[DocumentFigures],
    budgets: Sequence[float],
    state: Mapping[str, Any],
) -> dict[str, Any]:
    meta = sources[0].meta
    return {
        "results": [source.path.name for source in sources],
        **{name: meta[name] for name in ("checkpoint", "model_type", "weights", "dtype", "conv_mode")},
        "image_aspect_ratio": llava.image_aspect_ratio,
        **documents.describe(),
        "num_samples": len(found),
        "answered_documents": [len(source.digests) for source in sources],
        "budget": meta["budget"],
        "budgets": list(budgets),
        "seed": meta["options"]["seeds"][0],
        "text_scope": meta["text_scope"],
        "other_question": "the text of the next document with another one and as many pictures",
        "mirrored": "left to right",
        "provenance": provenance(state),
    }
