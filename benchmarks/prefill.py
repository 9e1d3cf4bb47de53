"""Prefill of the language model, 64 of 576 image tokens after layer 2: speed against the roofline, scoring, memory, KV.

`python -m benchmarks.prefill [--geometry 1b|7b] [--batch 1]` times one forward over random weights and picture features
that are already made: unpruned, pruned, scored without removing anything, and with the ranks of the last layer.

The bound: each decoder layer takes at least the larger of its FLOPs over the machine's measured FLOP rate and its bytes
(weights, KV cache, hidden states) over the measured memory rate. The roofline speed-up is the unpruned bound over the
pruned one; the figure is how much of it the engine reaches.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import typer

from benchmarks.models import IMAGE_TOKENS, SYSTEM_TOKENS, TEXT_TOKENS, Subject, build
from benchmarks.peaks import peak_bytes, peak_flops
from benchmarks.rows import Row, show
from benchmarks.timing import take_turns
from lmms_textweighted.engine.caches import CACHE_NAME
from lmms_textweighted.engine.cost import DecoderShape, layer_bytes, layer_flops
from lmms_textweighted.engine.plan import NONE, Plan
from lmms_textweighted.families.attach import prune
from lmms_textweighted.methods import make_plan

KEEP, LAYER = 64, 2
FULL = SYSTEM_TOKENS + IMAGE_TOKENS + TEXT_TOKENS


def forward(subject: Subject, plan: Plan | None, *, ranks: bool = False) -> Any:
    """One prefill; plan None: the model alone, without our hooks."""
    context: Any = nullcontext() if plan is None else prune(subject.model, plan, ranks=ranks)
    with torch.inference_mode(), context as trace:
        return subject.prefill(), trace


def run(geometry: str = "1b", batch: int = 1, repeats: int = 5) -> list[Row]:
    """The rows of one geometry and batch size."""
    subject = build(geometry, batch)
    device, dtype = subject.features.device.type, subject.features.dtype
    where = f"{geometry}, batch {batch}, {str(dtype).removeprefix('torch.')}, {device}"
    pruned, whole = make_plan(keep_tokens=KEEP, pruning_layer=LAYER), make_plan(keep_tokens=IMAGE_TOKENS)
    times = take_turns(
        {
            "unpruned": partial(forward, subject, None),
            "pruned": partial(forward, subject, pruned),
            "scored": partial(forward, subject, whole),
            "pruned with ranks": partial(forward, subject, pruned, ranks=True),
            "unpruned with ranks": partial(forward, subject, NONE, ranks=True),
            "decoder, whole length": partial(decode, subject, FULL),
            "decoder, short length": partial(decode, subject, FULL - IMAGE_TOKENS + KEEP),
        },
        repeats,
    )
    seconds = {name: value.median for name, value in times.items()}
    details = {name: {"median_s": value.median, "spread": value.spread} for name, value in times.items()}
    _, trace = forward(subject, pruned)
    shape = DecoderShape.from_config(subject.model.config.text_config)
    lengths = trace.documents[0].lengths
    short = lengths.count(FULL - IMAGE_TOKENS + KEEP) / shape.layers
    layers = short * seconds["decoder, short length"] + (1 - short) * seconds["decoder, whole length"]
    bound = roofline(shape, [FULL] * shape.layers, lengths, batch, dtype, device)
    speedup = seconds["unpruned"] / seconds["pruned"]
    limits = (1.02, "CPU") if device == "cpu" else (1.01, "GPU")
    output, trace = forward(subject, pruned)
    cache = sum(layer.keys.nbytes + layer.values.nbytes for layer in getattr(output, CACHE_NAME).layers)
    planned = sum(document.kv_bytes for document in trace.documents)
    return [
        Row(
            f"prefill, {where}: speed-up over unpruned / roofline speed-up",
            speedup / bound,
            0.90,
            note=f"{speedup:.2f} x of {bound:.2f} x",
            details=details,
        ),
        Row(
            f"prefill, {where}: the same layers timed by themselves at these lengths / pruned",
            layers / seconds["pruned"],
            note="what is left of 1 is the engine's own work",
        ),
        Row(
            f"scoring, {where}: scored and nothing removed / unpruned",
            seconds["scored"] / seconds["unpruned"],
            limits[0],
            False,
        ),
        Row(f"KV cache, {where}: bytes / the plan's arithmetic", cache / planned, 1.0, False, note=f"{cache} bytes"),
        Row(
            f"ranks, {where}: asked for / not, {KEEP} tokens",
            seconds["pruned with ranks"] / seconds["pruned"],
            1.15,
            False,
        ),
        Row(
            f"ranks, {where}: asked for / not, {IMAGE_TOKENS} tokens",
            seconds["unpruned with ranks"] / seconds["unpruned"],
        ),
    ]


def decode(subject: Subject, tokens: int) -> Any:
    """The decoder alone on `tokens` tokens, all layers of one length."""
    batch, _, width = subject.features.shape
    hidden = subject.features[:, :1].expand(batch, tokens, width)
    with torch.inference_mode():
        return subject.model.model.language_model(inputs_embeds=hidden, use_cache=True)


def roofline(
    shape: DecoderShape, unpruned: list[int], pruned: list[int], batch: int, dtype: torch.dtype, device: str
) -> float:
    """How much faster the pruned prefill could be: per layer, the larger of compute and memory time."""
    flops, bandwidth = peak_flops(dtype, device), peak_bytes(device)
    size = torch.empty(0, dtype=dtype).element_size()

    def seconds(lengths: list[int]) -> float:
        return sum(
            max(batch * layer_flops(shape, n, causal=True) / flops, layer_bytes(shape, n, size, batch) / bandwidth)
            for n in lengths
        )

    return seconds(unpruned) / seconds(pruned)


def peak_memory(geometry: str, batch: int) -> Row:
    """Peak memory of a process that prefills pruned, over one that does not; each in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.prefill", "--geometry", geometry, "--batch", str(batch), "--peak"]
    pruned, unpruned = (
        int(subprocess.run([*command, kind], capture_output=True, text=True, check=True).stdout.split()[-1])
        for kind in ("pruned", "unpruned")
    )
    return Row(
        f"peak memory, {geometry}, batch {batch}: pruned / unpruned",
        pruned / unpruned,
        1.0,
        False,
        note=f"{pruned / 2**20:.0f} of {unpruned / 2**20:.0f} MiB",
    )


def _peak(geometry: str, batch: int, kind: str) -> int:
    """Bytes at most in use during three prefills: of the GPU, or of the process above what the model itself takes."""
    import resource

    subject = build(geometry, batch)
    plan = make_plan(keep_tokens=KEEP, pruning_layer=LAYER) if kind == "pruned" else None
    for _ in range(3):
        forward(subject, plan)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(
    geometry: str = typer.Option("1b", help="1b, 7b or small."),
    batch: int = typer.Option(1),
    repeats: int = typer.Option(5),
    peak: str | None = typer.Option(None, help="Print the peak memory of `pruned` or `unpruned` and leave."),
) -> None:
    """Print the rows."""
    if peak is not None:
        print(_peak(geometry, batch, peak))
        return
    show([*run(geometry, batch, repeats), peak_memory(geometry, batch)])


if __name__ == "__main__":
    typer.run(main)
