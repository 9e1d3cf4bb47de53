"""One document as a person sees it: what the model was given, what each strategy kept of it and why, what it answered.

Image tokens and text tokens are numbered from 0 in the order of the prompt: an index into `DocumentView.places` and
`DocumentView.pieces`, never a position in the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lmms_textweighted.families.geometry import Canvas, PictureGeometry, Place, TokenGrid

__all__ = ["Canvas", "DocumentView", "PictureGeometry", "Place", "StageView", "StrategyView", "TokenGrid"]


@dataclass(frozen=True)
class StageView:
    """One removal.

    layer: after which tokens left; -1 is before the first. kept: the image tokens that stayed, ascending. candidates:
    those that were there to be scored. scores: one a candidate, None where nothing was scored; NaN cannot stand here.
    text: the text tokens whose rows were read; weights: one each, or none where the method reads no text. sources: for
    each kept token that was merged, the tokens that went in, its own among them.
    """

    layer: int
    kept: tuple[int, ...]
    candidates: tuple[int, ...]
    scores: tuple[float, ...] | None = None
    text: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    sources: dict[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class StrategyView:
    """One strategy at one budget.

    strategy, label: its name, and what pictures call it. budget: as it was asked for, in the unit `budget_unit`
    (keep_tokens, keep_ratio, equivalent_tokens, flops_ratio); None where it takes none. pruning_layer: as it was asked
    for, None where the method has layers of its own. seed: of a drawn choice, where there are several.

    answer: its text; right: whether it is the target, or has all of the task's score; score: the task's; both None
    where nobody knows. figures: numbers by the names of `DocumentTrace`, as kept_tokens, equivalent_tokens,
    flops_ratio, kv_ratio, selection_seconds. pictures: the pictures as this strategy had them, where it makes them
    smaller than the document's.
    """

    strategy: str
    label: str
    budget: float | None = None
    budget_unit: str = "keep_tokens"
    pruning_layer: int | None = None
    seed: int | None = None
    stages: tuple[StageView, ...] = ()
    answer: str = ""
    right: bool | None = None
    score: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    pictures: tuple[PictureGeometry, ...] | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from the document's other ones."""
        return self.strategy, self.pruning_layer, self.budget, self.budget_unit, self.seed


@dataclass(frozen=True)
class DocumentView:
    """One document.

    uid: what tells it from others. reference: where its pictures are found again: {"task", "document"} or
    {"question_file", "id"}. choices: the options, where the task has them. pieces: the text of every text token of the
    prompt, in order; joined they are the prompt without its pictures. after: the first piece behind the last picture.
    """

    uid: str
    question: str
    choices: tuple[str, ...]
    target: str | None
    pictures: tuple[PictureGeometry, ...]
    pieces: tuple[str, ...]
    after: int
    strategies: tuple[StrategyView, ...]
    reference: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """The place of every image token of the prompt."""
        return places_of(self.pictures)

    def places_for(self, strategy: StrategyView) -> tuple[Place, ...]:
        """The same for a strategy, which may have smaller pictures."""
        return self.places if strategy.pictures is None else places_of(strategy.pictures)

    def kept(self, strategy: StrategyView) -> tuple[int, ...]:
        """The image tokens that the last layer sees under a strategy, ascending: numbers into `places_for` it."""
        return strategy.stages[-1].kept if strategy.stages else tuple(range(len(self.places_for(strategy))))


def places_of(pictures: tuple[PictureGeometry, ...]) -> tuple[Place, ...]:
    """The place of every image token of these pictures, one after the other."""
    return tuple(place for number, picture in enumerate(pictures) for place in picture.places(number))
