"""Where a picture's tokens lie, held against what processors and towers do: a red patch, in each family's geometry.

Two oracles that know nothing of the geometry: the pixels that the processor made, and the embeddings that enter the
decoder from a tower whose attention is switched off, so that a token knows of its own pixels alone.
"""

from __future__ import annotations

import functools
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from lmms_textweighted.engine.decoder import find_decoder
from lmms_textweighted.engine.splice import removed_at_end
from lmms_textweighted.families.geometry import Canvas, PictureGeometry, TokenGrid, covered
from lmms_textweighted.families.known import FAMILIES
from lmms_textweighted.prompts import user_message
from lmms_textweighted.view.build import given_for
from tests.seeing_models import SEEING
from tests.vlm_checkpoints import without_num2words

# (width, height), and the red rectangle in it.
PICTURES = {
    "wide": ((200, 90), (130, 50, 160, 80)),
    "tall": ((90, 230), (20, 160, 60, 190)),
    "small": ((60, 56), (25, 20, 40, 35)),
}
BLUR = 4  # how far an upscaling's filter carries a colour, in the picture's pixels
ATTENTION_OUT = ("out_proj", "o_proj", "attn.proj", "projection_layer")


def picture(size, red=None) -> Image.Image:
    made = Image.new("RGB", size, (40, 60, 70))
    if red is not None:
        left, top, right, bottom = red
        ImageDraw.Draw(made).rectangle((left, top, right - 1, bottom - 1), fill=(255, 0, 0))
    return made


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return functools.cache(lambda name: SEEING[name](tmp_path_factory.mktemp("seeing")))


@pytest.fixture(params=SEEING)
def llava(request, models, monkeypatch):
    without_num2words(monkeypatch)
    return models(request.param)


@pytest.fixture
def local(llava):
    """The model, its tower's attention switched off."""
    with torch.no_grad():
        before = {}
        for name, value in llava.model.named_parameters():
            tower = any(part in name for part in ("vision_tower", "visual.", "vision_model"))
            if tower and any(f".{part}." in name for part in ATTENTION_OUT):
                before[name] = value.clone()
                value.zero_()
        assert before
        yield llava
        for name, value in llava.model.named_parameters():
            if name in before:
                value.copy_(before[name])


def embeddings(llava, pictures) -> torch.Tensor:
    """What enters the decoder at the image tokens of a prompt: [I, D]."""
    message = user_message("What is this?", pictures)
    given, caught = given_for(llava, [message]), []
    decoder = find_decoder(llava.model)

    def catch(module, args, kwargs):
        caught.append(kwargs["inputs_embeds"][0])
        raise _Caught

    inputs = llava.encode([[message]]).inputs
    with removed_at_end(decoder.register_forward_pre_hook(catch, with_kwargs=True)), suppress(_Caught):
        llava.model(**inputs)
    return caught[0][list(given.image)].float()


class _Caught(Exception):
    pass


def changed_cells(given, other) -> list[bool]:
    """Of each image token, whether a pixel of its box is another one: by the geometry and the processor's pixels."""
    found = []
    for mine, theirs in zip(given.pictures, other.pictures, strict=True):
        differs = [(a != b).any(dim=0).numpy() for a, b in zip(mine.pixels, theirs.pixels, strict=True)]
        for place in mine.geometry.places():
            if place.box is None:
                found.append(False)
                continue
            left, top, right, bottom = (round(edge) for edge in place.box)
            found.append(bool(differs[place.canvas][top:bottom, left:right].any()))
    return found


def scale_of(canvas: Canvas) -> float:
    """Canvas pixels a pixel of the picture, at least 1."""
    shown = [
        (canvas.content[end] - canvas.content[end - 2]) / (canvas.source[end] - canvas.source[end - 2])
        for end in (2, 3)
    ]
    return max(1.0, *shown)


