"""Methods that look at the vision tower on LLaVA-NeXT's grids: crops, newline tokens, several pictures.

Which patch a token is comes here from the picture's geometry (`families.geometry`, held against pixels in test_places)
or is counted by hand, and what is chosen from float64 loops over one crop at a time.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

from lmms_textweighted import prune
from lmms_textweighted.engine.grids import Grid
from lmms_textweighted.engine.parts import divided, shares
from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.engine.scoring import Rows, Scorer, Seen, given_tower
from lmms_textweighted.engine.tower import TowerReads
from lmms_textweighted.errors import PlanError
from lmms_textweighted.families.llava_pictures import anyres
from lmms_textweighted.families.numbering import grids_of, numbered, packed, read
from lmms_textweighted.methods import SCORERS, make_plan
from tests.conftest import PATCH, PINPOINTS, TILE, build_anyres, make_anyres_inputs
from tests.method_oracles import ORACLES, View
from tests.oracles import masked_logits
from tests.replay import embeddings_of, tower_of
from tests.test_pruner import answers

SIDE = TILE // PATCH
# Pictures (height, width). SMALL is cut into two crops, of which the outer columns are padding; LARGE into 3 x 4.
STRIP, SQUARE, SMALL, LARGE = (30, 200), (50, 50), (33, 47), (60, 90)
PROMPT = (2, SMALL, 1, SQUARE, 4)
BATCH = [(3, SMALL, 6), (5,), (2, SQUARE, STRIP, 4)]


@dataclass(frozen=True)
class UpperLeft(Scorer):
    """The patches that stand first in their crop."""

    name: str = "upper_left"
    reads: Rows = Rows.NONE

    @property
    def tower_reads(self) -> TowerReads:
        return TowerReads(vectors=True)

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        scores = -given_tower(self, seen).patch.float()
        return scores, scores[:0]


def at_embeddings(scorer: Scorer, keep: int, keep_scope: str = "image", **more) -> Plan:
    stage = Stage(scorer, -1, keep_tokens=keep, **more)
    return Plan("a plan", (stage,), keep_scope=keep_scope, positions="renumber")


def geometry_places(pictures, *, side=SIDE, pinpoints=PINPOINTS) -> list[tuple[int, int, int, int]]:
    """(picture, crop, row, column) of each token, -1 thrice at newlines, from the boxes that `view` draws."""
    found = []
    for number, (height, width) in enumerate(pictures):
        views = torch.zeros(20, 3, side * PATCH, side * PATCH)
        for place in anyres((width, height), views, pinpoints, PATCH).geometry.places(number):
            if place.box is None:
                found.append((number, -1, -1, -1))
            else:
                column, row = (int(end // PATCH) % side for end in place.box[:2])
                found.append((number, place.crop, row, column))
    return found


@pytest.fixture(scope="module")
def model():
    return build_anyres("llava_next")


def run(model, prompt, plan, seed: int = 1, **kwargs):
    with prune(model, plan, **kwargs) as trace:
        out = model(**make_anyres_inputs(model, [prompt], seed=seed))
    return trace.documents[0], out


def kept_places(document) -> list[tuple[int, ...]]:
    return [tuple(place) for place in document.stages[0].places.tolist()]


# Where tokens stand.


@pytest.mark.parametrize("prompt", [(3, LARGE, 6), PROMPT, (1, STRIP, SMALL, SQUARE, 4)])
def test_every_tokens_picture_crop_row_and_column_are_those_of_its_box(model, prompt):
    document, _ = run(model, prompt, at_embeddings(SCORERS["uniform_grid"], 500))
    pictures = [part for part in prompt if not isinstance(part, int)]
    assert kept_places(document) == geometry_places(pictures)


def test_numbers_survive_every_type_that_features_have():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        features = numbered(30, 576, 16, torch.zeros(0, dtype=dtype)).flatten(0, 1)
        newline = torch.randn(1, 16).to(dtype)
        assert read(torch.cat([features, newline])).tolist() == [*range(30 * 576), -1]


def test_pictures_of_a_batch_are_told_apart_where_they_touch():
    numbers = torch.tensor([0, 1, -1, 6, 7, -1, 8, -1])
    first, nowhere, second = grids_of(numbers, [2, 1, 2], 2)
    assert [grid.numbers.tolist() for grid in (first, nowhere, second)] == [[0, 1, -1], [], [0, 1, -1, 2, -1]]
    assert [grid.views for grid in (first, nowhere, second)] == [2, 1, 2]


def test_a_picture_that_is_not_cut_has_places_too():
    from tests.conftest import IMAGE, build_llava, make_inputs

    llava = build_llava()
    with prune(llava, make_plan("fastervlm", keep_tokens=5)) as trace:
        llava(**make_inputs(llava, [(3, IMAGE, 2, IMAGE, 4)]))
    (stage,) = trace.documents[0].stages
    side = int(llava.config.image_seq_length**0.5)
    first = [position - 3 for position in stage.kept.tolist()[:5]]
    assert stage.places.tolist()[:5] == [[0, 0, n // side, n % side] for n in first]
    assert "kept_by_crop" not in trace.documents[0].summary()


# Counted by hand, see docs/methods.md.


def llava_16(*sizes: tuple[int, int]) -> list[Grid]:
    """Grids of pictures (height, width) in LLaVA-1.6: views of 24 x 24 patches of 14 pixels."""
    pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=336, patch_size=14), image_grid_pinpoints=pinpoints
    )
    views = [torch.zeros(4 if size == (336, 1344) else 5, 576, 1) for size in sizes]
    pack = LlavaNextModel.pack_image_features.__get__(SimpleNamespace(config=config))
    return packed(pack, views, torch.tensor(sizes), "default", image_newline=torch.zeros(1))


def kept_of_each_crop(grids, keep: int, keep_scope: str = "image", **more) -> list[int]:
    tokens = sum(len(grid.numbers) for grid in grids)
    stage = Stage(SCORERS["class_attention"], -1, keep, **more)
    return list(divided(stage, keep_scope, grids, torch.arange(tokens)).keeps)


def test_llava_16s_tokens_by_crop():
    """1000 x 750 pixels are put into 672 x 672 with 6 rows of padding above and below: of each crop's 24 rows 18 are
    left. 1344 x 336 are put into 1008 x 336 with 3 above and 3 below."""
    photo, strip = llava_16((750, 1000), (336, 1344))
    assert Counter(photo.places[:, 0].tolist()) == {0: 576, 1: 432, 2: 432, 3: 432, 4: 432, -1: 36}
    assert Counter(strip.places[:, 0].tolist()) == {0: 576, 1: 432, 2: 432, 3: 432, -1: 18}
    assert (len(photo.numbers), len(strip.numbers)) == (2340, 1890)
    assert photo.places[576:578].tolist() == [[1, 6, 0], [1, 6, 1]]
    assert photo.places[576 + 24].tolist() == [2, 6, 0]
    assert photo.places[-2].tolist() == [4, 17, 23]


def test_budgets_by_crop():
    photo, strip = llava_16((750, 1000), (336, 1344))
    for keep, each in ((640, 128), (320, 64), (160, 32)):
        assert kept_of_each_crop([photo], keep) == [each] * 5
    assert kept_of_each_crop([photo, strip], 640) == [128] * 5 + [160] * 4
    # For both pictures together: 640 = 9 x 71 + 1, and the first view has the one more.
    assert kept_of_each_crop([photo, strip], 640, "prompt") == [72] + [71] * 8
    assert kept_of_each_crop([photo, strip], 160) == [32] * 5 + [40] * 4
    assert kept_of_each_crop([photo, strip], 160, "prompt") == [18] * 7 + [17] * 2
    # 2240 are 448 a view, of which the crops have 432: the 64 that they leave over go to the whole view.
    assert kept_of_each_crop([photo], 2240) == [512, 432, 432, 432, 432]
    assert kept_of_each_crop([photo], 640, grid="over_all") == [640]


def test_shares():
    assert shares(10, [9, 6, 6]) == [4, 3, 3]
    assert shares(11, [9, 6, 6]) == [4, 4, 3]
    assert shares(12, [1, 6, 6]) == [1, 6, 5]
    assert shares(99, [1, 0, 6]) == [1, 0, 6]
    assert shares(0, [3, 3]) == [0, 0]


def test_what_stays_of_small_pictures_counted_by_hand(model):
    """SMALL's whole view has patches 0 … 8, its left crop columns 1 and 2: 1 2 4 5 7 8, its right one columns 0 and 1:
    0 1 3 4 6 7, and three newlines. SQUARE has five whole views and six newlines."""
    document, _ = run(model, PROMPT, at_embeddings(UpperLeft(), 10))
    small = [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 2), (0, 0, 1, 0)]  # 10 = 4 + 3 + 3
    small += [(0, 1, 0, 1), (0, 1, 0, 2), (0, 2, 0, 0), (0, 2, 0, 1), (0, 1, 1, 1), (0, 2, 1, 0)]
    square = [(1, crop, 0, column) for crop in range(5) for column in (0, 1)]  # 10 = 5 x 2
    assert kept_places(document) == small + square
    assert document.stages[0].kept_by_crop() == [
        {"picture": 0, "crops": [4, 3, 3], "newlines": 0},
        {"picture": 1, "crops": [2, 2, 2, 2, 2], "newlines": 0},
    ]
    assert document.image_tokens == 24 + 51
    assert document.image_lengths == [20] * 5

    document, _ = run(model, PROMPT, at_embeddings(UpperLeft(), 8, grid="over_all", newlines="keep"))
    # SMALL: 0 1 2 3, 1 2 and 0 1, and of the two patches 3 the whole view's; SQUARE: five 0 and the first three 1.
    assert document.stages[0].kept_by_crop() == [
        {"picture": 0, "crops": [4, 2, 2], "newlines": 3},
        {"picture": 1, "crops": [2, 2, 2, 1, 1], "newlines": 6},
    ]

    document, _ = run(model, PROMPT, at_embeddings(UpperLeft(), 17, "prompt"))
    # 17 = 2 x 8 + 1 for eight views.
    assert document.stages[0].kept_by_crop() == [
        {"picture": 0, "crops": [3, 2, 2], "newlines": 0},
        {"picture": 1, "crops": [2, 2, 2, 2, 2], "newlines": 0},
    ]
    assert document.summary()["kept_by_crop"] == [document.stages[0].kept_by_crop()]
    json.dumps(document.summary())


# What is chosen, against one crop at a time in float64.


def views_of(prompt) -> tuple[list[list[int]], list[int]]:
    """The image tokens of each view, by their numbers among the prompt's image tokens, and the newlines."""
    pictures = [part for part in prompt if not isinstance(part, int)]
    views: dict[tuple[int, int], list[int]] = {}
    newlines = []
    for number, (picture, crop, *_) in enumerate(geometry_places(pictures)):
        (newlines if crop < 0 else views.setdefault((picture, crop), [])).append(number)
    return [views[key] for key in sorted(views)], newlines


