"""Slow, plain versions of what the engine computes, written from the formulas of DESIGN.md alone.

Nothing here imports the engine. Tokens are never removed: a float64 copy of the model runs in eager attention on the
whole prompt, one unpadded row at a time, and the columns of removed tokens are masked in the layers after their stage.
(transformers' eager attention does its softmax in float32 whatever the model's type, so about 1e-7 is left.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

Removed = Mapping[int, Sequence[int]]
"""Layer P -> positions of the tokens that leave after it."""


@cache
def float64_copy(model: Any) -> Any:
    """The model in float64 with eager attention."""
    twin = copy.deepcopy(model).double()
    twin.set_attn_implementation("eager")
    return twin


@contextmanager
def masking(model: Any, removed: Removed) -> Iterator[None]:
    """While open, no other row of the layers after P sees the tokens `removed[P]`. Eager attention, batch 1."""

    def hook(number: int) -> Callable:
        columns = [position for layer, gone in removed.items() if layer < number for position in gone]

        def before(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            mask = kwargs["attention_mask"].clone()
            mask[:, :, :, columns] = torch.finfo(mask.dtype).min
            mask[:, :, columns, columns] = 0  # to itself: a row that sees nothing is NaN, and nobody looks at this one
            kwargs["attention_mask"] = mask
            return args, kwargs

        return before

    layers = model.model.language_model.layers
    handles = [layer.register_forward_pre_hook(hook(n), with_kwargs=True) for n, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_masked(model: Any, inputs: Mapping[str, torch.Tensor], removed: Removed, ids: Sequence[int] = ()) -> Any:
    """The whole forward of one prompt, followed by the tokens `ids`, without a cache: logits and attentions."""
    assert inputs["input_ids"].shape[0] == 1
    assert inputs["attention_mask"].all()
    twin = float64_copy(model)
    whole = {name: value for name, value in inputs.items() if name != "pixel_values"}
    more = torch.tensor([list(ids)], dtype=torch.long)
    whole["input_ids"] = torch.cat([inputs["input_ids"], more], dim=1)
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    if "pixel_values" in inputs:
        whole["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad(), masking(twin, removed):
        return twin(**whole, use_cache=False, output_attentions=True)


def masked_logits(model: Any, inputs: Mapping[str, torch.Tensor], removed: Removed) -> torch.Tensor:
    """[V] logits of the prompt's last position."""
    return run_masked(model, inputs, removed).logits[0, -1]


def masked_generate(model: Any, inputs: Mapping[str, torch.Tensor], removed: Removed, count: int) -> list[int]:
    """`count` greedy tokens. The removed set stays that of the prompt."""
    ids: list[int] = []
    for _ in range(count):
        ids.append(int(run_masked(model, inputs, removed, ids).logits[0, -1].argmax()))
    return ids


# The formulas.


def text_weights(scorer: str, attention: np.ndarray, text: Sequence[int]) -> dict[int, float]:
    """w_i of each text row that the scorer reads. attention: [S, S], averaged over heads."""
    if scorer == "last_row":
        return {text[-1]: 1.0}
    if scorer == "uniform":
        return {i: 1.0 / len(text) for i in text}
    received = {}
    for i in text:
        column = 0.0
        seen_by = 0
        for j in text:
            column += attention[j, i]
            if j >= i:
                seen_by += 1
        received[i] = column / seen_by if scorer == "text_weighted_debiased" else column
    total = sum(received.values())
    return {i: value / total for i, value in received.items()}


def image_scores(attention: np.ndarray, weights: Mapping[int, float], image: Sequence[int]) -> dict[int, float]:
    """s_k = sum_i w_i A[i, k]."""
    scores = {}
    for k in image:
        scores[k] = 0.0
        for i, weight in weights.items():
            scores[k] += weight * attention[i, k]
    return scores


def best(scores: Mapping[int, float], keep: int) -> list[int]:
    """The `keep` highest, the earlier of two equal ones first, in their original order."""
    return sorted(sorted(scores, key=lambda k: (-scores[k], k))[:keep])


@dataclass
class ExpectedStage:
    """What one stage should find. Keys are positions in the prompt."""

    layer: int
    weights: dict[int, float]
    scores: dict[int, float]
    kept: list[int]


def expected_stages(
    model: Any, inputs: Mapping[str, torch.Tensor], stages: Sequence[tuple[str, int, int | float, int]]
) -> tuple[list[ExpectedStage], dict[int, list[int]]]:
    """Score and choose, stage by stage. A stage is (scorer, layer, keep, scored layer); a float `keep` is a share.

    Returns the stages and what each of them removed.
    """
    ids = inputs["input_ids"][0].tolist()
    size = model.config.image_seq_length
    places = [n for n, token in enumerate(ids) if token == model.config.image_token_id]
    text = list(range(places[-1] + 1, len(ids)))
    images = [places[start : start + size] for start in range(0, len(places), size)]
    removed: dict[int, list[int]] = {}
    expected = []
    for scorer, layer, keep, scored in stages:
        attentions = run_masked(model, inputs, removed).attentions
        attention = attentions[scored][0].double().mean(dim=0).numpy()
        weights = text_weights(scorer, attention, text)
        scores = image_scores(attention, weights, [k for image in images for k in image])
        survivors = []
        for image in images:
            count = keep if isinstance(keep, int) else max(1, math.floor(keep * len(image)))
            survivors.append(best({k: scores[k] for k in image}, count))
        removed[layer] = sorted({k for image in images for k in image} - {k for image in survivors for k in image})
        images = survivors
        expected.append(ExpectedStage(layer, weights, scores, [k for image in images for k in image]))
    return expected, removed


def removed_by(trace: Any) -> dict[int, list[int]]:
    """What a document's trace says each stage removed."""
    return {stage.layer: sorted(set(stage.candidates.tolist()) - set(stage.kept.tolist())) for stage in trace.stages}


# Ranks.


def svd_ranks(block: np.ndarray, tolerance: float = 1e-6) -> tuple[int, float]:
    """(numeric, effective) rank of one matrix."""
    values = np.linalg.svd(block.astype(np.float64), compute_uv=False)
    numeric = sum(1 for value in values if value > tolerance * values[0])
    energy = [value * value for value in values]
    entropy = 0.0
    for value in energy:
        p = value / sum(energy)
        if p > 1e-12:
            entropy -= p * math.log(p)
    return numeric, math.exp(entropy)


@dataclass
class ExpectedRanks:
    """Per head: the effective rank, and the numeric rank at a tolerance ten times looser and ten times tighter.

    The engine's attention is float32: values near the tolerance may fall on either side of it.
    """

    effective: list[float]
    numeric_at_least: list[int]
    numeric_at_most: list[int]


def expected_ranks(
    model: Any, inputs: Mapping[str, torch.Tensor], removed: Removed, kept: Sequence[int]
) -> ExpectedRanks:
    """Ranks of the last layer's attention among the kept image tokens; masked columns leave the rows renormalised."""
    attention = run_masked(model, inputs, removed).attentions[-1][0].double().numpy()
    blocks = [head[np.ix_(list(kept), list(kept))] for head in attention]
    return ExpectedRanks(
        effective=[svd_ranks(block)[1] for block in blocks],
        numeric_at_least=[svd_ranks(block, 1e-5)[0] for block in blocks],
        numeric_at_most=[svd_ranks(block, 1e-7)[0] for block in blocks],
    )
