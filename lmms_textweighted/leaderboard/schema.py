"""What a leaderboard's YAML file may say: tasks x budgets x methods, checked once, here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from lmms_textweighted.errors import InputError, unknown
from lmms_textweighted.experiment.names import budget_suffix
from lmms_textweighted.paths import config_names, config_text

FOLDER = "leaderboard"  # of the configs
Count = Annotated[int, Field(ge=1, strict=True)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Scalar = str | int | float | bool


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Part(_Strict):
    """Some of a task's documents: how many, and how many pictures each of them has."""

    count: Count
    images: Annotated[int, Field(ge=0, strict=True)] = 1


class Task(_Strict):
    """One of lmms-eval's tasks. documents: their number, or parts; left out, they are counted where the data are local.

    source: who says so. text_tokens: of a prompt, system prompt included; image_tokens: of a picture, where they depend
    on it; assumptions of the estimate. metric: the table's, as `compare --metric` takes it, else the task's first.
    """

    name: Annotated[str, Field(pattern=r"^[^,\s]+$")]
    documents: Count | list[Part] | None = None
    source: str | None = None
    text_tokens: Count | None = None
    image_tokens: Count | None = None
    metric: str | None = None

    @property
    def parts(self) -> list[Part] | None:
        """The documents by number of pictures; None where they are not stated."""
        return [Part(count=self.documents)] if isinstance(self.documents, int) else self.documents


class Budget(_Strict):
    """A budget in other units than tokens kept; see `methods.budget.Budget`. Exactly one is given."""

    keep_tokens: Count | None = None
    keep_ratio: float | None = None
    equivalent_tokens: float | None = None
    flops_ratio: float | None = None

    @model_validator(mode="after")
    def _one(self) -> Budget:
        given = {name: value for name, value in self if value is not None}
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}")
        return self

    @property
    def given(self) -> tuple[str, float]:
        """(its name, its value, whole where it can be)"""
        name, value = next((name, value) for name, value in self if value is not None)
        return name, int(value) if value == int(value) else value

    def __str__(self) -> str:
        """As runs are named: `64`, `equivalent64`, `flops0.3`."""
        return budget_suffix(*self.given)


def _counted(value: Any) -> Any:
    """A list whose entries may be bare counts."""
    if not isinstance(value, list):
        return value
    return [{"keep_tokens": item} if not isinstance(item, dict | Budget) else item for item in value]


Budgets = Annotated[list[Budget], BeforeValidator(_counted)]


class Method(_Strict):
    """A strategy (see `methods.find_method`) with model arguments of its own. name: what its runs are called."""

    strategy: str
    name: Annotated[str, Field(pattern=r"^[\w.+-]+$")] = ""
    budgets: Budgets | None = None
    model_args: dict[str, Scalar] = {}

    @property
    def label(self) -> str:
        return self.name or self.strategy


class Options(_Strict):
    """Options of lmms-eval that every run gets, by lmms-eval's names."""

    batch_size: str = "1"
    include_path: str | None = None
    gen_kwargs: str | None = None
    device: str | None = None
    force_simple: bool = False
    process_docs_parallel: Count | None = None
    verbosity: str | None = None

    @field_validator("batch_size", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value


class Assumptions(_Strict):
    """What the estimate takes for granted. config: the checkpoint's config.json, for where that is not local.

    text_tokens: of a prompt, image_tokens: of a picture (where they depend on it), where the task says nothing.
    answer_tokens: of an answer, the end token included. element_size: bytes of a weight. flops_per_second,
    bytes_per_second: rates of all devices together, that the hours stand on. Their defaults are a third of an A100's
    312 TFLOP/s in bfloat16 and half of its 2.0 TB/s (the 80 GB card's data sheet): what an evaluation in plain
    transformers may reach.
    """

    config: dict[str, Any] | None = None
    text_tokens: Count = 64
    image_tokens: Count | None = None
    answer_tokens: Count = 4
    element_size: Count = 2
    flops_per_second: Rate = 1e14
    bytes_per_second: Rate = 1e12


class Matrix(_Strict):
    """A leaderboard: every method at every budget, `none` once, each run over all tasks."""

    # Also a folder of the response cache, for which lmms-eval changes any other name.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]
    output: str
    model_args: dict[str, Scalar]
    tasks: Annotated[list[Task], Field(min_length=1)]
    budgets: Annotated[Budgets, Field(min_length=1)]
    methods: Annotated[list[Method], Field(min_length=1)]
    options: Options = Options()
    estimate: Assumptions = Assumptions()
    published: list[str] = []

    @field_validator("tasks", mode="before")
    @classmethod
    def _named_tasks(cls, value: Any) -> Any:
        return _from_names(value, "name")

    @field_validator("methods", mode="before")
    @classmethod
    def _named_methods(cls, value: Any) -> Any:
        return _from_names(value, "strategy")

    @model_validator(mode="after")
    def _no_repeats(self) -> Matrix:
        named: dict[str, list[Any]] = {
            "tasks": [task.name for task in self.tasks],
            "methods": [method.label for method in self.methods],
            "budgets": [str(budget) for budget in self.budgets],
        }
        for kind, names in named.items():
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise ValueError(f"{kind} names {twice[0]!r} twice: give each once, or another name")
        return self


def read_matrix(config: str) -> Matrix:
    """A leaderboard by the name of a ready one (`tiny`, `leaderboard/tiny`) or from a file.

    Raises InputError, one line that names the file, the field and its value.
    """
    ready = config_names(FOLDER)
    name = config.removeprefix(f"{FOLDER}/")
    if Path(config).is_file():
        text = config_text(Path(config))
    elif name in ready:
        text = config_text(f"{FOLDER}/{name}")
    else:
        raise InputError(f"leaderboard config {config!r} is no file; {unknown('ready one', name, ready)}")
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"leaderboard config {config!r} is no YAML: {' '.join(str(error).split())}") from error
    try:
        return Matrix.model_validate(loaded)
    except ValidationError as error:
        raise InputError(f"leaderboard config {config!r}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    """The first thing wrong, in a line: where, what is there, what it should be."""
    found = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in found["loc"])
    if found["type"] == "extra_forbidden":
        return f"{where} is no field of it: {_known(found['loc'])}"
    if found["type"] == "missing":
        return f"{where} is missing: state it"
    value = repr(found["input"])
    said = found["msg"].removeprefix("Value error, ")
    return said if not where else f"{where} is {value[:80]}: {said[:1].lower()}{said[1:]}"


def _known(place: tuple[int | str, ...]) -> str:
    """The fields that may stand where an unknown one does, the nearest first."""
    models: dict[str, type[BaseModel]] = {
        "tasks": Task,
        "methods": Method,
        "options": Options,
        "estimate": Assumptions,
        "documents": Part,
        "budgets": Budget,
    }
    inside = [models[str(part)] for part in place[:-1] if part in models]
    return unknown("field", place[-1], (inside[-1] if inside else Matrix).model_fields)


def _from_names(value: Any, key: str) -> Any:
    """A list whose entries may be bare names."""
    return [{key: item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value
