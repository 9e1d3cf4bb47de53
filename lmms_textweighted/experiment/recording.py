"""What a sweep records of a document besides its answers: what every point kept of it and why, and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lmms_textweighted.engine.trace import StageTrace
from lmms_textweighted.errors import InputError
from lmms_textweighted.experiment.grid import Point
from lmms_textweighted.experiment.outcomes import Outcome
from lmms_textweighted.harness.documents import Document
from lmms_textweighted.inference import PrunedLlava
from lmms_textweighted.methods import label_of
from lmms_textweighted.page.pictures import data_uri
from lmms_textweighted.prompts import IMAGE_TAG
from lmms_textweighted.view.build import Given, given_for
from lmms_textweighted.view.compact import to_data
from lmms_textweighted.view.record import DocumentView, StrategyView

_FIGURES = ("kept_tokens", "equivalent_tokens", "flops_ratio")
_UID = 16  # digits of a document's digest


@dataclass
class Recorder:
    """Takes down the stages of one document's points as they are run; `view` makes the record of them.

    Raises InputError where the model's image tokens have no known place in the picture.
    """

    llava: PrunedLlava
    document: Document
    points: Sequence[Point]
    unit: str = "keep_tokens"
    stages: dict[int, Sequence[StageTrace]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.given = given_for(self.llava, [self.document.message])
        self._smaller: dict[int, Given] = {}

    def __call__(self, place: int, stages: Sequence[StageTrace]) -> None:
        """The stages of the point at this place."""
        self.stages[place] = stages

    def view(self, outcomes: Sequence[Outcome], reference: dict[str, Any]) -> dict[str, Any]:
        """The document as `view.compact` writes it. outcomes: of all points."""
        document = self.document
        choices = document.fields.get("choices") or ()
        view = DocumentView(
            uid=uid_of(document.digest),
            question=document.message.text.replace(IMAGE_TAG, "").strip(),
            choices=tuple(map(str, choices)),
            target=document.target,
            pictures=tuple(picture.geometry for picture in self.given.pictures),
            pieces=self.given.pieces,
            after=self.given.after,
            strategies=tuple(map(self._strategy, range(len(self.points)), self.points, outcomes)),
            reference=reference,
        )
        return to_data(view)

    def pictures(self) -> list[list[str]]:
        """Each picture's canvases, as the model was given them."""
        return [[data_uri(image) for image in canvases] for canvases in self.given.images()]

    def _strategy(self, place: int, point: Point, outcome: Outcome) -> StrategyView:
        picture, given = point.plan.picture, self.given
        if picture is not None:
            if picture.tokens not in self._smaller:
                small = replace(self.llava, plan=point.plan)
                self._smaller[picture.tokens] = given_for(small, [self.document.message])
            given = self._smaller[picture.tokens]
        return StrategyView(
            strategy=point.strategy,
            label=label_of(point.strategy),
            budget=point.budget,
            budget_unit=self.unit,
            pruning_layer=point.layer,
            seed=point.seed,
            stages=tuple(map(given.stage, self.stages.get(place, ()))),
            answer=outcome.answer,
            right=outcome.exact or outcome.score >= 1,
            score=outcome.score,
            figures={name: float(getattr(outcome, name)) for name in _FIGURES},
            pictures=None if picture is None else tuple(one.geometry for one in given.pictures),
        )


def uid_of(digest: str) -> str:
    """What tells a document from others: the beginning of the SHA-256 of its prompt, target and pictures."""
    return digest[:_UID]


def reference_of(document: Document, described: dict[str, Any]) -> dict[str, Any]:
    """Where its pictures are found again. described: what `Documents.describe` says."""
    if "question_file" in described:
        return {"question_file": described["question_file"], "id": document.id}
    return {"task": described["task"], "document": document.number}


def recorder_for(
    llava: PrunedLlava, document: Document, points: Sequence[Point], unit: str
) -> tuple[Recorder | None, str]:
    """(a recorder, "") or (None, why this document cannot be recorded)."""
    try:
        return Recorder(llava, document, points, unit), ""
    except InputError as error:
        return None, str(error)
