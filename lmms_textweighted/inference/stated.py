"""Lengths that a user states of a prompt: checked against every input, never assumed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from lmms_textweighted.errors import InputError
from lmms_textweighted.families.base import Family


@dataclass(frozen=True)
class StatedLengths:
    """What a user states about the prompt: tokens in front of the image, and the image's own. None: not stated."""

    system: int | None = None
    image: int | None = None


def check_stated_lengths(
    family: Family, input_ids: torch.Tensor, attention_mask: torch.Tensor, stated: StatedLengths
) -> None:
    """Raise InputError when a stated length is not that of every row with an image. Both tensors: [B, S]."""
    if stated.system is None and stated.image is None:
        return
    if stated.image is not None and not family.shows_image_lengths:
        raise InputError("image length is stated, but in this checkpoint it depends on the picture: leave it out")
    for ids, valid in zip(input_ids, attention_mask.bool(), strict=True):
        places = family.image_mask(ids[valid]).nonzero().flatten().tolist()
        if not places:
            continue
        gaps = [place for place, (a, b) in enumerate(itertools.pairwise(places), start=1) if b != a + 1]
        found = {"system": places[0], "image": gaps[0] if gaps else len(places)}
        for name, what in (("system", "tokens in front of the image"), ("image", "tokens of the image")):
            claim = getattr(stated, name)
            if claim is not None and claim != found[name]:
                raise InputError(
                    f"{name} length is stated as {claim}, but the input has {found[name]} {what}: "
                    f"leave it out, or state {found[name]}"
                )
