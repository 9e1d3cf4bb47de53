"""LLaVA-NeXT and LLaVA-OneVision: pictures of any size, hence images of different lengths, in one batch.

Kept sets are compared with the masked float64 model's, and a batch's with its rows', but for scores within 1e-6 of each
other (`conftest.TIE`), which float32 noise may order either way.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
)

from lmms_textweighted.errors import PlanError
from lmms_textweighted.families.attach import prune
from lmms_textweighted.inference import Decoding, PrunedLlava
from lmms_textweighted.methods import make_plan
from lmms_textweighted.prompts import VICUNA_CHAT_TEMPLATE, make_message, user_message
from lmms_textweighted.tiny.architecture import build_tokenizer
from tests.conftest import (
    FAMILIES,
    PATCH,
    PINPOINTS,
    TILE,
    assert_batch_equals_rows,
    assert_equals_masked_model,
    assert_removal_matters,
    assert_same_trace,
    assert_stages,
    build_anyres,
    make_anyres_inputs,
    picture_sizes,
)
from tests.oracles import (
    anyres_tokens,
    expected_stages,
    find_places,
    masked_generate,
    masked_logits,
    removed_by,
)
from tests.test_pruner import answers, plan_of

# Pictures (height, width), and their tokens in LLaVA-NeXT.
STRIP, TOWER, SQUARE, SMALL, LARGE = (30, 200), (200, 30), (50, 50), (33, 47), (60, 90)
TOKENS = {STRIP: 22, TOWER: 27, SQUARE: 51, SMALL: 24, LARGE: 126}

PROMPTS = {
    "large": (3, LARGE, 6),
    "tall": (2, TOWER, 9),
    "image_first": (SQUARE, 5),
    "apart": (2, STRIP, 3, SQUARE, 5),
    "touching": (2, SMALL, SQUARE, STRIP, 6),
    "interleaved": (1, SQUARE, 2, STRIP, TOWER, 1, SMALL, 4),
}
PLANS = {
    "text_weighted": [("text_weighted", 1, 7, 1)],
    "staged": [("uniform", 0, 18, 0), ("last_row", 2, 5, 1)],
    "ratios": [("text_weighted_debiased", 0, 0.4, 0), ("text_weighted", 2, 0.5, 2)],
}
BATCHES = {
    "sizes": [(3, LARGE, 6), (8, STRIP, 11), (1, SQUARE, 2)],
    "text_only_rows": [(7,), (3, SQUARE, 6), (90,), (2, STRIP, 3, TOWER, 14)],
    "numbers_of_images": [(3, SMALL, 6), (2, SQUARE, STRIP, 4), (1, SMALL, 2, TOWER, SMALL, 3)],
}
every_family = pytest.mark.parametrize("family", FAMILIES)
every_attention = pytest.mark.parametrize("attn", ["eager", "sdpa"])


@pytest.fixture
def rows():
    """A prompt's oracle: where its images and text are."""

    def find(model, prompt, **kwargs):
        return find_places(prompt, picture_sizes(model, prompt, **kwargs))

    return find


def lengths_after(stages, places, layers: int) -> list[int]:
    """Image tokens that each layer sees when every image has the budget."""
    sizes, lengths = [len(image) for image in places.images], []
    for layer in range(layers):
        lengths.append(sum(sizes))
        for _, leaves_after, keep, _ in stages:
            if leaves_after == layer:
                sizes = [min(size, keep) if isinstance(keep, int) else max(1, int(keep * size)) for size in sizes]
    return lengths


@pytest.mark.parametrize(("picture", "tokens"), TOKENS.items())
def test_an_images_tokens_are_its_unpadded_features_and_newlines(small_anyres, picture, tokens):
    """A strip has 22, not its grid's 126: the count is the picture's, in the model and in the trace."""
    assert anyres_tokens(picture, tile=TILE, patch=PATCH, pinpoints=PINPOINTS) == tokens
    model = small_anyres("llava_next")
    with prune(model, make_plan("none")) as trace:
        model(**make_anyres_inputs(model, [(3, picture, 4)]))
    assert (trace.documents[0].image_tokens, trace.documents[0].full_length) == (tokens, tokens + 7)


