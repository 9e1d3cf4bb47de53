"""Which text votes, and what a budget counts: naive Python and the masked float64 model against every way through."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lmms_textweighted.engine.fanout import continue_prefix
from lmms_textweighted.engine.layout import IMAGE as IMAGE_ID
from lmms_textweighted.engine.layout import Prompts, find_layout
from lmms_textweighted.engine.plan import KEEP_SCOPES, TEXT_SCOPES, Plan, Stage
from lmms_textweighted.engine.scoring import choose_tokens
from lmms_textweighted.errors import InputError, PlanError
from lmms_textweighted.experiment import points as sweep
from lmms_textweighted.families import load
from lmms_textweighted.families.attach import prune, run_prefix
from lmms_textweighted.inference import Decoding, PrunedLlava
from lmms_textweighted.methods import SCORERS, make_plan
from lmms_textweighted.prompts import SINGLE_PREDICTION_PROMPT, Message, make_message, user_message
from lmms_textweighted.tiny.questions import multiple_choice_text
from lmms_textweighted.tiny.testset import load_testset
from tests.conftest import (
    BY_SCORE,
    FAMILIES,
    IMAGE,
    assert_same_trace,
    assert_stages,
    make_anyres_inputs,
    make_inputs,
    one_row,
    picture_sizes,
)
from tests.oracles import best, budget, expected_stages, find_places, masked_generate, masked_logits
from tests.test_pruner import answers, plan_of
from tests.text_towers import prune_asked

every_attention = pytest.mark.parametrize("attn", ["eager", "sdpa"])
every_family = pytest.mark.parametrize("family", FAMILIES)

SQUARE, STRIP, SMALL, TOWER = (50, 50), (30, 200), (33, 47), (200, 30)  # 51, 22, 24 and 27 tokens
BUDGETS = {
    "tokens": [("text_weighted", 1, 10, 1)],
    "few": [("text_weighted", 1, 2, 1)],
    "share": [("text_weighted", 1, 0.2, 1)],
    "staged": [("uniform", 0, 30, 0), ("last_row", 1, 12, 1), ("text_weighted", 3, 4, 3)],
    "staged_shares": [("uniform", 0, 0.5, 0), ("text_weighted", 2, 0.3, 1)],
    "tokens_then_share": [("text_weighted", 0, 20, 0), ("last_row", 2, 0.5, 2)],
    "cut_off": [("text_weighted", 1, 5, 1), ("uniform", 2, 0, 2)],
    "gone_then_share": [("text_weighted", 0, 0, 0), ("uniform", 2, 0.5, 2)],
}


def scoped(stages, text_scope: str = "after", keep_scope: str = "image") -> Plan:
    return dataclasses.replace(plan_of(stages), text_scope=text_scope, keep_scope=keep_scope)


# What a budget counts.


@every_family
@pytest.mark.parametrize("keep_scope", KEEP_SCOPES)
@pytest.mark.parametrize("name", BUDGETS)
def test_a_budget_of_each_image_or_of_all_together(small_anyres, family, keep_scope, name):
    model = small_anyres(family)
    prompt = (2, SQUARE, 3, STRIP, SMALL, 5)
    inputs = make_anyres_inputs(model, [prompt], seed=1, cut_all=True)
    places = find_places(prompt, picture_sizes(model, prompt, cut_all=True))
    assert [len(image) for image in places.images] == [51, 22, 24]
    expected, removed = expected_stages(model, inputs, BUDGETS[name], places, keep_scope)
    with prune(model, scoped(BUDGETS[name], keep_scope=keep_scope)) as trace:
        logits = model(**inputs).logits[0, -1]
        tokens = answers(model, inputs, 3)
    document = trace.documents[0]
    assert_stages(document, expected)
    assert document.kept_tokens == len(expected[-1].kept)
    torch.testing.assert_close(logits.double(), masked_logits(model, inputs, removed), atol=1e-4, rtol=0)
    assert tokens == [masked_generate(model, inputs, removed, 3)]


def test_the_prompts_budget_may_leave_an_image_without_a_token(small_anyres):
    model = small_anyres("llava_next")
    prompt = (2, SQUARE, 3, STRIP, SMALL, 5)
    inputs = make_anyres_inputs(model, [prompt], seed=1)
    places = find_places(prompt, picture_sizes(model, prompt))
    counts = {}
    for scope in KEEP_SCOPES:
        with prune(model, scoped([("text_weighted", 1, 4, 1), ("uniform", 2, 3, 2)], keep_scope=scope)) as trace:
            model(**inputs)
        first, second = (set(stage.kept.tolist()) for stage in trace.documents[0].stages)
        counts[scope] = [[len(kept & set(image)) for image in places.images] for kept in (first, second)]
    assert counts["image"] == [[4, 4, 4], [3, 3, 3]]
    assert [sum(stage) for stage in counts["prompt"]] == [4, 3]
    assert 0 in counts["prompt"][0]


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_stage_without_image_tokens_names_no_voter_without_a_weight(small_llava, scorer):
    """A trace has one weight for each row that was read, also where there was nothing left to score."""
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)])
    with prune_asked(model, plan_of([("uniform", 1, 0, 1), (scorer, 3, 0.5, 3)]), inputs) as trace:
        model(**inputs)
    stage = trace.documents[0].stages[1]
    assert len(stage.candidates) == len(stage.kept) == 0
    assert len(stage.text) == len(stage.text_weights)


@pytest.mark.parametrize("keep_scope", KEEP_SCOPES)
@pytest.mark.parametrize("scorer", BY_SCORE)
def test_both_scopes_are_the_same_for_one_image(small_anyres, keep_scope, scorer):
    model = small_anyres("llava_next")
    inputs = make_anyres_inputs(model, [(3, SQUARE, 6)], seed=2)
    traces = []
    for scope in ("image", keep_scope):
        with prune(model, Plan("one", (Stage(SCORERS[scorer], 1, keep_tokens=9),), keep_scope=scope)) as trace:
            model(**inputs)
        traces.append(trace.documents[0])
    assert_same_trace(*traces)


@every_attention
@pytest.mark.parametrize("name", ["tokens", "staged", "staged_shares"])
def test_a_batch_under_the_prompts_budget_equals_its_rows(small_anyres, attn, name):
    model = small_anyres("llava_next", attn=attn)
    prompts = [(3, SQUARE, 6), (9,), (2, STRIP, SMALL, 4), (1, SMALL, 2, TOWER, SQUARE, 3)]
    plan = scoped(BUDGETS[name], keep_scope="prompt")
    with prune(model, plan) as batched:
        together = answers(model, make_anyres_inputs(model, prompts, 3))
    for row, tokens in enumerate(together):
        with prune(model, plan) as alone:
            assert answers(model, make_anyres_inputs(model, prompts[row : row + 1], 3, first=row)) == [tokens]
        assert_same_trace(batched.documents[row], alone.documents[0])


@pytest.mark.parametrize("keep_scope", KEEP_SCOPES)
def test_random_choice_keeps_the_best_of_its_scores_and_nests(small_anyres, keep_scope):
    model = small_anyres("llava_next")
    prompt = (2, SQUARE, 3, STRIP, 5)
    inputs = make_anyres_inputs(model, [prompt], seed=4)
    places, sets = find_places(prompt, picture_sizes(model, prompt)), []
    for keep in (3, 8, 21):
        with prune(model, make_plan("random", keep_tokens=keep, pruning_layer=1, keep_scope=keep_scope)) as trace:
            model(**inputs)
        (stage,) = trace.documents[0].stages
        scores = dict(zip(stage.candidates.tolist(), stage.scores.tolist(), strict=True))
        groups = places.images if keep_scope == "image" else [places.image_tokens]
        assert stage.kept.tolist() == [k for group in groups for k in best({k: scores[k] for k in group}, keep)]
        sets.append(set(stage.kept.tolist()))
    assert sets[0] < sets[1] < sets[2]


@every_family
def test_a_budget_above_a_pictures_tokens_keeps_the_picture_whole(small_anyres, family):
    """How many tokens a picture has is the picture's matter: `keep_tokens` is a limit, not a promise."""
    model = small_anyres(family)
    inputs = make_anyres_inputs(model, [(3, STRIP, 6), (2, SQUARE, STRIP, 4)], seed=5, cut_all=True)
    plain = model(**inputs).logits[:, -1]
    for keep_scope, keep, kept in [
        ("image", 30, [22, 30 + 22]),
        ("prompt", 30, [22, 30]),
        ("image", 10_000, [22, 73]),
        ("prompt", 10_000, [22, 73]),
    ]:
        with prune(model, scoped([("text_weighted", 1, keep, 1)], keep_scope=keep_scope)) as trace:
            logits = model(**inputs).logits[:, -1]
        assert [document.kept_tokens for document in trace.documents] == kept
        assert torch.equal(logits, plain) == (keep == 10_000)


