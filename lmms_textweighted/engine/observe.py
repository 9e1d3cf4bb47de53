"""Read a few attention rows of one layer beside the model's own attention kernel.

The model computes its attention as always (SDPA, flash or eager). An observed layer also hands its post-RoPE queries
and keys to a callback, which computes the rows it needs, and only those, in float32. No layer runs twice, no S x S
matrix is made, and `output_attentions` stays off.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Observer = Callable[[torch.Tensor, torch.Tensor, float], None]

_NAME = "textweighted_observed"
_CHUNK_ELEMENTS = 1 << 25  # float32 elements of attention rows held at a time: 128 MB


def _observed_attention(module: nn.Module, query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    config: Any = module.config
    base, observer, real_config = config.textweighted_observer
    observer(query, key, kwargs["scaling"])
    module.config = real_config  # flash attention looks its kernel up by the config's name
    try:
        return base(module, query, key, *args, **kwargs)
    finally:
        module.config = config


AttentionInterface.register(_NAME, _observed_attention)


@contextmanager
def observing(attention: nn.Module, observer: Observer) -> Iterator[None]:
    """While open, `observer(query, key, scaling)` is called at every forward of this attention module.

    query: [B, H, Q, D] and key: [B, G, K, D], both after RoPE, the key with the cache's entries in front. Only this
    module's own view of the config changes, and it is put back on leaving: the masks that the model makes, from the
    model's config, stay those of its real attention implementation.
    """
    config: Any = attention.config
    observed = copy.copy(config)
    observed.textweighted_observer = (_base_implementation(attention), observer, config)
    observed._attn_implementation_internal = _NAME
    attention.config = observed
    try:
        yield
    finally:
        attention.config = config


def _base_implementation(attention: nn.Module) -> Callable:
    config: Any = attention.config
    eager: Any = getattr(sys.modules[type(attention).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager)


def attention_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    rows: torch.Tensor,
    valid: torch.Tensor,
    scaling: float,
    *,
    mean_over_heads: bool = True,
) -> torch.Tensor:
    """Causal attention probabilities of some rows of one sequence, in float32.

    query: [H, S, D], key: [G, S, D] with H a multiple of G (grouped queries). rows: [R] positions of the query tokens.
    valid: bool [S], False at padding, which no row attends to. Returns [R, S], or [H, R, S] without the mean.
    Each row sums to 1.
    """
    rows, valid = rows.to(query.device), valid.to(query.device)  # with device_map, a layer may live elsewhere
    heads, length = query.shape[0], key.shape[1]
    groups = heads // key.shape[0]
    hidden = rows[:, None] < torch.arange(length, device=key.device)
    hidden = hidden | ~valid
    queries = query[:, rows].float() * scaling
    keys = key.float()
    step = max(1, _CHUNK_ELEMENTS // max(1, len(rows) * length))
    total = None
    parts = []
    for start in range(0, heads, step):
        chunk = queries[start : start + step]
        mates = (
            keys.repeat_interleave(groups, dim=0)[start : start + step] if groups > 1 else keys[start : start + step]
        )
        weights = (chunk @ mates.mT).masked_fill(hidden, float("-inf")).softmax(dim=-1)
        if mean_over_heads:
            part = weights.sum(dim=0)
            total = part if total is None else total + part
        else:
            parts.append(weights)
    if mean_over_heads:
        assert total is not None
        return total / heads
    return torch.cat(parts)