def flat(parts) -> list:
    return [entry for part in parts for entry in part]


def tower_view(model, inputs):
    pixels = inputs["pixel_values"]
    counts = [5 if size == list(SQUARE) else 3 for size in inputs["image_sizes"].tolist()]
    views = [picture[:count] for picture, count in zip(pixels, counts, strict=True)]
    return tower_of(model, {"pixel_values": torch.cat(views)})


def image_numbers(model, inputs, positions) -> list[int]:
    places = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten().tolist()
    return [places.index(position) for position in positions]


def test_each_crop_keeps_what_its_class_token_looks_at_most(model):
    inputs = make_anyres_inputs(model, [PROMPT], seed=1)
    tower, (views, newlines) = tower_view(model, inputs), views_of(PROMPT)
    places = geometry_places([SMALL, SQUARE])
    scores = {}
    for view, tokens in enumerate(views):
        rows = tower.class_scores(view)
        scores.update({token: rows[places[token][2] * SIDE + places[token][3]] for token in tokens})

    def best(tokens, count):
        return sorted(tokens, key=lambda token: -scores[token])[:count]

    for budget in (10, 17):
        own = [*shares_by_hand(budget, views[:3]), *shares_by_hand(budget, views[3:])]
        by_crop = [t for view, count in zip(views, own, strict=True) for t in best(view, count)]
        over_all = [t for part in (views[:3], views[3:]) for t in best(flat(part), budget)]
        for grid, chosen in (("per_crop", by_crop), ("over_all", over_all)):
            for rule, always in (("drop", []), ("keep", newlines)):
                plan = at_embeddings(SCORERS["class_attention"], budget, grid=grid, newlines=rule)
                document, _ = run(model, PROMPT, plan)
                assert image_numbers(model, inputs, document.stages[0].kept.tolist()) == sorted(chosen + always)
        (stage,) = document.stages
        candidates = image_numbers(model, inputs, stage.candidates.tolist())
        np.testing.assert_allclose(stage.scores.numpy(), [scores[token] for token in candidates], atol=1e-6)


