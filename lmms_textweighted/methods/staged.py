"""Methods that remove more than once: their layers and counts, for the decoder they were made for and for others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from lmms_textweighted.engine.plan import Stage
from lmms_textweighted.engine.scoring import Scorer
from lmms_textweighted.errors import PlanError
from lmms_textweighted.methods.base import Method


@dataclass(frozen=True)
class Staged(Method):
    """Stage i leaves after `layers[i]`, chosen by `scorers[i]`.

    counts: image tokens that stay after each stage in one setting of the authors: it gives the proportions. depth and
    image_tokens: the decoder's layers and the picture's tokens that `layers` and `counts` are for.

    A budget is what stays after the last stage. With `keep_tokens` K, stage i keeps K counts[i] / counts[-1], rounded,
    halves up, and at most `image_tokens`; with `keep_ratio` r, the share r counts[i] / counts[-1] of the original
    tokens, at most all of them.

    Raises PlanError where scorers, layers and counts do not fit together.
    """

    name: str
    label: str
    source: str
    scorers: tuple[Scorer, ...]
    layers: tuple[int, ...]
    counts: tuple[int, ...]
    default_positions: str = "keep"
    depth: int = 32
    image_tokens: int = 576
    layer: int | None = field(init=False)

    def __post_init__(self) -> None:
        if not len(self.scorers) == len(self.layers) == len(self.counts) or not self.layers:
            raise PlanError(
                f"{self.name} has {len(self.scorers)} scorers, {len(self.layers)} layers and {len(self.counts)} "
                f"counts: give one of each for every stage"
            )
        if list(self.counts) != sorted(self.counts, reverse=True) or self.counts[-1] < 1:
            raise PlanError(f"counts is {self.counts}: give whole numbers of at least 1 that do not rise")
        object.__setattr__(self, "layer", self.layers[0])

    def fitted(self, num_layers: int, image_tokens: int | None = None) -> Staged:
        """This method for a decoder of `num_layers` layers and pictures of `image_tokens`; see `relative_layers`."""
        return dataclasses.replace(
            self,
            layers=relative_layers(self.name, self.layers, self.depth, num_layers),
            depth=num_layers,
            image_tokens=self.image_tokens if image_tokens is None else image_tokens,
        )

    def stages(self, layer: int, keep_tokens: int | None, keep_ratio: float | None) -> tuple[Stage, ...]:
        last = self.counts[-1]
        return tuple(
            Stage(
                scorer,
                at,
                keep_tokens=None if keep_tokens is None else self._count(count, keep_tokens),
                keep_ratio=None if keep_ratio is None else min(1, keep_ratio * count / last),
                keep_of="original",
            )
            for scorer, at, count in zip(self.scorers, self.layers, self.counts, strict=True)
        )

    def _count(self, count: int, keep_tokens: int) -> int:
        last = self.counts[-1]
        return max(keep_tokens, min(self.image_tokens, (2 * keep_tokens * count + last) // (2 * last)))


def relative_layers(name: str, layers: Sequence[int], depth: int, num_layers: int) -> tuple[int, ...]:
    """Layers of a decoder of `num_layers` at the same relative depth as `layers` of one of `depth`.

    Layer p becomes round((p + 1) num_layers / depth) - 1, halves up; at least 0 and, where two would be the same, one
    above the layer before; at most num_layers - 2, and then the ones before make room.

    Raises PlanError when the decoder has too few layers.
    """
    if num_layers - 1 < len(layers):
        raise PlanError(
            f"{name} removes after {len(layers)} layers, but the model has {num_layers} decoder layers: it needs at "
            f"least {len(layers) + 1}"
        )
    found: list[int] = []
    for layer in layers:
        moved = math.floor((layer + 1) * num_layers / depth + 0.5) - 1
        found.append(max(moved, found[-1] + 1 if found else 0))
    return tuple(min(layer, num_layers - 1 - len(found) + place) for place, layer in enumerate(found))
