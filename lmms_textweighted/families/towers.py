"""Which vision tower a model has, and what of it can be looked at: LLaVA's, whose image tokens are patches, and
newlines between the rows of a grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from lmms_textweighted.engine.splice import Tower

_HOMES = ("vision_tower", "visual", "vision_model")
_CLASS_TOKENS = ("class_embedding", "cls_token")  # CLIP's and InternViT's; SigLIP's, Pixtral's and Qwen's have none


def tower_of(model: Any) -> Tower:
    """The tower of a model of transformers. Layers are named for a LLaVA-1.5 or LLaVA-NeXT whose features are one
    layer's."""
    parts = model.model
    tower = next((getattr(parts, name) for name in _HOMES if hasattr(parts, name)), model)
    config = model.config
    chosen = getattr(config, "vision_feature_layer", None)
    class_token = has_class_token(tower)
    # With "full" a tower's class token is an image token, which no patch is.
    patches = getattr(config, "vision_feature_select_strategy", None) == ("default" if class_token else "full")
    if config.model_type not in ("llava", "llava_next") or not isinstance(chosen, int) or not patches:
        return Tower(type(tower).__name__, class_token)
    return looked_into(tower, chosen, parts.multi_modal_projector)


def looked_into(tower: nn.Module, hidden_state: int, project: Callable) -> Tower:
    """A tower whose layers can be observed. hidden_state: which of its hidden states, of which the first enters layer
    0, the projector `project` is given."""
    layers = layers_of(tower)
    feature = hidden_state - 1 if hidden_state > 0 else len(layers) + hidden_state
    known = layers if 0 <= feature < len(layers) else ()
    return Tower(type(tower).__name__, has_class_token(tower), known, feature, project)


def layers_of(tower: nn.Module) -> Sequence[nn.Module]:
    """The list of layers with attention inside a tower; empty where there is none."""
    for part in tower.modules():
        if isinstance(part, nn.ModuleList) and len(part) and hasattr(part[0], "self_attn"):
            return list(part)
    return ()


def has_class_token(tower: nn.Module) -> bool:
    """Whether a class token stands in front of a tower's patches."""
    return any(hasattr(part, name) for part in tower.modules() for name in _CLASS_TOKENS)