def test_a_later_stage_above_what_is_left_changes_nothing(small_anyres):
    model = small_anyres("llava_next")
    with prune(model, scoped([("uniform", 0, 6, 0), ("uniform", 2, 9, 2)], keep_scope="prompt")) as trace:
        model(**make_anyres_inputs(model, [(2, SQUARE, STRIP, 4)]))
    assert trace.documents[0].image_lengths == [73, 6, 6, 6, 6]


@pytest.mark.parametrize(("prompts", "keep"), [([(3, IMAGE, 6)], 17), ([(3, IMAGE, IMAGE, 6)], 20)])
def test_an_images_budget_above_a_fixed_number_of_tokens_is_a_mistake(small_llava, prompts, keep):
    model = small_llava()
    assert model.config.image_seq_length == 16
    with (
        prune(model, make_plan(keep_tokens=keep)),
        pytest.raises(PlanError, match=f"keep_tokens is {keep}, but the image has 16"),
    ):
        model(**make_inputs(model, prompts))


def test_a_prompts_budget_is_a_limit_that_one_with_fewer_images_may_stay_below(small_llava):
    model = small_llava()
    with prune(model, make_plan(keep_tokens=20, keep_scope="prompt")) as trace:
        model(**make_inputs(model, [(3, IMAGE, IMAGE, 6), (3, IMAGE, 6), (4,)]))
    assert [document.kept_tokens for document in trace.documents] == [20, 16, 0]


