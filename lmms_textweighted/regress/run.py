"""Measure: settings -> a baseline, through the same code as every answer of this package."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from lmms_textweighted.engine.decoder import find_decoder
from lmms_textweighted.engine.plan import NONE
from lmms_textweighted.engine.splice import removed_at_end
from lmms_textweighted.engine.text_tower import no_text_tower
from lmms_textweighted.errors import InputError, PromptError, describe
from lmms_textweighted.experiment.names import budget_suffix
from lmms_textweighted.experiment.points import Point, check_points, make_points
from lmms_textweighted.families import LoadOptions, load
from lmms_textweighted.families.images import check_aspect_ratio
from lmms_textweighted.harness.documents import Document, Documents
from lmms_textweighted.inference import Answer, Decoding, PrunedLlava, geometry_of
from lmms_textweighted.inference.memory import in_halves
from lmms_textweighted.methods.budget import Budget, Geometry
from lmms_textweighted.pictures import PICTURE_LIMITS
from lmms_textweighted.prompts import check_template, render
from lmms_textweighted.provenance.model import model_state
from lmms_textweighted.provenance.record import provenance
from lmms_textweighted.regress.baseline import Baseline, DocumentRecord, Outcome, PointRecord, Settings, Setup
from lmms_textweighted.regress.compact import to_ranges, to_runs
from lmms_textweighted.regress.content import content_hash
from lmms_textweighted.regress.diff import check_contents, check_weights

_PACKAGES = ("lmms-textweighted", "lmms-eval", "torch", "transformers", "tokenizers", "pillow", "numpy")
_PREPARATION = (
    *("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor", "image_grid_pinpoints"),
    *("min_patches", "max_patches"),
)


def measure(settings: Settings, expected: Baseline | None, console: Console) -> Baseline:
    """Answer every document at every point. expected: whose documents and weights it must be, if any; checked before
    the work that they would make useless. Raises InputError, PlanError or CheckpointError, one line each."""
    # What can be said without the model is said before the work.
    needing = next((point for point in _points(settings) if point.plan.reads_text), None)
    if needing is not None and settings.text_tower is None:
        raise no_text_tower(needing.strategy)
    source = Documents.of_task(
        settings.task, settings.num_samples, single_prediction_prompt=settings.single_pred_prompt
    )
    documents, decoding = list(source), source.decoding
    contents = [content_hash(document) for document in documents]
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    if expected is not None:
        ids = [document.id for document in documents]
        check_contents(expected, list(zip(ids, contents, strict=True)), versions)
    llava = _load(settings)
    state = model_state(llava)
    if expected is not None:
        check_weights(expected, state["weights"])
    points = _points(settings, geometry_of(llava.model))
    check_points(points, llava)
    llava = llava.with_text_tower(settings.text_tower, (point.plan for point in points))
    state = model_state(llava)  # with that of the text tower
    outcomes = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        work = progress.add_task(
            f"{len(documents)} documents x {len(points)} points", total=len(documents) * len(points)
        )
        for point in points:
            for first in range(0, len(documents), settings.batch_size):
                batch = documents[first : first + settings.batch_size]
                outcomes += _answer(llava, source, point, _name(point, settings), batch, decoding)
                progress.advance(work, len(batch))
    whole = replace(llava, plan=NONE)  # the last point's pictures may be smaller
    return Baseline(
        settings=settings,
        setup=Setup(
            weights=state["weights"],
            conv_mode=str(llava.template),
            metric=source.metric,
            decoding=_as_read(asdict(llava.stopping(decoding))),
            preparation=_preparation(llava),
            versions=versions,
        ),
        provenance=provenance(state),
        documents=tuple(_record(whole, *each) for each in zip(documents, contents, strict=True)),
        points=tuple(_point(point, _name(point, settings), outcomes) for point in points),
        outcomes=tuple(outcomes),
    )


def _points(settings: Settings, geometry: Geometry | None = None) -> list[Point]:
    """Without a model, plans that must be solved for one are made for a share of its tokens."""
    kind, budgets = settings.budgets
    solved = Budget.of(**{kind: budgets[0]}).is_solved
    return make_points(
        settings.strategies,
        (1.0,) if geometry is None and solved else budgets,
        settings.pruning_layer,
        text_scope=settings.text_scope,
        keep_scope=settings.keep_scope,
        kind="keep_ratio" if geometry is None and solved else kind,
        geometry=geometry,
    )


@contextmanager
def observed_lengths(model: Any) -> Iterator[dict[int, int]]:
    """Layer -> length of the longest sequence that it gave back in the first forward since the context was opened.

    Seen from outside of the pruner, so that a trace which tells of a removal that never happened is found out.
    """
    lengths: dict[int, int] = {}

    def hook(number: int) -> Any:
        def after(module: Any, args: Any, output: Any) -> None:
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            lengths.setdefault(number, hidden.shape[1])

        return after

    with ExitStack() as stack:
        for number, layer in enumerate(find_decoder(model).layers):
            stack.enter_context(removed_at_end(layer.register_forward_hook(hook(number))))
        yield lengths


def _load(settings: Settings) -> PrunedLlava:
    ratio = settings.image_aspect_ratio
    options = LoadOptions(
        device=settings.device,
        dtype=settings.dtype,
        attn_implementation=settings.attn_implementation,
        loader=settings.loader,
        vision_tower=settings.vision_tower,
        image_aspect_ratio=ratio and check_aspect_ratio(ratio),
        **{name: getattr(settings, name) for name in PICTURE_LIMITS},
    )
    template = settings.conv_mode and check_template(settings.conv_mode)
    model, processor = load(settings.model_path, options)
    return PrunedLlava(model, processor, template=template, seed=settings.seed, system_prompt=settings.system_prompt)


def _answer(
    llava: PrunedLlava, source: Documents, point: Point, name: str, batch: list[Document], decoding: Decoding
) -> list[Outcome]:
    """Raises InputError that names the documents, whatever went wrong with them."""
    llava.plan = point.plan
    try:
        return in_halves(batch, lambda part: _outcomes(llava, source, name, part, decoding), "documents")
    except Exception as error:
        batch = [batch[error.row]] if isinstance(error, PromptError) else batch
        names = batch[0].name if len(batch) == 1 else f"{batch[0].name} to {batch[-1].id}"
        raise InputError(f"{names}, {name}: {describe(error)}") from error


def _outcomes(
    llava: PrunedLlava, source: Documents, name: str, batch: Sequence[Document], decoding: Decoding
) -> list[Outcome]:
    with observed_lengths(llava.model) as seen:
        answers = llava.generate([[document.message] for document in batch], decoding)
    ran = [seen[number] for number in sorted(seen)]
    told = [max(lengths) for lengths in zip(*(answer.trace.lengths for answer in answers), strict=True)]
    return [
        Outcome(
            point=name,
            document=document.id,
            answer=answer.text,
            score=source.score(document, answer.text),
            # Of a batch only the longest is seen from outside; what was seen goes before what the traces say.
            lengths=to_runs(answer.trace.lengths if told == ran else ran),
            kept=_kept(answer),
        )
        for document, answer in zip(batch, answers, strict=True)
    ]


def _kept(answer: Answer) -> tuple[str, ...]:
    return tuple(to_ranges(stage.kept.tolist()) for stage in answer.trace.stages)


def _name(point: Point, settings: Settings) -> str:
    """As leaderboards call it: `fastv@64`, `fastv@ratio0.25`, `fastv@equivalent128`, `fastv@flops0.5`."""
    kind, _ = settings.budgets
    return point.strategy if point.budget is None else f"{point.strategy}@{budget_suffix(kind, point.budget)}"


def _point(point: Point, name: str, outcomes: list[Outcome]) -> PointRecord:
    scores = [outcome.score for outcome in outcomes if outcome.point == name]
    return PointRecord(name=name, accuracy=round(fmean(scores), 6), plan=_as_read(point.plan.to_dict()))


def _record(llava: PrunedLlava, document: Document, content: str) -> DocumentRecord:
    return DocumentRecord(
        id=document.id,
        content=content,
        target=document.target,
        prompt=render(str(llava.template), [document.message], llava.processor),
        pixels=_pixels(llava.encode([[document.message]]).inputs.values()),
    )


def _pixels(inputs: Any) -> tuple[float, float] | None:
    """Mean and standard deviation of all prepared pixels: the inputs' only fractions."""
    tensors = [part for value in inputs for part in (value if isinstance(value, list) else [value])]
    pixels = [part.float().flatten() for part in tensors if torch.is_tensor(part) and part.is_floating_point()]
    if not pixels:
        return None
    values = torch.cat(pixels)
    return round(values.mean().item(), 4), round(values.std().item(), 4)


def _preparation(llava: PrunedLlava) -> dict[str, Any]:
    """The name of the image preparation and the image processor's numbers."""
    processor = getattr(llava.processor, "image_processor", None)
    numbers = {name: value for name in _PREPARATION if (value := getattr(processor, name, None)) is not None}
    return _as_read({"image_aspect_ratio": llava.image_aspect_ratio, **numbers})


def _as_read(data: dict[str, Any]) -> dict[str, Any]:
    """As it will come back from the file: no tuples, no types of a library's own (transformers' SizeDict)."""
    return json.loads(json.dumps(data, default=lambda size: {k: v for k, v in vars(size).items() if v is not None}))
