"""Plans as YAML files: `strategy=plan.yaml` wherever a method is named."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lmms_textweighted.engine.plan import Picture, Plan, Stage
from lmms_textweighted.engine.scoring import Scorer
from lmms_textweighted.errors import PlanError, unknown
from lmms_textweighted.methods.places import line_of, repeated_keys
from lmms_textweighted.methods.presets import Fixed

ENDINGS = (".yaml", ".yml")
_NAME = r"^[A-Za-z0-9][\w.+-]*$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StageText(_Strict):
    """One stage of a file. scorer: a name in `methods.SCORERS`; options: its fields. The rest: see `engine.plan.Stage`.

    A whole number may stand where a share is meant, as in `keep_ratio: 1`.
    """

    scorer: str
    options: dict[str, str | int | float | bool] = {}
    layer: int
    score_layer: int | None = None
    keep_tokens: int | None = None
    keep_ratio: float | None = None
    keep_of: Literal["current", "original"] = "current"
    grid: Literal["per_crop", "over_all"] | None = None
    newlines: Literal["eligible", "keep", "drop"] | None = None
    positions: Literal["keep", "renumber"] | None = None


class PictureText(_Strict):
    """How small pictures are made. See `engine.plan.Picture`."""

    tokens: int
    of: int


class PlanText(_Strict):
    """A whole file. name: what results call it. source: who says so. The rest: see `engine.plan.Plan`."""

    name: str = Field(pattern=_NAME)
    source: str = "a plan of one's own"
    stages: list[StageText]
    text_scope: Literal["after", "all", "question"] = "after"
    keep_scope: Literal["image", "prompt"] = "image"
    positions: Literal["keep", "renumber"] = "keep"
    picture: PictureText | None = None


@dataclass(frozen=True)
class FilePlan(Fixed):
    """A plan that was read from a file. digest: of everything in it that acts, so not of comments and spaces."""

    digest: str = ""


def is_plan_file(strategy: str) -> bool:
    """Whether a strategy names a file of this kind: by its ending."""
    return strategy.lower().endswith(ENDINGS)


def read_plan(path: str | Path, scorers: Mapping[str, Scorer], taken: Collection[str]) -> FilePlan:
    """A file's plan. scorers: by name. taken: names of methods, which a plan may not have.

    Raises PlanError, one line with the file and the place, for a file that cannot be read, is no YAML, says a thing
    twice, or states no plan.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no text"
        raise PlanError(
            f"plan {str(path)!r} cannot be read ({said}): give a plan's file, or a name of `lmms-textweighted methods`"
        ) from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise PlanError(f"plan {str(path)!r}{where}, is no YAML ({problem}): correct it there") from error
    if node is None or not isinstance(loaded, dict):
        raise PlanError(f"plan {str(path)!r} states no plan: write `name:` and `stages:`")
    for key in repeated_keys(node):
        raise PlanError(f"plan {str(path)!r}, line {key.start_mark.line + 1}: {key.value} is stated twice: keep one")
    try:
        written = PlanText.model_validate(loaded)
    except ValidationError as error:
        raise PlanError(f"plan {str(path)!r}{_first(error, node)}") from error
    if written.name in taken:
        raise PlanError(
            f"plan {str(path)!r}{line_of(node, ('name',))}: name is {written.name!r}, which is a method's: give another"
        )
    place: tuple[int | str, ...] = ()
    try:
        picture = None
        if written.picture is not None:
            place = ("picture",)
            picture = Picture(written.picture.tokens, written.picture.of)
        stages = []
        for number, stage in enumerate(written.stages):
            place = ("stages", number)
            stages.append(_stage(stage, scorers))
        plan = Plan(written.name, tuple(stages), written.text_scope, written.keep_scope, written.positions, picture)
    except PlanError as error:
        raise PlanError(f"plan {str(path)!r}{line_of(node, place)}: {error}") from error
    # A field that most files lack leaves the digests of those as they were.
    acts = written.model_dump(mode="json", exclude=None if written.picture else {"picture"})
    for stage in acts["stages"]:
        for name in ("grid", "newlines", "positions"):
            if stage[name] is None:
                del stage[name]
    return FilePlan(written.name, written.name, written.source, plan, _digest(acts))


