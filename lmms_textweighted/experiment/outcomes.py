"""What the points of a sweep did, document by document, and as curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.experiment.grid import Point
from lmms_textweighted.experiment.timing import Prefill


@dataclass
class Outcome:
    """What one point did with one document."""

    answer: str
    score: float
    exact: bool
    numeric_rank: float | None
    effective_rank: float | None
    image_tokens: int
    kept_tokens: int
    equivalent_tokens: float
    flops_ratio: float


@dataclass(frozen=True)
class Answered:
    """What the result needs of a document. Kept whole, their pictures would fill the memory.

    row: what stands in front of each of its answers. prompt: of the first document alone. view, pictures: as
    `recording.Recorder` has them; None of a document that is not recorded.
    """

    row: dict[str, Any]
    choices: int
    prompt: str | None
    outcomes: list[Outcome]
    view: dict[str, Any] | None = None
    pictures: list[list[str]] | None = None


@dataclass
class Curve:
    """One strategy's outcomes after one layer: for each budget, largest first, for each seed, one outcome a document.

    layer: as `Point.layer`. seeds: those that it drew from; [None] where the run's is the only one. prefills: for each
    budget what was timed, of all seeds.
    """

    strategy: str
    layer: int | None
    seeds: list[int | None]
    budgets: list[float | None] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    outcomes: list[list[list[Outcome]]] = field(default_factory=list)
    prefills: list[list[Prefill]] = field(default_factory=list)

    def all_of(self, place: int) -> list[Outcome]:
        """The outcomes at one budget, of all seeds."""
        return [outcome for documents in self.outcomes[place] for outcome in documents]

    def document_scores(self, place: int) -> list[float]:
        """Each document's score at one budget: its mean over the seeds."""
        return [fmean(o.score for o in outcomes) for outcomes in zip(*self.outcomes[place], strict=True)]


def collect(
    points: Sequence[Point], documents: Sequence[Sequence[Outcome]], prefills: Sequence[Sequence[Prefill]] = ()
) -> list[Curve]:
    """Turn outcomes by document into curves by strategy and layer, in the points' order. prefills: by point."""
    curves: dict[tuple[str, int | None], Curve] = {}
    for place, point in enumerate(points):
        curve = curves.setdefault((point.strategy, point.layer), Curve(point.strategy, point.layer, []))
        if point.seed not in curve.seeds:
            curve.seeds.append(point.seed)
        if point.budget not in curve.budgets:
            curve.budgets.append(point.budget)
            curve.plans.append(point.plan)
            curve.outcomes.append([])
            curve.prefills.append([])
        at = curve.budgets.index(point.budget)
        curve.outcomes[at].append([outcomes[place] for outcomes in documents])
        curve.prefills[at] += prefills[place] if prefills else []
    return list(curves.values())
