"""What a plan can ask beyond dropping in place: renumbered positions, scores of the next layer, merged tokens, the
embeddings, and other rows; each against layers that are called one by one in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from lmms_textweighted import geometry_of, make_plan, prune
from lmms_textweighted.engine.caches import CACHE_NAME
from lmms_textweighted.engine.fanout import can_share
from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.engine.scoring import Choice, Leaving, Merged, Rows, RowWeighting, Scorer, Seen, choose_tokens
from lmms_textweighted.errors import PlanError
from lmms_textweighted.families.attach import run_prefix
from lmms_textweighted.methods import SCORERS
from lmms_textweighted.methods.uniform import uniform_weights
from tests.conftest import IMAGE, make_inputs, one_row
from tests.naive import Removal, naive_generate, naive_logits, naive_run
from tests.test_pruner import answers

KERNELS = pytest.mark.parametrize("attn", ["eager", "sdpa"])


@dataclass(frozen=True)
class MergeLeft(Scorer):
    """Keeps the best, and the mean of what it drops behind them: a token in the place of the last one dropped."""

    name: str = "merge_left"
    reads: Rows = Rows.TEXT
    merges: ClassVar[bool] = True

    def score(self, seen: Seen):
        return SCORERS["uniform"].score(seen)

    def choose(self, leaving: Leaving) -> Choice:
        kept, sizes = choose_tokens(leaving.scores, leaving.sizes, lambda n: leaving.keep(n) - 1, "image")
        parts, merged, start = [], [], 0
        for size in leaving.sizes:
            mine = kept[(kept >= start) & (kept < start + size)]
            left = torch.tensor([k for k in range(start, start + size) if k not in mine.tolist()])
            parts += [mine, left[-1:]]
            vector = leaving.hidden[leaving.image[left]].mean(dim=0)
            merged.append(Merged(sum(map(len, parts)) - 1, vector, torch.cat([left[-1:], left[:-1]])))
            start += size
        return Choice(torch.cat(parts), tuple(count + 1 for count in sizes), tuple(merged))


@dataclass(frozen=True)
class LongestKeys(Scorer):
    """Keeps the image tokens with the largest |k|_1, and reads no attention."""

    name: str = "longest_keys"
    reads: Rows = Rows.KEYS

    def score(self, seen: Seen):
        assert seen.attention is None
        norms = seen.keys.abs().sum(dim=-1)
        return norms[seen.image], norms[seen.rows]


def removals(trace, inputs, plan) -> list[Removal]:
    """What a trace says left, for the naive model: text stays in its place, image tokens in the order of the trace."""
    found, before = [], list(range(inputs["input_ids"].shape[1]))
    for stage, planned in zip(trace.documents[0].stages, plan.stages, strict=True):
        gone = set(stage.candidates.tolist()) - set(stage.kept.tolist())
        queue = iter(stage.kept.tolist())
        stays = [next(queue) if p in set(stage.kept.tolist()) else p for p in before if p not in gone]
        found.append(Removal(stage.layer, stays, stage.sources, plan.positions_of(planned) == "renumber"))
        before = stays
    return found


PLANS = {
    "renumbered": lambda: Plan("a", (Stage(SCORERS["uniform"], 1, keep_tokens=4),), positions="renumber"),
    "renumbered twice": lambda: Plan(
        "b",
        (Stage(SCORERS["text_weighted"], 1, keep_tokens=9), Stage(SCORERS["last_row"], 3, keep_tokens=3)),
        positions="renumber",
    ),
    "next layer": lambda: Plan("c", (Stage(SCORERS["last_row"], 1, keep_tokens=5, score_layer=2),)),
    "next layer, twice, renumbered": lambda: Plan(
        "d",
        (
            Stage(SCORERS["last_row"], 1, keep_ratio=0.5, score_layer=2, keep_of="original"),
            Stage(SCORERS["last_row"], 3, keep_ratio=0.25, score_layer=4, keep_of="original"),
        ),
        positions="renumber",
    ),
    "merged": lambda: Plan("e", (Stage(MergeLeft(), 1, keep_tokens=5),)),
    "merged, renumbered, then pruned": lambda: Plan(
        "f", (Stage(MergeLeft(), 1, keep_tokens=6), Stage(SCORERS["uniform"], 3, keep_tokens=4)), positions="renumber"
    ),
    "at the embeddings": lambda: Plan("g", (Stage(SCORERS["random"], -1, keep_tokens=6),)),
    "at the embeddings, renumbered, then inside": lambda: Plan(
        "h",
        (Stage(SCORERS["random"], -1, keep_tokens=8), Stage(SCORERS["text_weighted"], 2, keep_tokens=3)),
        positions="renumber",
    ),
    "at the embeddings, renumbered, then inside, kept": lambda: Plan(
        "l",
        (
            Stage(SCORERS["random"], -1, keep_tokens=8, positions="renumber"),
            Stage(SCORERS["text_weighted"], 2, keep_tokens=3),
        ),
    ),
    "kept, renumbered, kept": lambda: Plan(
        "m",
        (
            Stage(SCORERS["last_row"], 0, keep_tokens=7, positions="keep"),
            Stage(SCORERS["uniform"], 1, keep_tokens=5),
            Stage(SCORERS["last_row"], 3, keep_tokens=3, positions="keep"),
        ),
        positions="renumber",
    ),
    "image rows": lambda: Plan(
        "i", (Stage(RowWeighting("image_rows", uniform_weights, Rows.IMAGE), 1, keep_tokens=4),)
    ),
    "keys": lambda: Plan("k", (Stage(LongestKeys(), 1, keep_tokens=4),)),
    "all rows": lambda: Plan("j", (Stage(RowWeighting("all_rows", uniform_weights, Rows.ALL), 1, keep_tokens=4),)),
}


@KERNELS
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("prompt", [(3, IMAGE, 6), (2, IMAGE, 3, IMAGE, 5)])
def test_the_prefill_equals_layers_called_one_by_one(small_llava, attn, name, prompt):
    model = small_llava(attn=attn)
    plan = PLANS[name]()
    inputs = make_inputs(model, [prompt], seed=3)
    with prune(model, plan) as trace:
        logits = model(**inputs).logits[0, -1]
    expected = naive_logits(model, inputs, removals(trace, inputs, plan))
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=0)
    whole = naive_logits(model, inputs, [])
    assert (expected - whole).abs().max() > 1e-3


@KERNELS
@pytest.mark.parametrize("name", PLANS)
def test_generation_equals_the_naive_decoder_token_for_token(small_llava, attn, name):
    model = small_llava(attn=attn)
    plan = PLANS[name]()
    inputs = make_inputs(model, [(3, IMAGE, 6)], seed=4)
    with prune(model, plan) as trace:
        found = answers(model, inputs, 6)
    assert found == [naive_generate(model, inputs, removals(trace, inputs, plan), 6)]


@KERNELS
@pytest.mark.parametrize("name", PLANS)
def test_a_padded_batch_equals_each_row_alone(small_llava, attn, name):
    model = small_llava(attn=attn)
    plan = PLANS[name]()
    inputs = make_inputs(model, [(3, IMAGE, 9), (1, IMAGE, 4), (7,)], seed=5)
    # As `generate` counts them. A bare forward counts padding, too, and keys (after RoPE) depend on where they stand.
    positions = (inputs["attention_mask"].cumsum(dim=-1) - 1).clamp(min=0)
    with prune(model, plan) as trace:
        logits = model(**inputs, position_ids=positions).logits[:, -1]
        together = answers(model, inputs, 4)
    for row in range(3):
        single = one_row(model, inputs, row)
        with prune(model, plan) as alone:
            assert torch.allclose(model(**single).logits[0, -1], logits[row], atol=1e-4)
            assert answers(model, single, 4) == [together[row]]
        for mine, other in zip(alone.documents[0].stages, trace.documents[row].stages, strict=True):
            assert mine.kept.tolist() == other.kept.tolist()
            assert mine.sources == other.sources


def test_the_next_layer_scores_by_its_own_norm_queries_and_keys(small_llava):
    """A layer's own attention, run on what leaves the layer below, has these scores; the layer below's has others."""
    model = small_llava(attn="eager")
    inputs = make_inputs(model, [(3, IMAGE, 6)], seed=6)
    stage = Stage(SCORERS["last_row"], 1, keep_tokens=5, score_layer=2)
    with prune(model, Plan("next", (stage,))) as trace:
        model(**inputs)
    attentions = model(**inputs, output_attentions=True).attentions
    image = list(range(3, 19))
    expected, below = (attentions[layer][0].mean(dim=0)[-1, image] for layer in (2, 1))
    found = trace.documents[0].stages[0].scores
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert (found - below).abs().max() > 1e-3


def test_a_share_may_be_of_what_there_was_at_first(small_llava):
    model = small_llava()
    ratios = (0.5, 0.25, 0.125)
    stages = tuple(
        Stage(SCORERS["last_row"], layer, keep_ratio=ratio, keep_of="original")
        for layer, ratio in zip((0, 1, 2), ratios, strict=True)
    )
    with prune(model, Plan("pyramid", stages)) as trace:
        model(**make_inputs(model, [(3, IMAGE, 6)]))
    assert trace.documents[0].image_lengths == [16, 8, 4, 2, 2, 2]


def test_a_renumbered_prompt_pruned_at_the_embeddings_is_a_shorter_prompt(small_llava):
    """The same hidden states enter every layer as for a prompt that never had the other tokens."""
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)], seed=8)
    plan = Plan("pre", (Stage(SCORERS["random"], -1, keep_tokens=5),), positions="renumber")
    with prune(model, plan) as trace:
        cache = model(**inputs, use_cache=True)
    (document,) = trace.documents
    assert document.lengths == [14] * 6
    assert document.equivalent_tokens == 5
    _, entered = naive_run(model, inputs, removals(trace, inputs, plan))
    assert [len(hidden) for hidden in entered] == [14] * 6
    assert cache.logits.shape[1] == 14


def test_what_a_merged_token_is_made_of_stands_in_the_trace(small_llava):
    model = small_llava()
    with prune(model, PLANS["merged"]()) as trace:
        model(**make_inputs(model, [(3, IMAGE, 6)]))
    (stage,) = trace.documents[0].stages
    ((token, sources),) = stage.sources.items()
    assert stage.kept.tolist()[-1] == token == sources[0]
    assert sorted(sources + stage.kept.tolist()[:-1]) == stage.candidates.tolist()


def test_the_selection_has_a_cost_of_its_own(small_llava):
    model = small_llava()
    with prune(model, PLANS["renumbered"]()) as trace:
        model(**make_inputs(model, [(3, IMAGE, 6)]))
    (document,) = trace.documents
    shape = document.shape
    assert document.selection_flops == 2 * 6 * 25 * shape.heads * shape.head_dim
    assert document.selection_seconds > 0
    with prune(model, PLANS["next layer"]()) as trace:
        model(**make_inputs(model, [(3, IMAGE, 6)]))
    width = shape.head_dim * (shape.heads + 2 * shape.kv_heads)
    expected = 2 * 25 * shape.heads * shape.head_dim + 2 * 25 * shape.hidden * width
    assert trace.documents[0].selection_flops == expected


def test_a_scorer_of_keys_alone_costs_a_pass_over_them(small_llava):
    """25 tokens, an absolute value and a sum for each element of the keys; DART's scores are no more, nor its rows."""
    model = small_llava()
    for plan in (PLANS["keys"](), make_plan("dart", keep_tokens=6, geometry=geometry_of(model))):
        with prune(model, plan) as trace:
            model(**make_inputs(model, [(3, IMAGE, 6), (7,)]))
        first, text_only = trace.documents
        shape = first.shape
        # DART's choice: the cosines of 8 pivots to the 16 image tokens.
        pivots = 2 * 8 * 16 * shape.hidden if plan.name == "dart" else 0
        assert first.selection_flops == 2 * 25 * shape.kv_heads * shape.head_dim + pivots
        assert text_only.selection_flops == 0
        assert first.stages[0].text.tolist() == list(range(19, 25))
        assert len(first.stages[0].text_weights) == 6


