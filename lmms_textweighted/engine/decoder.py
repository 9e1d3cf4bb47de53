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


def check_layers(decoder: Any) -> None:
    """Raise PlanError, in one line that says what is missing, for a decoder whose layers pruning was not made for."""
    kinds = getattr(decoder.config, "layer_types", None) or [""] * len(decoder.layers)
    for number, (layer, kind) in enumerate(zip(decoder.layers, kinds, strict=False)):
        attention = getattr(layer, "self_attn", None)
        if attention is None:
            raise PlanError(
                f"decoder layer {number} is no self-attention{f' but {kind}' if kind else ''}: removal from a "
                f"recurrence or a convolution is not supported"
            )
        if _window(attention):
            raise PlanError(
                "the decoder has sliding-window attention, whose window would count removed tokens: not supported"
            )
        if getattr(attention, "is_causal", True) is False:
            raise PlanError(
                f"decoder layer {number} is not causal (is_causal is False: its tokens see those behind them), and "
                f"scores and masks here are those of causal attention: not supported"
            )
        if kind and kind not in ("full_attention", "sliding_attention"):  # sliding with no window: all is seen
            raise PlanError(f"decoder layer {number} is {kind}, for which pruning was not made: not supported")
    if getattr(decoder.config, "hidden_size_per_layer_input", None):
        raise PlanError(
            "the decoder gives every layer inputs of its own for each token: their removal is not supported"
        )


def _window(attention: Any) -> int | None:
    """The attention's window: Qwen2's layers say their own, Mistral's all have the config's."""
    return getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))


def end_tokens(model: Any) -> set[int]:
    """The tokens that end a generation: none, one or several in the model's generation config."""
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else set() if ends is None else {ends}
