"""Prefill by the procedures that people use, beside ours: 64 of 576 tokens after layer 2, chosen by the last row.

`python -m benchmarks.peers [--geometry 1b|7b]`. Re-implemented here as procedures, all on the same model and prompt.
They keep the tokens that our `fastv` keeps, but for those that eager attention's rounding puts in another order:

- masked: the FastV authors' forward (pkunlp-icler/FastV, modeling_llama.py). Eager attention with every layer's weights
  returned; nothing is removed, later layers get a mask over the image tokens.
- in place: their second form. The same eager attention; what is not kept leaves, and there is no KV cache.
- layer twice: LightCompress' hooks (ModelTC/llmc, token_reduction/fastv.py). The scored layer runs once more with eager
  attention to see its weights; the other layers use the fast kernel.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import typer

from benchmarks.models import IMAGE_TOKENS, SYSTEM_TOKENS, Subject, build
from benchmarks.prefill import KEEP, LAYER, forward
from benchmarks.rows import Row, show
from benchmarks.timing import take_turns
from lmms_textweighted.engine.caches import CACHE_NAME
from lmms_textweighted.methods import make_plan

IMAGE = slice(SYSTEM_TOKENS, SYSTEM_TOKENS + IMAGE_TOKENS)


def kept_tokens(weights: torch.Tensor) -> torch.Tensor:
    """Positions that stay, from the scored layer's weights [1, H, S, S]: text, and the image tokens of the last row."""
    scores = weights.mean(dim=1)[0, -1]
    best = scores[IMAGE].topk(KEEP).indices + IMAGE.start
    text = torch.ones_like(scores, dtype=torch.bool)
    text[IMAGE] = False
    return torch.cat([text.nonzero().flatten(), best]).sort().values


@contextmanager
def _hooked(subject: Subject, attention: str) -> Iterator[tuple[Any, Callable[[Any], None]]]:
    """(the layers, a function that takes a hook off at the end), under this attention implementation."""
    subject.model.set_attn_implementation(attention)
    try:
        with torch.inference_mode(), ExitStack() as stack:
            yield subject.model.model.language_model.layers, lambda handle: stack.callback(handle.remove)
    finally:
        subject.model.set_attn_implementation("sdpa")


def masked(subject: Subject) -> torch.Tensor:
    """Nothing leaves; returns the positions that are not masked."""
    found: list[torch.Tensor] = []
    hidden: list[torch.Tensor] = []

    def score(module: Any, args: tuple, output: tuple) -> None:
        found.append(kept_tokens(output[1]))

    def mask(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if not hidden:
            length = args[0].shape[1]
            gone = torch.ones(length, dtype=torch.bool, device=args[0].device)
            gone[found[0]] = False
            future = torch.ones(length, length, dtype=torch.bool, device=args[0].device).triu(1)
            lowest = torch.finfo(args[0].dtype).min
            hidden.append(torch.zeros_like(future, dtype=args[0].dtype).masked_fill(gone | future, lowest)[None, None])
        kwargs["attention_mask"] = hidden[0]
        return args, kwargs

    with _hooked(subject, "eager") as (layers, keep):
        keep(layers[LAYER].self_attn.register_forward_hook(score))
        for layer in layers[LAYER + 1 :]:
            keep(layer.register_forward_pre_hook(mask, with_kwargs=True))
        subject.prefill(output_attentions=True)
    return found[0]


def in_place(subject: Subject) -> torch.Tensor:
    """Tokens leave under eager attention, without a KV cache."""
    found: list[torch.Tensor] = []

    def score(module: Any, args: tuple, output: tuple) -> None:
        found.append(kept_tokens(output[1]))

    with _hooked(subject, "eager") as (layers, keep):
        keep(layers[LAYER].self_attn.register_forward_hook(score))
        _remove_after(layers, keep, found)
        subject.prefill(output_attentions=True, use_cache=False)
    return found[0]


def layer_twice(subject: Subject) -> torch.Tensor:
    """The scored layer runs a second time, with eager attention and without the cache."""
    found: list[torch.Tensor] = []

    def again(module: Any, args: tuple, kwargs: dict) -> None:
        seen: list[torch.Tensor] = []
        attention, config = module.self_attn, module.self_attn.config
        attention.config = copy.copy(config)
        attention.config._attn_implementation_internal = "eager"
        length = args[0].shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=args[0].device).triu(1)
        lowest = torch.finfo(args[0].dtype).min
        mask = torch.zeros_like(future, dtype=args[0].dtype).masked_fill(future, lowest)[None, None]
        handle = attention.register_forward_hook(lambda _module, _args, output: seen.append(output[1]))
        try:
            type(module).forward(module, *args, **{**kwargs, "attention_mask": mask, CACHE_NAME: None})
        finally:
            handle.remove()
            attention.config = config
        found.append(kept_tokens(seen[0]))

    with _hooked(subject, "sdpa") as (layers, keep):
        keep(layers[LAYER].register_forward_pre_hook(again, with_kwargs=True))
        _remove_after(layers, keep, found)
        subject.prefill()
    return found[0]