def test_onevision_shrinks_large_grids_and_cuts_only_a_prompts_single_picture(small_anyres):
    model = small_anyres("llava_onevision")
    with prune(model, make_plan("none")) as trace:
        model(**make_anyres_inputs(model, [(3, LARGE, 4), (3, LARGE, SMALL, 4)]))
    assert [document.image_tokens for document in trace.documents] == [86, 20]


# Removal is masking.


@every_attention
@every_family
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("name", PLANS)
def test_choices_and_logits_equal_those_of_the_masked_model(small_anyres, rows, family, attn, prompt, name):
    model = small_anyres(family, attn=attn)
    inputs = make_anyres_inputs(model, [prompt], seed=1)
    places = rows(model, prompt)
    expected, _ = expected_stages(model, inputs, PLANS[name], places)
    with prune(model, plan_of(PLANS[name]), ranks=True) as trace:
        out = model(**inputs, use_cache=True)

    (document,) = trace.documents
    assert_stages(document, expected)
    assert document.image_tokens == len(places.image_tokens)
    assert document.full_length == inputs["input_ids"].shape[1]
    assert document.image_lengths == lengths_after(PLANS[name], places, 5)
    text = document.full_length - document.image_tokens
    assert document.lengths == [text + images for images in document.image_lengths]
    assert_equals_masked_model(model, inputs, out, document)


@every_family
def test_masking_moves_the_logits_far_more_than_the_tolerance(small_anyres, rows, family):
    """The oracle is worth something only where removal matters."""
    model = small_anyres(family)
    prompt = PROMPTS["interleaved"]
    inputs = make_anyres_inputs(model, [prompt], seed=1)
    expected, removed = expected_stages(model, inputs, PLANS["text_weighted"], rows(model, prompt))
    assert_removal_matters(model, inputs, expected, removed)


@every_attention
@every_family
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_generation_equals_the_masked_model_token_for_token(small_anyres, family, attn, prompt):
    model = small_anyres(family, attn=attn)
    inputs = make_anyres_inputs(model, [prompt], seed=2)
    with prune(model, plan_of(PLANS["staged"])) as trace:
        tokens = answers(model, inputs, 6)
    assert tokens == [masked_generate(model, inputs, removed_by(trace.documents[0]), 6)]


@every_attention
@pytest.mark.parametrize("prompt", [PROMPTS["apart"], PROMPTS["touching"], PROMPTS["interleaved"]])
def test_onevision_with_every_picture_of_a_prompt_cut(small_anyres, rows, attn, prompt):
    """As when `batch_num_images` is left away: then sizes differ within a prompt here, too."""
    model = small_anyres("llava_onevision", attn=attn)
    inputs = make_anyres_inputs(model, [prompt], seed=3, cut_all=True)
    places = rows(model, prompt, cut_all=True)
    assert len({len(image) for image in places.images}) > 1
    expected, removed = expected_stages(model, inputs, PLANS["staged"], places)
    with prune(model, plan_of(PLANS["staged"])) as trace:
        logits = model(**inputs).logits[0, -1]
        tokens = answers(model, inputs, 4)
    assert_stages(trace.documents[0], expected)
    torch.testing.assert_close(logits.double(), masked_logits(model, inputs, removed), atol=1e-4, rtol=0)
    assert tokens == [masked_generate(model, inputs, removed, 4)]


pictures = st.tuples(st.integers(20, 120), st.integers(20, 120))
prompts = st.lists(st.one_of(st.integers(1, 6), pictures), min_size=1, max_size=5).map(lambda parts: (*parts, 3))


@given(
    family=st.sampled_from(FAMILIES),
    prompt=prompts,
    keep=st.one_of(st.integers(0, 140), st.sampled_from([0.1, 0.5, 1.0])),
    scorer=st.sampled_from(["text_weighted", "last_row"]),
    seed=st.integers(0, 50),
)
def test_removal_is_masking_in_any_layout_of_images_and_text(small_anyres, family, prompt, keep, scorer, seed):
    model = small_anyres(family, layers=3)
    inputs = make_anyres_inputs(model, [prompt], seed=seed)
    places = find_places(prompt, picture_sizes(model, prompt))
    with prune(model, plan_of([(scorer, 0, keep, 0)])) as trace:
        logits = model(**inputs).logits[0, -1]
    (document,) = trace.documents
    assert document.image_tokens == len(places.image_tokens)
    if places.images:
        expected, _ = expected_stages(model, inputs, [(scorer, 0, keep, 0)], places)
        assert_stages(document, expected)
    expected_logits = masked_logits(model, inputs, removed_by(document))
    torch.testing.assert_close(logits.double(), expected_logits, atol=1e-4, rtol=0)


