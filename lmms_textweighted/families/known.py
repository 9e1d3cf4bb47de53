"""The kinds of models that are known: which one a model is of. A new one is its file and one line in `FAMILIES`."""

from __future__ import annotations

from typing import Any

from lmms_textweighted.engine.splice import Splice
from lmms_textweighted.errors import PlanError
from lmms_textweighted.families.base import Family
from lmms_textweighted.families.liuhaotian.family import ConvertedFamily, PackageFamily
from lmms_textweighted.families.llava import LlavaFamily

FAMILIES: tuple[type[Family], ...] = (PackageFamily, ConvertedFamily, LlavaFamily)


def family_of(model: Any, processor: Any) -> Family:
    """The family of a loaded model and its processor. Raises PlanError where there is none."""
    for family in FAMILIES:
        if family.knows(model) and family.prepares(processor):
            return family(model, processor)
    raise _unknown(model)


def splice_of(model: Any) -> Splice:
    """How this model is watched. Raises PlanError when it is of no known family."""
    for family in FAMILIES:
        if family.knows(model):
            return family.splice(model)
    raise _unknown(model)


def _unknown(model: Any) -> PlanError:
    kind = getattr(getattr(model, "config", None), "model_type", None)
    known = ", ".join(dict.fromkeys(kind for family in reversed(FAMILIES) for kind in family.kinds))
    return PlanError(
        f"{type(model).__name__} has the model_type {kind!r}, which is of no known family: known are {known}"
    )