def _remove_after(layers: Any, keep: Callable[[Any], None], found: list[torch.Tensor]) -> None:
    """Pre-hooks of the layers behind LAYER: only the tokens of `found` go on."""

    def shorten(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        hidden, places = args[0], found[0]
        if hidden.shape[1] != len(places):
            hidden = hidden[:, places]
        kwargs["position_embeddings"] = tuple(part[:, places] for part in kwargs["position_embeddings"])
        if kwargs.get("attention_mask") is not None:
            kwargs["attention_mask"] = kwargs["attention_mask"][:, :, : len(places), : len(places)]
        return (hidden, *args[1:]), kwargs

    for layer in layers[LAYER + 1 :]:
        keep(layer.register_forward_pre_hook(shorten, with_kwargs=True))


PEERS: dict[str, Callable[[Subject], torch.Tensor]] = {
    "FastV's forward, masked": masked,
    "FastV's forward, in place": in_place,
    "LightCompress' hooks, layer twice": layer_twice,
}


def run(geometry: str = "1b", repeats: int = 5) -> list[Row]:
    """One row a peer: its time over ours, and over the unpruned model's."""
    subject = build(geometry)
    where = f"{geometry}, batch 1, {str(subject.features.dtype).removeprefix('torch.')}, {subject.features.device.type}"
    ours = {name: make_plan(name, keep_tokens=KEEP, pruning_layer=LAYER) for name in ("fastv", "text_weighted")}
    _, trace = forward(subject, ours["fastv"])
    expected = set(trace.documents[0].stages[0].kept.tolist())
    shared = {}
    for name, peer in PEERS.items():
        theirs = {place for place in peer(subject).tolist() if IMAGE.start <= place < IMAGE.stop}
        shared[name] = len(theirs & expected)
    times = take_turns(
        {
            "unpruned": partial(forward, subject, None),
            **{name: partial(forward, subject, plan) for name, plan in ours.items()},
            **{name: partial(peer, subject) for name, peer in PEERS.items()},
        },
        repeats,
    )
    seconds = {name: value.median for name, value in times.items()}
    details = {name: {"median_s": value.median, "spread": value.spread} for name, value in times.items()}
    rows = [
        Row(
            f"peers, {where}: {name} / our fastv",
            seconds[name] / seconds["fastv"],
            1.0,
            note=f"{seconds[name] / seconds['unpruned']:.2f} x unpruned, {shared[name]} of {KEEP} tokens the same",
            details=details,
        )
        for name in PEERS
    ]
    return [
        *rows,
        Row(
            f"peers, {where}: our text_weighted / our fastv",
            seconds["text_weighted"] / seconds["fastv"],
            note=f"{seconds['text_weighted'] / seconds['unpruned']:.2f} x unpruned",
        ),
    ]


def main(geometry: str = typer.Option("1b", help="1b, 7b or small."), repeats: int = typer.Option(5)) -> None:
    """Print the rows."""
    show(run(geometry, repeats))


if __name__ == "__main__":
    typer.run(main)
