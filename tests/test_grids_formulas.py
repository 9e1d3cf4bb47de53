"""Every method of the vision tower in each crop of a grid, against its float64 formula there, mapped by plain loops.

Crops here are squares of 3 x 3 patches; pictures are (height, width).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lmms_textweighted import prune
from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.engine.tower import FEATURES, TowerSeen
from lmms_textweighted.methods import SCORERS
from lmms_textweighted.methods.holov import HOLOV_PAPER
from tests.conftest import PATCH, PINPOINTS, TILE, make_anyres_inputs
from tests.method_oracles import ORACLES, Decision, View
from tests.oracles import anyres_grid
from tests.replay import embeddings_of, tower_of

SIDE = TILE // PATCH
WHOLE, WIDE, SQUARE, SMALL, STRIP = (84, 84), (42, 84), (50, 50), (33, 47), (30, 200)
LOOKING = [name for name, scorer in SCORERS.items() if (reads := scorer.tower_reads) and not reads.text]

Patch = tuple[int, int] | None


def tokens_of(picture: tuple[int, int]) -> list[Patch]:
    """(crop, patch) of each image token of a picture of LLaVA-NeXT's, None for a newline. Crop 0 is the whole view."""
    height, width = picture
    tall, wide = anyres_grid(picture, tile=TILE, pinpoints=PINPOINTS)
    rows, columns = range(tall * SIDE), range(wide * SIDE)
    if width * len(rows) > height * len(columns):  # bars above and below
        cut = (len(rows) - int(round(height * len(columns) / width, 7))) // 2
        rows = range(cut, len(rows) - cut)
    else:
        cut = (len(columns) - int(round(width * len(rows) / height, 7))) // 2
        columns = range(cut, len(columns) - cut)
    found: list[Patch] = [(0, patch) for patch in range(SIDE**2)]
    for y in rows:
        for x in columns:
            found.append((1 + y // SIDE * wide + x // SIDE, y % SIDE * SIDE + x % SIDE))
        found.append(None)
    return found


def crops_of(picture: tuple[int, int]) -> int:
    tall, wide = anyres_grid(picture, tile=TILE, pinpoints=PINPOINTS)
    return 1 + tall * wide


def places_of(prompt: tuple[Any, ...]) -> list[list[tuple[int, Patch]]]:
    """Of each picture its tokens: (place in the prompt, (crop counted through the prompt, patch) or None)."""
    found, place, first = [], 0, 0
    for part in prompt:
        if isinstance(part, int):
            place += part
            continue
        tokens = tokens_of(part)
        found.append([(place + n, t and (first + t[0], t[1])) for n, t in enumerate(tokens)])
        place, first = place + len(tokens), first + crops_of(part)
    return found


def tower_view(model: Any, inputs: Any, prompt: tuple[Any, ...]) -> Any:
    """The tower in float64, on the prompt's crops one after the other."""
    counts = [crops_of(part) for part in prompt if not isinstance(part, int)]
    crops = [views[:count] for views, count in zip(inputs["pixel_values"], counts, strict=True)]
    return tower_of(model, {**inputs, "pixel_values": torch.cat(crops)})


def by_crop(picture: list[tuple[int, Patch]]) -> dict[int, list[tuple[int, int]]]:
    """crop -> its tokens, (place, patch)."""
    found: dict[int, list[tuple[int, int]]] = {}
    for place, token in picture:
        if token is not None:
            found.setdefault(token[0], []).append((place, token[1]))
    return found


def shared(keep: int, sizes: list[int]) -> list[int]:
    """One token after the other: to the crop that has the fewest, of those with room; the earlier of equal ones."""
    given = [0] * len(sizes)
    for _ in range(min(keep, sum(sizes))):
        given[min((n for n in range(len(sizes)) if given[n] < sizes[n]), key=lambda n: (given[n], n))] += 1
    return given


@pytest.mark.parametrize("name", LOOKING)
def test_every_method_that_looks_at_the_tower_chooses_in_each_crop_as_its_formula_says(small_anyres, name):
    """Two pictures without padding, of 5 and 3 crops: each crop is a picture of its own to the oracle."""
    model, prompt = small_anyres("llava_next"), (3, WHOLE, 2, WIDE, 4)
    inputs = make_anyres_inputs(model, [prompt], seed=1)
    with prune(model, Plan("a plan", (Stage(SCORERS[name], -1, 22, grid="per_crop", newlines="drop"),))) as trace:
        model(**inputs)
    (stage,) = trace.documents[0].stages

    pictures = [by_crop(picture) for picture in places_of(prompt)]
    images = [[place for place, _ in sorted(crop, key=lambda token: token[1])] for p in pictures for crop in p.values()]
    hidden = embeddings_of(model, {**inputs, "pixel_values": inputs["pixel_values"].double()}).numpy()
    count = len(hidden)
    view = View(
        attention=np.zeros((1, count, count)),
        images=images,
        text=[],
        positions=list(range(count)),
        keys=np.zeros((count, 1)),
        hidden=hidden,
        normed=hidden,
        first_image=hidden,
        first_text=hidden[:0],
        tower=tower_view(model, inputs, prompt),
    )
    decision: Decision = ORACLES[name](view, [5, 5, 4, 4, 4, 8, 7, 7])
    own_order = any(part != sorted(part) for part in decision.kept)
    expected: list[int] = []
    for parts in (decision.kept[:5], decision.kept[5:]):
        picture = [place for part in parts for place in part]
        expected += picture if own_order else sorted(picture)
    assert stage.kept.tolist() == expected
    assert {place: sorted(went) for place, went in stage.sources.items()} == {
        place: sorted(went) for place, went in decision.merged.items()
    }


@pytest.mark.parametrize("newlines", ["keep", "drop"])
@pytest.mark.parametrize("grid", ["per_crop", "over_all"])
@pytest.mark.parametrize("scope", ["image", "prompt"])
def test_class_attention_chooses_in_unpadded_crops_as_a_loop_over_them_does(small_anyres, grid, newlines, scope):
    model, prompt, keep = small_anyres("llava_next"), (3, SQUARE, 2, STRIP, SMALL, 4), 20
    inputs = make_anyres_inputs(model, [prompt], seed=1)
    stage = Stage(SCORERS["class_attention"], -1, keep, grid=grid, newlines=newlines)
    plan = Plan("a plan", (stage,), keep_scope=scope)
    with prune(model, plan) as trace:
        model(**inputs)
        answer = model.generate(**inputs, max_new_tokens=2, num_beams=2)
    assert answer.shape[0] == 1
    pictures, tower = places_of(prompt), tower_view(model, inputs, prompt)
    attention = [tower.class_scores(crop) for crop in range(len(tower.keys[0]))]
    parts = [list(by_crop(picture).items()) for picture in pictures]
    parts = [[entry for part in parts for entry in part]] if scope == "prompt" else parts
    kept = [place for picture in pictures for place, token in picture if token is None and newlines == "keep"]
    for picture in parts:
        tokens = [[(-attention[crop][patch], place) for place, patch in members] for crop, members in picture]
        if grid == "over_all":
            kept += [place for _, place in sorted(token for members in tokens for token in members)[:keep]]
        else:
            for members, share in zip(tokens, shared(keep, [len(part) for part in tokens]), strict=True):
                kept += [place for _, place in sorted(members)[:share]]
    for document in trace.documents:  # one forward, and each of two beams
        (seen,) = document.stages
        assert seen.kept.tolist() == sorted(kept)
        scores = {place: attention[token[0]][token[1]] for picture in pictures for place, token in picture if token}
        found = dict(zip(seen.candidates.tolist(), seen.scores.tolist(), strict=True))
        assert found == pytest.approx(scores, abs=1e-6)
        assert document.kept_tokens == len(kept)


def test_the_papers_crops_of_holov_are_windows_of_one_view():
    """Two views of 8 x 8 patches, ranked together: 16 windows of 2 x 2 in each, none of both."""
    seen = TowerSeen({("class_rows", FEATURES): torch.zeros(2, 64)}, torch.arange(128), lambda vectors: vectors)
    parts = HOLOV_PAPER.scorer._parts(torch.arange(128), SimpleNamespace(tower=seen))
    assert [len(part) for part in parts] == [4] * 32
    assert all(len({int(token) // 64 for token in part}) == 1 for part in parts)
    assert parts[0].tolist() == [0, 1, 8, 9]