def shares_by_hand(budget: int, views) -> list[int]:
    given = [0] * len(views)
    for _ in range(budget):  # one by one, always to the one that has least
        given[min((g, n) for n, g in enumerate(given) if g < len(views[n]))[1]] += 1
    return given


PER_CROP = ("class_attention", "visionzip", "vispruner", "hiprune", "scope", "prumerge", "prumerge_plus_paper", "vscan")


@pytest.mark.parametrize("name", PER_CROP)
def test_a_crop_is_to_a_method_what_a_picture_is(model, name):
    """SQUARE's crops are whole, so the listed float64 oracle of a method can be given each as a picture."""
    prompt = (3, SQUARE, 4)
    inputs = make_anyres_inputs(model, [prompt], seed=5)
    views, newlines = views_of(prompt)
    hidden = embeddings_of(model, inputs).numpy()[3 : 3 + 51]
    nothing = np.zeros((1, 1, 1))
    view = View(nothing, views, [], [], nothing[0], hidden, hidden, nothing[0], nothing[0], tower_view(model, inputs))
    expected = ORACLES[name](view, [5] * 5)
    document, _ = run(model, prompt, at_embeddings(SCORERS[name], 25), seed=5)
    (stage,) = document.stages
    found = [position - 3 for position in stage.kept.tolist()]
    always = newlines if name == "vscan" else []
    assert sorted(found) == sorted([*flat(expected.kept), *always])
    ordered = all(part == sorted(part) for part in expected.kept)
    assert found == (sorted(found) if ordered else flat(expected.kept))
    sources = {to - 3: sorted(n - 3 for n in of) for to, of in stage.sources.items()}
    assert sources == {to: sorted(of) for to, of in expected.merged.items()}


