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
    if getattr(model.config.get_text_config(), "num_experts", None):
        twin.set_experts_implementation("eager")  # the grouped product has no float64
    return twin


@cache
def splicing_copy(model: Any) -> Any:
    """The model in float64, for a `llava` package's vision tower alone.

    Under transformers 5.23 the first request for attentions puts the hooks that collect them on the tower inside of
    such a decoder for a second time; from then on the tower's hidden states come twice, and its features from the wrong
    layer. So a model that was asked for attentions splices no more pictures here.
    """
    return copy.deepcopy(model).double()


def decoder_of(model: Any) -> Any:
    """The decoder: transformers' models keep it beside the vision tower, the `llava` package's models are one."""
    return getattr(model.model, "language_model", getattr(model.model, "text_model", model.model))


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

    layers = decoder_of(model).layers
    handles = [layer.register_forward_pre_hook(hook(n), with_kwargs=True) for n, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_masked(model: Any, inputs: Mapping[str, Any], removed: Removed, ids: Sequence[int] = ()) -> Any:
    """The whole forward of one prompt, followed by the tokens `ids`, without a cache: logits and attentions."""
    assert inputs["input_ids"].shape[0] == 1
    assert inputs.get("attention_mask") is None or inputs["attention_mask"].all()
    twin = float64_copy(model)
    more = torch.tensor([list(ids)], dtype=torch.long)
    if hasattr(twin, "prepare_inputs_labels_for_multimodal"):
        embeddings = torch.cat([spliced_embeddings(model, inputs), twin.get_input_embeddings()(more)], dim=1)
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
        whole = {"inputs_embeds": embeddings, "attention_mask": mask}
    else:
        whole = {name: value for name, value in inputs.items() if name != "pixel_values"}
        whole["input_ids"] = torch.cat([inputs["input_ids"], more], dim=1)
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        if "mm_token_type_ids" in inputs:
            kinds = inputs["mm_token_type_ids"]
            whole["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(1, len(ids))], dim=1)
        if hasattr(twin.model, "rope_deltas"):  # left by the prompt before
            twin.model.rope_deltas = None
        if "pixel_values" in inputs:
            whole["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad(), masking(twin, removed):
        return twin(**whole, use_cache=False, output_attentions=True)


def spliced_embeddings(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """[1, S, D] what the `llava` package itself makes of one prompt and its pictures, in float64."""
    twin, ids, images = splicing_copy(model), inputs["input_ids"], inputs.get("images")
    if images is None:
        return twin.get_input_embeddings()(ids)
    images = [image.double() for image in images] if isinstance(images, list) else images.double()
    with torch.no_grad():
        splice = twin.prepare_inputs_labels_for_multimodal
        return splice(ids, None, None, None, None, images, image_sizes=inputs.get("image_sizes"))[4]


def masked_logits(model: Any, inputs: Mapping[str, Any], removed: Removed) -> torch.Tensor:
    """[V] logits of the prompt's last position."""
    return run_masked(model, inputs, removed).logits[0, -1]


def masked_generate(model: Any, inputs: Mapping[str, Any], removed: Removed, count: int) -> list[int]:
    """`count` greedy tokens. The removed set stays that of the prompt."""
    ids: list[int] = []
    for _ in range(count):
        ids.append(int(run_masked(model, inputs, removed, ids).logits[0, -1].argmax()))
    return ids


# Where images and text are.


def anyres_grid(picture: tuple[int, int], *, tile: int, pinpoints: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Rows and columns of tiles that a picture (height, width) is cut into.

    That of the pinpoints (height, width) which shows most of the picture's pixels, and then wastes the least.
    """
    height, width = picture

    def order(pinpoint: Sequence[int]) -> tuple[int, int]:
        scale = min(pinpoint[1] / width, pinpoint[0] / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return -shown, pinpoint[0] * pinpoint[1] - shown

    tall, wide = min(pinpoints, key=order)
    return tall // tile, wide // tile


def anyres_tokens(
    picture: tuple[int, int],
    *,
    tile: int,
    patch: int,
    pinpoints: Sequence[Sequence[int]],
    most_tiles: int | None = None,
) -> int:
    """Tokens of a picture that is cut into a grid: the whole picture once, then the grid's features row by row.

    The grid's padding is left out, and a newline feature ends every row. most_tiles: a grid of clearly more features
    than that many tiles have is shrunk (OneVision).
    """
    height, width = picture
    side = tile // patch
    rows, columns = (count * side for count in anyres_grid(picture, tile=tile, pinpoints=pinpoints))
    if width * rows > height * columns:  # bars above and below
        rows -= 2 * ((rows - int(round(height * columns / width, 7))) // 2)
    else:
        columns -= 2 * ((columns - int(round(width * rows / height, 7))) // 2)
    if most_tiles is not None:
        ratio = math.sqrt(rows * columns / (most_tiles * side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    return side**2 + rows * (columns + 1)


@dataclass
class Places:
    """Positions in one prompt: those of each image, and those of the text tokens that vote."""

    images: list[list[int]]
    text: list[int]

    @property
    def image_tokens(self) -> list[int]:
        return [place for image in self.images for place in image]


def find_places(
    prompt: Sequence[Any], sizes: Sequence[int], scope: str = "after", question: Sequence[bool] | None = None
) -> Places:
    """Where things are in a prompt of parts: a number of text tokens, or anything else for a picture.

    sizes: tokens of each picture. question: for that scope, one entry a text token.
    """
    images, text, left, place = [], [], list(sizes), 0
    for part in prompt:
        if isinstance(part, int):
            text += range(place, place + part)
            place += part
        else:
            images.append(list(range(place, place + left[0])))
            place += left.pop(0)
    assert not left
    if scope == "after":
        text = [at for at in text if images and at > images[-1][-1]]
    elif scope == "question":
        assert question is not None
        text = [at for at, asked in zip(text, question, strict=True) if asked]
    return Places(images, text)


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
    model: Any,
    inputs: Mapping[str, Any],
    stages: Sequence[tuple[str, int, int | float, int]],
    places: Places | None = None,
    keep_scope: str = "image",
) -> tuple[list[ExpectedStage], dict[int, list[int]]]:
    """Score and choose, stage by stage. A stage is (scorer, layer, keep, scored layer); a float `keep` is a share.

    places: where images and voting text are; without it, images of `image_seq_length` tokens and the text behind the
    last one. keep_scope: whether `keep` is for each image or for all of the prompt together. Returns the stages and
    what each of them removed.
    """
    if places is None:
        ids = inputs["input_ids"][0].tolist()
        size = model.config.image_seq_length
        found = [n for n, token in enumerate(ids) if token == model.config.image_token_id]
        places = Places(
            [found[start : start + size] for start in range(0, len(found), size)], list(range(found[-1] + 1, len(ids)))
        )
    images = places.images
    removed: dict[int, list[int]] = {}
    expected = []
    for scorer, layer, keep, scored in stages:
        attentions = run_masked(model, inputs, removed).attentions
        attention = attentions[scored][0].double().mean(dim=0).numpy()
        # The last row is the prompt's, whichever text votes.
        text = [len(attention) - 1] if scorer == "last_row" else places.text
        weights = text_weights(scorer, attention, text)
        scores = image_scores(attention, weights, [k for image in images for k in image])
        if keep_scope == "prompt":
            chosen = best(scores, budget(keep, len(scores)))
        else:
            chosen = [k for image in images for k in best({k: scores[k] for k in image}, budget(keep, len(image)))]
        removed[layer] = sorted(set(scores) - set(chosen))
        images = [[k for k in image if k in chosen] for image in images]
        expected.append(ExpectedStage(layer, weights, scores, chosen))
    return expected, removed


def budget(keep: int | float, tokens: int) -> int:
    """How many of so many tokens stay. A share rounds down, to at least one token where there is one."""
    share = keep if isinstance(keep, int) else max(1, math.floor(round(keep * tokens, 9)))
    return min(tokens, share)


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
