"""Which requests are answered together: those of nearly the same length, without straying far from their order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# Batches whose requests are sorted among themselves. A killed run loses at most so many.
WINDOW = 4


def batches(
    requests: Sequence[Any], size: int, *, kind: Callable[[Any], Any], length: Callable[[Any], int]
) -> Iterator[list[int]]:
    """Places of the requests of each batch, at most `size` of them. Every place is given once.

    Only neighbours of one `kind` share a batch. Among WINDOW batches of them, those of like `length` do: rows of one
    length need no padding and no mask, with which attention kernels are causal by themselves and faster. With a size
    of 1 the order stays as it is.
    """
    for _, group in itertools.groupby(range(len(requests)), key=lambda place: kind(requests[place])):
        same = list(group)
        for start in range(0, len(same), size * WINDOW):
            window = same[start : start + size * WINDOW]
            if size > 1:
                window.sort(key=lambda place: length(requests[place]))
            for first in range(0, len(window), size):
                yield window[first : first + size]
