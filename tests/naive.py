"""A pruned decoder without hooks, caches or batches: the layers called one after the other in float64.

What leaves, merges and is renumbered is told, not found out; every generated token runs the whole sequence anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.oracles import float64_copy


@dataclass
class Removal:
    """What stays of the prompt after `layer`, as original positions in their new order; merged: position -> sources.

    renumber: whether rotary positions are counted anew here; otherwise what stays keeps those that it had.
    """

    layer: int
    stays: list[int]
    merged: dict[int, list[int]] = field(default_factory=dict)
    renumber: bool = False


def naive_logits(model: Any, inputs: Any, removals: Sequence[Removal], *, ids: Sequence[int] = ()) -> torch.Tensor:
    """Logits of the last token of one prompt followed by `ids`."""
    return naive_run(model, inputs, removals, ids=ids)[0]


def naive_run(
    model: Any, inputs: Any, removals: Sequence[Removal], *, ids: Sequence[int] = ()
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(last logits [V], what every decoder layer was given [S, W])."""
    twin = float64_copy(model)
    decoder = twin.model.language_model
    with torch.no_grad():
        whole = torch.cat([inputs["input_ids"], torch.tensor([list(ids)], dtype=torch.long)], dim=1)
        hidden = twin.get_input_embeddings()(whole)
        features = twin.model.get_image_features(
            pixel_values=inputs["pixel_values"].double(), **{k: v for k, v in inputs.items() if k == "image_sizes"}
        )
        features = torch.cat(list(getattr(features, "pooler_output", features)))
        hidden[whole == twin.config.image_token_id] = features.reshape(-1, hidden.shape[-1]).to(hidden)
        places, positions = list(range(whole.shape[1])), torch.arange(whole.shape[1])[None]
        entered = []
        for number, layer in enumerate(decoder.layers):
            for removal in removals:
                if removal.layer == number - 1:
                    new = places[places.index(inputs["input_ids"].shape[1]) :] if ids else []
                    stays = [*removal.stays, *new]
                    vectors = {p: hidden[0, places.index(p)] for p in places}
                    for place, sources in removal.merged.items():
                        vectors[place] = torch.stack([vectors[p] for p in sources]).mean(dim=0)
                    hidden = torch.stack([vectors[p] for p in stays])[None]
                    had = [positions[0, places.index(p)].item() for p in stays]
                    positions = torch.tensor([list(range(len(stays))) if removal.renumber else had])
                    places = stays
            entered.append(hidden[0])
            length = len(places)
            mask = torch.full((length, length), float("-inf"), dtype=torch.float64).triu(1)[None, None]
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_ids=positions,
                position_embeddings=decoder.rotary_emb(hidden, positions),
            )
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        return twin.get_output_embeddings()(decoder.norm(hidden[:, -1:]))[0, -1], entered


def naive_generate(model: Any, inputs: Any, removals: Sequence[Removal], count: int) -> list[int]:
    """Greedy tokens."""
    ids: list[int] = []
    for _ in range(count):
        ids.append(int(naive_logits(model, inputs, removals, ids=ids).argmax()))
    return ids