def test_holov_takes_a_picture_without_its_newlines_for_one_list(model):
    prompt = (3, SQUARE, 4)
    inputs = make_anyres_inputs(model, [prompt], seed=5)
    _, newlines = views_of(prompt)
    tower = tower_view(model, inputs)
    one = [token for token in range(51) if token not in newlines]
    places = geometry_places([SQUARE])
    row = {t: tower.class_scores(crop)[r * SIDE + c] for t, (_, crop, r, c) in enumerate(places) if crop >= 0}
    joined = SimpleNamespace(feature=0, class_scores=lambda picture: [row[token] for token in one])
    hidden = embeddings_of(model, inputs).numpy()[3 : 3 + 51]
    nothing = np.zeros((1, 1, 1))
    view = View(nothing, [one], [], [], nothing[0], hidden, hidden, nothing[0], nothing[0], joined)
    expected = ORACLES["holov"](view, [20])
    document, _ = run(model, prompt, at_embeddings(SCORERS["holov"], 20), seed=5)
    assert [position - 3 for position in document.stages[0].kept.tolist()] == expected.kept[0]


@pytest.mark.parametrize("name", ["hiprune", "vscan"])
def test_over_all_neighbours_and_windows_stay_within_their_crop(model, name):
    """Patches of the same number in two crops are not the same: a budget of all but one keeps all but the worst."""
    prompt = (3, SQUARE, 4)
    plan = at_embeddings(SCORERS[name], 44, grid="over_all", newlines="drop")
    document, _ = run(model, prompt, plan)
    assert document.image_lengths == [44] * 5
    lowest = document.stages[0].scores.argmin()
    assert document.stages[0].candidates[lowest] not in document.stages[0].kept


# Whole runs.


@pytest.mark.parametrize("name", ["fastervlm", "vispruner", "scope"])
def test_what_leaves_a_grid_is_masked(model, name):
    inputs = make_anyres_inputs(model, [PROMPT], seed=1)
    document, out = run(model, PROMPT, make_plan(name, keep_tokens=10, positions="keep"))
    image = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten().tolist()
    gone = sorted(set(image) - set(document.stages[0].kept.tolist()))  # newlines among them, which are no candidates
    expected = masked_logits(model, inputs, {-1: gone})
    torch.testing.assert_close(out.logits[0, -1].double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["fastervlm", "visionzip"])
