"""Image preparation: the pixels of the original package, by themselves and inside of transformers' processors."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
)

from lmms_textweighted.errors import InputError
from lmms_textweighted.families.images import ASPECT_RATIOS, LlavaImageProcessor, check_aspect_ratio, prepare_images
from lmms_textweighted.paths import checkpoint_folder
from lmms_textweighted.prompts import render, user_message

# Wide and tall, very wide and very tall, tiny, one pixel wide, square, and larger than every grid.
SIZES = [(64, 48), (48, 65), (400, 30), (31, 401), (3, 2), (1, 1), (1, 60), (60, 1), (50, 50), (301, 299)]
SMALL_GRID = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
LLAVA_NEXT_GRID = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def image_processor(kind=CLIPImageProcessor, side: int = 28):
    return kind(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def picture(size: tuple[int, int], seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Noise: any pixel that is moved, or rounded otherwise, is seen."""
    noise = np.random.default_rng([seed, *size]).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(noise, "RGBA") if mode == "RGBA" else Image.fromarray(noise[..., :3]).convert(mode)


@pytest.fixture(scope="module")
def published():
    """The original package's preparation: (pictures, image processor, aspect ratio, grid) -> a tensor a picture."""
    from llava.mm_utils import process_images

    def prepare(images, processor, aspect_ratio, grid=None):
        config = SimpleNamespace(image_aspect_ratio=aspect_ratio, image_grid_pinpoints=grid)
        return list(process_images(images, processor, config))

    return prepare


@pytest.fixture(scope="module")
def llava_processor():
    return AutoProcessor.from_pretrained(checkpoint_folder())


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert [tuple(one.shape) for one in ours] == [tuple(one.shape) for one in theirs]
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", [CLIPImageProcessor, CLIPImageProcessorPil])
@pytest.mark.parametrize("aspect_ratio", ASPECT_RATIOS)
def test_pixels_are_those_of_the_llava_package(published, aspect_ratio, kind, seed):
    processor = image_processor(kind)
    images = [picture(size, seed) for size in SIZES]
    assert_same(
        prepare_images(images, processor, aspect_ratio, SMALL_GRID),
        published(images, processor, aspect_ratio, SMALL_GRID),
    )


@pytest.mark.parametrize("kind", [CLIPImageProcessor, CLIPImageProcessorPil])
@pytest.mark.parametrize("aspect_ratio", ASPECT_RATIOS)
def test_pixels_are_those_of_the_llava_package_at_336_px(published, aspect_ratio, kind):
    processor = image_processor(kind, 336)
    images = [picture(size) for size in [(640, 427), (335, 337), (90, 800)]]
    assert_same(
        prepare_images(images, processor, aspect_ratio, LLAVA_NEXT_GRID),
        published(images, processor, aspect_ratio, LLAVA_NEXT_GRID),
    )


def test_pictures_of_any_size_get_the_packages_pixels(published):
    processor = image_processor()
    sides = st.integers(1, 200)
    grids = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=6)

    @given(st.lists(st.tuples(sides, sides), min_size=1, max_size=3), st.sampled_from(ASPECT_RATIOS), grids)
    def check(sizes, aspect_ratio, squares):
        images = [picture(size) for size in sizes]
        grid = [[28 * wide, 28 * tall] for wide, tall in squares]
        assert_same(
            prepare_images(images, processor, aspect_ratio, grid), published(images, processor, aspect_ratio, grid)
        )

    check()


def test_the_crop_may_be_smaller_than_the_resized_picture(published):
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28})
    images = [picture(size) for size in SIZES]
    for aspect_ratio in ASPECT_RATIOS:
        ours = prepare_images(images, processor, aspect_ratio, SMALL_GRID)
        assert_same(ours, published(images, processor, aspect_ratio, SMALL_GRID))


@pytest.mark.parametrize("aspect_ratio", ASPECT_RATIOS)
def test_pictures_with_transparency_get_the_packages_pixels(published, aspect_ratio):
    processor = image_processor()
    images = [picture(size, mode="RGBA") for size in SIZES]
    assert_same(
        prepare_images(images, processor, aspect_ratio, SMALL_GRID),
        published(images, processor, aspect_ratio, SMALL_GRID),
    )


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA"])
def test_a_picture_that_the_package_cannot_pad_is_padded_as_rgb(mode):
    image = picture((40, 20), mode=mode)
    rgb = image.convert("RGBA" if mode == "LA" else "RGB")
    processor = image_processor()
    assert_same(prepare_images([image], processor, "pad"), prepare_images([rgb], processor, "pad"))