# Batches.


def assert_equals_one_by_one(model, prompts, plan, count: int = 4, seed: int = 0, **kwargs):
    batch = make_anyres_inputs(model, prompts, seed, **kwargs)
    rows = [make_anyres_inputs(model, [prompt], seed, first=row) for row, prompt in enumerate(prompts)]
    assert_batch_equals_rows(model, batch, rows, plan, answers, count)


@every_attention
@every_family
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("name", PLANS)
def test_a_padded_batch_equals_its_rows_one_by_one(small_anyres, family, attn, batch, name):
    assert_equals_one_by_one(small_anyres(family, attn=attn), batch, plan_of(PLANS[name]), seed=7)


@every_family
def test_padding_in_front_of_every_row_changes_nothing(small_anyres, family):
    assert_equals_one_by_one(small_anyres(family), BATCHES["sizes"], plan_of(PLANS["staged"]), seed=8, pad_to=150)


@every_attention
def test_rows_of_equal_length_whose_images_differ(small_anyres, attn):
    """No padding, so the model makes no mask in decoding; fillers after the pruning layer."""
    model = small_anyres("llava_next", attn=attn)
    prompts = [(3, STRIP, 35), (4, SQUARE, 5), (2, SMALL, STRIP, 12)]
    assert {make_anyres_inputs(model, [prompt])["input_ids"].shape[1] for prompt in prompts} == {60}
    assert_equals_one_by_one(model, prompts, plan_of(PLANS["ratios"]), seed=9)


@every_family
def test_random_choice_does_not_depend_on_the_batch(small_anyres, family):
    plan = make_plan("random", pruning_layer=1, keep_tokens=6)
    assert_equals_one_by_one(small_anyres(family), BATCHES["numbers_of_images"], plan, seed=10)


@every_attention
@every_family
def test_beam_search_over_a_batch_equals_its_rows_one_by_one(small_anyres, family, attn):
    """transformers repeats a row's pictures together: sizes must stay with their rows."""
    model = small_anyres(family, attn=attn)
    prompts = [(3, SMALL, 6), (5,), (2, SQUARE, STRIP, 4)]
    with prune(model, plan_of(PLANS["staged"])) as trace:
        together = answers(model, make_anyres_inputs(model, prompts, 11), 5, num_beams=3)
        assert len(trace.documents) == 9
        for row in range(3):
            single = make_anyres_inputs(model, prompts[row : row + 1], 11, first=row)
            assert answers(model, single, 5, num_beams=3) == [together[row]]
            for beam in range(3):
                assert_same_trace(trace.documents[3 * row + beam], trace.documents[-1])


@every_family
def test_generation_without_a_cache_prunes_every_forward_anew(small_anyres, family):
    model = small_anyres(family)
    inputs = make_anyres_inputs(model, [(3, SMALL, 6), (2, SQUARE, STRIP, 4)])
    with prune(model, plan_of(PLANS["text_weighted"])) as trace:
        answers(model, inputs, 3, use_cache=False)
    images = [24, 20 if family == "llava_onevision" else 73]
    assert [document.image_tokens for document in trace.documents] == images * 3
    assert [document.kept_tokens for document in trace.documents] == [7, 14] * 3
    assert [document.full_length for document in trace.documents[::2]] == [33, 34, 35]


@every_attention
@every_family
def test_a_prompt_without_an_attention_mask(small_anyres, family, attn):
    model = small_anyres(family, attn=attn)
    inputs = make_anyres_inputs(model, [PROMPTS["interleaved"]], seed=12)
    with prune(model, plan_of(PLANS["staged"])) as trace:
        expected = model(**inputs).logits
        del inputs["attention_mask"]
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=0)
    assert_same_trace(*trace.documents)


