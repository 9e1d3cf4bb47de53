"""One file for each kind of LLaVA that the engine attaches to: transformers' own, and the original `llava` package's.

Nothing else in the engine knows where a model's image tokens come from.
"""

from __future__ import annotations

from typing import Any

from lmms_textweighted.engine.splice import Splice
from lmms_textweighted.families.image_tokens import TransformersSplice
from lmms_textweighted.families.liuhaotian.splice import LlavaSplice, is_llava_package_model

__all__ = ["Splice", "splice_of"]


def splice_of(model: Any) -> Splice:
    """How this model is watched. Raises PlanError when it is no LLaVA."""
    return LlavaSplice(model) if is_llava_package_model(model) else TransformersSplice(model)