def test_the_prompts_budget_may_be_all_of_its_images(small_llava):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, IMAGE, 6), (9,)])
    plain = model(**inputs).logits
    with prune(model, make_plan(keep_tokens=32, keep_scope="prompt")) as trace:
        assert torch.equal(model(**inputs).logits, plain)
    assert [document.kept_tokens for document in trace.documents] == [32, 0]


def test_a_stage_above_the_one_in_front_is_a_mistake_where_sizes_are_fixed(small_llava):
    model = small_llava()
    plan = scoped([("uniform", 1, 4, 1), ("uniform", 3, 5, 3)])
    with prune(model, plan), pytest.raises(PlanError, match="keep_tokens is 5, but the image has 4 tokens before"):
        model(**make_inputs(model, [(3, IMAGE, IMAGE, 6)]))


@given(
    sizes=st.lists(st.integers(0, 12), max_size=4),
    keep=st.one_of(st.integers(0, 40), st.floats(0.01, 1), st.sampled_from([0.1, 0.29, 0.5, 0.7])),
    keep_scope=st.sampled_from(KEEP_SCOPES),
    levels=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_the_chosen_tokens_are_the_best_of_each_group(sizes, keep, keep_scope, levels, seed):
    """Few levels make ties, of which the earlier token stays."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (sum(sizes),), generator=generator).float()
    stage = Stage(SCORERS["uniform"], 1, **{"keep_tokens" if isinstance(keep, int) else "keep_ratio": keep})
    chosen, counts = choose_tokens(scores, sizes, stage.keep, keep_scope)

    groups, start = [], 0
    for size in sizes:
        groups.append(list(range(start, start + size)))
        start += size
    bins = groups if keep_scope == "image" else [list(range(start))]
    expected = [k for group in bins for k in best({k: float(scores[k]) for k in group}, budget(keep, len(group)))]
    assert chosen.tolist() == expected
    assert counts == tuple(len(set(group) & set(expected)) for group in groups)


# Which text votes.

PROMPTS = {
    "one_image": (4, IMAGE, 9),
    "apart": (3, IMAGE, 4, IMAGE, 8),
    "touching": (5, IMAGE, IMAGE, 7),
    "image_first": (IMAGE, 3, IMAGE, 6),
}
VOTES = [
    ("text_weighted", 2, 5, 2),
    ("text_weighted_debiased", 2, 5, 2),
    ("uniform", 0, 7, 0),
    ("last_row", 1, 3, 1),
]


def some_of(prompt, seed: int = 0) -> torch.Tensor:
    """A question: about half of a prompt's text tokens, and one that stands behind the last image, not the last."""
    count = sum(part for part in prompt if isinstance(part, int))
    asked = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
    asked[-1], asked[-2] = False, True
    return asked


@every_attention
@pytest.mark.parametrize("text_scope", TEXT_SCOPES)
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("stage", VOTES, ids=lambda stage: stage[0])
def test_scores_are_those_of_the_text_that_votes(small_llava, attn, text_scope, prompt, stage):
    model = small_llava(attn=attn)
    inputs, asked = make_inputs(model, [prompt], seed=1), some_of(prompt)
    sizes = [16] * prompt.count(IMAGE)
    places = find_places(prompt, sizes, text_scope, asked.tolist())
    expected, removed = expected_stages(model, inputs, [stage], places)
    question = [asked] if text_scope == "question" else None
    with prune(model, scoped([stage], text_scope), question=question) as trace:
        logits = model(**inputs).logits[0, -1]
    (document,) = trace.documents
    assert_stages(document, expected)
    torch.testing.assert_close(logits.double(), masked_logits(model, inputs, removed), atol=1e-4, rtol=0)

    voters = [document.full_length - 1] if stage[0] == "last_row" else places.text
    assert document.stages[0].text.tolist() == voters
    summary = document.summary()
    assert (summary["text_scope"], summary["text_positions"]) == (text_scope, [voters])


def test_the_scopes_differ(small_llava):
    """Otherwise the comparisons above would say nothing."""
    model = small_llava()
    prompt = PROMPTS["apart"]
    inputs, found = make_inputs(model, [prompt], seed=1), []
    for text_scope in TEXT_SCOPES:
        with prune(model, scoped([VOTES[0]], text_scope), question=[some_of(prompt)]) as trace:
            model(**inputs)
        found.append(trace.documents[0].stages[0])
    assert len({tuple(stage.text.tolist()) for stage in found}) == 3
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (found[a].scores - found[b].scores).abs().max() > 1e-3


@pytest.mark.parametrize("scorer", ["last_row", "random"])
def test_a_scorer_without_votes_gives_the_same_under_every_scope(small_llava, scorer):
    """FastV reads the prompt's last token, also where that is not the question's."""
    model = small_llava()
    prompt = PROMPTS["apart"]
    inputs, traces = make_inputs(model, [prompt], seed=2), []
    for text_scope in TEXT_SCOPES:
        plan = Plan("scoped", (Stage(SCORERS[scorer], 2, keep_tokens=5),), text_scope)
        with prune(model, plan, question=[some_of(prompt)]) as trace:
            model(**inputs)
        traces.append(trace.documents[0])
    assert traces[0].stages[0].text.tolist() == ([46] if scorer == "last_row" else [])
    for other in traces[1:]:
        assert_same_trace(traces[0], other)


@every_family
@pytest.mark.parametrize("text_scope", TEXT_SCOPES)
@pytest.mark.parametrize("keep_scope", KEEP_SCOPES)
def test_both_scopes_at_once_stage_by_stage(small_anyres, family, text_scope, keep_scope):
    """The text that votes stays the same while images grow shorter."""
    model = small_anyres(family)
    prompt = (3, SQUARE, 4, STRIP, SMALL, 6)
    inputs, asked = make_anyres_inputs(model, [prompt], seed=3), some_of(prompt)
    places = find_places(prompt, picture_sizes(model, prompt), text_scope, asked.tolist())
    stages = [("text_weighted", 0, 0.5, 0), ("last_row", 1, 9, 1), ("text_weighted_debiased", 3, 4, 2)]
    expected, removed = expected_stages(model, inputs, stages, places, keep_scope)
    with prune(model, scoped(stages, text_scope, keep_scope), question=[asked]) as trace:
        tokens = answers(model, inputs, 4)
    (document,) = trace.documents
    assert_stages(document, expected)
    assert document.summary()["keep_scope"] == keep_scope
    assert document.summary()["text_positions"] == [places.text, [document.full_length - 1], places.text]
    assert tokens == [masked_generate(model, inputs, removed, 4)]


@every_attention
@pytest.mark.parametrize("text_scope", ["all", "question"])
def test_a_padded_batch_votes_as_its_rows_do(small_llava, attn, text_scope):
    model = small_llava(attn=attn)
    prompts = [PROMPTS["one_image"], (6,), PROMPTS["apart"], PROMPTS["touching"]]
    inputs = make_inputs(model, prompts, seed=4)
    asked = [some_of(prompt, seed) if IMAGE in prompt else None for seed, prompt in enumerate(prompts)]
    plan = scoped([("text_weighted", 1, 9, 1), ("uniform", 3, 4, 2)], text_scope)
    with prune(model, plan, question=asked) as batched:
        together = answers(model, inputs)
    for row, tokens in enumerate(together):
        with prune(model, plan, question=asked[row : row + 1]) as alone:
            assert answers(model, one_row(model, inputs, row)) == [tokens]
        assert_same_trace(batched.documents[row], alone.documents[0])


def test_beam_search_with_questions_equals_its_rows_one_by_one(small_llava):
    model = small_llava()
    prompts = [PROMPTS["one_image"], (6,), PROMPTS["apart"]]
    inputs = make_inputs(model, prompts, seed=5)
    asked = [some_of(prompts[0], 1), None, some_of(prompts[2], 2)]
    plan = scoped([VOTES[0]], "question")
    with prune(model, plan, question=asked) as batched:
        together = answers(model, inputs, 5, num_beams=3)
    for row, tokens in enumerate(together):
        with prune(model, plan, question=asked[row : row + 1]) as alone:
            assert answers(model, one_row(model, inputs, row), 5, num_beams=3) == [tokens]
        for beam in range(3):
            assert_same_trace(batched.documents[3 * row + beam], alone.documents[beam])


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (None, "needs to know where the question is"),
        ([None], "needs to know where the question is"),
        ([torch.ones(10, dtype=torch.bool)], "question has 10 entries, but the prompt has 9 text tokens"),
        ([torch.ones(25, dtype=torch.bool)], "question has 25 entries, but the prompt has 9 text tokens"),
        ([torch.arange(9) < 3], "no token of the question stands after the last image"),
        ([torch.zeros(9, dtype=torch.bool)], "no token of the question stands after the last image"),
        ([torch.ones(9, dtype=torch.bool)] * 2, "2 question masks for a batch of 1"),
        ([], "0 question masks for a batch of 1"),
    ],
    ids=["none", "none_for_the_row", "long", "whole_prompt", "before_the_image", "nowhere", "two_rows", "no_rows"],
)
def test_a_question_that_does_not_fit_is_an_error(small_llava, question, message):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)])
    plain = model(**inputs).logits
    with prune(model, scoped([VOTES[0]], "question"), question=question), pytest.raises(PlanError, match=message):
        model(**inputs)
    assert torch.equal(model(**inputs).logits, plain)


