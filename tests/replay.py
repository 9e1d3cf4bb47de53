"""A pruned decoder of float64 formulas: norm, rotary phases, attention and MLP written out, no hook, cache or batch.

It looks at the attention, keys and vectors that it computes itself and asks an oracle of `method_oracles` what stays,
so that neither what is chosen nor what it leads to comes from the package. Of the model, weights and embeddings are
taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.method_oracles import Decision, Oracle, TowerView, View
from tests.oracles import float64_copy
from tests.text_towers import ClipView, text_tower_of, texts_of


@dataclass(frozen=True)
class ReplayStage:
    """keep: (tokens an image has, tokens it had at first) -> how many stay. scored_at: the layer that is looked at.
    renumber: whether rotary positions are counted anew behind it; otherwise what stays keeps those that it had."""

    oracle: Oracle
    layer: int
    scored_at: int
    keep: Callable[[int, int], int]
    renumber: bool = False


@dataclass
class Replayed:
    """logits: [V] of the last token. decisions: of each stage, in positions of the prompt. lengths: of each layer."""

    logits: torch.Tensor
    decisions: list[Decision] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)


def embeddings_of(model: Any, inputs: Any) -> torch.Tensor:
    """[S, W] float64: what enters layer 0 for one prompt."""
    twin = float64_copy(model)
    caught = []

    def catch(module: Any, args: tuple, kwargs: dict) -> None:
        caught.append(kwargs["inputs_embeds"][0])

    handle = twin.model.language_model.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with torch.no_grad():
            twin(
                **{**inputs, **({"pixel_values": inputs["pixel_values"].double()} if "pixel_values" in inputs else {})}
            )
    finally:
        handle.remove()
    return caught[0]


def tower_of(model: Any, inputs: Any) -> TowerView | None:
    """What the tower does with one prompt's pictures, in float64: norm, queries, keys and attention written out."""
    if "pixel_values" not in inputs:
        return None
    twin = float64_copy(model)
    tower, chosen = twin.model.vision_tower, twin.config.vision_feature_layer
    heads, layers = tower.config.num_attention_heads, tower.encoder.layers
    out = TowerView([], [], [], [], len(layers) + chosen, lambda vector: project(torch.tensor(vector)).numpy())
    project = twin.model.multi_modal_projector
    out.clip = lambda: ClipView(text_tower_of(model), texts_of(inputs)[0])
    with torch.no_grad():
        states = tower(inputs["pixel_values"].double(), output_hidden_states=True).hidden_states
        for layer, given, made in zip(layers, states, states[1:], strict=False):
            norm = layer.layer_norm1
            spread = given.var(dim=-1, correction=0, keepdim=True) + norm.eps
            given = (given - given.mean(dim=-1, keepdim=True)) / spread.sqrt() * norm.weight + norm.bias
            query, key = (
                projection(given).unflatten(-1, (heads, -1)).transpose(1, 2)
                for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj)
            )
            logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
            out.attention.append(logits.softmax(dim=-1).numpy())
            out.queries.append(query.numpy())
            out.keys.append(key.numpy())
            out.outputs.append(made.numpy())
    return out


