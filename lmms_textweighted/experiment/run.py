"""`lmms-textweighted sweep`: options -> documents, model, points -> files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lmms_textweighted.errors import InputError, describe, unknown
from lmms_textweighted.experiment.claim import claiming
from lmms_textweighted.experiment.files import experiment_data, scores_of, whole_file, write_answers, write_json
from lmms_textweighted.experiment.grid import LeftOut, Point, check_points, make_grid
from lmms_textweighted.experiment.names import AXES, SHARES, file_name
from lmms_textweighted.experiment.outcomes import Outcome, collect
from lmms_textweighted.experiment.pairs import REFERENCES
from lmms_textweighted.experiment.points import run_document
from lmms_textweighted.experiment.progress import progress_on
from lmms_textweighted.experiment.ranges import parse_budgets, parse_layers, parse_samples, parse_seeds
from lmms_textweighted.experiment.tables import print_tables
from lmms_textweighted.experiment.timing import Prefill, time_points
from lmms_textweighted.families import LoadOptions, load, weights_fingerprint
from lmms_textweighted.families.images import check_aspect_ratio
from lmms_textweighted.harness.documents import Document, Documents
from lmms_textweighted.harness.local import QuestionDocuments
from lmms_textweighted.harness.output import check_writable
from lmms_textweighted.harness.quiet import quiet_libraries
from lmms_textweighted.inference import Decoding, PrunedLlava, StatedLengths, geometry_of
from lmms_textweighted.methods.budget import Geometry
from lmms_textweighted.parallel.processes import gather, join, placed, share, world
from lmms_textweighted.parallel.watch import watch_others
from lmms_textweighted.prompts import check_template, render

DEFAULT_TASK = "shapes_mcq"
FILE_ASPECT_RATIO = "square"  # a question file's pictures, as the published experiment had them
_PACKAGES = ("lmms-textweighted", "lmms-eval", "torch", "transformers", "numpy")


@dataclass(frozen=True)
class Experiment:
    """The sweep's options, checked. num_samples None: all documents. conv_mode None: the checkpoint's.

    task is not used where there is a question_file. layers None: every layer that can prune. seeds: of strategies that
    draw; the first is the run's. timed: documents whose prefills are timed. against: strategies that all others are
    tested against; None: those of `pairs.REFERENCES` that are run.
    """

    model_path: str
    conv_mode: str | None
    task: str
    question_file: Path | None
    image_folder: Path | None
    skip_missing: bool
    num_samples: int | None
    layers: list[int] | None
    tokens: list[int] | list[float]
    budget: str
    strategies: list[str]
    text_scope: str
    keep_scope: str
    single_pred_prompt: bool
    stated: StatedLengths
    ranks: bool
    seeds: list[int]
    load_options: LoadOptions
    output_dir: Path
    overwrite: bool = False
    timed: int = 0
    against: list[str] | None = None

    @classmethod
    def parse(cls, options: dict[str, Any]) -> Experiment:
        """From the command line's options. Raises InputError or PlanError, one line each, before any work."""
        if options["model_base"]:
            raise InputError(
                f"model_base is {options['model_base']!r}: LoRA checkpoints in liuhaotian format are not supported, "
                "merge them first"
            )
        stated = [_whole(name, options[name]) for name in ("fast_v_sys_length", "fast_v_image_token_length")]
        text_scope, keep_scope = str(options["text_scope"]), str(options["keep_scope"])
        task, question_file, image_folder = _source(options)
        aspect_ratio = options["image_aspect_ratio"]
        output_dir = Path(str(options["output_dir"]))
        check_writable(output_dir)
        experiment = cls(
            model_path=str(options["model_path"]),
            conv_mode=options["conv_mode"] and check_template(options["conv_mode"]),
            task=task,
            question_file=question_file,
            image_folder=image_folder,
            skip_missing=_flag(options, "skip_missing"),
            num_samples=parse_samples(options["num_samples"]),
            layers=parse_layers(_joined(options["pruning_layer"])),
            tokens=parse_budgets(_joined(options["tokens"]), _budget(options["budget"])),
            budget=options["budget"],
            strategies=_names(options["strategies"]),
            text_scope=text_scope,
            keep_scope=keep_scope,
            single_pred_prompt=_flag(options, "single_pred_prompt"),
            stated=StatedLengths(*stated),
            ranks=_flag(options, "ranks"),
            seeds=parse_seeds(_joined(options["seed"])),
            load_options=LoadOptions(
                device=options["device"],
                dtype=str(options["dtype"]),
                device_map=options["device_map"],
                attn_implementation=options["attn_implementation"],
                loader=str(options["loader"]),
                vision_tower=options["vision_tower"],
                image_aspect_ratio=aspect_ratio and check_aspect_ratio(aspect_ratio),
            ),
            output_dir=output_dir,
            overwrite=_flag(options, "overwrite"),
            timed=_whole("time", options["time"]) or 0,
            against=_names(options["against"]) if options["against"] else None,
        )
        points, _ = experiment.grid()  # what can be said without the model is said before it is loaded
        experiment.references(points)
        if experiment.timed < 0:
            raise InputError(f"time is {experiment.timed}: give a number of documents, or 0")
        return experiment

    def references(self, points: Sequence[Point]) -> list[str]:
        """The strategies to test against. Raises InputError for one that is not run."""
        known = list(dict.fromkeys(point.strategy for point in points))
        for name in self.against or ():
            if name not in known:
                raise InputError(f"against is {name!r}, which is not run here: name one of {', '.join(known)}")
        return [name for name in REFERENCES if name in known] if self.against is None else self.against

    def grid(self, geometry: Geometry | None = None) -> tuple[list[Point], list[LeftOut]]:
        """The points for a model, and those that their method refuses. See `make_grid`.

        Without a model, plans that must be solved for one are made for as many tokens, or as large a share of them.
        """
        unsolved = "keep_ratio" if self.budget in SHARES else "keep_tokens"
        return make_grid(
            self.strategies,
            self.tokens,
            self.pruning_layers(geometry.layers if geometry else 2),
            text_scope=self.text_scope,
            keep_scope=self.keep_scope,
            seeds=self.seeds,
            kind=unsolved if geometry is None else self.budget,
            geometry=geometry,
        )

    def pruning_layers(self, decoder_layers: int) -> list[int]:
        """The layers asked for, of a decoder of that many."""
        return list(range(max(1, decoder_layers - 1))) if self.layers is None else self.layers