def test_a_row_without_images_needs_no_question(small_llava):
    model = small_llava()
    with prune(model, scoped([VOTES[0]], "question"), question=[None, torch.ones(9, dtype=torch.bool)]) as trace:
        model(**make_inputs(model, [(30,), (3, IMAGE, 6)]))
    assert [document.stages[0].text.tolist() for document in trace.documents] == [
        [],
        [0, 1, 2, *range(19, 25)],
    ]


def test_a_plan_that_removes_nothing_needs_no_question(small_llava):
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)])
    with prune(model, make_plan("none", text_scope="question"), ranks=True) as trace:
        model(**inputs)
    assert trace.documents[0].kept_tokens == 16


@pytest.mark.parametrize(
    ("scopes", "message"),
    [
        ({"text_scope": "questions"}, "text_scope.*did you mean 'question'"),
        ({"keep_scope": "prompts"}, "keep_scope.*did you mean 'prompt'"),
    ],
)
def test_an_unknown_scope_is_an_error_that_names_the_nearest(scopes, message):
    with pytest.raises(PlanError, match=message):
        make_plan(**scopes)


def test_a_plans_scopes_are_in_its_description():
    described = make_plan(text_scope="all", keep_scope="prompt").to_dict()
    assert (described["text_scope"], described["keep_scope"]) == ("all", "prompt")
    assert make_plan().to_dict() == make_plan(text_scope="after", keep_scope="image").to_dict()


