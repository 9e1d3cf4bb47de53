"""What each method's selection takes at LLaVA-1.5-7B's widths, against the unpruned prefill of its decoder.

`python -m benchmarks.selection`: CLIP ViT-L/336 (24 layers, width 1024) and five decoder layers of the 7B geometry with
random weights, one picture of 576 patches, 64 text tokens after it; each method keeps 64 tokens. The five layers are
enough for three stages. The unpruned prefill is the time of these five layers, unpruned, times 32 / 5: the tower is not
in it, so the ratios are the larger for that.

The selection's seconds are those of a trace: rows computed beside the tower's and the decoder's attention, scores,
choice, merging. They are the host's; on a GPU, which runs behind it, that is the time to launch them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
import typer
from transformers import BatchFeature, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from benchmarks.models import GEOMETRIES, IMAGE_TOKEN, IMAGE_TOKENS, SYSTEM_TOKENS, TEXT_TOKENS, VOCABULARY
from benchmarks.rows import Row, show
from benchmarks.timing import take_turns
from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.methods import find_method, method_names, paper_variants
from tests.text_towers import prune_asked

KEEP, LAYERS, TARGET = 64, 5, 0.03


def build(dtype: torch.dtype = torch.bfloat16) -> tuple[Any, BatchFeature]:
    """The model and one prompt."""
    text = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=4096, **{**GEOMETRIES["7b"], "num_hidden_layers": LAYERS}
    )
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE_TOKEN, image_seq_length=IMAGE_TOKENS
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlavaForConditionalGeneration(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)
    generator = torch.Generator().manual_seed(1)
    before, after = (
        torch.randint(3, IMAGE_TOKEN, (1, count), generator=generator) for count in (SYSTEM_TOKENS, TEXT_TOKENS)
    )
    ids = torch.cat([before, torch.full((1, IMAGE_TOKENS), IMAGE_TOKEN), after], dim=1).to(device)
    pixels = torch.randn(1, 3, 336, 336, generator=generator).to(device, dtype)
    return model, BatchFeature({"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels})


def plans() -> dict[str, Plan]:
    """Every method that removes tokens of the prompt by a budget, at KEEP of them."""
    known = {name: find_method(name).fitted(LAYERS, IMAGE_TOKENS) for name in method_names() if name != "downsample"}
    variants = set(paper_variants())
    return {
        name: method.plan(keep_tokens=KEEP) for name, method in known.items() if method.removes and name not in variants
    }


def selecting(model: Any, inputs: BatchFeature, plan: Plan, found: list[float]) -> None:
    """One prefill under a plan, whose selection's seconds go to `found`."""
    with torch.inference_mode(), prune_asked(model, plan, inputs) as trace:
        model(**inputs, logits_to_keep=1)
    found.append(trace.documents[0].selection_seconds)


def unpruned(model: Any, inputs: BatchFeature) -> None:
    """The decoder's layers over the whole prompt."""
    width = model.config.text_config.hidden_size
    hidden = torch.zeros(1, inputs["input_ids"].shape[1], width, dtype=model.dtype, device=model.device)
    with torch.inference_mode():
        model.model.language_model(inputs_embeds=hidden + 0.01, use_cache=True)


def run(repeats: int = 5) -> list[Row]:
    """A row a method."""
    model, inputs = build()
    found: dict[str, list[float]] = {name: [] for name in plans()}
    things: dict[str, Callable[[], object]] = {"unpruned": partial(unpruned, model, inputs)}
    for name, plan in plans().items():
        things[name] = partial(selecting, model, inputs, plan, found[name])
    times = take_turns(things, repeats)
    layers = GEOMETRIES["7b"]["num_hidden_layers"]
    prefill = times["unpruned"].median * layers / LAYERS
    where = f"7b's widths, {str(model.dtype).removeprefix('torch.')}, {model.device.type}"
    rows = []
    for name, seconds in found.items():
        took = median(seconds[-repeats:])
        rows.append(
            Row(
                f"selection, {where}: {name} / unpruned prefill",
                100 * took / prefill,
                100 * TARGET,
                False,
                unit="%",
                note=f"{1000 * took:.1f} ms of {prefill:.1f} s" if prefill > 1 else f"{1000 * took:.2f} ms",
                details={"selection_s": took, "prefill_s": prefill, "layers_measured": LAYERS},
            )
        )
    return rows


def main(repeats: int = typer.Option(5)) -> None:
    """Print the rows."""
    show(run(repeats))


if __name__ == "__main__":
    typer.run(main)
