"""The baseline file: what was run, on which documents, and what came out.

JSON, a record a line, so that `git diff` names the documents that changed. The schema is the models below; a file of
another `schema_version` is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from lmms_textweighted.errors import InputError, first_problem
from lmms_textweighted.methods.budget import BUDGETS
from lmms_textweighted.regress.compact import from_ranges

Share = Annotated[float, Field(gt=0, le=1)]
SCHEMA_VERSION = 1  # of what this program writes and reads

COMPARED = {
    "must be the same, or nothing is compared": "document ids and contents, weights",
    "exactly": "prompts, plans, image preparation, decoding, metric, sequence length of every layer",
    "within the tolerances": "kept tokens, prepared pixels, accuracy",
    "reported only": "single answers and scores, gains, package versions",
}


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(_Record):
    """What is run. num_samples: the first N documents of the task. keep_tokens, keep_ratio, equivalent_tokens,
    flops_ratio: budgets of one kind, each with every strategy; see `methods.budget.Budget`.

    conv_mode, image_aspect_ratio None: the checkpoint's own; system_prompt and the pictures' bounds: the kind's. The
    rest: see `methods.make_plan`, `families.LoadOptions`.
    """

    model_path: str = "tiny"
    task: str = "shapes_mcq"
    num_samples: PositiveInt = 48
    strategies: tuple[str, ...] = ("text_weighted", "fastv", "random", "none")
    keep_tokens: tuple[PositiveInt, ...] | None = (64,)
    keep_ratio: tuple[Share, ...] | None = None
    equivalent_tokens: tuple[PositiveFloat, ...] | None = None
    flops_ratio: tuple[Share, ...] | None = None
    pruning_layer: int = 2
    text_scope: str = "after"
    keep_scope: str = "image"
    single_pred_prompt: bool = False
    conv_mode: str | None = None
    image_aspect_ratio: str | None = None
    seed: int = 0
    dtype: str = "float32"
    loader: str = "auto"
    vision_tower: str | None = None
    text_tower: str | None = None
    system_prompt: str | None = None
    min_pixels: PositiveInt | None = None
    max_pixels: PositiveInt | None = None
    min_patches: PositiveInt | None = None
    max_patches: PositiveInt | None = None
    batch_size: PositiveInt = 8
    device: str | None = None
    attn_implementation: str | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Settings:
        given = [name for name in BUDGETS if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"{' and '.join(given) or 'no budget'} given: give exactly one of {', '.join(BUDGETS)}")
        return self

    @property
    def budgets(self) -> tuple[str, tuple[float, ...]]:
        """(their kind, the budgets)"""
        return next((name, values) for name in BUDGETS if (values := getattr(self, name)))


class Tolerances(_Record):
    """accuracy_fall: share of the documents that may be lost without a question. alpha: the paired test agrees at
    p <= alpha. kept_mean, kept_min: least Jaccard overlap of old and new kept tokens, mean over the documents and of
    each document. pixels: largest change of a document's pixel mean and deviation (after normalisation)."""

    accuracy_fall: float = Field(default=0.02, ge=0, le=1)
    alpha: float = Field(default=0.05, gt=0, lt=1)
    kept_mean: float = Field(default=0.95, ge=0, le=1)
    kept_min: float = Field(default=0.8, ge=0, le=1)
    pixels: float = Field(default=0.01, ge=0)


class Setup(_Record):
    """What the settings came to. weights: fingerprint. decoding, preparation: as they acted. versions: packages."""

    weights: str
    conv_mode: str
    metric: str
    decoding: dict[str, Any]
    preparation: dict[str, Any]
    versions: dict[str, str]


class DocumentRecord(_Record):
    """content: hash of the document's fields, target and pictures. prompt: as rendered. pixels: mean and standard
    deviation of what the model was given, None without a picture."""

    id: str
    content: str
    target: str
    prompt: str
    pixels: tuple[float, float] | None