@given(
    prompt=st.lists(st.one_of(st.integers(1, 5), st.just(IMAGE)), min_size=1, max_size=6),
    text_scope=st.sampled_from(TEXT_SCOPES),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    data=st.data(),
)
def test_any_layouts_voters_are_those_of_the_naive_one(prompt, text_scope, padding, data):
    sizes = [data.draw(st.integers(1, 5)) for part in prompt if part == IMAGE]
    count = sum(part for part in prompt if part != IMAGE)
    asked = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    expected = find_places(prompt, sizes, text_scope, asked)
    assume(not sizes or any(place > expected.images[-1][-1] for place in expected.text))
    length = count + sum(sizes)
    ids = torch.zeros(sum(padding) + length, dtype=torch.int64)
    ids[[padding[0] + place for place in expected.image_tokens]] = IMAGE_ID
    valid = torch.zeros(len(ids), dtype=torch.bool)
    valid[padding[0] : padding[0] + length] = True

    layout = find_layout(
        Prompts(ids[None], valid[None], (tuple(sizes),)), torch.device("cpu"), text_scope, [torch.tensor(asked).bool()]
    )
    shift = [place + padding[0] for place in (expected.text if sizes else [])]
    assert layout.text[0].nonzero().flatten().tolist() == shift
    numbers = [-1] * len(ids)
    for number, image in enumerate(expected.images):
        for place in image:
            numbers[padding[0] + place] = number
    assert layout.image[0].tolist() == numbers
    assert (layout.starts, layout.lengths, layout.text_lengths) == ((padding[0],), (length,), (len(shift),))