@dataclass(frozen=True)
class _Answered:
    """What the result needs of a document. Kept whole, their pictures would fill the memory.

    row: what stands in front of each of its answers. prompt: of the first document alone.
    """

    row: dict[str, Any]
    choices: int
    prompt: str | None
    outcomes: list[Outcome]


@claiming(lambda experiment: _target(experiment, "json"))
def run_experiment(experiment: Experiment) -> dict[str, Any]:
    """Run the sweep and write its files; returns the JSON's content.

    Of several processes each answers its share and notes it in a file of its own as it goes; then the first one writes
    the result, in the documents' order. No file has its final name before it is whole. Raises InputError as
    `claim.claimed` does.
    """
    state = join() if world()[1] > 1 else None
    watch_others()
    main = state is None or state.is_main_process
    console = Console(quiet=not main)
    quiet_libraries()
    documents = _documents(experiment)  # wrong data should cost no loading of a model
    decoding = documents.decoding
    options = experiment.load_options if state is None else placed(experiment.load_options, state)
    model, processor = load(experiment.model_path, options)
    llava = PrunedLlava(
        model, processor, template=experiment.conv_mode, seed=experiment.seeds[0], stated=experiment.stated
    )
    if experiment.question_file and not experiment.load_options.image_aspect_ratio and llava.takes(FILE_ASPECT_RATIO):
        llava = llava.with_aspect_ratio(FILE_ASPECT_RATIO)
    layers = model.config.get_text_config().num_hidden_layers
    points, left_out = experiment.grid(geometry_of(model))
    check_points(points, llava)
    for point in left_out:
        console.print(f"left out: {point}", soft_wrap=True, markup=False, highlight=False)
    partial = _partial(experiment)
    own = _answer_all(experiment, points, llava, documents, decoding, partial, console)
    answered = sorted(gather(own), key=lambda document: document.row["document"])
    prefills = _time_all(experiment, points, llava, documents, console)
    outcomes = [document.outcomes for document in answered]
    # Where the number differs from picture to picture, no pruning stands at its mean.
    seen_tokens = [row[0].image_tokens for row in outcomes if row[0].image_tokens]
    image_tokens = llava.tokens_per_image or round(fmean(seen_tokens or [0]))
    data = experiment_data(
        collect(points, outcomes, prefills),
        _meta(experiment, llava, documents, answered, left_out, layers),
        layers=layers,
        image_tokens=image_tokens,
        against=experiment.references(points),
    )
    if main:
        _write(experiment, points, data, answered)
        print_tables(data, console)
        for name in ("json", "png"):
            console.print(f"wrote {_target(experiment, name)}", soft_wrap=True)
    if state is not None:
        state.wait_for_everyone()
        state.end_training()
    partial.unlink()
    return data


