"""What the tower's class token looks at, on the `llava` package's models, in one batch with pictures of all shapes.

The oracle runs the package's own tower by itself, in float64; tokens are mapped to patches by plain loops.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from lmms_textweighted import prune
from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.methods import SCORERS
from tests.test_grids_formulas import by_crop, crops_of, places_of, shared
from tests.test_splice_llava import answers, make_inputs, models

__all__ = ["models"]

# (width, height), as the package has it.
WHOLE, SQUARE, SMALL, STRIP = (84, 84), (50, 50), (47, 33), (200, 30)


def plan_of(scorer: str, keep: int, **given: str) -> Plan:
    return Plan("a plan", (Stage(SCORERS[scorer], -1, keep, **given),))


def class_rows(model: Any, crops: torch.Tensor) -> torch.Tensor:
    """[crops, patches] of the layer that makes the features, float64."""
    holder = model.get_vision_tower()
    tower = copy.deepcopy(holder.vision_tower).double()
    with torch.no_grad():
        states = tower(crops.double(), output_hidden_states=True).hidden_states
        layers = next(part for part in tower.modules() if isinstance(part, torch.nn.ModuleList))
        layer, given = layers[len(layers) + holder.select_layer], states[holder.select_layer - 1]
        own, given = layer.self_attn, layer.layer_norm1(given)
        heads = tower.config.num_attention_heads
        query, key = (part(given).unflatten(-1, (heads, -1)).transpose(1, 2) for part in (own.q_proj, own.k_proj))
        logits = query[:, :, :1] @ key.mT / query.shape[-1] ** 0.5
    return logits.softmax(dim=-1).mean(dim=1)[:, 0, 1:]


def flipped(prompt: tuple[Any, ...]) -> tuple[Any, ...]:
    """Pictures as (height, width)."""
    return tuple(part if isinstance(part, int) else part[::-1] for part in prompt)


@pytest.mark.parametrize("newlines", ["keep", "drop"])
@pytest.mark.parametrize("grid", ["per_crop", "over_all"])
@pytest.mark.parametrize("prompt", [(3, SQUARE, 2, SMALL, 4), (2, SMALL, STRIP, 6)], ids=["apart", "touching"])
def test_class_attention_chooses_in_the_packages_grids_as_a_loop_over_crops_does(models, prompt, grid, newlines):
    model, keep = models("anyres"), 14
    prompts = [prompt, (5,), (1, WHOLE, 3)]
    inputs = make_inputs(model, prompts, seed=1)
    ran: list[int] = []
    handle = model.get_vision_tower().register_forward_hook(lambda *_: ran.append(1))
    with prune(model, plan_of("class_attention", keep, grid=grid, newlines=newlines)) as trace:
        model(**inputs)
        handle.remove()
        answers(model, inputs, 2, num_beams=2)
    assert ran == [1]
    rows, first = class_rows(model, torch.cat(inputs["images"])), 0
    for number, said in enumerate(prompts):
        kept = []
        for picture in places_of(flipped(said)):
            kept += [place for place, token in picture if token is None and newlines == "keep"]
            crops = [[(-rows[first + c][p].item(), at) for at, p in part] for c, part in by_crop(picture).items()]
            if grid == "over_all":
                kept += [place for _, place in sorted(token for crop in crops for token in crop)[:keep]]
            else:
                for crop, share in zip(crops, shared(keep, [len(crop) for crop in crops]), strict=True):
                    kept += [place for _, place in sorted(crop)[:share]]
        pictures = [part for part in flipped(said) if not isinstance(part, int)]
        first += sum(map(crops_of, pictures)) if pictures else crops_of(SQUARE)  # a row without one brings one
        for document in (trace.documents[number], trace.documents[3 + 2 * number], trace.documents[4 + 2 * number]):
            assert document.stages[0].kept.tolist() == sorted(kept)


@pytest.mark.parametrize("merge", ["flat", "spatial"])
def test_grids_without_newlines_have_a_token_for_every_patch_padding_too(models, merge):
    model = models("anyres", mm_patch_merge_type=merge)
    inputs = make_inputs(model, [(3, SMALL, 4)], seed=1)
    with prune(model, plan_of("class_attention", 12)) as trace:
        model(**inputs)
    rows, wide = class_rows(model, inputs["images"][0]), 2
    places = {3 + patch: (0, patch) for patch in range(9)}
    for crop in range(wide):
        for patch in range(9):
            there = 9 * crop + patch if merge == "flat" else patch // 3 * 3 * wide + 3 * crop + patch % 3
            places[12 + there] = (1 + crop, patch)
    expected = []
    for crop in range(3):
        mine = sorted((-rows[c][p].item(), place) for place, (c, p) in places.items() if c == crop)
        expected += [place for _, place in mine[:4]]
    assert trace.documents[0].stages[0].kept.tolist() == sorted(expected)