# The fan-out and the sweep choose as `prune` does.


@pytest.mark.parametrize(
    ("scorer", "text_scope", "keep_scope"),
    [
        *((scorer, "question", "prompt") for scorer in BY_SCORE),
        ("text_weighted", "after", "image"),
        ("text_weighted", "after", "prompt"),
        ("text_weighted", "all", "prompt"),
        ("last_row", "all", "image"),
    ],
)
def test_a_prefix_chooses_as_prune_does(small_anyres, scorer, text_scope, keep_scope):
    model = small_anyres("llava_next")
    prompt = (3, SQUARE, 4, STRIP, SMALL, 6)
    inputs, asked = make_anyres_inputs(model, [prompt], seed=6), some_of(prompt)
    prefix = run_prefix(model, inputs, 1, [SCORERS[scorer]], text_scope=text_scope, question=asked)
    budgets = [60, 10, 1, 0]
    kept = [prefix.keep(SCORERS[scorer], keep, keep_scope) for keep in budgets]
    continuations = continue_prefix(model, prefix, kept, max_new_tokens=4, ranks=True)
    for keep, positions, continuation in zip(budgets, kept, continuations, strict=True):
        plan = Plan("one", (Stage(SCORERS[scorer], 1, keep_tokens=keep),), text_scope, keep_scope)
        with prune(model, plan, ranks=True, question=[asked]) as trace:
            assert answers(model, inputs, 4) == [continuation.tokens]
        (stage,) = trace.documents[0].stages
        assert positions.tolist() == stage.kept.tolist()
        torch.testing.assert_close(prefix.scores[SCORERS[scorer]], stage.scores, atol=1e-6, rtol=0)
        ranks = trace.documents[0].ranks
        assert (continuation.ranks is None) == (ranks is None) == (keep == 0)
        assert ranks is None or continuation.ranks.effective == pytest.approx(ranks.effective, rel=1e-4)


@pytest.mark.parametrize("question", [None, torch.ones(3, dtype=torch.bool)])
def test_a_prefix_without_its_question_is_an_error(small_llava, question):
    model = small_llava()
    with pytest.raises(PlanError, match="question"):
        run_prefix(
            model,
            make_inputs(model, [(3, IMAGE, 6)]),
            1,
            [SCORERS["uniform"]],
            text_scope="question",
            question=question,
        )


# The embedded model, end to end.


@pytest.fixture(scope="module")
def tiny():
    return load("tiny")


@pytest.fixture(scope="module")
def testset():
    return load_testset().select(range(40))


def hinted(testset, hint: bool, count: int) -> list:
    return [item for item in testset if bool(item["hint"]) == hint][:count]


def message_of(item) -> Message:
    return user_message(multiple_choice_text(item), [item["image"]])


def asked_of(item) -> str:
    """The question of a multiple-choice text: what stands in front of the options."""
    return multiple_choice_text(item).split("\nA. ")[0]