@every_family
def test_a_batch_of_text_alone_is_left_alone(small_anyres, family):
    model = small_anyres(family)
    inputs = make_anyres_inputs(model, [(9,), (6,)])
    plain, tokens = model(**inputs).logits, answers(model, inputs)
    with prune(model, plan_of(PLANS["staged"]), ranks=True) as trace:
        assert torch.equal(model(**inputs).logits, plain)
        assert answers(model, inputs) == tokens
    assert [document.lengths for document in trace.documents[:2]] == [[9] * 5, [6] * 5]
    assert all(document.image_tokens == 0 and document.ranks is None for document in trace.documents)


@every_attention
@every_family
def test_keeping_every_token_changes_nothing(small_anyres, family, attn):
    model = small_anyres(family, attn=attn)
    inputs = make_anyres_inputs(model, BATCHES["sizes"])
    plain, tokens = model(**inputs).logits, answers(model, inputs)
    with prune(model, make_plan(pruning_layer=1, keep_tokens=126)) as trace:
        assert torch.equal(model(**inputs).logits, plain)
        assert answers(model, inputs) == tokens
    assert all(document.flops_ratio == 1 for document in trace.documents)


# Leaving the model as it was, and what does not fit.


@every_family
def test_the_model_is_as_before_on_leaving(small_anyres, family):
    model = small_anyres(family)
    inputs = make_anyres_inputs(model, BATCHES["sizes"])
    logits, own = model(**inputs).logits, set(vars(model.model))
    with prune(model, plan_of(PLANS["staged"])):
        assert "get_image_features" in set(vars(model.model)) - own
        answers(model, inputs)
    assert set(vars(model.model)) == own
    with pytest.raises(RuntimeError, match="boom"), prune(model, plan_of(PLANS["staged"])):
        raise RuntimeError("boom")
    assert set(vars(model.model)) == own
    assert torch.equal(model(**inputs).logits, logits)


def test_a_watcher_of_the_callers_own_is_put_back(small_anyres, monkeypatch):
    model = small_anyres("llava_next")
    original = model.model.get_image_features

    def mine(*args, **kwargs):
        return original(*args, **kwargs)

    monkeypatch.setattr(model.model, "get_image_features", mine)
    with prune(model, plan_of(PLANS["staged"])):
        model(**make_anyres_inputs(model, BATCHES["sizes"]))
    assert vars(model.model)["get_image_features"] is mine


def test_pictures_that_belong_to_other_rows_are_noticed(small_anyres):
    """Together the tokens are as many as the features, so transformers would take each row's from its neighbour."""
    model = small_anyres("llava_next")
    inputs = make_anyres_inputs(model, [(3, SQUARE, 6), (8, STRIP, 11)])
    inputs["pixel_values"] = inputs["pixel_values"].flip(0)
    inputs["image_sizes"] = inputs["image_sizes"].flip(0)
    model(**inputs)
    with (
        prune(model, plan_of(PLANS["text_weighted"])),
        pytest.raises(PlanError, match=r"a prompt has 51 image tokens, but its images have .*: their sizes do not fit"),
    ):
        model(**inputs)


@every_family
def test_an_image_at_the_end_of_the_prompt(small_anyres, family):
    model = small_anyres(family)
    with pytest.raises(PlanError, match="ends with its image"), prune(model, plan_of(PLANS["text_weighted"])):
        model(**make_anyres_inputs(model, [(3, SQUARE, 6), (3, SMALL)]))


# Through the families' own processors.


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<video>"], special_tokens=True)
    return tokenizer


def processor_of(family, tokenizer):
    sizes = {"image_grid_pinpoints": PINPOINTS}
    if family == "llava_next":
        return LlavaNextProcessor(
            LlavaNextImageProcessor(size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}, **sizes),
            tokenizer,
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=VICUNA_CHAT_TEMPLATE,
        )
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size={"height": TILE, "width": TILE}, **sizes),
        tokenizer,
        LlavaOnevisionVideoProcessor(),
        num_image_tokens=(TILE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=VICUNA_CHAT_TEMPLATE,
    )


