"""Two methods as one: what leaves before the language model, and what then leaves in it. `FIRST+SECOND` names one.

Of a budget of K tokens at the end, the first leaves min(N, 3 K) of the N, and the second takes away what it would of
the whole picture, as far as it is still there: a method of one stage goes from 3 K to K, one of several caps its counts
at 3 K. Shares are shares of the N. A first that states its own count (a preset: `divprune_192+text_weighted`) keeps
that whatever K is. A mean or a share of the FLOPs is solved for both together.

Each half does with positions what it does alone. The first counts them from 0, as all of this package do; a second
that keeps them (text weighting, FastV) keeps what its tokens have by then, and one that renumbers (PyramidDrop) counts
anew. `positions` asks both for one. A first whose plan is written down, a preset or a file, states its own, and its
scopes with it: asking for another is an error.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from lmms_textweighted.engine.layers import EMBEDDINGS
from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.errors import PlanError
from lmms_textweighted.methods.base import Method
from lmms_textweighted.methods.budget import Budget, Geometry

SIGN = "+"
FACTOR = 3


@dataclass(frozen=True)
class Composed(Method):
    """See above. image_tokens: N, None where it is not the same for every picture. name, label: of the two by default.

    Raises PlanError where the first does not remove before the model, or the second not in it.
    """

    first: Method
    second: Method
    name: str = ""
    label: str = ""
    source: str = ""
    image_tokens: int | None = 576
    layer: int | None = field(init=False)
    default_positions: str = field(init=False)

    def __post_init__(self) -> None:
        name = self.name or f"{self.first.name}{SIGN}{self.second.name}"
        if [stage.layer for stage in self.first.solve().stages] != [EMBEDDINGS]:
            raise PlanError(f"{name}: {self.first.name} does not remove before the model: name one that does first")
        stages = self.second.solve().stages
        if not stages or stages[0].layer <= EMBEDDINGS or not self.second.takes_budget:
            raise PlanError(f"{name}: {self.second.name} is no method that removes in the model by a budget")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "label", self.label or f"{self.first.label}, then {self.second.label}")
        object.__setattr__(self, "source", self.source or f"{self.first.source}; then {self.second.source}")
        object.__setattr__(self, "layer", self.second.layer)
        object.__setattr__(self, "default_positions", self.first.default_positions)

    def fitted(self, num_layers: int, image_tokens: int | None = None) -> Composed:
        return dataclasses.replace(
            self,
            first=self.first.fitted(num_layers, image_tokens),
            second=self.second.fitted(num_layers, image_tokens),
            image_tokens=image_tokens,
        )

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
        """As `Method.solve`; positions None: each half's own. Also raises PlanError where a scope or positions are
        another than the first's plan states.

        A scope that is everyone's default counts as not stated and not asked for.
        """
        asked: dict[str, Any] = {"text_scope": text_scope, "keep_scope": keep_scope, "positions": positions}
        if self.first.stated is not None:
            for name, default in (("text_scope", "after"), ("keep_scope", "image"), ("positions", None)):
                value, stated = asked[name], getattr(self.first.stated, name)
                if default not in (value, stated) and value != stated:
                    raise PlanError(f"{name} is {value!r}, but {self.first.name} states {stated!r}: leave it out")
                asked[name] = stated if value == default else value
        plan = super().solve(budget, geometry, pruning_layer=pruning_layer, **asked)
        own = self.second.default_positions
        if positions is not None or own == plan.positions:
            return plan
        before, *inside = plan.stages
        return dataclasses.replace(
            plan, stages=(before, *(dataclasses.replace(stage, positions=own) for stage in inside))
        )

    def stages(self, layer: int, keep_tokens: int | None, keep_ratio: float | None) -> tuple[Stage, ...]:
        (before,) = self._first(keep_tokens, keep_ratio)
        left = before.keep_tokens
        if left is not None and keep_tokens is not None and keep_tokens > left:
            raise PlanError(f"keep_tokens is {keep_tokens}, but {self.first.name} leaves {left}: give at most {left}")
        return (before, *(_capped(stage, left) for stage in self.second.stages(layer, keep_tokens, keep_ratio)))

    def _first(self, keep_tokens: int | None, keep_ratio: float | None) -> tuple[Stage, ...]:
        if not self.first.takes_budget:
            return self.first.stages(EMBEDDINGS, None, None)
        count = None if keep_tokens is None else FACTOR * keep_tokens
        if count is not None and self.image_tokens is not None:
            count = max(keep_tokens or 0, min(self.image_tokens, count))
        share = None if keep_ratio is None else min(1.0, FACTOR * keep_ratio)
        return self.first.stages(EMBEDDINGS, count, share)


def _capped(stage: Stage, left: int | None) -> Stage:
    """A stage of the second method behind one that leaves `left` tokens: its shares are of the original ones."""
    if stage.keep_ratio is not None:
        return dataclasses.replace(stage, keep_of="original")
    count = stage.keep_tokens
    return stage if left is None or count is None else dataclasses.replace(stage, keep_tokens=min(count, left))