def decoded(llava, inputs, marks, row: int = 0) -> str:
    """The text of a row's marked text tokens."""
    ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
    text = ids[ids != llava.model.config.image_token_id]
    assert len(marks) == len(text)
    return llava.processor.tokenizer.decode(text[marks])


@pytest.mark.parametrize("template", ["vicuna_v1", "hf"])
@pytest.mark.parametrize("hint", [False, True], ids=["plain", "with_context"])
def test_the_marked_tokens_are_exactly_the_question(tiny, testset, template, hint):
    """No options, no instruction, no role tags, no system prompt; a context in front belongs to the question."""
    llava = PrunedLlava(*tiny, template=template)
    items = hinted(testset, hint, 4)
    for item in items:
        assert asked_of(item) == (f"Context: {item['hint']}\n" if hint else "") + item["question"]
        encoded = llava.encode([[message_of(item)]], question=True)
        assert decoded(llava, encoded.inputs, encoded.question[0]) == asked_of(item)
    together = llava.encode([[message_of(item)] for item in items], question=True)
    for row, item in enumerate(items):
        assert decoded(llava, together.inputs, together.question[row], row) == asked_of(item)


@pytest.mark.parametrize("template", ["vicuna_v1", "hf"])
def test_the_question_is_that_of_the_last_turn(tiny, testset, template):
    """An earlier turn asks the same in the same words, and the answer in between repeats it."""
    llava = PrunedLlava(*tiny, template=template)
    (item,) = hinted(testset, False, 1)
    again = multiple_choice_text(item)
    conversation = [message_of(item), make_message("assistant", [("text", item["question"])])]
    encoded = llava.encode([[*conversation, user_message(again, [])]], question=True)
    marks = encoded.question[0]
    assert decoded(llava, encoded.inputs, marks) == item["question"]
    places = marks.nonzero().flatten().tolist()
    assert places == list(range(places[0], places[-1] + 1))
    behind = torch.zeros_like(marks)
    behind[places[-1] + 1 :] = True
    assert decoded(llava, encoded.inputs, behind).startswith("\nA. ")
    assert decoded(llava, encoded.inputs, behind).count(item["question"]) == 0


@pytest.mark.parametrize("template", ["vicuna_v1", "hf"])
def test_a_tag_inside_of_the_question_is_no_part_of_its_text(tiny, testset, template):
    llava = PrunedLlava(*tiny, template=template)
    (item,) = hinted(testset, False, 1)
    text = "What is in <image> and not red?\nA. a disc\nB. a ring\nAnswer with the option's letter."
    encoded = llava.encode([[user_message(text, [item["image"]])]], question=True)
    assert decoded(llava, encoded.inputs, encoded.question[0]) == "What is in  and not red?"


@pytest.mark.parametrize("template", ["vicuna_v1", "hf"])
@pytest.mark.parametrize("text", ["A", "S\nA. red\nB. blue"])
def test_a_short_question_is_not_looked_for_in_the_role_tag_behind_it(tiny, testset, template, text):
    """ASSISTANT: has an A, too."""
    llava = PrunedLlava(*tiny, template=template)
    encoded = llava.encode([[user_message(text, [testset[0]["image"]])]], question=True)
    marks = encoded.question[0]
    assert decoded(llava, encoded.inputs, marks) == text[0]
    in_front = marks.cumsum(0) == 0
    assert decoded(llava, encoded.inputs, in_front).endswith("USER: \n")


def test_a_conversation_without_a_question_is_an_error(tiny, testset):
    llava = PrunedLlava(*tiny)
    (item,) = hinted(testset, False, 1)
    with pytest.raises(InputError, match="has no question"):
        llava.encode([[user_message(SINGLE_PREDICTION_PROMPT, [item["image"]])]], question=True)


@pytest.mark.parametrize("template", ["vicuna_v1", "hf"])
def test_the_traced_voters_of_a_generation_are_the_question(tiny, testset, template):
    plan = make_plan(keep_tokens=64, text_scope="question")
    llava = PrunedLlava(*tiny, plan, template=template)
    items = [*hinted(testset, False, 2), *hinted(testset, True, 1)]
    batch = [[message_of(item)] for item in items]
    batch.insert(1, [user_message("What is red?", [])])
    answers_ = llava.generate(batch, Decoding(max_new_tokens=4))
    assert answers_[1].trace.stages[0].text.tolist() == []
    del batch[1], answers_[1]
    for conversation, item, answer in zip(batch, items, answers_, strict=True):
        ids = llava.encode([conversation]).inputs["input_ids"][0]
        assert llava.processor.tokenizer.decode(ids[answer.trace.stages[0].text]) == asked_of(item)
        (alone,) = llava.generate([conversation], Decoding(max_new_tokens=4))
        assert alone.text == answer.text
        assert_same_trace(alone.trace, answer.trace)
    loss, _, document = llava.loss(batch[0], "A")
    assert loss > 0
    assert document.stages[0].text.tolist() == answers_[0].trace.stages[0].text.tolist()