def test_a_scorer_of_keys_alone_is_given_those_of_its_layer(small_llava):
    """Held against the model's own cache, which has the same keys; and a shared prefix scores alike."""
    model = small_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)])
    keys = model(**inputs, use_cache=True)[CACHE_NAME].layers[1].keys[0]
    expected = keys.abs().sum(dim=(0, 2))
    with prune(model, PLANS["keys"]()) as trace:
        model(**inputs)
    (stage,) = trace.documents[0].stages
    torch.testing.assert_close(stage.scores, expected[stage.candidates])
    torch.testing.assert_close(stage.text_weights, expected[stage.text])
    prefix = run_prefix(model, inputs, 1, [LongestKeys()])
    torch.testing.assert_close(prefix.scores[LongestKeys()], stage.scores)


def test_only_plans_that_scores_alone_decide_share_a_prefix():
    shared = {name for name, make in PLANS.items() if can_share(make())}
    assert shared == {"image rows", "all rows", "keys"}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Stage(SCORERS["uniform"], -1, keep_tokens=1), "pruning layer is -1"),
        (lambda: Stage(SCORERS["uniform"], 1, keep_tokens=1, score_layer=3), "score_layer is 3"),
        (lambda: Stage(SCORERS["uniform"], 1, keep_ratio=0.5, keep_of="first"), "unknown keep_of 'first'"),
        (lambda: Plan("x", positions="new"), "unknown positions 'new'"),
    ],
)
def test_what_no_plan_can_say_is_refused(make, said):
    with pytest.raises(PlanError, match=said):
        make()


def test_a_scorer_that_asks_for_what_it_did_not_say_it_reads_is_told():
    @dataclass(frozen=True)
    class Forgetful(Scorer):
        name: str = "forgetful"
        reads: ClassVar[Rows] = Rows.NONE

        def score(self, seen):
            return SCORERS["uniform"].score(seen)

    seen = Seen(torch.arange(3), torch.arange(0))
    with pytest.raises(TypeError, match="reads no attention rows"):
        Forgetful().score(seen)


def test_a_scorer_that_merges_without_saying_so_is_stopped(small_llava):
    """Else the last layer's ranks would be of its new vectors."""

    @dataclass(frozen=True)
    class Silent(MergeLeft):
        merges: ClassVar[bool] = False

    model = small_llava()
    stopped = pytest.raises(TypeError, match="scorer 'merge_left' merges tokens, but does not say so: set its merges")
    with stopped, prune(model, Plan("silent", (Stage(Silent(), 2, keep_tokens=6),))):
        model(**make_inputs(model, [(3, IMAGE, 6)]))
