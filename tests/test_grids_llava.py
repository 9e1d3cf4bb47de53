"""Methods that look at the vision tower on the original `llava` package's models: one square, grids, every way of
putting squares together. The same weights in transformers' LLaVA-NeXT are the second implementation."""

from __future__ import annotations

import pytest
import torch

from lmms_textweighted import prune
from lmms_textweighted.errors import PlanError
from lmms_textweighted.methods import SCORERS, make_plan
from tests.conftest import PINPOINTS, build_anyres
from tests.oracles import masked_logits
from tests.test_grids import UpperLeft, at_embeddings, flat, geometry_places
from tests.test_splice_llava import (  # noqa: F401  (models is a fixture)
    GRID,
    LARGE,
    SMALL,
    SQUARE,
    STRIP,
    answers,
    make_inputs,
    models,
)

TOUCHING = (2, SMALL, SQUARE, STRIP, 6)
BATCH = [(3, SMALL, 6), (9,), (2, SQUARE, STRIP, 4)]


def high_wide(prompt):
    return [(part[1], part[0]) for part in prompt if not isinstance(part, int)]


def run(model, prompt, plan, seed: int = 1):
    inputs = make_inputs(model, [prompt], seed)
    with prune(model, plan) as trace:
        out = model(**inputs)
    return trace.documents[0], out, inputs


@pytest.mark.parametrize("prompt", [(3, LARGE, 6), TOUCHING])
def test_every_tokens_picture_crop_row_and_column_are_those_of_its_box(models, prompt):  # noqa: F811
    document, _, _ = run(models("anyres"), prompt, at_embeddings(SCORERS["uniform_grid"], 500))
    expected = geometry_places(high_wide(prompt), pinpoints=[pair[::-1] for pair in GRID])
    assert list(map(tuple, document.stages[0].places.tolist())) == expected


def test_squares_one_behind_the_other_and_grids_without_newlines(models):  # noqa: F811
    """`flat` has crop after crop, padding among them; `spatial` the grid's rows."""
    flat = models("anyres", mm_patch_merge_type="flat")
    document, _, _ = run(flat, (3, SMALL, 4), at_embeddings(SCORERS["uniform_grid"], 500))
    assert document.stages[0].places[:, 1].tolist() == [0] * 9 + [1] * 9 + [2] * 9
    assert document.stages[0].places[:, 2:].tolist() == [[n // 3, n % 3] for n in range(9)] * 3
    spatial = models("anyres", mm_patch_merge_type="spatial")
    document, _, _ = run(spatial, (3, SMALL, 4), at_embeddings(SCORERS["uniform_grid"], 500))
    assert document.stages[0].places[:, 1].tolist() == [0] * 9 + ([1] * 3 + [2] * 3) * 3


@pytest.mark.parametrize("kind", ["flat", "anyres"])
@pytest.mark.parametrize("name", ["fastervlm", "visionzip", "vispruner", "hiprune", "scope", "holov", "prumerge"])
def test_a_batch_and_generate_choose_as_each_row_alone(models, kind, name):  # noqa: F811
    model, plan = models(kind), make_plan(name, keep_tokens=6)
    alone = []
    for row, prompt in enumerate(BATCH):
        with prune(model, plan) as trace:
            model(**make_inputs(model, [prompt], 3, first=row))
        alone.append([stage.kept.tolist() for stage in trace.documents[0].stages])
    with prune(model, plan) as trace:
        model(**make_inputs(model, BATCH, 3))
        answers(model, make_inputs(model, BATCH, 3), 2)
    assert [[stage.kept.tolist() for stage in document.stages] for document in trace.documents] == alone * 2


def test_counted_by_hand(models):  # noqa: F811
    """SMALL has 9, 6 and 6 patches, SQUARE 5 x 9. STRIP has 9, and is put into 3 rows of 4 crops, of whose 9 rows of
    patches the middle one is left: 3 patches of each of the crops 5 to 8. 10 are 2 for each of these five."""
    document, _, _ = run(models("anyres"), TOUCHING, at_embeddings(UpperLeft(), 10))
    assert document.stages[0].kept_by_crop() == [
        {"picture": 0, "crops": [4, 3, 3], "newlines": 0},
        {"picture": 1, "crops": [2, 2, 2, 2, 2], "newlines": 0},
        {"picture": 2, "crops": [2, 0, 0, 0, 0, 2, 2, 2, 2], "newlines": 0},
    ]
    document, _, _ = run(models("flat"), TOUCHING, at_embeddings(UpperLeft(), 4))
    assert document.stages[0].kept_by_crop() == [
        {"picture": picture, "crops": [4], "newlines": 0} for picture in range(3)
    ]


@pytest.mark.parametrize("name", ["fastervlm", "vispruner"])
@pytest.mark.parametrize("kind", ["flat", "anyres"])
def test_what_leaves_is_masked(models, kind, name):  # noqa: F811
    model = models(kind)
    document, out, inputs = run(model, (3, SMALL, 5), make_plan(name, keep_tokens=5, positions="keep"))
    gone = sorted(set(range(3, 3 + document.image_tokens)) - set(document.stages[0].kept.tolist()))
    expected = masked_logits(model, inputs, {-1: gone})
    torch.testing.assert_close(out.logits[0, -1].double(), expected, atol=1e-4, rtol=0)


def test_the_tower_runs_once_where_pictures_touch(models):  # noqa: F811
    model, ran = models("anyres"), []
    handle = model.get_vision_tower().register_forward_hook(lambda *_: ran.append(1))
    run(model, TOUCHING, make_plan("fastervlm", keep_tokens=6))
    handle.remove()
    assert ran == [1]
    assert "encode_images" not in vars(model)


@pytest.mark.parametrize("name", ["fastervlm", "visionzip", "hiprune", "holov"])
def test_transformers_model_of_the_same_weights_keeps_the_same(models, name):  # noqa: F811
    package, theirs = models("anyres"), build_anyres("llava_next")
    theirs.model.vision_tower.load_state_dict(package.get_vision_tower().vision_tower.state_dict())
    projector = package.get_model().mm_projector.state_dict()
    theirs.model.multi_modal_projector.load_state_dict(
        {key.replace("0.", "linear_1.").replace("2.", "linear_2."): value for key, value in projector.items()}
    )
    inputs = make_inputs(package, [TOUCHING], 4)
    sizes = high_wide(TOUCHING)
    ids = [[1] * 2, *([theirs.config.image_token_id] * len(t) for t in ([0] * 24, [0] * 51, [0] * 22)), [2] * 6]
    pixels = torch.nn.utils.rnn.pad_sequence(inputs["images"], batch_first=True)
    assert [pair[::-1] for pair in GRID] == PINPOINTS
    plan = make_plan(name, keep_tokens=10)
    with prune(package, plan) as trace:
        package(**inputs)
    with prune(theirs, plan) as other:
        theirs(input_ids=torch.tensor([flat(ids)]), pixel_values=pixels, image_sizes=torch.tensor(sizes))
    (found,), (expected,) = trace.documents[0].stages, other.documents[0].stages
    assert found.kept.tolist() == expected.kept.tolist()
    assert found.places.tolist() == expected.places.tolist()


def test_a_grid_whose_map_is_made_smaller_is_refused(models):  # noqa: F811
    model = models("anyres", image_aspect_ratio="anyres_max_9")
    for name in ("fastervlm", "hiprune"):
        with (
            pytest.raises(PlanError, match=f"{name} looks at the vision tower, but of CLIPVisionModel"),
            prune(model, make_plan(name, keep_tokens=4)),
        ):
            pass
