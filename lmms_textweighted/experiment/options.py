"""The sweep's options, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms_textweighted.engine.text_tower import no_text_tower
from lmms_textweighted.errors import InputError, unknown
from lmms_textweighted.experiment.grid import LeftOut, Point, make_grid
from lmms_textweighted.experiment.names import AXES, SHARES, file_name
from lmms_textweighted.experiment.pairs import REFERENCES
from lmms_textweighted.experiment.ranges import parse_budgets, parse_layers, parse_samples, parse_seeds
from lmms_textweighted.families import LoadOptions
from lmms_textweighted.families.images import check_aspect_ratio
from lmms_textweighted.harness.output import check_writable
from lmms_textweighted.inference import StatedLengths
from lmms_textweighted.methods.budget import Geometry
from lmms_textweighted.page import check_page
from lmms_textweighted.pictures import PICTURE_LIMITS
from lmms_textweighted.prompts import check_system_prompt, check_template

DEFAULT_TASK = "shapes_mcq"
VIEWS = 500  # documents that are recorded where nothing else is asked for


@dataclass(frozen=True)
class Experiment:
    """The sweep's options, checked. num_samples None: all documents. conv_mode None: the checkpoint's.

    task is not used where there is a question_file. layers None: every layer that can prune. seeds: of strategies that
    draw; the first is the run's. timed: documents whose prefills are timed. against: strategies that all others are
    tested against; None: those of `pairs.REFERENCES` that are run. system_prompt: as for `inference.PrunedLlava`.
    text_tower: a folder or hub name of a CLIP, for strategies that need its text tower.
    views: documents whose kept tokens, scores, words and pictures are recorded. html: where the page goes.
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
    system_prompt: str | None = None
    text_tower: str | None = None
    views: int = VIEWS
    html: Path | None = None

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
                **{name: options[name] for name in PICTURE_LIMITS},
            ),
            output_dir=output_dir,
            overwrite=_flag(options, "overwrite"),
            timed=_whole("time", options["time"]) or 0,
            against=_names(options["against"]) if options["against"] else None,
            system_prompt=check_system_prompt(options["system_prompt"]),
            text_tower=options["text_tower"],
            views=_whole("views", options["views"]) or 0,
            html=None if options["html"] is None else Path(str(options["html"])),
        )
        points, _ = experiment.grid()  # what can be said without the model is said before it is loaded
        experiment.references(points)
        needing = next((point for point in points if point.plan.reads_text), None)
        if needing is not None and experiment.text_tower is None:
            raise no_text_tower(needing.strategy)
        if experiment.timed < 0:
            raise InputError(f"time is {experiment.timed}: give a number of documents, or 0")
        if experiment.views < 0:
            raise InputError(f"views is {experiment.views}: give a number of documents, or 0")
        check_page(experiment.html)
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

    def target(self, ending: str) -> Path:
        """The result's file with this ending."""
        return self.output_dir / file_name(self.layers, ending)


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