@pytest.mark.parametrize(
    ("text_scope", "keep_scope"), [("after", "prompt"), ("all", "image"), ("question", "image"), ("question", "prompt")]
)
def test_the_sweep_chooses_as_prune_does(tiny, testset, monkeypatch, text_scope, keep_scope):
    llava = PrunedLlava(*tiny)
    first, second = hinted(testset, False, 2)
    message = user_message(multiple_choice_text(first), [first["image"], second["image"]])
    points = sweep.make_points(
        ["text_weighted", "fastv", "random", "none"], [96, 9], 2, text_scope=text_scope, keep_scope=keep_scope
    )
    kept = set()

    def spied(model, prefix, sets, **kwargs):
        kept.update(tuple(positions.tolist()) for positions in sets)
        return continue_prefix(model, prefix, sets, **kwargs)

    monkeypatch.setattr(sweep, "continue_prefix", spied)
    decoding = Decoding(max_new_tokens=3)
    outcomes = sweep.run_document(
        llava, message, points, decoding=decoding, ranks=False, judge=lambda answer: (0.0, False)
    )
    found = set()
    for point, outcome in zip(points, outcomes, strict=True):
        alone = PrunedLlava(*tiny, point.plan).generate([[message]], decoding)[0]
        assert outcome.answer == alone.text
        assert outcome.kept_tokens == alone.trace.kept_tokens
        assert outcome.flops_ratio == pytest.approx(alone.trace.flops_ratio)
        if point.stage:
            assert alone.trace.kept_tokens == point.budget * (2 if keep_scope == "image" else 1)
            found.add(tuple(alone.trace.stages[0].kept.tolist()))
    start = min(min(positions) for positions in kept)
    assert kept - {tuple(range(start, start + 576)) + tuple(range(start + 577, start + 1153))} == found


def test_points_of_different_scopes_each_choose_their_own_way(tiny, testset):
    """One call may be given points of several scopes. A PlanError would do, the first one's scope for all does not."""
    (item,) = hinted(testset, False, 1)
    message = user_message(multiple_choice_text(item), [item["image"]] * 2)
    points = [
        point
        for text_scope, keep_scope in [("after", "image"), ("question", "prompt"), ("all", "image")]
        for point in sweep.make_points(["text_weighted"], [9], 2, text_scope=text_scope, keep_scope=keep_scope)
    ]
    decoding = Decoding(max_new_tokens=1)
    try:
        outcomes = sweep.run_document(
            PrunedLlava(*tiny), message, points, decoding=decoding, ranks=True, judge=lambda answer: (0.0, False)
        )
    except PlanError:
        return
    for point, outcome in zip(points, outcomes, strict=True):
        alone = PrunedLlava(*tiny, point.plan).generate([[message]], decoding, ranks=True)[0]
        assert outcome.kept_tokens == alone.trace.kept_tokens
        assert outcome.effective_rank == pytest.approx(alone.trace.ranks.effective_mean, rel=1e-3)


def test_the_sweep_keeps_what_prune_keeps_of_a_prompts_budget_above_its_image(tiny, testset):
    (item,) = hinted(testset, False, 1)
    (point,) = sweep.make_points(["text_weighted"], [600], 2, keep_scope="prompt")
    answer = PrunedLlava(*tiny, point.plan).generate([[message_of(item)]], Decoding(max_new_tokens=1))[0]
    outcome = sweep.run_document(
        PrunedLlava(*tiny),
        message_of(item),
        [point],
        decoding=Decoding(max_new_tokens=1),
        ranks=False,
        judge=lambda answer: (0.0, False),
    )[0]
    assert answer.trace.kept_tokens == outcome.kept_tokens == 576
    assert answer.text == outcome.answer