def test_a_batch_generate_and_beam_search_choose_as_each_row_alone(model, name):
    plan = make_plan(name, keep_tokens=10)
    alone = []
    for row, prompt in enumerate(BATCH):
        with prune(model, plan) as trace:
            model(**make_anyres_inputs(model, [prompt], 3, first=row))
        alone += trace.documents
    with prune(model, plan) as trace:
        model(**make_anyres_inputs(model, BATCH, 3))
        for document, expected in zip(trace.documents, alone, strict=True):
            assert document.lengths == expected.lengths
            for stage, same in zip(document.stages, expected.stages, strict=True):
                assert (stage.kept.tolist(), stage.sources) == (same.kept.tolist(), same.sources)
                if expected.image_tokens:
                    assert stage.places.tolist() == same.places.tolist()
        trace.documents.clear()
        answers(model, make_anyres_inputs(model, BATCH, 3), 3, num_beams=2)
        for number, document in enumerate(trace.documents):
            assert document.stages[0].kept.tolist() == alone[number // 2].stages[0].kept.tolist()


def test_the_tower_runs_once_and_packing_is_put_back(model):
    ran = []
    handle = model.model.vision_tower.register_forward_hook(lambda *_: ran.append(1))
    own = set(vars(model.model))
    run(model, PROMPT, make_plan("fastervlm", keep_tokens=10))
    handle.remove()
    assert ran == [1]
    assert set(vars(model.model)) == own


def test_a_method_in_the_model_goes_on_from_what_a_grid_left(model):
    stages = (
        Stage(SCORERS["class_attention"], -1, keep_tokens=12),
        Stage(SCORERS["uniform"], 1, keep_tokens=6, grid="per_crop"),
        Stage(UpperLeft(), 2, keep_tokens=3),
    )
    document, _ = run(model, PROMPT, Plan("three", stages))
    assert document.image_lengths == [24, 24, 12, 6, 6]
    assert [entry["crops"] for entry in document.stages[1].kept_by_crop()] == [[2, 2, 2], [2, 1, 1, 1, 1]]
    for before, after in zip(document.stages, document.stages[1:], strict=False):
        assert set(map(tuple, after.places.tolist())) <= set(map(tuple, before.places.tolist()))


def test_a_method_in_the_model_sees_newlines_like_other_tokens_unless_told(model):
    whole, _ = run(model, PROMPT, Plan("p", (Stage(SCORERS["uniform"], 1, keep_ratio=1.0),)))
    assert [entry["newlines"] for entry in whole.stages[0].kept_by_crop()] == [3, 6]
    kept, _ = run(model, PROMPT, Plan("p", (Stage(SCORERS["uniform"], 1, keep_tokens=0, newlines="keep"),)))
    assert kept.image_lengths[-1] == 9
    assert set(map(tuple, kept.stages[0].places[:, 1:].tolist())) == {(-1, -1, -1)}
    dropped, _ = run(model, PROMPT, Plan("p", (Stage(SCORERS["uniform"], 1, keep_ratio=1.0, newlines="drop"),)))
    assert dropped.image_lengths[-1] == 21 + 45


# The plan says it.


def test_the_plan_says_what_becomes_of_crops_and_newlines():
    said = {
        name: (stage.grid_rule, stage.newlines_rule)
        for name in ("fastervlm", "visionzip", "divprune", "holov", "vscan", "text_weighted")
        for stage in make_plan(name, keep_tokens=64).stages[:1]
    }
    assert said == {
        "fastervlm": ("per_crop", "drop"),
        "visionzip": ("per_crop", "drop"),
        "divprune": ("over_all", "eligible"),
        "holov": ("over_all", "drop"),
        "vscan": ("per_crop", "keep"),
        "text_weighted": ("over_all", "eligible"),
    }
    stage = make_plan("vscan", keep_tokens=64).to_dict()["stages"][0]
    assert (stage["grid"], stage["newlines"]) == ("per_crop", "keep")
    assert "grid" not in make_plan("divprune", keep_tokens=64).to_dict()["stages"][0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"grid": "per_crops"}, "unknown grid 'per_crops'"),
        ({"newlines": "kept"}, "unknown newlines 'kept'"),
        ({"newlines": "eligible"}, "newlines is 'eligible', but scorer 'class_attention' looks at patches"),
    ],
)
def test_what_a_stage_cannot_say(given, words):
    with pytest.raises(PlanError, match=words):
        Stage(SCORERS["class_attention"], -1, keep_tokens=5, **given)
    with pytest.raises(PlanError, match="newlines is 'eligible', but grid is 'per_crop'"):
        Stage(SCORERS["uniform"], 1, keep_tokens=5, grid="per_crop", newlines="eligible")


def test_crops_of_a_model_whose_grid_is_not_known_are_refused():
    onevision = build_anyres("llava_onevision")
    plan = Plan("mine", (Stage(SCORERS["uniform"], 1, keep_tokens=5, grid="per_crop"),))
    with (
        prune(onevision, plan),
        pytest.raises(PlanError, match="'mine' says grid=per_crop and newlines=drop, but where"),
    ):
        onevision(**make_anyres_inputs(onevision, [(3, LARGE, 4)]))