def test_padding_is_the_mean_colour_and_the_picture_is_in_the_middle():
    pixels = prepare_images([Image.new("RGB", (28, 14), "white")], image_processor(), "pad")[0]
    assert pixels.shape == (3, 28, 28)
    assert pixels[:, :7].abs().max() < 0.02  # normalised, the mean is zero
    assert pixels[:, 21:].abs().max() < 0.02
    assert pixels[:, 7:21].min() > 1.5


def test_the_first_view_is_the_whole_picture_and_the_others_are_its_squares():
    image = Image.new("RGB", (56, 28), "black")
    image.paste("white", (28, 0, 56, 28))
    whole, left, right = prepare_images([image], image_processor(), "anyres", SMALL_GRID)[0]
    assert left.max() < 0 < right.min()
    assert whole[..., :10].max() < 0 < whole[..., 18:].min()


def test_a_grid_reads_the_same_in_every_form(published):
    processor = image_processor()
    images = [picture(size) for size in SIZES]
    expected = published(images, processor, "anyres", SMALL_GRID)
    forms = [SMALL_GRID, str(SMALL_GRID), tuple(map(tuple, SMALL_GRID)), "(1x2), (2x1),(2x2),(3x1),(1x3)"]
    for grid in forms:
        assert_same(prepare_images(images, processor, "anyres", grid), expected)
        assert_same(prepare_images(images, processor, "anyres_max_9", grid), expected)
    assert_same(published(images, processor, "anyres", str(SMALL_GRID)), expected)
    every = [[28 * wide, 28 * tall] for wide in (1, 2, 3) for tall in (1, 2)]
    assert_same(
        prepare_images(images, processor, "anyres", "(1x1),...,(3x2)"), published(images, processor, "anyres", every)
    )


def test_a_grid_that_is_missing_or_cannot_be_read_is_refused():
    for missing in (None, [], ""):
        with pytest.raises(InputError, match="anyres needs image_grid_pinpoints"):
            prepare_images([picture((8, 8))], image_processor(), "anyres", missing)
        with pytest.raises(InputError, match="anyres needs image_grid_pinpoints"):
            LlavaImageProcessor(image_processor(), "anyres_max_4", missing)
    for grid in ("six", "axb", "(0x1),(1x1)", "[1, 2]", [[336]], [[336, -336]], "[[336, 672]", 7):
        with pytest.raises(InputError, match="image_grid_pinpoints is"):
            prepare_images([picture((8, 8))], image_processor(), "anyres", grid)


def test_a_name_of_lmms_eval_or_llava_next_is_known_and_any_other_is_refused():
    assert [check_aspect_ratio(name) for name in (*ASPECT_RATIOS, "original", "anyres_max_9")] == [
        *ASPECT_RATIOS,
        "square",
        "anyres_max_9",
    ]
    for name in ("anyres_max", "anyres_max_0", "padd", "Pad", "", 336):
        with pytest.raises(InputError, match="unknown image_aspect_ratio"):
            check_aspect_ratio(name)
    with pytest.raises(InputError, match=r"unknown image_aspect_ratio 'padd': did you mean 'pad'\?"):
        prepare_images([], image_processor(), "padd")


def test_no_picture_gives_no_pixels():
    for aspect_ratio in ASPECT_RATIOS:
        assert prepare_images([], image_processor(), aspect_ratio, SMALL_GRID) == []


# Inside of transformers' processors.


def prompts(images: list[Image.Image]) -> list[str]:
    return [render("vicuna_v1", [user_message("Why?", [image])], None) for image in images]


@pytest.mark.parametrize("aspect_ratio", ["pad", "square"])
def test_a_llava_processor_takes_the_packages_pixels(published, llava_processor, aspect_ratio):
    images = [picture(size) for size in [(90, 40), (40, 91), (50, 50)]]
    ours = copy.copy(llava_processor)
    ours.image_processor = LlavaImageProcessor(llava_processor.image_processor, aspect_ratio)
    got = ours(images=images, text=prompts(images), padding=True, return_tensors="pt")
    plain = llava_processor(images=images, text=prompts(images), padding=True, return_tensors="pt")
    assert got.keys() == plain.keys()
    assert torch.equal(got["input_ids"], plain["input_ids"])
    assert torch.equal(got["attention_mask"], plain["attention_mask"])
    assert_same(list(got["pixel_values"]), published(images, llava_processor.image_processor, aspect_ratio))
    assert torch.equal(got["pixel_values"], plain["pixel_values"]) == (aspect_ratio == "square")


