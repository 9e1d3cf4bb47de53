"""Times as ratios within one run: the compared things take turns, so that a slow minute slows all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Times:
    """Seconds of repeated runs of one thing."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        ordered = sorted(self.seconds)
        low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
        return (high - low) / 2 / self.median


def take_turns(things: Mapping[str, Callable[[], object]], repeats: int = 5, warm_up: int = 1) -> dict[str, Times]:
    """Run each thing `warm_up` times unmeasured, then all in turn, `repeats` times."""
    for thing in things.values():
        for _ in range(warm_up):
            thing()
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for _ in range(repeats):
        for name, thing in things.items():
            gc.collect()
            synchronise()
            began = time.perf_counter()
            thing()
            synchronise()
            seconds[name].append(time.perf_counter() - began)
    return {name: Times(tuple(values)) for name, values in seconds.items()}


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
