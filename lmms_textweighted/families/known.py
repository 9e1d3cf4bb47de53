"""The kinds of models that are known: which one a model is of. A new one is its file and one line in `FAMILIES`."""

from __future__ import annotations

from typing import Any

from lmms_textweighted.engine.splice import Splice
from lmms_textweighted.errors import CheckpointError, PlanError
from lmms_textweighted.families.base import Family
from lmms_textweighted.families.glm import Glm4vFamily
from lmms_textweighted.families.idefics3 import Idefics3Family
from lmms_textweighted.families.internvl import InternVlFamily
from lmms_textweighted.families.liuhaotian.family import ConvertedFamily, LiuhaotianFamily, PackageFamily
from lmms_textweighted.families.llava import LlavaFamily
from lmms_textweighted.families.mistral3 import Mistral3Family
from lmms_textweighted.families.qwen import Qwen2VlFamily, Qwen3VlFamily, Qwen25VlFamily

FAMILIES: tuple[type[Family], ...] = (
    PackageFamily,
    ConvertedFamily,
    Glm4vFamily,
    Mistral3Family,
    Idefics3Family,
    InternVlFamily,
    Qwen2VlFamily,
    Qwen3VlFamily,
    Qwen25VlFamily,
    LlavaFamily,
)


def family_of(model: Any, processor: Any) -> Family:
    """The family of a loaded model and its processor. Raises PlanError where there is none."""
    for family in FAMILIES:
        if family.knows(model) and family.prepares(processor):
            return family(model, processor)
    raise _unknown(model)


def family_of_type(pretrained: str, model_type: Any) -> type[Family]:
    """The family that loads a checkpoint in transformers' format. Raises CheckpointError where there is none."""
    for family in FAMILIES:
        if model_type in family.kinds and not issubclass(family, LiuhaotianFamily):
            return family
    raise CheckpointError(
        f"checkpoint {pretrained!r} is no LLaVA in transformers' format, nor of another known kind: its model_type is "
        f"{model_type!r}, known are {_kinds()}"
    )


def _kinds() -> str:
    return ", ".join(dict.fromkeys(kind for family in reversed(FAMILIES) for kind in family.kinds))


def splice_of(model: Any) -> Splice:
    """How this model is watched. Raises PlanError when it is of no known family."""
    for family in FAMILIES:
        if family.knows(model):
            return family.splice(model)
    raise _unknown(model)


def _unknown(model: Any) -> PlanError:
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return PlanError(
        f"{type(model).__name__} has the model_type {kind!r}, which is of no known family: known are {_kinds()}"
    )