def normed(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    """RMSNorm."""
    return module.weight * hidden / torch.sqrt(hidden.square().mean(dim=-1, keepdim=True) + module.variance_epsilon)


def turned(vectors: torch.Tensor, positions: Sequence[int], base: float) -> torch.Tensor:
    """RoPE of [H, S, D]: the pairs (m, m + D/2) turn by position / base^(2m/D)."""
    half = vectors.shape[-1] // 2
    rate = base ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.tensor(positions, dtype=torch.float64)[:, None] * rate
    first, second = vectors[..., :half], vectors[..., half:]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attention_of(
    layer: Any, config: Any, hidden: torch.Tensor, positions: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of one layer on [S, W]: probabilities [H, S, S], keys [G, S, D] after RoPE, and values [G, S, D]."""
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    given, base = normed(layer.input_layernorm, hidden), config.rope_parameters["rope_theta"]
    split = lambda projection, count: projection(given).unflatten(-1, (count, -1)).transpose(0, 1)  # noqa: E731
    query = turned(split(layer.self_attn.q_proj, heads), positions, base)
    key = turned(split(layer.self_attn.k_proj, groups), positions, base)
    value = split(layer.self_attn.v_proj, groups)
    logits = torch.stack([query[h] @ key[h * groups // heads].T for h in range(heads)]) / query.shape[-1] ** 0.5
    hidden_from = torch.ones(logits.shape[-2:]).triu(1).bool()
    return logits.masked_fill(hidden_from, float("-inf")).softmax(dim=-1), key, value


def layer_output(layer: Any, hidden: torch.Tensor, probabilities: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    heads, groups = len(probabilities), len(value)
    mixed = torch.cat([probabilities[h] @ value[h * groups // heads] for h in range(heads)], dim=-1)
    hidden = hidden + layer.self_attn.o_proj(mixed)
    given, mlp = normed(layer.post_attention_layernorm, hidden), layer.mlp
    return hidden + mlp.down_proj(torch.nn.functional.silu(mlp.gate_proj(given)) * mlp.up_proj(given))


def replay(model: Any, inputs: Any, stages: Sequence[ReplayStage], *, ids: Sequence[int] = ()) -> Replayed:
    """One prompt, followed by `ids`, through the stages. What leaves is decided by the prompt alone."""
    twin = float64_copy(model)
    decoder, config = twin.model.language_model, twin.config.text_config
    prompt = inputs["input_ids"][0].tolist()
    size = twin.config.image_seq_length
    at_images = [n for n, token in enumerate(prompt) if token == twin.config.image_token_id]
    images = [at_images[start : start + size] for start in range(0, len(at_images), size)]
    text = list(range(at_images[-1] + 1, len(prompt))) if images else []
    out = Replayed(torch.empty(0))
    with torch.no_grad():
        tower = tower_of(model, inputs)
        first = embeddings_of(model, inputs)
        hidden = torch.cat([first, twin.get_input_embeddings()(torch.tensor(list(ids), dtype=torch.long))])
        places, positions = list(range(len(hidden))), list(range(len(hidden)))
        looked: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for number in range(-1, len(decoder.layers)):
            if number >= 0:
                layer = decoder.layers[number]
                probabilities, key, value = attention_of(layer, config, hidden, positions)
                looked[number] = probabilities, key
                out.lengths.append(len(places))
                hidden = layer_output(layer, hidden, probabilities, value)
            for stage in stages:
                if stage.layer != number or not images:
                    continue
                if stage.scored_at == number + 1 < len(decoder.layers):
                    looked[number + 1] = attention_of(decoder.layers[number + 1], config, hidden, positions)[:2]
                count = len([place for place in places if place < len(prompt)])
                none = (torch.zeros(1, count, count), torch.zeros(1, count, 1))
                probabilities, key = looked.get(stage.scored_at, none)
                view = View(
                    attention=probabilities[:, :count, :count].numpy(),
                    images=[[n for n in range(count) if places[n] in image] for image in images],
                    text=[places.index(place) for place in text],
                    positions=positions[:count],
                    keys=key[:, :count].transpose(0, 1).flatten(1).numpy(),
                    hidden=hidden[:count].numpy(),
                    normed=normed(decoder.norm, hidden[:count]).numpy(),
                    first_image=first[at_images].numpy(),
                    first_text=first[text].numpy(),
                    tower=tower,
                )
                keep = [stage.keep(len(mine), size) for mine in view.images]
                decision = stage.oracle(view, keep)
                out.decisions.append(_in_prompt(decision, places))
                order, queue = [], [iter(part) for part in decision.kept]
                for n in range(len(places)):
                    owner = next((m for m, image in enumerate(view.images) if n in image), None)
                    if owner is None:
                        order.append(n)
                    elif n in decision.kept[owner]:
                        order.append(next(queue[owner]))
                vectors = {n: hidden[decision.merged[n]].mean(dim=0) for n in decision.merged}
                vectors |= {n: torch.tensor(vector) for n, vector in decision.vectors.items()}
                hidden = torch.stack([vectors.get(n, hidden[n]) for n in order])
                places = [places[n] for n in order]
                positions = list(range(len(order))) if stage.renumber else [positions[n] for n in order]
        out.logits = twin.get_output_embeddings()(normed(decoder.norm, hidden[-1]))
    return out


def replay_generate(model: Any, inputs: Any, stages: Sequence[ReplayStage], count: int) -> list[int]:
    """Greedy tokens."""
    ids: list[int] = []
    for _ in range(count):
        ids.append(int(replay(model, inputs, stages, ids=ids).logits.argmax()))
    return ids


def _in_prompt(decision: Decision, places: Sequence[int]) -> Decision:
    return Decision(
        [[places[n] for n in part] for part in decision.kept],
        {places[n]: [places[s] for s in sources] for n, sources in decision.merged.items()},
        {places[n]: score for n, score in decision.scores.items()},
    )
