"""Lists of whole numbers in few characters, so that a baseline stays small and a person can read its diff."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def to_ranges(positions: Sequence[int]) -> str:
    """Ascending positions as ranges: [35, 36, 37, 40] -> `35-37,40`; none -> ``."""
    parts = []
    for _, run in itertools.groupby(enumerate(positions), key=lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        parts.append(str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}")
    return ",".join(parts)


def from_ranges(text: str) -> list[int]:
    """`35-37,40` -> [35, 36, 37, 40]. Raises ValueError for anything else than ascending ranges."""
    found: list[int] = []
    for part in text.split(",") if text else []:
        first, _, last = part.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        if not numbers or (found and numbers[0] <= found[-1]):
            raise ValueError(f"the ranges {text!r} do not ascend")
        found += numbers
    return found


def to_runs(lengths: Sequence[int]) -> str:
    """Equal neighbours counted: [631, 631, 631, 119] -> `631x3,119`."""
    runs = ((value, len(list(group))) for value, group in itertools.groupby(lengths))
    return ",".join(str(value) if count == 1 else f"{value}x{count}" for value, count in runs)
