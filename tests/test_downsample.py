"""The picture at a lower resolution: as many tokens as it really gives, through the model's own tower."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from lmms_textweighted import load, make_plan, prune
from lmms_textweighted.errors import InputError
from lmms_textweighted.families.downsample import downsampled
from lmms_textweighted.families.llava import with_aspect_ratio
from tests.conftest import build_anyres, build_llava

PROMPT = "USER: <image>\nWhich shape is red? ASSISTANT:"


@pytest.fixture(scope="module")
def tiny():
    return load("tiny")


def picture(seed: int = 0, size: tuple[int, int] = (400, 300)) -> Image.Image:
    pixels = torch.rand(3, *size[::-1], generator=torch.Generator().manual_seed(seed))
    return Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy())


def encode(processor, **options):
    return processor(images=picture(), text=PROMPT, return_tensors="pt", **options)


@pytest.mark.parametrize(("side", "tokens"), [(224, 256), (196, 196), (154, 121), (112, 64), (56, 16), (14, 1)])
def test_a_smaller_picture_has_the_tokens_that_it_gives(tiny, side, tokens):
    model, processor = tiny
    with downsampled(model, processor, side) as smaller:
        inputs = encode(smaller)
        assert inputs["pixel_values"].shape[-2:] == (side, side)
        assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == tokens
        with prune(model, make_plan("none")) as trace:
            model(**inputs)
    assert trace.documents[0].image_lengths == [tokens] * len(trace.documents[0].image_lengths)


def test_its_features_are_those_of_interpolated_position_embeddings(tiny):
    """The tower's embeddings, added up by hand: patches, and the table of positions shrunk to the smaller grid."""
    model, processor = tiny
    tower = model.model.vision_tower
    (layer,) = [module for name, module in tower.named_modules() if name.endswith("embeddings")]
    table = dict(tower.named_parameters())[
        next(name for name, _ in tower.named_parameters() if name.endswith("position_embedding.weight"))
    ]
    grid = table[1:].T.reshape(1, -1, 24, 24)
    shrunk = torch.nn.functional.interpolate(grid, size=(8, 8), mode="bicubic", align_corners=False)
    expected = torch.cat([table[:1], shrunk.flatten(2)[0].T])
    seen = []
    with downsampled(model, processor, 112) as smaller:
        handle = layer.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
        model(**encode(smaller))
        handle.remove()
    (pixels, output), patches = seen[0], next(m for m in layer.modules() if isinstance(m, torch.nn.Conv2d))
    cells = torch.cat([layer.class_embedding[None], patches(pixels).flatten(2)[0].T])
    torch.testing.assert_close(output[0], cells + expected)


def test_the_towers_own_side_changes_no_bit(tiny):
    model, processor = tiny
    whole = encode(processor)
    logits = model(**whole).logits
    with downsampled(model, processor, 336) as same:
        inputs = encode(same)
        assert torch.equal(inputs["pixel_values"], whole["pixel_values"])
        assert torch.equal(model(**inputs).logits, logits)


def test_a_smaller_picture_can_be_pruned_and_a_larger_budget_is_refused(tiny):
    model, processor = tiny
    with downsampled(model, processor, 112) as smaller:
        inputs = encode(smaller)
        with prune(model, make_plan("text_weighted", keep_tokens=16)) as trace:
            model.generate(**inputs, max_new_tokens=3)
        assert trace.documents[0].kept_tokens == 16
        with (
            pytest.raises(ValueError, match="keep_tokens is 65, but the image has 64 tokens"),
            prune(model, make_plan("text_weighted", keep_tokens=65)),
        ):
            model(**inputs)


def test_the_model_and_its_processor_are_as_they_were(tiny):
    model, processor = tiny
    before = model(**encode(processor)).logits
    with pytest.raises(RuntimeError, match="stop"), downsampled(model, processor, 112):
        raise RuntimeError("stop")
    assert model.config.image_seq_length == 576
    assert torch.equal(model(**encode(processor)).logits, before)
    with downsampled(model, processor, 112) as smaller:
        inputs = encode(smaller)
    with pytest.raises(ValueError, match="doesn't match model"):
        model(**inputs)


def test_pictures_are_padded_first_where_the_preparation_pads(tiny):
    model, processor = tiny
    padded = with_aspect_ratio(processor, "pad")
    with downsampled(model, padded, 112) as smaller:
        small = encode(smaller)["pixel_values"]
    whole = encode(padded)["pixel_values"]
    # The bars above and below are one colour, in both.
    assert (small[0, :, :12] == small[0, :, :1, :1]).all()
    torch.testing.assert_close(small[0, :, 0, 0], whole[0, :, 0, 0])


@pytest.mark.parametrize("side", [0, 13, 20, 350, True, 56.0])
def test_a_side_that_cannot_be_is_named(tiny, side):
    with pytest.raises(InputError, match="give a multiple of 14 pixels, from 14 to 336"), downsampled(*tiny, side):
        pass


def test_other_models_are_refused(tiny):
    said = "pictures cannot be downsampled for a model of type 'llava_"
    for model in (build_anyres("llava_next"), build_anyres("llava_onevision")):
        with pytest.raises(InputError, match=said), downsampled(model, tiny[1], 14):
            pass
    with pytest.raises(InputError, match="of type 'llava'"), downsampled(build_llava(), object(), 14):
        pass
