"""What a method is: a name for command lines and results, where it comes from, and its plan for a budget."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lmms_textweighted.engine.plan import DEFAULT_LAYER, Plan, Stage
from lmms_textweighted.engine.scoring import Rows, Scorer
from lmms_textweighted.errors import PlanError
from lmms_textweighted.methods.budget import (
    DEFAULT_KEEP_TOKENS,
    LLAVA_15_7B,
    Budget,
    Geometry,
    closest,
    for_prompt,
    scaled_layers,
)

__all__ = ["DEFAULT_KEEP_TOKENS", "Method", "OneStage", "Staged"]


class Method(ABC):
    """A way of choosing image tokens. A method in a file of one's own needs no registry: its plan goes into `prune`.

    name: what command lines and results call it. label: what pictures and tables call it. source: paper, authors, year
    and arXiv number. removes: False where nothing ever leaves. takes_budget: False where the name says it all (`none`,
    presets, plans from a file). layer: the pruning layer that the name itself fixes.
    """

    name: str
    label: str
    source: str
    removes: ClassVar[bool] = True
    takes_budget: ClassVar[bool] = True
    layer: int | None = None

    @abstractmethod
    def stages(self, layer: int, keep_tokens: int | None, keep_ratio: float | None) -> tuple[Stage, ...]:
        """The removals for a budget, of which one is given, around the pruning layer `layer`."""

    def stages_for(
        self, geometry: Geometry, layer: int, keep_tokens: int | None, keep_ratio: float | None
    ) -> tuple[Stage, ...]:
        """`stages` on a decoder: overridden where they depend on its depth or on the image's number of tokens."""
        return self.stages(layer, keep_tokens, keep_ratio)

    def solved(self, budget: Budget, geometry: Geometry, layer: int) -> tuple[Stage, ...]:
        """The removals for a mean or a share of the FLOPs: the one free number is how many tokens stay at the end.

        Overridden where a finer number is free. Raises PlanError, see `budget.closest`.
        """
        highest = geometry.known(f"{budget.kind} is {budget.value}")
        return closest(
            lambda count: Plan(self.name, self.stages_for(geometry, layer, count, None)), highest, budget, geometry
        ).stages

    def plan(
        self,
        *,
        pruning_layer: Any = None,
        keep_tokens: int | None = None,
        keep_ratio: float | None = None,
        equivalent_tokens: float | None = None,
        flops_ratio: float | None = None,
        text_scope: str = "after",
        keep_scope: str = "image",
        geometry: Geometry | None = None,
    ) -> Plan:
        """The plan for a budget, of which at most one is given: see `budget.Budget`. The rest: see `solve`."""
        given = {
            "keep_tokens": keep_tokens,
            "keep_ratio": keep_ratio,
            "equivalent_tokens": equivalent_tokens,
            "flops_ratio": flops_ratio,
        }
        budget = Budget.of(**given) if any(value is not None for value in given.values()) else None
        return self.solve(budget, geometry, pruning_layer=pruning_layer, text_scope=text_scope, keep_scope=keep_scope)

    def solve(
        self,
        budget: Budget | None = None,
        geometry: Geometry | None = None,
        *,
        pruning_layer: Any = None,
        text_scope: str = "after",
        keep_scope: str = "image",
    ) -> Plan:
        """The plan for a budget on a model. text_scope, keep_scope: see `Plan`.

        Without a budget, 192 tokens of each image stay; without `pruning_layer`, they leave after layer 2, or where the
        method says. geometry: what the budget is solved for; LLaVA-1.5-7B's where it is not given, which only plans of
        several stages, means and shares of the FLOPs ask for.

        Raises PlanError for a budget that the method cannot reach, with the bound, and for a layer that contradicts the
        method's.
        """
        budget = budget or Budget.of()
        geometry = for_prompt(geometry or LLAVA_15_7B, keep_scope)
        layer = self.pruning_layer(pruning_layer)
        if budget.is_solved:
            stages = self.solved(budget, geometry, layer)
        else:
            stages = self.stages_for(geometry, layer, budget.keep_tokens, budget.keep_ratio)
        return Plan(self.name, stages, text_scope, keep_scope)

    def pruning_layer(self, given: Any) -> Any:
        """The pruning layer that acts. Raises PlanError for one that contradicts the method's."""
        if self.layer is not None and given not in (None, self.layer):
            raise PlanError(f"pruning_layer is {given}, but {self.name} prunes after layer {self.layer}: leave it out")
        return given if given is not None else DEFAULT_LAYER if self.layer is None else self.layer

    @property
    def is_text_guided(self) -> bool:
        """Whether what stays depends on the text: some scorer reads rows that are not the image's alone."""
        stages = self.stages_for(LLAVA_15_7B, self.pruning_layer(None), None, 0.5)
        return any(stage.scorer.reads in (Rows.LAST, Rows.TEXT) for stage in stages)


