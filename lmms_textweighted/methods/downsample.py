"""The picture itself at a lower resolution, and then all its tokens: the baseline that any pruning must beat.

Defined here. A picture of S x S tokens (LLaVA-1.5: 24 x 24, at 336 pixels) is prepared as always, but resized to g x g
patches, which the vision tower makes g^2 tokens of; no token leaves the decoder. So only squares can be had: 529, 484,
441, 400, 361, 324, 289, 256, 225, 196, 169, 144, 121, 100, 81, 64, 49, 36, 25, 16, 9, 4, 1.

`keep_tokens` and `keep_ratio` are limits: the largest square that is not above them (192 becomes 169). A mean or a
share of the FLOPs is met as closely as a square can (a mean of 192 becomes 196), above or below. Figures are against
the picture at its own size.

The tower's position embeddings are interpolated, which it was not trained for: that is part of what the baseline costs.
The tower itself is cheaper, too; no figure here counts that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lmms_textweighted.engine.layers import EMBEDDINGS
from lmms_textweighted.engine.plan import Picture, Plan, Stage
from lmms_textweighted.errors import PlanError
from lmms_textweighted.methods.base import Method
from lmms_textweighted.methods.budget import LLAVA_15_7B, Budget, Geometry, closest


@dataclass(frozen=True)
class Downsample(Method):
    """A plan without stages whose picture is smaller."""

    name: str = "downsample"
    label: str = "a smaller picture"
    source: str = "a baseline; defined in methods/downsample.py"
    layer: int | None = EMBEDDINGS
    default_positions: str = "renumber"
    removes: ClassVar[bool] = False

    def stages(self, layer: int, keep_tokens: int | None, keep_ratio: float | None) -> tuple[Stage, ...]:
        return ()

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
        """The plan whose picture suits the budget; see above. text_scope acts on nothing.

        Raises PlanError for a budget that no square reaches, for pictures whose number of tokens is no square or
        depends on the picture, and for a layer, a scope or positions that cannot act.
        """
        given = {"pruning_layer": (pruning_layer, self.layer), "positions": (positions, self.default_positions)}
        given["keep_scope"] = (keep_scope, "image")
        for name, (value, own) in given.items():
            if value not in (None, own):
                raise PlanError(f"{name} is {value!r}, but {self.name} makes each picture smaller: leave it out")
        budget, geometry = budget or Budget.of(), geometry or LLAVA_15_7B
        whole = geometry.image_tokens
        if whole is None or math.isqrt(whole) ** 2 != whole:
            has = "depends on the picture" if whole is None else f"is {whole}, no square"
            raise PlanError(f"{self.name} is for a LLaVA-1.5, but here the number of an image's tokens {has}")

        def smaller(side: int) -> Plan:
            picture = Picture(side**2, whole)
            return Plan(self.name, (), text_scope, keep_scope, self.default_positions, picture)

        if budget.is_solved:
            return closest(smaller, range(1, math.isqrt(whole) + 1), budget, geometry)
        # As for a stage: the small addition undoes a product that rounding left just below a whole number.
        count = budget.value if budget.kind == "keep_tokens" else max(1, math.floor(budget.value * whole + 1e-9))
        if count > whole:
            raise PlanError(f"keep_tokens is {count}, but the image has {whole} tokens: give at most {whole}")
        if count < 1:
            raise PlanError(f"keep_tokens is {count}, but the smallest picture has 1 token: give at least 1")
        return smaller(math.isqrt(count))


DOWNSAMPLE = Downsample()
