"""Where a grid's tokens come from, found by the model's own code: it is given numbers instead of features to put
together, so that nothing of how it cuts, unpads and adds newlines is written down a second time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lmms_textweighted.engine.grids import NEWLINE, Grid

_BASE = 128  # digits up to 127 are whole numbers in half precision and in bfloat16, too
_DIGITS = 4
_MARK = 100.0  # in all columns behind the digits; a newline's features are not that
WIDTH = 2 * _DIGITS  # the least width of features that numbers can be told from newlines by


def packed(pack: Callable[..., Any], image_features: Sequence[torch.Tensor], *args: Any, **kwargs: Any) -> list[Grid]:
    """The grids of pictures that transformers' `pack_image_features` puts together. image_features: as it is given
    them, [V, N, W] of each picture; args, kwargs: what else it is."""
    numbers = []
    for features in image_features:
        views, patches = features.shape[:2]
        numbers.append(torch.arange(views * patches, dtype=torch.float64).view(views, patches, 1))
    if kwargs.get("image_newline") is not None:
        kwargs["image_newline"] = torch.tensor([float(NEWLINE)], dtype=torch.float64)
    made, _ = pack(numbers, *args, **kwargs)
    return [
        Grid(part[:, 0].round().long(), *features.shape[:2])
        for part, features in zip(made, image_features, strict=True)
    ]


def numbered(views: int, patches: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """[V, N, W]: features that say which patch of which view they are; `read` takes it from them."""
    number = torch.arange(views * patches, device=like.device)
    digits = torch.stack([number // _BASE**place % _BASE for place in range(_DIGITS)], dim=1)
    marks = torch.full((len(number), width - _DIGITS), _MARK, device=like.device)
    return torch.cat([digits.float(), marks], dim=1).view(views, patches, width).to(like.dtype)


def read(features: torch.Tensor) -> torch.Tensor:
    """int64 [I], on the CPU: the number of each of these features [I, W] counted through all views, or NEWLINE."""
    features = features.float().cpu()
    digits = features[:, :_DIGITS].round().long()
    number = (digits * torch.tensor([_BASE**place for place in range(_DIGITS)])).sum(dim=1)
    return number.where((features[:, _DIGITS:] == _MARK).all(dim=1), torch.tensor(NEWLINE))


def grids_of(numbers: torch.Tensor, views: Sequence[int], patches: int) -> list[Grid]:
    """The grids of a batch's pictures, one after the other. numbers: [I] of all image tokens of the batch, as `read`
    has them. views: of each picture that entered the tower, also of one that no prompt shows."""
    # A newline ends a row, so it belongs to the picture of the token in front of it.
    place = torch.arange(len(numbers))
    last = torch.where(numbers == NEWLINE, -1, place).cummax(dim=0).values if len(numbers) else place
    ends = torch.tensor(list(views)).cumsum(0)
    picture = torch.bucketize(numbers[last] // patches, ends, right=True)
    grids = []
    for number, (end, count) in enumerate(zip(ends.tolist(), views, strict=True)):
        mine = numbers[picture == number]
        own = torch.where(mine == NEWLINE, NEWLINE, mine - (end - count) * patches)
        grids.append(Grid(own, count, patches))
    return grids
