"""Answers that are made when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class Lazy(list):
    """A list that is filled from an iterator when it is read, and remembers: answers can stream, and be indexed."""

    def __init__(self, source: Iterator[Any], length: int) -> None:
        super().__init__()
        self._source, self._length = source, length

    def __iter__(self) -> Iterator[Any]:
        for place in range(self._length):
            yield self[place]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: Any) -> Any:
        while super().__len__() < (self._length if isinstance(place, slice) or place < 0 else place + 1):
            self.append(next(self._source))
        return super().__getitem__(place)