@dataclass(frozen=True)
class OneStage(Method):
    """A method that removes once: `scorer`'s best stay, the others leave after the pruning layer."""

    name: str
    label: str
    source: str
    scorer: Scorer
    layer: int | None = None

    def stages(self, layer: int, keep_tokens: int | None, keep_ratio: float | None) -> tuple[Stage, ...]:
        return (Stage(self.scorer, layer, keep_tokens=keep_tokens, keep_ratio=keep_ratio),)


@dataclass(frozen=True)
class Staged(Method):
    """A method that removes several times: `scorers[i]`'s best stay after `layers[i]`.

    layers: of 32; elsewhere at the same relative depth, see `budget.scaled_layers`, unless others are stated. shares:
    of the original image tokens that stay in the authors' setting, stage by stage, falling. For another budget each is
    raised to one and the same power: PyramidDrop's lambda, lambda^2, lambda^3 is that, and the authors' own setting has
    the power 1. ahead: scored with the layer after the one that tokens leave.
    """

    name: str
    label: str
    source: str
    scorers: tuple[Scorer, ...]
    layers: tuple[int, ...]
    shares: tuple[float, ...]
    ahead: bool = False

    def __post_init__(self) -> None:
        falling = all(a >= b for a, b in zip(self.shares, self.shares[1:], strict=False))
        if not (len(self.scorers) == len(self.layers) == len(self.shares) and falling and 0 < self.shares[-1] < 1):
            raise PlanError(f"{self.name}: give a scorer, a layer and a falling share below 1 for every stage")

    def stages(self, layer: Any, keep_tokens: int | None, keep_ratio: float | None) -> tuple[Stage, ...]:
        return self.stages_for(LLAVA_15_7B, layer, keep_tokens, keep_ratio)

    def stages_for(
        self, geometry: Geometry, layer: Any, keep_tokens: int | None, keep_ratio: float | None
    ) -> tuple[Stage, ...]:
        """The last stage keeps exactly what is asked for; the others' counts are rounded down."""
        whole = geometry.known(f"keep_tokens is {keep_tokens}") if keep_tokens is not None else geometry.image_tokens
        if keep_tokens is not None and keep_tokens > (whole or 0):
            raise PlanError(f"keep_tokens is {keep_tokens}, but the image has {whole} tokens: give at most {whole}")
        share = keep_ratio if keep_tokens is None else keep_tokens / (whole or 1)
        power = math.log(max(share or 0, _LEAST)) / math.log(self.shares[-1])
        stages = self._of_power(power, geometry, layer)
        if keep_tokens is None:
            return stages
        return (
            *stages[:-1],
            Stage(stages[-1].scorer, stages[-1].layer, keep_tokens, score_layer=stages[-1].score_layer),
        )

    def solved(self, budget: Budget, geometry: Geometry, layer: Any) -> tuple[Stage, ...]:
        """The power is the free number, in steps of a hundred-thousandth of its range."""
        most = math.log(_LEAST) / math.log(self.shares[0])  # nothing is left after the first stage

        def make(number: int) -> Plan:
            return Plan(self.name, self._of_power(most * (1 - number / _STEPS), geometry, layer))

        return closest(make, _STEPS, budget, geometry).stages

    def pruning_layer(self, given: Any) -> tuple[int, ...] | None:
        """Layers as `(1, 7)` or `"1+7"`, one a stage; None: the method's own, at the model's depth."""
        if given is None:
            return None
        parts = str(given).split("+") if not isinstance(given, Sequence) or isinstance(given, str) else given
        try:
            layers = tuple(int(part) for part in parts)
        except ValueError:
            layers = ()
        if len(layers) != len(self.layers):
            said = "+".join(map(str, self.layers))
            raise PlanError(
                f"pruning_layer is {given!r}, but {self.name} has {len(self.layers)} stages: leave it out, or give a "
                f"layer for each, as {said}"
            )
        return layers

    def _of_power(self, power: float, geometry: Geometry, layer: Any) -> tuple[Stage, ...]:
        layers = layer or scaled_layers(self.layers, geometry.layers)
        whole, stages = geometry.image_tokens, []
        for place, (scorer, after, share) in enumerate(zip(self.scorers, layers, self.shares, strict=True)):
            left = share**power
            ahead = after + 1 if self.ahead else None
            if whole is None:
                before = self.shares[place - 1] ** power if place else 1.0
                stages.append(Stage(scorer, after, keep_ratio=left / before, score_layer=ahead))
            else:
                stages.append(Stage(scorer, after, math.floor(whole * left + 1e-9), score_layer=ahead))
        return tuple(stages)


_STEPS = 100_000
_LEAST = 1e-6  # a share of no token, of any picture
