"""What a method is: a name for command lines and results, where it comes from, and its plan for a budget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from lmms_textweighted.engine.plan import DEFAULT_LAYER, Plan, Stage
from lmms_textweighted.engine.scoring import Scorer
from lmms_textweighted.errors import PlanError

DEFAULT_KEEP_TOKENS = 192


class Method(ABC):
    """A way of choosing image tokens. A method in a file of one's own needs no registry: its plan goes into `prune`.

    name: what command lines and results call it. label: what pictures and tables call it. source: paper, year and
    arXiv number. removes: False where nothing ever leaves. layer: the pruning layer that the name itself fixes.
    """

    name: str
    label: str
    source: str
    removes: ClassVar[bool] = True
    layer: int | None = None

    @abstractmethod
    def stages(self, layer: int, keep_tokens: int | None, keep_ratio: float | None) -> tuple[Stage, ...]:
        """The removals for a budget, of which one is given, around the pruning layer `layer`."""

    def fitted(self, num_layers: int, image_tokens: int | None = None) -> Method:
        """This method for a decoder of `num_layers` layers and pictures of `image_tokens` (None: it depends on them).

        Overridden where the stages depend on these.
        """
        return self

    def plan(
        self,
        *,
        pruning_layer: int | None = None,
        keep_tokens: int | None = None,
        keep_ratio: float | None = None,
        text_scope: str = "after",
        keep_scope: str = "image",
    ) -> Plan:
        """The plan for a budget. text_scope, keep_scope: see `Plan`.

        Without `keep_tokens` and `keep_ratio`, 192 tokens of each image stay; without `pruning_layer`, they leave after
        layer 2, or where the method's own name says.

        With 0 all image tokens leave: the cut-off experiment.

        Raises PlanError for both kinds of budget at once, for a budget below 0 tokens or a ratio outside (0, 1], for
        one that the method cannot reach, and for a layer that contradicts the method's.
        """
        whole = isinstance(keep_tokens, int) and not isinstance(keep_tokens, bool)
        if keep_tokens is not None and not (whole and keep_tokens >= 0):
            raise PlanError(f"keep_tokens is {keep_tokens!r}: give a whole number of at least 0")
        if keep_tokens is None and keep_ratio is None:
            keep_tokens = DEFAULT_KEEP_TOKENS
        if self.layer is not None and pruning_layer not in (None, self.layer):
            raise PlanError(
                f"pruning_layer is {pruning_layer}, but {self.name} prunes after layer {self.layer}: leave it out"
            )
        if pruning_layer is None:
            pruning_layer = DEFAULT_LAYER if self.layer is None else self.layer
        return Plan(self.name, self.stages(pruning_layer, keep_tokens, keep_ratio), text_scope, keep_scope)


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
