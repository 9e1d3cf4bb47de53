"""Answer documents of a sweep again, with the settings that its JSON records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from lmms_textweighted.compare.runs import read_json, read_lines
from lmms_textweighted.errors import InputError
from lmms_textweighted.experiment.again import check_recorded, recorded_experiment
from lmms_textweighted.experiment.answering import documents_of, model_of
from lmms_textweighted.experiment.files import blocks_of
from lmms_textweighted.experiment.grid import check_points
from lmms_textweighted.experiment.options import Experiment
from lmms_textweighted.experiment.points import run_document
from lmms_textweighted.experiment.recorded import recorded
from lmms_textweighted.experiment.recording import Recorder, uid_of
from lmms_textweighted.inference import PrunedLlava, geometry_of
from lmms_textweighted.provenance.model import model_state
from lmms_textweighted.provenance.software import software
from lmms_textweighted.verify.model import compare_models, compare_software
from lmms_textweighted.verify.verdict import Verdict, draw
from lmms_textweighted.view.compact import from_data
from lmms_textweighted.view.record import DocumentView

_ACTED = ("answer", "score", "exact", "kept_tokens")
_SAME = 1e-9  # of a mean that is computed again


def verify_sweep(
    path: Path, *, share: float, seed: int, question_file: Path | None = None, image_folder: Path | None = None
) -> Verdict:
    """Hold the JSON against its answers, and a share of the answers against the model.

    question_file, image_folder: where those of the sweep are, since a result holds their names only.

    Raises InputError where a file cannot be read, is of a version that did not record its options, or is of a question
    file that is not given (or the other way round); and as `load` does.
    """
    data = read_json(path)
    if "strategies" not in data or "meta" not in data:
        raise InputError(f"result {str(path)!r} is no sweep's JSON: give the file that `sweep` wrote")
    meta, lines = data["meta"], list(read_lines(path.with_name(f"{path.stem}.answers.jsonl")))
    check_recorded(path, meta, {"question_file": question_file, "image_folder": image_folder})
    rows: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        rows.setdefault(line["document"], []).append(line)
    chosen = draw(list(rows), share, seed)
    verdict = Verdict(total=len(rows), documents=len(chosen))
    if len(rows) != meta["num_samples"]:
        verdict.differences.append(f"answers are of {len(rows)} documents, the result is of {meta['num_samples']}")
    verdict.differences += _means(data, lines)
    experiment = recorded_experiment(meta, question_file, image_folder)
    llava = _loaded(experiment, meta, verdict)
    points, _ = experiment.grid(geometry_of(llava.model))
    check_points(points, llava)
    documents = documents_of(experiment)
    views = {view.uid: view for view, _ in recorded(path)}
    for number in chosen:
        document, found = documents[number], {_place(line): line for line in rows[number]}
        if any(line["digest"] != document.digest for line in rows[number]):
            verdict.differences.append(f"document {number}: text, target or pictures are others than recorded")
            continue
        view, recorder = views.get(uid_of(document.digest)), None
        if view is not None:
            recorder = Recorder(llava, document, points, experiment.budget)
        outcomes = run_document(
            llava,
            document.message,
            points,
            decoding=documents.decoding,
            ranks=False,
            judge=partial(documents.judge, document),
            record=recorder,
        )
        if view is not None and recorder is not None:
            again = from_data(recorder.view(outcomes, view.reference))
            verdict.differences += [f"document {number}, {what}" for what in _kept(view, again)]
        for point, outcome in zip(points, outcomes, strict=True):
            place = (point.strategy, point.layer, point.budget, point.seed)
            verdict.answers += 1
            verdict.differences += _compared(f"document {number}, {_named(place)}", found.get(place), vars(outcome))
    if meta["options"]["ranks"]:
        verdict.unchecked.append("ranks of the last layer")
    if meta["timed_documents"]:
        verdict.unchecked.append("seconds")
    return verdict


def _loaded(experiment: Experiment, meta: Mapping[str, Any], verdict: Verdict) -> PrunedLlava:
    """The model, as the sweep has it; what is another one than recorded goes into the verdict."""
    llava = model_of(experiment, experiment.load_options)
    here = model_state(llava)
    compare_models(meta["provenance"]["model"], here, verdict)
    compare_software(meta["provenance"], {"software": software(), "model": here}, verdict)
    return llava


def _means(data: dict[str, Any], lines: list[dict[str, Any]]) -> Iterator[str]:
    """Accuracies that are not the means of their answers' scores."""
    for strategy, block in blocks_of(data):
        scores: dict[Any, list[float]] = {}
        for line in lines:
            if line["strategy"] == strategy and line["layer"] == block["layer"]:
                scores.setdefault(line["tokens"], []).append(line["score"])
        means = [fmean(found) for found in scores.values()]
        if len(means) != len(block["accuracies"]):
            yield f"{strategy}: {len(block['accuracies'])} accuracies, but answers at {len(means)} budgets"
            continue
        for tokens, mean, said in zip(block["tokens"], means, block["accuracies"], strict=True):
            if abs(mean - said) > _SAME:
                yield f"{strategy} at {tokens}: accuracy is {mean:g} by its answers, recorded is {said:g}"


def _compared(where: str, line: dict[str, Any] | None, outcome: dict[str, Any]) -> Iterator[str]:
    if line is None:
        yield f"{where}: no answer is recorded"
        return
    for name in _ACTED:
        if line[name] != outcome[name]:
            yield f"{where}: {name} is {outcome[name]!r}, recorded is {line[name]!r}"
            return


def _kept(view: DocumentView, again: DocumentView) -> Iterator[str]:
    """Points of a recorded document that kept other tokens than they keep now."""
    there = {strategy.key: strategy for strategy in view.strategies}
    for strategy in again.strategies:
        known = there.get(strategy.key)
        name = _named((strategy.strategy, strategy.pruning_layer, strategy.budget, strategy.seed))
        if known is None:
            yield f"{name}: its view is not recorded"
        elif [stage.kept for stage in known.stages] != [stage.kept for stage in strategy.stages]:
            yield f"{name}: the tokens that stay are others than recorded in its view"


def _place(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return line["strategy"], line["layer"], line["tokens"], line["seed"]


def _named(place: tuple[Any, ...]) -> str:
    strategy, layer, tokens, seed = place
    said = [f"after layer {layer}" if layer is not None else "", f"at {tokens}" if tokens is not None else ""]
    return " ".join([strategy, *filter(None, said), *([] if seed is None else [f"seed {seed}"])])
