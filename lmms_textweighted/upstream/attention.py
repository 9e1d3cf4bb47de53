"""What is used of transformers' decoders: attention, layers, masks, the KV cache. Tried on two random layers."""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from lmms_textweighted.upstream.unpromised import TRANSFORMERS, Names

ATTENTION = Names("transformers", TRANSFORMERS)
DECODERS = ("Llama", "Mistral", "Qwen2")
_OLD, _NEW = "past_key_values", "cache"


class _Seen(Exception):
    """What was looked for is there: leave the forward."""


@functools.cache
def decoder(kind: str = "Llama", attention: str = "sdpa") -> Any:
    """A random decoder: 2 layers, 4 query heads over 2 key-value heads of width 8."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=None,
        attn_implementation=attention,
    )
    return getattr(transformers, f"{kind}Model")(config).eval()


def run(model: Any, padded: Any = False, **arguments: Any) -> Any:
    """One forward of two rows of three tokens, the first with one token of padding where asked for."""
    import torch

    mask = torch.tensor([[0, 1, 1], [1, 1, 1]]) if padded else None
    with torch.inference_mode():
        return model(input_ids=torch.arange(6).view(2, 3), attention_mask=mask, **arguments)


def cache_name(model: Any) -> str:
    """The name under which a decoder takes its KV cache."""
    return _NEW if _NEW in inspect.signature(model.forward).parameters else _OLD


def layer_arguments(model: Any, padded: bool = False, place: int = 0, stop: bool = False) -> tuple[tuple, dict]:
    """(positional, keyword) arguments that a layer is called with."""
    caught: list[tuple[tuple, dict]] = []

    def note(module: Any, args: tuple, kwargs: dict) -> None:
        caught.append((args, kwargs))
        if stop:
            raise _Seen

    hook = model.layers[place].register_forward_pre_hook(note, with_kwargs=True)
    try:
        run(model, padded)
    except _Seen:
        pass
    finally:
        hook.remove()
    return caught[0]


def _observed(kind: str) -> bool:
    """As `engine.observe` does it: only one module's own copy of the config names the observer."""
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model, seen = decoder(kind), []
    base = ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", _interface)

    def observer(module: Any, query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((tuple(query.shape), tuple(key.shape), kwargs["scaling"]))
        return base(module, query, key, *args, **kwargs)

    AttentionInterface.register("textweighted_tried", observer)
    attention = model.layers[1].self_attn
    real = attention.config
    attention.config = copy.copy(real)
    attention.config._attn_implementation_internal = "textweighted_tried"
    try:
        run(model)
        if real._attn_implementation != "sdpa":
            return False
    finally:
        attention.config = real
    run(model)
    return seen == [((2, 4, 3, 8), (2, 2, 3, 8), 8**-0.5)]


def _eager(kind: str) -> bool:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attention = decoder(kind).layers[0].self_attn
    eager = sys.modules[type(attention).__module__].eager_attention_forward  # type: ignore[attr-defined]
    return ALL_ATTENTION_FUNCTIONS.get_interface("eager", eager) is eager


def _for_each(check: Callable[[str], bool], what: str, used_by: str) -> None:
    for kind in DECODERS:
        ATTENTION(f"{kind}Attention: {what}", used_by)(functools.partial(check, kind))


_for_each(
    _observed,
    "asks module.config at every call (a copy with another _attn_implementation_internal acts) and hands the function "
    "query [B, H, Q, D], key [B, G, K, D] and scaling=",
    "engine.observe",
)
_for_each(_eager, "eager_attention_forward in its module, found by get_interface('eager', default)", "engine.observe")


@ATTENTION("AttentionInterface.register, ALL_ATTENTION_FUNCTIONS.get_interface(name, default)", "engine.observe")
def _interface() -> bool:
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    AttentionInterface.register("textweighted_registered", _interface)
    return ALL_ATTENTION_FUNCTIONS.get_interface("textweighted_registered", _rotary) is _interface


@ATTENTION("config._attn_implementation: the implementation's name", "engine.pruner, engine.fanout, harness.model")
def _implementation() -> bool:
    names = [decoder("Llama", name).config._attn_implementation for name in ("sdpa", "eager")]
    return names == ["sdpa", "eager"]


@ATTENTION("decoder.layers, a ModuleList whose layers have self_attn", "engine.decoder, engine.pruner")
def _layers() -> bool:
    from torch import nn

    return isinstance(decoder().layers, nn.ModuleList) and isinstance(decoder().layers[0].self_attn, nn.Module)


@ATTENTION("decoder.rotary_emb(hidden, positions) -> cos, sin [B, S, D]; decoder.norm", "engine.fanout")
def _rotary() -> bool:
    import torch

    hidden = torch.zeros(2, 3, 32)
    parts = decoder().rotary_emb(hidden, torch.arange(3).expand(2, -1))
    return [tuple(part.shape) for part in parts] == [(2, 3, 8)] * 2 and decoder().norm(hidden).shape == hidden.shape


@ATTENTION(
    "layer.input_layernorm, and layer.self_attn(hidden_states=, position_embeddings=, attention_mask=) without a cache",
    "engine.prefill",
)
def _ahead() -> bool:
    import torch

    layer, hidden = decoder().layers[1], torch.zeros(2, 3, 32)
    phases = decoder().rotary_emb(hidden, torch.arange(3).expand(2, -1))
    with torch.inference_mode():
        output = layer.self_attn(
            hidden_states=layer.input_layernorm(hidden), position_embeddings=phases, attention_mask=None
        )
    return output[0].shape == hidden.shape


@ATTENTION("a decoding step's layers are given its absolute position as position_ids", "engine.shortened")
def _step_position() -> bool:
    import torch
    from transformers import DynamicCache

    model = decoder()
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(input_ids=torch.arange(3)[None], **{cache_name(model): cache}, use_cache=True)
        caught: list[dict] = []
        hook = model.layers[1].register_forward_pre_hook(
            lambda module, args, kwargs: caught.append(kwargs), with_kwargs=True
        )
        try:
            model(input_ids=torch.tensor([[4]]), **{cache_name(model): cache}, use_cache=True)
        finally:
            hook.remove()
    return caught[0]["position_ids"].tolist() == [[3]]


@ATTENTION(
    "a layer's arguments: hidden_states first; position_embeddings, attention_mask and position_ids by keyword",
    "engine.pruner, engine.shortened",
)
def _arguments() -> bool:
    args, kwargs = layer_arguments(decoder())
    hidden = args[0] if args else kwargs["hidden_states"]
    cos, _ = kwargs["position_embeddings"]
    return hidden.shape == (2, 3, 32) and cos.shape[-2:] == (3, 8) and {"attention_mask", "position_ids"} <= set(kwargs)


@ATTENTION("a layer gives the hidden states themselves, not a tuple", "engine.fanout")
def _layer_output() -> bool:
    import torch

    model, positions = decoder(), torch.arange(3)[None]
    hidden = torch.zeros(1, 3, 32)
    with torch.inference_mode():
        given = model.layers[0](hidden, position_embeddings=model.rotary_emb(hidden, positions), attention_mask=None)
    return isinstance(given, torch.Tensor) and given.shape == hidden.shape


@ATTENTION("the window of Qwen2Attention.sliding_window, and of Mistral's config.sliding_window", "engine.pruner")
def _window() -> bool:
    from transformers import MistralConfig, Qwen2Config
    from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

    small: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    qwen = Qwen2Config(sliding_window=7, use_sliding_window=True, max_window_layers=1, num_hidden_layers=2, **small)
    windows = [getattr(Qwen2Attention(qwen, layer), "sliding_window", 0) for layer in (0, 1)]
    return windows == [None, 7] and MistralConfig(sliding_window=7, **small).sliding_window == 7


@ATTENTION(
    "masks of a padded batch: SDPA's bool [B, 1, S, S], eager's additive; none where nothing is hidden", "engine.masks"
)
def _masks() -> bool:
    import torch

    sdpa = layer_arguments(decoder(), padded=True)[1]["attention_mask"]
    eager = layer_arguments(decoder("Llama", "eager"), padded=True)[1]["attention_mask"]
    hidden = eager[0, 0, 2, 0].item()
    return (
        layer_arguments(decoder())[1]["attention_mask"] is None
        and sdpa.dtype == torch.bool
        and sdpa.shape == eager.shape == (2, 1, 3, 3)
        and hidden == torch.finfo(eager.dtype).min
    )


@ATTENTION("the mask of a padded batch for flash attention: [B, S]", "engine.masks")
def _flash_mask() -> bool:
    model = copy.copy(decoder())
    model.config = copy.copy(model.config)
    model.config._attn_implementation_internal = "flash_attention_2"  # the mask alone: no layer runs
    return layer_arguments(model, padded=True, stop=True)[1]["attention_mask"].shape == (2, 3)


@ATTENTION(
    "DynamicCache(config=), get_seq_length(), update(keys, values, layer), layers[i].keys and .values", "engine.fanout"
)
def _cache() -> bool:
    import torch
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=decoder().config)
    for layer, length in enumerate((3, 2)):  # later layers are shorter
        cache.update(torch.zeros(1, 2, length, 8), torch.ones(1, 2, length, 8), layer)
    lengths = [cache.layers[layer].keys.shape[2] for layer in (0, 1)]
    return cache.get_seq_length() == 3 and lengths == [3, 2] and bool((cache.layers[1].values == 1).all())


@ATTENTION(
    "the KV cache's name in arguments and outputs: `cache`, or `past_key_values`",
    "engine.caches",
    since="5.24 as `cache`, before as `past_key_values`",
)
def _cache_name() -> bool:
    from transformers import DynamicCache

    model = decoder()
    name = cache_name(model)
    cache = DynamicCache(config=model.config)
    output = run(model, **{"use_cache": True, name: cache})
    return getattr(output, name) is cache and cache.get_seq_length() == 3


@ATTENTION("a layer is handed the KV cache under that name, by keyword", "engine.shortened, engine.caches")
def _layer_cache() -> bool:
    _, kwargs = layer_arguments(decoder())
    return bool({_OLD, _NEW} & set(kwargs))
