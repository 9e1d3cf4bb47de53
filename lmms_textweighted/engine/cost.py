"""What a prefill costs: FLOPs, KV bytes and equivalent tokens of a decoder whose layers see different lengths.

All counts are of the language model's decoder layers: the vision tower, the projector and the output head are the same
with and without pruning and are left out. One multiply-add is two FLOPs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmms_textweighted.errors import PlanError

# Config entries that say a decoder has experts at all, and those of kinds of experts that are not counted here.
_MIXTURES = ("num_experts", "num_local_experts", "n_routed_experts")
_SHARED = ("shared_expert_intermediate_size", "n_shared_experts", "first_k_dense_replace")


@dataclass(frozen=True)
class DecoderShape:
    """A decoder's sizes: layers, hidden width, query heads, key-value heads, head width and MLP width.

    mlps: where layers are mixtures of experts, (experts that a router chooses from, width that one token passes) of
    each layer; (0, width) for a dense one. Empty where every layer is dense and `intermediate` wide.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    mlps: tuple[tuple[int, int], ...] = ()

    @classmethod
    def from_config(cls, config: Any) -> DecoderShape:
        """Read a transformers text config. Raises PlanError for a mixture of experts whose layers are not known."""
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            intermediate=config.intermediate_size,
            mlps=_mlps(config),
        )

    def mlp(self, layer: int) -> tuple[int, int]:
        """(experts that a layer's router chooses from, 0 without one; MLP width that one token passes)."""
        return self.mlps[layer] if self.mlps else (0, self.intermediate)


def _mlps(config: Any) -> tuple[tuple[int, int], ...]:
    """Each layer's experts, as Qwen names them: every `decoder_sparse_step`-th layer, but no `mlp_only_layers`."""
    if not any(getattr(config, name, None) for name in _MIXTURES):
        return ()
    experts, chosen, width, step = (
        getattr(config, name, None)
        for name in ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step")
    )
    if not (experts and chosen and width) or any(getattr(config, name, None) for name in _SHARED):
        raise PlanError(
            f"the costs of the mixture of experts in a {config.model_type!r} are not known here: not supported"
        )
    dense = getattr(config, "mlp_only_layers", None) or ()
    return tuple(
        (0, config.intermediate_size) if n in dense or (n + 1) % (step or 1) else (experts, chosen * width)
        for n in range(config.num_hidden_layers)
    )


def layer_flops(shape: DecoderShape, tokens: int, *, layer: int = 0, causal: bool = False) -> int:
    """FLOPs of one decoder layer over `tokens` tokens at prefill.

    2 n d (2 h + 2 h_kv) for the four projections, 4 n^2 h for scores and values, 6 n d m for the gated MLP, with
    h = heads x head width. The attention term counts the full n x n square, as eager attention computes it; with
    `causal`, the n (n + 1) / 2 pairs that a causal kernel needs. layer: where layers differ. In a mixture of
    experts m is that of the experts a token passes, and the router's 2 n d e are added, e being all experts.
    """
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    projections = 2 * tokens * shape.hidden * (2 * query + 2 * key)
    pairs = tokens * (tokens + 1) // 2 if causal else tokens * tokens
    experts, width = shape.mlp(layer)
    mlp = 6 * tokens * shape.hidden * width + 2 * tokens * shape.hidden * experts
    return projections + 4 * pairs * query + mlp


def scoring_flops(
    shape: DecoderShape, rows: int, tokens: int, *, projected: bool = False, keys_only: bool = False
) -> int:
    """FLOPs of `rows` attention rows over `tokens` tokens, computed beside the model's own attention: 2 R n h.

    projected: with the queries, keys and values of a layer that has not run, 2 n d (h + 2 h_kv), as PyramidDrop needs.
    keys_only: no row is computed, the keys are gone through once, two operations an element: 2 n h_kv, as DART needs.
    """
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    projections = 2 * tokens * shape.hidden * (query + 2 * key) if projected else 0
    return 2 * tokens * (key if keys_only else rows * query) + projections


def layer_bytes(shape: DecoderShape, tokens: int, element_size: int, batch: int = 1) -> int:
    """Bytes that one decoder layer must at least move at prefill: its weights once, each row's hidden states in and
    out, and its keys and values. (Two norms of d weights are left out, and experts beyond those of one token.)"""
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    weights = shape.hidden * (2 * query + 2 * key) + 3 * shape.hidden * shape.mlp(0)[1]
    moved = batch * tokens * (2 * shape.hidden + 2 * key)
    return (weights + moved) * element_size


def prefill_flops(shape: DecoderShape, lengths: Sequence[int]) -> int:
    """FLOPs of all decoder layers at prefill; `lengths` is the number of tokens each layer sees."""
    return sum(layer_flops(shape, tokens, layer=layer) for layer, tokens in enumerate(lengths))


def kv_bytes(shape: DecoderShape, lengths: Sequence[int], element_size: int) -> int:
    """Bytes of the KV cache after prefill: 2 x key-value heads x head width x element size a token and layer."""
    return 2 * shape.kv_heads * shape.head_dim * element_size * sum(lengths)


def equivalent_tokens(image_lengths: Sequence[int]) -> float:
    """Mean number of image tokens over all layers: the budget that methods with different layers share."""
    return sum(image_lengths) / len(image_lengths)
