"""What a method is: a name for command lines and results, where it comes from, and its plan for a budget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

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
)

__all__ = ["DEFAULT_KEEP_TOKENS", "Method", "OneStage"]


class Method(ABC):
    """A way of choosing image tokens. A method in a file of one's own needs no registry: its plan goes into `prune`.

    name: what command lines and results call it. label: what pictures and tables call it. source: paper, authors, year
    and arXiv number. removes: False where nothing ever leaves the decoder. takes_budget: False where the name says it
    all (`none`, presets, plans from a file). layer: the pruning layer that the name itself fixes. default_positions:
    what becomes of the positions of what stays, see `Plan`, as its authors have it.
    """

    name: str
    label: str
    source: str
    removes: ClassVar[bool] = True
    takes_budget: ClassVar[bool] = True
    layer: int | None = None
    default_positions: str = "keep"

    @abstractmethod
    def stages(self, layer: int, keep_tokens: int | None, keep_ratio: float | None) -> tuple[Stage, ...]:
        """The removals for a budget, of which one is given, around the pruning layer `layer`."""

    def fitted(self, num_layers: int, image_tokens: int | None = None) -> Method:
        """This method for a decoder of `num_layers` layers and pictures of `image_tokens` (None: it depends on them).

        Overridden where the stages depend on these.
        """
        return self

    def solved(self, budget: Budget, geometry: Geometry, layer: int) -> tuple[Stage, ...]:
        """The removals for a mean or a share of the FLOPs.

        Where tokens leave once, the free number is how many of them stay. Where they leave n times it is the share that
        stays at the end: the n-th powers of 0.0001, 0.0002, … 1, from which the other stages follow.

        Raises PlanError, see `budget.closest`.
        """
        highest = geometry.known(f"{budget.kind} is {budget.value}")
        times = len(self.stages(layer, None, 1.0))

        def by_count(number: int) -> Plan:
            return Plan(self.name, self.stages(layer, number, None))

        def by_share(number: int) -> Plan:
            return Plan(self.name, self.stages(layer, None, (number / _STEPS) ** times))

        if times == 1:
            return closest(by_count, range(highest + 1), budget, geometry).stages
        return closest(by_share, range(1, _STEPS + 1), budget, geometry).stages

    def plan(
        self,
        *,
        pruning_layer: int | None = None,
        keep_tokens: int | None = None,
        keep_ratio: float | None = None,
        equivalent_tokens: float | None = None,
        flops_ratio: float | None = None,
        text_scope: str = "after",
        keep_scope: str = "image",
        positions: str | None = None,
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
        return self.solve(
            budget,
            geometry,
            pruning_layer=pruning_layer,
            text_scope=text_scope,
            keep_scope=keep_scope,
            positions=positions,
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
        """The plan for a budget on a model. text_scope, keep_scope, positions: see `Plan`; positions None: its own.

        Without a budget, 192 tokens of each image stay; with 0 all leave. Without `pruning_layer`, they leave after
        layer 2, or where the method says. geometry: what the budget is solved for. Only plans of several stages, means
        and shares of the FLOPs ask for it; where it is not given, it is LLaVA-1.5-7B's.

        Raises PlanError for a budget that the method cannot reach, with the bound, and for a layer that contradicts the
        method's.
        """
        budget = budget or Budget.of()
        method = self if geometry is None else self.fitted(geometry.layers, geometry.image_tokens)
        geometry = for_prompt(geometry or LLAVA_15_7B, keep_scope)
        if self.layer is not None and pruning_layer not in (None, method.layer):
            raise PlanError(
                f"pruning_layer is {pruning_layer}, but {self.name} prunes after layer {method.layer}: leave it out"
            )
        layer = pruning_layer if pruning_layer is not None else DEFAULT_LAYER if method.layer is None else method.layer
        if budget.is_solved:
            stages = method.solved(budget, geometry, layer)
        else:
            stages = method.stages(layer, budget.keep_tokens, budget.keep_ratio)
            if budget.kind == "keep_tokens" and len(stages) > 1:  # the earlier ones' follow from the image's
                geometry.known(f"keep_tokens is {budget.value} and {self.name} has several stages")
        return Plan(self.name, stages, text_scope, keep_scope, positions or self.default_positions)

    @property
    def stated(self) -> Plan | None:
        """The plan that is written down, of a method that takes no budget for that."""
        return None

    @property
    def is_text_guided(self) -> bool:
        """Whether what stays depends on the text: some scorer reads rows or keys that are not the image's alone, or
        compares patches with it as CLIP does.

        Overridden where a scorer reads rows, and then does not use them.
        """
        plan = self.solve()
        return plan.reads_text or any(
            stage.scorer.reads in (Rows.LAST, Rows.TEXT, Rows.ALL, Rows.KEYS) for stage in plan.stages
        )


@dataclass(frozen=True)
class OneStage(Method):
    """A method that removes once: `scorer`'s best stay, the others leave after the pruning layer."""

    name: str
    label: str
    source: str
    scorer: Scorer
    layer: int | None = None
    default_positions: str = "keep"

    def stages(self, layer: int, keep_tokens: int | None, keep_ratio: float | None) -> tuple[Stage, ...]:
        return (Stage(self.scorer, layer, keep_tokens=keep_tokens, keep_ratio=keep_ratio),)


_STEPS = 10_000
