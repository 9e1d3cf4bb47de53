"""Methods that say themselves whether what stays keeps its rotary positions or is numbered anew."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.methods.base import Method, OneStage


class Placed(Method):
    """A method with a default of its own for `Plan.positions`. default_positions: one of `plan.POSITIONS`."""

    default_positions: str

    def plan(self, *, positions: str | None = None, **given: Any) -> Plan:
        """`Method.plan`; positions: those of `Plan`, the method's own where none are given."""
        return dataclasses.replace(super().plan(**given), positions=positions or self.default_positions)


@dataclass(frozen=True)
class BeforeTheModel(Placed, OneStage):
    """A method that removes once, at the embeddings: a shorter prompt, numbered from 0, that was never longer."""

    layer: int | None = -1
    default_positions: str = "renumber"
