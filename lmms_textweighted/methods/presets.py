"""Settings that papers report, as methods with a name of their own: plans that are written down, nothing to solve.

A new one is a line in `PRESETS`. Counts are of 576 image tokens and 32 layers, LLaVA-1.5-7B's: on another depth a
preset is refused, and its method, which takes a budget, is the way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.errors import PlanError
from lmms_textweighted.methods.base import Method
from lmms_textweighted.methods.budget import LLAVA_15_7B, Budget, Geometry
from lmms_textweighted.methods.fastv import FASTV, FASTV_K2


@dataclass(frozen=True)
class Fixed(Method):
    """A method whose plan is written down; name, label and source as for `Method`."""

    name: str
    label: str
    source: str
    written: Plan
    takes_budget: ClassVar[bool] = False
    layer: int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        first = self.written.stages[0].layer if self.written.stages else None
        object.__setattr__(self, "layer", first)

    def stages(self, layer: int, keep_tokens: int | None, keep_ratio: float | None) -> tuple[Stage, ...]:
        return self.written.stages

    def solve(
        self,
        budget: Budget | None = None,
        geometry: Geometry | None = None,
        *,
        pruning_layer: int | None = None,
        text_scope: str = "after",
        keep_scope: str = "image",
        positions: str | None = None,
    ) -> Plan:
        """The plan as it is written. Raises PlanError for a budget, a layer or another scope beside it.

        A scope that is everyone's default counts as not given.
        """
        given = {"pruning_layer": pruning_layer, **({budget.kind: budget.value} if budget else {})}
        for name, value in given.items():
            if value is not None:
                raise PlanError(f"{name} is {value!r}, but {self.name} states its own: leave it out")
        choices = {
            "text_scope": (text_scope, "after"),
            "keep_scope": (keep_scope, "image"),
            "positions": (positions, None),
        }
        for name, (value, default) in choices.items():
            stated = getattr(self.written, name)
            if value not in (default, stated):
                raise PlanError(f"{name} is {value!r}, but {self.name} states {stated!r}: leave it out")
        return self.written


@dataclass(frozen=True)
class Preset(Fixed):
    """A paper's setting. of: the method. note: what the authors call it, where they count otherwise than here."""

    of: str = ""
    note: str = ""

    def solve(self, budget: Budget | None = None, geometry: Geometry | None = None, **given: Any) -> Plan:
        """As `Fixed.solve`. Also raises PlanError on a decoder of another depth than the paper's."""
        depth = (geometry or LLAVA_15_7B).layers
        if depth != LLAVA_15_7B.layers:
            raise PlanError(
                f"{self.name} is a setting for {LLAVA_15_7B.layers} decoder layers, but the model has {depth}: use "
                f"{self.of} with a budget"
            )
        return super().solve(budget, geometry, **given)


def preset(of: Method, name: str, *stages: Stage, note: str = "") -> Preset:
    """A setting of a method, whose source and positions it has. name: of the preset, without the method's."""
    full = f"{of.name}_{name}"
    written = Plan(full, stages, positions=of.default_positions)
    return Preset(full, f"{of.label}, {name}", of.source, written, of=of.name, note=note)


PRESETS: tuple[Preset, ...] = (
    preset(FASTV, "k3_half", Stage(FASTV.scorer, 2, keep_tokens=288), note="the authors' K=3, R=50 %"),
    *(
        preset(
            FASTV_K2,
            f"mean{mean}",
            Stage(FASTV_K2.scorer, 1, keep_tokens=count),
            note=f"K=2, a mean of {mean}",
        )
        for mean, count in ((192, 166), (128, 98), (64, 30))
    ),
)