def plan_text(plan: Plan, scorers: Mapping[str, Scorer], *, name: str, source: str) -> str:
    """A plan as a file that `read_plan` reads. Raises PlanError for a scorer that has no name in `scorers`."""
    stages = []
    for stage in plan.stages:
        known, options = _options(stage.scorer, scorers)
        data = {"scorer": known, "options": options, "layer": stage.layer, "score_layer": stage.score_layer}
        data |= {"keep_tokens": stage.keep_tokens, "keep_ratio": stage.keep_ratio}
        data |= {"keep_of": None if stage.keep_of == "current" else stage.keep_of}
        data |= {"grid": stage.grid, "newlines": stage.newlines, "positions": stage.positions}
        stages.append({key: value for key, value in data.items() if value not in (None, {})})
    whole: dict[str, Any] = {"name": name, "source": source, "stages": stages}
    whole |= {"text_scope": plan.text_scope, "keep_scope": plan.keep_scope, "positions": plan.positions}
    whole |= {} if plan.picture is None else {"picture": dataclasses.asdict(plan.picture)}
    return yaml.safe_dump(whole, sort_keys=False, allow_unicode=True, width=100)


def source_digest(strategy: object) -> str | None:
    """What tells two contents of one strategy name apart: of `plan.yaml` a digest of what acts, of `FILE.py:NAME` and
    `MODULE:NAME` one of the file that defines it. None for a plain name, and for what is not there.
    """
    if isinstance(strategy, FilePlan):
        return strategy.digest
    place, colon, _ = str(strategy).rpartition(":")
    if not isinstance(strategy, str) or not colon:
        return None
    try:
        file = place if place.endswith(".py") else (importlib.util.find_spec(place) or _NOWHERE).origin
        return hashlib.sha256(Path(str(file)).read_bytes()).hexdigest()[:16]
    except (OSError, ImportError, ValueError):
        return None


@dataclass
class _Nowhere:
    origin: str | None = None


_NOWHERE = _Nowhere()


def _stage(stage: StageText, scorers: Mapping[str, Scorer]) -> Stage:
    if stage.scorer not in scorers:
        raise PlanError(unknown("scorer", stage.scorer, scorers))
    scorer = scorers[stage.scorer]
    known = _fields(scorer)
    for name, value in stage.options.items():
        if name not in known:
            said = unknown("option", name, known) if known else f"scorer {stage.scorer!r} takes no options"
            raise PlanError(f"{said}: leave {name} out" if not known else said)
        wanted = type(known[name])
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise PlanError(f"option {name} of {stage.scorer!r} is {value!r}: give one as {known[name]!r}")
    try:
        chosen = dataclasses.replace(scorer, **stage.options) if stage.options else scorer  # type: ignore[type-var]
    except (ValueError, TypeError) as error:
        raise PlanError(f"options of {stage.scorer!r}: {error}") from error
    return Stage(
        chosen,
        stage.layer,
        stage.keep_tokens,
        stage.keep_ratio,
        stage.score_layer,
        stage.keep_of,
        stage.grid,
        stage.newlines,
        stage.positions,
    )


def _fields(scorer: Scorer) -> dict[str, Any]:
    """A scorer's options with the values that it has: its plain fields, without its name."""
    if not dataclasses.is_dataclass(scorer):
        return {}
    values = {field.name: getattr(scorer, field.name) for field in dataclasses.fields(scorer) if field.init}
    return {key: value for key, value in values.items() if key != "name" and isinstance(value, str | int | float)}


def _options(scorer: Scorer, scorers: Mapping[str, Scorer]) -> tuple[str, dict[str, Any]]:
    """(its name in `scorers`, the options in which it differs from that one)."""
    for name, known in scorers.items():
        if known == scorer:
            return name, {}
    for name, known in scorers.items():
        if type(known) is not type(scorer):
            continue
        own, theirs = _fields(scorer), _fields(known)
        options = {key: value for key, value in own.items() if value != theirs.get(key)}
        if options and dataclasses.replace(known, **options) == scorer:  # type: ignore[type-var]
            return name, options
    raise PlanError(f"scorer {scorer.name!r} is in no list that a file could name: use its method by name")


def _first(error: ValidationError, node: yaml.Node) -> str:
    """The first thing wrong: line, place, what is there, what it should be."""
    every = error.errors(include_url=False)
    found = next((one for one in every if one["type"] == "extra_forbidden"), every[0])  # says why another is missing
    loc = found["loc"]
    where = ".".join(str(part) for part in loc)
    if found["type"] == "extra_forbidden":
        models: dict[Any, type[BaseModel]] = {"stages": StageText, "picture": PictureText}
        model = models.get(loc[0], PlanText) if len(loc) > 1 else PlanText
        return f"{line_of(node, loc)}: {where} is no field of a plan: {unknown('field', loc[-1], model.model_fields)}"
    if found["type"] == "missing":
        return f"{line_of(node, loc[:-1])}: {where} is missing: state it"
    said = found["msg"]
    return f"{line_of(node, loc)}: {where} is {str(found['input'])[:60]!r}: {said[:1].lower()}{said[1:]}"


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
