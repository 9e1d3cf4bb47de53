"""Where a model's decoder layers are, and which tokens end what it generates."""

from __future__ import annotations

from typing import Any

from torch import nn

from lmms_textweighted.errors import PlanError


def find_decoder(model: nn.Module) -> Any:
    """The decoder inside a model: the module that owns the list of layers. Raises PlanError when there is none."""
    given: Any = model
    decoder = given.get_decoder() if hasattr(given, "get_decoder") else given
    if not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        raise PlanError(f"{type(model).__name__} has no list of decoder layers: give a LLaVA with a Llama-like decoder")
    return decoder


def end_tokens(model: Any) -> set[int]:
    """The tokens that end a generation: none, one or several in the model's generation config."""
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else set() if ends is None else {ends}
