"""The picture at a lower resolution: as many tokens as it really gives, through the model's own tower."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from lmms_textweighted import geometry_of, load, make_plan, prune
from lmms_textweighted.errors import InputError, PlanError
from lmms_textweighted.experiment.points import check_points, make_points, run_document
from lmms_textweighted.families.downsample import downsampled
from lmms_textweighted.families.liuhaotian.family import PackageFamily
from lmms_textweighted.families.llava import with_aspect_ratio
from lmms_textweighted.harness.documents import Documents
from lmms_textweighted.inference import Decoding, PrunedLlava
from lmms_textweighted.methods import SCORERS
from lmms_textweighted.methods.budget import LLAVA_15_7B, cost_of
from lmms_textweighted.methods.files import plan_text
from lmms_textweighted.prompts import Message
from tests.conftest import build_anyres, build_llava
from tests.lmms_eval_runs import lmms_eval

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


# As a strategy.


def conversation(seed: int = 0) -> list[Message]:
    return [Message("user", (("image", picture(seed)), ("text", "Which shape is red?")))]


@pytest.mark.parametrize(
    ("budget", "tokens"),
    [
        ({"keep_tokens": 64}, 64),
        ({"keep_tokens": 192}, 169),
        ({"keep_tokens": 1}, 1),
        ({"keep_ratio": 0.25}, 144),
        ({"keep_ratio": 1e-6}, 1),
        ({"keep_ratio": 1.0}, 576),
    ],
)
def test_a_count_and_a_share_are_limits(budget, tokens):
    plan = make_plan("downsample", **budget)
    assert (plan.picture.tokens, plan.picture.of, plan.stages) == (tokens, 576, ())
    whole = budget.get("keep_tokens", 576 * budget.get("keep_ratio", 1))
    assert tokens == max([side**2 for side in range(1, 25) if side**2 <= whole] or [1])


@pytest.mark.parametrize("kind", ["equivalent_tokens", "flops_ratio"])
@pytest.mark.parametrize("share", [0.01, 0.1, 1 / 3, 0.5, 0.9, 1.0])
def test_a_mean_and_a_share_of_the_flops_are_met_as_closely_as_a_square_can(kind, share):
    def flops(image: int) -> float:
        """Of one layer of LLaVA-1.5-7B over an image and 64 tokens of text."""
        n, d, m = image + 64, 4096, 11008
        return 8 * n * d * d + 4 * n * n * d + 6 * n * d * m

    asked = 576 * share if kind == "equivalent_tokens" else max(share, 0.11)
    costs = {
        side**2: float(side**2) if kind == "equivalent_tokens" else flops(side**2) / flops(576) for side in range(1, 25)
    }
    best = min(abs(cost - asked) for cost in costs.values())
    assert abs(costs[make_plan("downsample", **{kind: asked}).picture.tokens] - asked) == pytest.approx(best)


def test_answers_and_figures_are_those_of_the_smaller_processor(tiny):
    """Held against transformers' own `generate` on the processor's inputs, and against arithmetic."""
    model, processor = tiny
    llava = PrunedLlava(model, processor, plan=make_plan("downsample", keep_tokens=70, geometry=geometry_of(model)))
    answers = llava.generate([conversation(0), conversation(1)], Decoding(max_new_tokens=4), ranks=True)
    plain = PrunedLlava(model, processor)
    for seed, answer in enumerate(answers):
        text = plain._prompt(conversation(seed))
        with downsampled(model, processor, 112) as smaller:
            inputs = plain.family.encode(smaller, [text], [[picture(seed)]], plain.template)
            made = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        length = inputs["input_ids"].shape[1]
        assert answer.text == processor.tokenizer.decode(made[0, length:], skip_special_tokens=True).strip()
        trace, full = answer.trace, length + 512
        assert answer.input_tokens == trace.input_length == length
        assert trace.lengths == [length] * 8
        assert (trace.image_tokens, trace.kept_tokens, trace.full_length) == (576, 64, full)
        assert trace.equivalent_tokens == 64
        assert trace.kv_ratio == pytest.approx(length / full)
        assert trace.flops_ratio == pytest.approx(one_layer(model, length) / one_layer(model, full))
        assert trace.ranks is not None
        assert trace.summary()["kept_tokens"] == 64


def one_layer(model, tokens: int) -> int:
    config = model.config.get_text_config()
    d, m = config.hidden_size, config.intermediate_size
    return 8 * tokens * d * d + 4 * tokens * tokens * d + 6 * tokens * d * m


def test_the_whole_picture_is_the_unpruned_model(tiny):
    model, processor = tiny
    plan = make_plan("downsample", keep_ratio=1.0, geometry=geometry_of(model))
    (small,) = PrunedLlava(model, processor, plan=plan).generate([conversation()], Decoding(max_new_tokens=4))
    (whole,) = PrunedLlava(model, processor).generate([conversation()], Decoding(max_new_tokens=4))
    assert (small.text, small.trace.summary()) == (whole.text, whole.trace.summary())


def test_a_continuation_is_scored_on_the_smaller_picture(tiny):
    model, processor = tiny
    llava = PrunedLlava(model, processor, plan=make_plan("downsample", keep_tokens=64, geometry=geometry_of(model)))
    loss, _, trace = llava.loss(conversation(), "B")
    plain = PrunedLlava(model, processor)
    before, after = (plain._prompt([*conversation(), *turn]) for turn in ([], [Message("assistant", (("text", "B"),))]))
    with downsampled(model, processor, 112) as smaller:
        start = plain.family.encode(smaller, [before], [[picture()]], plain.template)["input_ids"].shape[1]
        inputs = plain.family.encode(smaller, [after], [[picture()]], plain.template)
        logits = model(**inputs).logits[0, start - 1 : -1]
    expected = torch.nn.functional.cross_entropy(logits, inputs["input_ids"][0, start:])
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert trace.input_length == start


def test_prompts_without_a_picture_and_with_two_are_counted(tiny):
    model, processor = tiny
    llava = PrunedLlava(model, processor, plan=make_plan("downsample", keep_tokens=16, geometry=geometry_of(model)))
    none = [Message("user", (("text", "Which shape is red?"),))]
    two = [Message("user", (("image", picture(0)), ("image", picture(1)), ("text", "Which shape is red?")))]
    first, second = (answer.trace for answer in llava.generate([none, two], Decoding(max_new_tokens=2)))
    assert (first.image_tokens, first.kept_tokens, first.flops_ratio) == (0, 0, 1.0)
    assert (second.image_tokens, second.kept_tokens) == (1152, 32)
    assert second.full_length == second.input_length + 2 * 560


def test_a_sweep_answers_as_the_model_does(tiny):
    model, processor = tiny
    llava = PrunedLlava(model, processor)
    points = make_points(["downsample", "fastv", "none"], [64], 2, geometry=geometry_of(model))
    check_points(points, llava)
    found = run_document(
        llava, conversation()[0], points, decoding=Decoding(max_new_tokens=4), ranks=False,
        judge=lambda answer: (1.0, True),
    )  # fmt: skip
    (alone,) = replace(llava, plan=points[0].plan).generate([conversation()], Decoding(max_new_tokens=4))
    assert (found[0].answer, found[0].kept_tokens, found[0].image_tokens) == (alone.text, 64, 576)
    assert found[0].flops_ratio == alone.trace.flops_ratio
    assert found[2].kept_tokens == 576


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pruning_layer": 2}, "pruning_layer is 2, but downsample makes each picture smaller: leave it out"),
        ({"keep_scope": "prompt"}, "keep_scope is 'prompt', but downsample"),
        ({"positions": "keep"}, "positions is 'keep', but downsample"),
        ({"keep_tokens": 577}, "keep_tokens is 577, but the image has 576 tokens"),
        ({"keep_tokens": 0}, "the smallest picture has 1 token"),
        ({"equivalent_tokens": 0.5}, "downsample cannot go below a mean of 1 of 576 tokens, but"),
        ({"flops_ratio": 0.01}, "downsample cannot go below a FLOPs ratio of 0.0"),
        ({"geometry": replace(LLAVA_15_7B, image_tokens=None)}, "an image's tokens depends on the picture"),
        ({"geometry": replace(LLAVA_15_7B, image_tokens=300)}, "an image's tokens is 300, no square"),
    ],
)
def test_what_a_smaller_picture_cannot_do_is_said(given, words):
    with pytest.raises(PlanError, match=words):
        make_plan("downsample", **given)


def test_models_that_it_is_not_for_are_refused_before_any_answer(tiny):
    (plan, geometry) = (make_plan("downsample", keep_tokens=64), geometry_of(tiny[0]))
    llava = PrunedLlava(*tiny)
    llava.family = PackageFamily(torch.nn.Linear(1, 1), None)
    with pytest.raises(InputError, match=r"only for a LLaVA-1\.5 with a CLIP tower.*\(loader=hf\)"):
        llava.check_pictures(plan)
    for kind in ("llava_next", "llava_onevision"):
        with pytest.raises(PlanError, match="depends on the picture"):
            make_plan("downsample", geometry=geometry_of(build_anyres(kind)))
    with pytest.raises(PlanError, match="is for pictures of 576 tokens, but the model's have 16"):
        plan.check(6, 16)
    assert geometry.image_tokens == 576


def test_pictures_of_another_size_than_the_plans_are_refused(tiny):
    model, processor = tiny
    with (
        pytest.raises(PlanError, match="is for pictures of 64 tokens, but one has 576"),
        prune(model, make_plan("downsample", keep_tokens=64)),
    ):
        model(**encode(processor))


def test_a_plan_file_may_prune_a_smaller_picture(tiny, tmp_path):
    model, processor = tiny
    file = tmp_path / "both.yaml"
    file.write_text(
        "name: both\npicture: {tokens: 64, of: 576}\nstages:\n- {scorer: last_row, layer: 1, keep_ratio: 0.25}\n"
    )
    plan = make_plan(str(file))
    assert cost_of(plan, LLAVA_15_7B).image_lengths == (64,) * 2 + (16,) * 30
    (answer,) = PrunedLlava(model, processor, plan=plan).generate([conversation()], Decoding(max_new_tokens=2))
    assert answer.trace.image_lengths == [64, 64, 16, 16, 16, 16, 16, 16]
    assert answer.trace.image_tokens == 576
    written = tmp_path / "again.yaml"
    written.write_text(plan_text(plan, SCORERS, name="again", source="a test's"))
    assert replace(make_plan(str(written)), name="both") == plan
    file.write_text("name: both\npicture: {tokens: 65, of: 64}\nstages: []\n")
    with pytest.raises(PlanError, match=r"line 2: picture is 65 of 64 tokens"):
        make_plan(str(file))


@pytest.mark.nightly
def test_through_lmms_eval_it_is_a_strategy_like_any_other(tmp_path):
    run = lmms_eval(
        tmp_path, "--model", "llava_textweighted", "--model_args", "pretrained=tiny,strategy=downsample,keep_tokens=70",
        "--tasks", "shapes_mcq_rank", "--limit", "6", "--batch_size", "4",
    )  # fmt: skip
    assert run.code == 0, run.output[-3000:]
    counts = [sample["token_counts"][0] for sample in run.samples("shapes_mcq_rank")]
    assert [one["kept_tokens"] for one in counts] == [64] * 6
    assert [one["lengths"] for one in counts] == [[one["input_tokens"]] * 8 for one in counts]
    assert counts[0]["settings"]["picture"] == {"tokens": 64, "of": 576}
    figures = run.metrics("shapes_mcq_rank")
    assert (figures["kept_image_tokens"], figures["equivalent_image_tokens"]) == (64, 64)
    assert figures["flops_ratio"] < 0.25
    llava = PrunedLlava(*load("tiny"))
    llava.plan = make_plan("downsample", keep_tokens=64, geometry=geometry_of(llava.model))
    documents = list(Documents.of_task("shapes_mcq_rank", 6, single_prediction_prompt=False))
    expected = [llava.generate([[document.message]], Decoding(max_new_tokens=16))[0].text for document in documents]
    assert [sample["filtered_resps"][0] for sample in run.samples("shapes_mcq_rank")] == expected
