"""What a prefill costs: FLOPs, KV bytes and equivalent tokens of a decoder whose layers see different lengths.

All counts are of the language model's decoder layers: the vision tower, the projector and the output head are the same
with and without pruning and are left out. One multiply-add is two FLOPs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DecoderShape:
    """A decoder's sizes: layers, hidden width, query heads, key-value heads, head width and MLP width."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int

    @classmethod
    def from_config(cls, config: Any) -> DecoderShape:
        """Read a transformers text config."""
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            intermediate=config.intermediate_size,
        )


def layer_flops(shape: DecoderShape, tokens: int, *, causal: bool = False) -> int:
    """FLOPs of one decoder layer over `tokens` tokens at prefill.

    2 n d (2 h + 2 h_kv) for the four projections, 4 n^2 h for scores and values, 6 n d m for the gated MLP, with
    h = heads x head width. The attention term counts the full n x n square, as eager attention computes it; with
    `causal`, the n (n + 1) / 2 pairs that a causal kernel needs.
    """
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    projections = 2 * tokens * shape.hidden * (2 * query + 2 * key)
    pairs = tokens * (tokens + 1) // 2 if causal else tokens * tokens
    mlp = 6 * tokens * shape.hidden * shape.intermediate
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
    out, and its keys and values. (Two norms of d weights are left out.)"""
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    weights = shape.hidden * (2 * query + 2 * key) + 3 * shape.hidden * shape.intermediate
    moved = batch * tokens * (2 * shape.hidden + 2 * key)
    return (weights + moved) * element_size


def prefill_flops(shape: DecoderShape, lengths: Sequence[int]) -> int:
    """FLOPs of all decoder layers at prefill; `lengths` is the number of tokens each layer sees."""
    return sum(layer_flops(shape, tokens) for tokens in lengths)


def kv_bytes(shape: DecoderShape, lengths: Sequence[int], element_size: int) -> int:
    """Bytes of the KV cache after prefill: 2 x key-value heads x head width x element size a token and layer."""
    return 2 * shape.kv_heads * shape.head_dim * element_size * sum(lengths)


def equivalent_tokens(image_lengths: Sequence[int]) -> float:
    """Mean number of image tokens over all layers: the budget that methods with different layers share."""
    return sum(image_lengths) / len(image_lengths)
