"""Small random CLIPs, whole, saved to a folder as users have them; and what such a one computes, in float64."""

from __future__ import annotations

import atexit
import json
import math
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionConfig

from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.engine.trace import Trace
from lmms_textweighted.families.attach import prune
from lmms_textweighted.families.text_tower import ClipTexts, load_text_tower
from tests.oracles import float64_copy

CONTEXT = 77
SPACE, WIDTH, HEADS, LAYERS = 12, 16, 2, 2


def clip_of(vision: Any, *, seed: int = 0, projection: int = SPACE, end: int | None = 2) -> CLIPModel:
    """A CLIP whose vision tower has the shape of a config. end: the end token that the config states; released CLIPs
    state 2, which is another, and transformers then pools at the highest id. None: the tokenizer's own."""
    words = vocabulary()
    own = words["<|endoftext|>"]
    config = CLIPConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": 0 if end == 2 else own - 1,
            "eos_token_id": own if end is None else end,
            "pad_token_id": 1,
            "projection_dim": projection,
        },
        vision_config={**vision.to_dict(), "projection_dim": projection},
        projection_dim=projection,
    )
    model = CLIPModel(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        scale = 0.05 if parameter.ndim == 1 else 0.3
        drawn = torch.randn(parameter.shape, generator=generator) * scale
        parameter.copy_(1 + drawn if name.endswith("norm.weight") or "norm1.weight" in name else drawn)
    return model


def vocabulary() -> dict[str, int]:
    """A token a character, the two that begin and end a text behind them, as in CLIP's own vocabulary."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return {word: number for number, word in enumerate(words)}


def save_clip(folder: Path, vision: Any, **options: Any) -> Path:
    """A whole CLIP with its tokenizer in a folder."""
    clip_of(vision, **options).save_pretrained(folder)
    CLIPTokenizer(vocab=vocabulary(), merges=[], model_max_length=CONTEXT).save_pretrained(folder)
    return folder


@cache
def folder_for(vision_json: str, **options: Any) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="clip-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return save_clip(folder, CLIPVisionConfig(**json.loads(vision_json)), **options)


@cache
def text_tower_of(model: Any) -> ClipTexts:
    """A random CLIP's, as `load_text_tower` reads it, for a model's vision tower."""
    return load_text_tower(str(clip_folder(model)), model)


def clip_folder(model: Any, **options: Any) -> Path:
    return folder_for(json.dumps(model.config.vision_config.to_dict(), sort_keys=True, default=str), **options)


def texts_of(inputs: Any) -> list[str]:
    """What the users of a batch of random prompts say: something else in each row, whatever stands beside it."""
    return [
        "What is " + " ".join(f"w{token}" for token in ids[mask.bool()].tolist()[-4:]) + "?"
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]


@contextmanager
def prune_asked(model: Any, plan: Plan, inputs: Any, **options: Any) -> Iterator[Trace]:
    """`prune` for these inputs, with what a plan that reads the text needs besides."""
    if plan.reads_text:
        options |= {"text_tower": text_tower_of(model), "texts": texts_of(inputs)}
    with prune(model, plan, **options) as trace:
        yield trace


# In float64.


@dataclass
class ClipView:
    """One prompt's text and a model's features in CLIP's space."""

    tower: ClipTexts
    text: str

    def texts(self, *, without: Sequence[str] = (), segments: bool = False) -> list[np.ndarray]:
        text = self.text
        for part in without:
            text = text.replace(part, "")
        words = vocabulary()
        ids = [words["<|startoftext|>"], *(words[c] for word in pieces(text) for c in word), words["<|endoftext|>"]]
        if not segments:
            return [self.pooled(ids if len(ids) <= CONTEXT else [*ids[: CONTEXT - 1], ids[-1]])]
        return [self.pooled(ids[start : start + CONTEXT]) for start in range(0, len(ids), CONTEXT)]

    def patch(self, vector: np.ndarray) -> np.ndarray:
        norm, projection = self.tower.parts["norm"], self.tower.parts["projection"]
        return projection.weight.double().numpy() @ layer_norm(vector, norm)

    def pooled(self, ids: list[int]) -> np.ndarray:
        """The text transformer on one segment: causal, pre-norm, quick GELU; pooled at the highest id."""
        twin = float64_copy(self.tower.parts["text"])
        model = twin.text_model
        weight = lambda module: (module.weight.numpy(), module.bias.numpy())  # noqa: E731
        hidden = model.embeddings.token_embedding.weight.numpy()[ids]
        hidden = hidden + model.embeddings.position_embedding.weight.numpy()[: len(ids)]
        for layer in model.encoder.layers:
            given = np.stack([layer_norm(row, layer.layer_norm1) for row in hidden])
            query, key, value = (
                given @ matrix.T + bias
                for matrix, bias in map(
                    weight, (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
                )
            )
            mixed = np.zeros_like(given)
            each = WIDTH // HEADS
            for head in range(HEADS):
                own = slice(head * each, (head + 1) * each)
                for i in range(len(ids)):
                    logits = [float(query[i, own] @ key[j, own]) / math.sqrt(each) for j in range(i + 1)]
                    terms = [math.exp(value_ - max(logits)) for value_ in logits]
                    mixed[i, own] = sum(t / sum(terms) * value[j, own] for j, t in enumerate(terms))
            matrix, bias = weight(layer.self_attn.out_proj)
            hidden = hidden + mixed @ matrix.T + bias
            given = np.stack([layer_norm(row, layer.layer_norm2) for row in hidden])
            matrix, bias = weight(layer.mlp.fc1)
            inner = given @ matrix.T + bias
            inner = inner / (1 + np.exp(-1.702 * inner))
            matrix, bias = weight(layer.mlp.fc2)
            hidden = hidden + inner @ matrix.T + bias
        end = max(range(len(ids)), key=lambda n: (ids[n], -n))
        return twin.text_projection.weight.numpy() @ layer_norm(hidden[end], model.final_layer_norm)


def pieces(text: str) -> list[list[str]]:
    """Characters of each word of a text, as the tokenizer of these tests has them: lower case, the last one marked."""
    found = re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower())
    return [[*word[:-1], word[-1] + "</w>"] for word in found]


def layer_norm(vector: np.ndarray, module: Any) -> np.ndarray:
    middle = vector - vector.mean()
    spread = np.sqrt((middle**2).mean() + module.eps)
    return middle / spread * module.weight.double().numpy() + module.bias.double().numpy()