class PointRecord(_Record):
    """One strategy at one budget. plan: as in `Plan.to_dict`. accuracy: mean score."""

    name: str
    accuracy: float
    plan: dict[str, Any]


class Outcome(_Record):
    """One document at one point. lengths: tokens that each layer ran on, `631x3,119x5`. kept: positions that stay, as
    ranges, one string a stage."""

    point: str
    document: str
    answer: str
    score: float
    lengths: str
    kept: tuple[str, ...]

    @field_validator("kept")
    @classmethod
    def _ascending(cls, kept: tuple[str, ...]) -> tuple[str, ...]:
        for ranges in kept:
            from_ranges(ranges)
        return kept

    def kept_sets(self) -> list[set[int]]:
        return [set(from_ranges(ranges)) for ranges in self.kept]


class Baseline(_Record):
    """A whole measurement. outcomes: every document at every point, point by point. provenance: what it was made by,
    see `provenance.record`; never compared, and None in files of before."""

    schema_version: Literal[1] = 1
    compared: dict[str, str] = COMPARED
    settings: Settings
    tolerances: Tolerances = Tolerances()
    setup: Setup
    provenance: dict[str, Any] | None = None
    documents: tuple[DocumentRecord, ...]
    points: tuple[PointRecord, ...]
    outcomes: tuple[Outcome, ...]

    @model_validator(mode="after")
    def _whole(self) -> Baseline:
        expected = [(point.name, document.id) for point in self.points for document in self.documents]
        if [(outcome.point, outcome.document) for outcome in self.outcomes] != expected or not expected:
            raise ValueError("outcomes are not every document at every point, in order")
        if len(set(expected)) != len(expected):
            raise ValueError("a document or a point is there twice")
        for point in self.points:
            scores = [outcome.score for outcome in self.at(point.name)]
            if abs(point.accuracy - sum(scores) / len(scores)) > 1e-6:
                raise ValueError(f"accuracy of {point.name} is not the mean of its scores")
        return self

    def at(self, point: str) -> list[Outcome]:
        """A point's outcomes, in the order of the documents."""
        return [outcome for outcome in self.outcomes if outcome.point == point]


def read_baseline(path: Path) -> Baseline:
    """Read and check a baseline. Raises InputError when it is missing, no JSON or of another schema."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"baseline {str(path)!r} cannot be read ({error.strerror}): --update makes a new one"
        ) from error
    except ValueError as error:
        raise InputError(f"baseline {str(path)!r} is no JSON: {error}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"baseline {str(path)!r} has schema_version {version!r}, this program reads {SCHEMA_VERSION}: "
            f"delete it and make a new one with --update"
        )
    try:
        return Baseline.model_validate(data)
    except ValidationError as error:
        raise InputError(f"baseline {str(path)!r} is damaged: {first_problem(error)}") from error


def write_baseline(path: Path, baseline: Baseline) -> int:
    """Write it, a record a line; returns its size in bytes. Raises InputError when it cannot be written."""
    text = to_text(baseline)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"baseline {str(path)!r} cannot be written: {error.strerror}") from error
    return len(text.encode())


def to_text(baseline: Baseline) -> str:
    """The file's text: every top-level object and list opened, everything inside them on one line each."""
    return _opened(baseline.model_dump(mode="json"), depth=2) + "\n"


def _opened(value: Any, depth: int, indent: int = 0) -> str:
    if not depth or not isinstance(value, dict | list) or not value:
        return json.dumps(value, ensure_ascii=False)
    inside = " " * (indent + 1)
    if isinstance(value, dict):
        lines = [f"{inside}{json.dumps(name)}: {_opened(part, depth - 1, indent + 1)}" for name, part in value.items()]
        ends = "{}"
    else:
        lines = [inside + _opened(part, depth - 1, indent + 1) for part in value]
        ends = "[]"
    return f"{ends[0]}\n" + ",\n".join(lines) + f"\n{' ' * indent}{ends[1]}"