@pytest.fixture(scope="module")
def loaded(tokenizer):
    """A family's model and processor wrapped for conversations."""

    def build(family, plan):
        ids = tokenizer.convert_tokens_to_ids(["<video>", "<image>"])
        model = build_anyres(family, seed=3, vocabulary=len(tokenizer), image_token=ids[1])
        model.config.video_token_id = ids[0]
        model.lm_head.weight[[*ids, *tokenizer.all_special_ids]] = 0
        return PrunedLlava(model, processor_of(family, tokenizer), plan)

    return build


def picture(size, seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def conversations():
    """One picture, several of unequal sizes, none, a tag inside of the question, and text between pictures."""
    return [
        [user_message("What is the color of the disc?\nA. red\nB. blue", [picture(LARGE, 1)])],
        [user_message("Which is larger?", [picture(SQUARE, 2), picture(STRIP, 3), picture(SMALL, 4)])],
        [user_message("What is red?", [])],
        [user_message("Is the disc in <image> red or blue?", [picture(TOWER, 5)])],
        [
            make_message(
                "user",
                [
                    ("text", "Here: "),
                    ("image", picture(STRIP, 6)),
                    ("text", " and there: "),
                    ("image", picture(SQUARE, 7)),
                    ("text", " Which one is blue?"),
                ],
            )
        ],
    ]


PIECES = [[LARGE], [SQUARE, STRIP, SMALL], [], [TOWER], [STRIP, SQUARE]]


@every_family
def test_a_batch_of_conversations_equals_each_alone_and_the_masked_model(loaded, family):
    llava = loaded(family, plan_of([("text_weighted", 1, 12, 1), ("last_row", 3, 4, 3)]))
    assert llava.tokens_per_image is None
    batch, decoding = conversations(), Decoding(max_new_tokens=6)
    together = llava.generate(batch, decoding, ranks=True)
    for conversation, sizes, answer in zip(batch, PIECES, together, strict=True):
        (alone,) = llava.generate([conversation], decoding, ranks=True)
        assert (answer.text, answer.input_tokens, answer.output_tokens) == (alone.text, alone.input_tokens, 6)
        assert_same_trace(answer.trace, alone.trace)
        inputs = llava.encode([conversation]).inputs
        assert answer.trace.image_tokens == sum(picture_sizes(llava.model, sizes))
        assert answer.trace.full_length == inputs["input_ids"].shape[1]
        tokens = masked_generate(llava.model, inputs, removed_by(answer.trace), 6)
        assert answer.text == llava.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


@every_family
def test_conversations_choose_as_the_masked_model_does(loaded, family):
    stages = [("text_weighted", 1, 12, 1), ("last_row", 3, 4, 3)]
    llava = loaded(family, plan_of(stages))
    for conversation, sizes in zip(conversations(), PIECES, strict=True):
        if not sizes:
            continue
        inputs = llava.encode([conversation]).inputs
        (answer,) = llava.generate([conversation], Decoding(max_new_tokens=1))
        # The prompt's parts, read off the ids: runs of text and of images.
        is_image = (inputs["input_ids"][0] == llava.model.config.image_token_id).tolist()
        prompt, lengths, place = [], iter(picture_sizes(llava.model, sizes)), 0
        while place < len(is_image):
            length = next(lengths) if is_image[place] else 1
            prompt.append("image" if is_image[place] else 1)
            place += length
        places = find_places(prompt, picture_sizes(llava.model, sizes))
        assert_stages(answer.trace, expected_stages(llava.model, inputs, stages, places)[0])


def test_onevisions_processor_is_told_which_pictures_share_a_prompt(loaded):
    """A flat list would cut every picture: the counts are those of the prompts."""
    llava = loaded("llava_onevision", make_plan("none"))
    inputs = llava.encode(conversations()).inputs
    assert inputs["batch_num_images"].tolist() == [1, 3, 1, 2]
    images = (inputs["input_ids"] == llava.model.config.image_token_id).sum(dim=1).tolist()
    assert images == [86, 30, 0, 27, 20]


def test_a_video_is_refused():
    model = build_anyres("llava_onevision")
    inputs = make_anyres_inputs(model, [PROMPTS["large"]])
    video = torch.zeros(1, 2, 3, TILE, TILE)
    with prune(model, make_plan(keep_tokens=3)), pytest.raises(PlanError, match="the input has a video"):
        model(**inputs, pixel_values_videos=video)
