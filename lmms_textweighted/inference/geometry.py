"""A loaded model's sizes, as far as a budget needs them."""

from __future__ import annotations

from typing import Any

from lmms_textweighted.engine.cost import DecoderShape
from lmms_textweighted.engine.decoder import find_decoder
from lmms_textweighted.families.known import splice_of
from lmms_textweighted.methods.budget import Geometry


def geometry_of(model: Any) -> Geometry:
    """What `make_plan` solves a budget for. Raises PlanError when the model is of no known family.

    `image_tokens` is None where the number of an image's tokens depends on the picture.
    """
    return Geometry(DecoderShape.from_config(find_decoder(model).config), splice_of(model).tokens_per_image)