def on_canvas(canvas: Canvas, box) -> tuple[float, ...]:
    """A box of the picture, on a canvas that shows it."""
    ends = []
    for axis in (0, 1):
        scale = (canvas.content[2 + axis] - canvas.content[axis]) / (canvas.source[2 + axis] - canvas.source[axis])
        ends.append([canvas.content[axis] + (box[end + axis] - canvas.source[axis]) * scale for end in (0, 2)])
    return tuple(min(max(ends[i % 2][i // 2], 0), canvas.size[i % 2]) for i in range(4))


@pytest.mark.parametrize("name", PICTURES)
def test_the_pixels_that_turn_red_are_where_the_canvas_shows_the_patch(llava, name):
    size, red = PICTURES[name]
    message, without = (user_message("What?", [picture(size, part)]) for part in (red, None))
    given, other = given_for(llava, [message]), given_for(llava, [without])
    (seen,), (blank,) = given.pictures, other.pictures
    assert seen.geometry == blank.geometry
    assert seen.geometry.size == size
    shown = 0
    for canvas, mine, theirs in zip(seen.geometry.canvases, seen.pixels, blank.pixels, strict=True):
        assert (mine.shape[-1], mine.shape[-2]) == canvas.size
        left, top, right, bottom = on_canvas(canvas, red)
        rows, columns = np.nonzero((mine - theirs).abs().amax(dim=0).numpy() > 0.3)
        if not len(rows):
            assert (right - left) * (bottom - top) < 1  # cut away
            continue
        shown += 1
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        np.testing.assert_allclose(found, (left, top, right, bottom), atol=BLUR * scale_of(canvas))
    assert shown


@pytest.mark.parametrize("name", PICTURES)
def test_padding_is_where_nothing_of_the_picture_is(llava, name):
    """A white picture and a black one differ wherever a canvas shows the picture, and nowhere else."""
    size, _ = PICTURES[name]
    white, black = (
        given_for(llava, [user_message("What?", [Image.new("RGB", size, colour)])]) for colour in ("white", "black")
    )
    for canvas, a, b in zip(
        white.pictures[0].geometry.canvases, white.pictures[0].pixels, black.pictures[0].pixels, strict=True
    ):
        rows, columns = np.nonzero(((a - b).abs().amax(dim=0) > 0.5).numpy())
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        np.testing.assert_allclose(found, canvas.content, atol=max(1, scale_of(canvas) / 2))
        assert len(rows) == (found[2] - found[0]) * (found[3] - found[1])


@pytest.mark.parametrize("name", ["wide", "tall"])
def test_the_tokens_that_see_the_patch_are_those_whose_boxes_it_lies_in(local, name):
    """In the second of two pictures of a prompt, the first of which has nothing to do with it, and alone."""
    size, red = PICTURES[name]
    first = picture((70, 60), (10, 10, 20, 20))
    for before in ([], [first]):
        mine, theirs = ([*before, picture(size, part)] for part in (red, None))
        given, other = (given_for(local, [user_message("What is this?", one)]) for one in (mine, theirs))
        expected = changed_cells(given, other)
        seen = ((embeddings(local, mine) - embeddings(local, theirs)).abs().amax(dim=1) > 1e-5).tolist()
        assert any(expected)
        assert seen == expected


def test_where_a_large_map_is_made_smaller_the_patch_is_seen_around_its_place(models):
    """OneVision's grids of more than nine squares: cells of several patches, which the filter reaches over."""
    llava = models("llava_onevision")
    size, red = (330, 250), (200, 150, 230, 180)
    given = given_for(llava, [user_message("What?", [picture(size, red)])])
    geometry = given.pictures[0].geometry
    base, grid = geometry.grids
    assert geometry.canvases[1].crops == (3, 4)
    assert grid.rows * grid.columns < 12 * 9
    assert len(given.image) == geometry.tokens == base.tokens + grid.rows * (grid.columns + 1)
    with torch.no_grad():
        for name, value in llava.model.named_parameters():
            if "vision_tower" in name and ".out_proj." in name:
                value.zero_()
    change = (embeddings(llava, [picture(size, red)]) - embeddings(llava, [picture(size)])).abs().amax(dim=1)
    mine = on_canvas(geometry.canvases[1], red)
    for token, place in enumerate(geometry.places()):
        if place.canvas == 1 and covered(place.box, mine) > 0.5:
            assert change[token] > 1e-5
        if place.box is None:
            assert change[token] == 0
        elif place.canvas == 1:  # a cell's width away nothing is seen
            wide, tall = place.box[2] - place.box[0], place.box[3] - place.box[1]
            near = (place.box[0] - 2 * wide, place.box[1] - 2 * tall, place.box[2] + 2 * wide, place.box[3] + 2 * tall)
            assert covered(mine, near) > 0 or change[token] < 1e-5


def test_a_grids_places_counted_by_hand():
    """A picture of 40 x 10 on one square of 20 x 20 in cells of 10, then on 2 squares with a newline a row."""
    base = Canvas((20, 20), (0, 0, 20, 20), (0, 0, 40, 10))
    grid = Canvas((40, 20), (0, 5, 40, 15), (0, 0, 40, 10), crops=(1, 2))
    made = PictureGeometry(
        (40, 10),
        (base, grid),
        (
            TokenGrid(1, 1),
            TokenGrid(2, 2, 0, (0, 0, 20, 20)),
            TokenGrid(1, 4, 1, (0, 5, 40, 15), True),
            TokenGrid(1, 2, 1, (0, 0, 40, 20)),
        ),
    )
    places = list(made.places(3))
    assert len(places) == made.tokens == 1 + 4 + 5 + 2
    assert [place.canvas for place in places] == [None, 0, 0, 0, 0, 1, 1, 1, 1, None, 1, 1]
    assert [place.crop for place in places] == [0, 0, 0, 0, 0, 1, 1, 2, 2, 0, 1, 2]
    assert places[2].box == (10, 0, 20, 10)
    assert places[7].box == (20, 5, 30, 15)
    assert [place.padding for place in places[-2:]] == [0.5, 0.5]
    assert all(place.picture == 3 for place in places)


def test_every_known_kind_of_model_is_looked_at_here():
    kinds = {kind for family in FAMILIES for kind in family.kinds}
    assert all(any(name.startswith(kind.removeprefix("the ").split("'")[0]) for name in SEEING) for kind in kinds)
