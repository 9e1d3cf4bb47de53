"""What a selector of sets chooses within: each image, or all of a prompt, as the plan's keep_scope says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lmms_textweighted.engine.scoring import Choice, Leaving, Merged


@dataclass(frozen=True)
class Group:
    """index: [G] indices into `Leaving.image`, ascending. keep: how many of them stay. several: more than one image."""

    index: torch.Tensor
    keep: int
    several: bool = False


def groups_of(leaving: Leaving) -> list[Group]:
    """The groups of one prompt, in order; each asks `Leaving.keep` once."""
    index = torch.arange(len(leaving.image), device=leaving.image.device)
    if leaving.keep_scope == "prompt" and leaving.sizes:
        several = sum(size > 0 for size in leaving.sizes) > 1
        return [Group(index, leaving.keep(len(index)), several)]
    return [Group(part, leaving.keep(len(part))) for part in index.split(list(leaving.sizes))]


def groups_by_image(leaving: Leaving) -> list[Group]:
    """One group an image, also where a budget is for all of a prompt: it is then shared out by the images' sizes.

    Image m of n_m tokens gets floor(K n_m / N), and the largest fractions one more each, the earlier of equal ones.
    """
    groups = groups_of(leaving)
    if leaving.keep_scope != "prompt" or not leaving.sizes:
        return groups
    (whole,) = groups
    sizes, total = leaving.sizes, max(1, len(whole.index))
    counts = [whole.keep * size // total for size in sizes]
    by_rest = sorted(range(len(sizes)), key=lambda m: -(whole.keep * sizes[m] % total))
    for m in by_rest[: whole.keep - sum(counts)]:
        counts[m] += 1
    return [Group(part, count) for part, count in zip(whole.index.split(list(sizes)), counts, strict=True)]


def as_choice(
    leaving: Leaving, kept: Sequence[torch.Tensor], merged: Sequence[Merged] = (), *, flops: int = 0
) -> Choice:
    """A choice of indices into `Leaving.image` that stand image by image already."""
    chosen = torch.cat([leaving.image.new_zeros(0), *kept])
    sizes = torch.bincount(image_of(leaving, chosen), minlength=len(leaving.sizes)).tolist()
    return Choice(chosen, tuple(sizes), tuple(merged), flops)


def image_of(leaving: Leaving, index: torch.Tensor) -> torch.Tensor:
    """The number of the image that each of some indices into `Leaving.image` is of."""
    ends = torch.tensor(leaving.sizes, dtype=torch.int64, device=index.device).cumsum(0)
    return torch.bucketize(index, ends, right=True)


def by_number(values: torch.Tensor, number: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """The values of each number from 0 to `count` - 1, in their order. The device is asked once."""
    order = torch.sort(number, stable=True).indices
    return values[order].split(torch.bincount(number, minlength=count).tolist())