def next_processor(llava_processor, images) -> LlavaNextProcessor:
    return LlavaNextProcessor(
        images,
        llava_processor.tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


@pytest.mark.parametrize("nested", [False, True])
def test_a_llava_next_processor_takes_the_packages_pixels(published, llava_processor, nested):
    """Token counts and picture sizes are those of transformers' own image processor, the pixels are the package's."""
    grid = [[336, 672], [672, 336], [672, 672], [1008, 336]]
    own = LlavaNextImageProcessor(
        size={"shortest_edge": 336},
        crop_size={"height": 336, "width": 336},
        image_grid_pinpoints=[p[::-1] for p in grid],
    )
    clip = image_processor(side=336)
    images = [picture(size) for size in [(500, 480), (90, 40), (45, 330)]]
    given_images = [[image] for image in images] if nested else images
    ours = next_processor(llava_processor, LlavaImageProcessor(clip, "anyres", grid))
    got = ours(images=given_images, text=prompts(images), padding=True, return_tensors="pt")
    reference = next_processor(llava_processor, own)
    expected = reference(images=given_images, text=prompts(images), padding=True, return_tensors="pt")
    assert got.keys() == expected.keys()
    assert torch.equal(got["input_ids"], expected["input_ids"])
    assert torch.equal(got["image_sizes"], expected["image_sizes"])
    assert got["image_sizes"].tolist() == [[480, 500], [40, 90], [330, 45]]
    assert got["pixel_values"].shape == expected["pixel_values"].shape
    for padded, views in zip(got["pixel_values"], published(images, clip, "anyres", grid), strict=True):
        assert torch.equal(padded[: len(views)], views)
        assert not padded[len(views) :].any()


def test_the_grid_is_told_to_transformers_height_first():
    """A small square picture fits a wide and a tall grid equally well: the first one of the list is taken."""
    wrapped = LlavaImageProcessor(image_processor(), "anyres", "[[28, 56], [56, 28]]")
    assert wrapped.image_grid_pinpoints == [[56, 28], [28, 56]]
    assert LlavaImageProcessor(image_processor(), "pad", SMALL_GRID).image_grid_pinpoints is None


def test_a_wrapped_image_processor_answers_for_itself_and_is_copied_and_saved(llava_processor, tmp_path):
    processor = copy.deepcopy(llava_processor)
    processor.image_processor = LlavaImageProcessor(llava_processor.image_processor, "pad")
    assert processor.image_processor.crop_size == llava_processor.image_processor.crop_size
    assert processor.model_input_names == llava_processor.model_input_names
    with pytest.raises(AttributeError, match="no_such_setting"):
        _ = processor.image_processor.no_such_setting
    assert "image_aspect_ratio" in repr(copy.deepcopy(processor))
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path).image_processor
    image = picture((50, 30))
    assert torch.equal(
        again(image, return_tensors="pt")["pixel_values"],
        llava_processor.image_processor(image, return_tensors="pt")["pixel_values"],
    )
    anyres = LlavaImageProcessor(image_processor(), "anyres", SMALL_GRID)
    assert anyres.model_input_names == ["pixel_values", "image_sizes"]


def test_one_picture_may_stand_alone_and_preprocess_is_the_same_call():
    wrapped = LlavaImageProcessor(image_processor(), "pad")
    image = picture((50, 30))
    alone = wrapped(image, return_tensors="pt")["pixel_values"]
    assert alone.shape == (1, 3, 28, 28)
    assert torch.equal(alone, wrapped.preprocess([[image]], return_tensors="pt")["pixel_values"])


def test_what_the_preparation_cannot_use_is_refused():
    wrapped = LlavaImageProcessor(image_processor(), "pad")
    with pytest.raises(InputError, match="do_resize cannot be set on call"):
        wrapped([picture((8, 8))], do_resize=False)
    with pytest.raises(InputError, match="a picture is a ndarray"):
        wrapped([np.zeros((8, 8, 3), np.uint8)])
