"""Nothing is removed: what all else is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lmms_textweighted.engine.plan import Stage
from lmms_textweighted.methods.base import Method
from lmms_textweighted.methods.budget import Budget, Geometry
from lmms_textweighted.methods.uniform import LAST_ROW


@dataclass(frozen=True)
class Unpruned(Method):
    """A plan without stages, whatever budget is given. Raises PlanError for a budget that no method could take."""

    name: str = "none"
    label: str = "no pruning"
    source: str = "the model as it is"
    removes: ClassVar[bool] = False
    takes_budget: ClassVar[bool] = False

    def stages(self, layer: int, keep_tokens: int | None, keep_ratio: float | None) -> tuple[Stage, ...]:
        Stage(LAST_ROW, layer, keep_tokens=keep_tokens, keep_ratio=keep_ratio)  # a budget that cannot be is refused
        return ()

    def solved(self, budget: Budget, geometry: Geometry, layer: int) -> tuple[Stage, ...]:
        return ()


NONE = Unpruned()