def _answer_all(
    experiment: Experiment,
    points: Sequence[Point],
    llava: PrunedLlava,
    documents: Documents,
    decoding: Decoding,
    partial: Path,
    console: Console,
) -> list[_Answered]:
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
                _Answered(
                    row=row,
                    choices=len(document.fields.get("choices") or ()),
                    prompt=None if number else render(str(llava.template), [document.message], llava.processor),
                    outcomes=_answer(experiment, points, llava, documents, document, decoding),
                )
            )
            write_answers(file, row, points, answered[-1].outcomes)
    return answered


def _time_all(
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


def _documents(experiment: Experiment) -> Documents:
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


def _write(experiment: Experiment, points: Sequence[Point], data: dict[str, Any], answered: list[_Answered]) -> None:
    """The three files, the JSON last: where it is new, so are the others."""
    from lmms_textweighted.experiment.picture import draw  # matplotlib is slow to import

    with ExitStack() as files:
        json_file, picture, answers = (
            files.enter_context(whole_file(_target(experiment, name))) for name in ("json", "png", "answers.jsonl")
        )
        with answers.open("w", encoding="utf-8") as file:
            for document in answered:
                write_answers(file, document.row, points, document.outcomes)
        draw(picture, data)
        write_json(json_file, data)


def _target(experiment: Experiment, ending: str) -> Path:
    return experiment.output_dir / file_name(experiment.layers, ending)


def _partial(experiment: Experiment) -> Path:
    """Where this process notes its answers while it runs; a run that dies leaves it behind."""
    rank, size = world()
    return _target(experiment, "answers.jsonl.part" if size == 1 else f"answers.jsonl.rank{rank}of{size}.part")


def _meta(
    experiment: Experiment,
    llava: PrunedLlava,
    documents: Documents,
    answered: list[_Answered],
    left_out: Sequence[LeftOut],
    layers: int,
) -> dict[str, Any]:
    digests = [document.row["digest"] for document in answered]
    asked = experiment.pruning_layers(layers)
    chances = [1 / document.choices for document in answered if document.choices]
    return {
        "checkpoint": experiment.model_path,
        "weights": weights_fingerprint(llava.model),
        "dtype": str(llava.model.dtype).removeprefix("torch."),
        "device": llava.model.device.type,
        "decoder_layers": layers,
        **documents.describe(),
        "num_samples": len(digests),
        "documents_sha256": hashlib.sha256("".join(digests).encode()).hexdigest(),
        "metric": documents.metric,
        "scores": scores_of(documents.metric),
        "chance": fmean(chances) if len(chances) == len(digests) else None,
        "conv_mode": llava.template,
        "prompt_example": answered[0].prompt if answered else None,
        "image_aspect_ratio": llava.image_aspect_ratio,
        "pruning_layer": asked if experiment.layers is None or len(asked) > 1 else asked[0],
        "budget": experiment.budget,
        "timed_documents": min(experiment.timed, len(answered)),
        "text_scope": experiment.text_scope,
        "keep_scope": experiment.keep_scope,
        "layer_numbering": "from 0; image tokens leave after this layer",
        "seed": experiment.seeds[0] if len(experiment.seeds) == 1 else experiment.seeds,
        "left_out": [asdict(point) for point in left_out],
        "rank_note": (
            "a causal image-to-image block is triangular with a positive diagonal, so its exact rank is the number of "
            "kept tokens; the numeric rank counts what the tolerance of 1e-6 hides"
        ),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
    }


def _budget(name: Any) -> str:
    if name not in AXES:
        raise InputError(unknown("budget", name, AXES))
    return name


def _whole(name: str, value: Any) -> Any:
    """A whole number, or None where the option may be left out."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise InputError(f"{name} is {value!r}: give a whole number")
    return value


def _flag(options: dict[str, Any], name: str) -> bool:
    if not isinstance(options[name], bool):
        raise InputError(f"{name} is {options[name]!r}: give true or false")
    return options[name]


def _source(options: dict[str, Any]) -> tuple[str, Path | None, Path | None]:
    """(task, question file, image folder): a task or a question file may be given, never both."""
    task, question_file, image_folder = (options[name] for name in ("task", "question_file", "image_folder"))
    if question_file is None:
        unused = [name for name in ("image_folder", "skip_missing") if options[name]]
        if unused:
            raise InputError(f"{unused[0]} is {str(options[unused[0]])!r}, but no question_file is given: name one")
        return str(task or DEFAULT_TASK), None, None
    if task is not None:
        raise InputError(
            f"task is {task!r} and question_file is {str(question_file)!r}: give one of them, on the command line and "
            f"in the config file together"
        )
    return "", Path(str(question_file)), None if image_folder is None else Path(str(image_folder))


def _names(value: Any) -> list[str]:
    return [name.strip() for name in _joined(value).split(",") if name.strip()]


def _joined(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
