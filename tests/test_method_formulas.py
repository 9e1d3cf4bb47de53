"""Every method's scores and choice on random tensors, against float64 loops; and the specification's own checks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from lmms_textweighted.engine.plan import Stage
from lmms_textweighted.engine.scoring import Leaving, Rows, Scorer, Seen
from lmms_textweighted.engine.splice import Tower
from lmms_textweighted.engine.text_tower import TextReads, TextTower
from lmms_textweighted.engine.tower import FEATURES, TowerLayer, TowerReads, TowerSeen
from lmms_textweighted.errors import PlanError
from lmms_textweighted.methods.adaptinfer import ADAPTINFER, TextToText
from lmms_textweighted.methods.cdpruner import Conditional
from lmms_textweighted.methods.dart import LeastAlike, as_a_set, authors_count
from lmms_textweighted.methods.density_peaks import density_peaks
from lmms_textweighted.methods.divprune import Apart
from lmms_textweighted.methods.fastervlm import ClassAttention
from lmms_textweighted.methods.grid import Pool, UniformGrid, grid_cells
from lmms_textweighted.methods.himap import HIMAP, CutOff, HiMAP, ImageColumnSums
from lmms_textweighted.methods.hiprune import Hierarchy
from lmms_textweighted.methods.holov import PARTS, SURPLUS, QuotaOfRuns
from lmms_textweighted.methods.prumerge import PrunedAndMerged, outliers
from lmms_textweighted.methods.pyramiddrop import PYRAMIDDROP
from lmms_textweighted.methods.raters import raters
from lmms_textweighted.methods.scope import Coverage
from lmms_textweighted.methods.selectors import Determinantal
from lmms_textweighted.methods.sparsevlm import SPARSEVLM, Recycle, kept_beside_merged
from lmms_textweighted.methods.sparsevlm_plus import SPARSEVLM_PLUS, Gravity, gravity
from lmms_textweighted.methods.staged import Staged, relative_layers
from lmms_textweighted.methods.text_weighted import HEADS, IMPORTANCES, TextWeighting
from lmms_textweighted.methods.trim import TextMetric
from lmms_textweighted.methods.uniform import ALL_ROWS, LAST_ROW, UNIFORM
from lmms_textweighted.methods.visionzip import DominantAndContextual
from lmms_textweighted.methods.vispruner import ImportantAndDiverse
from lmms_textweighted.methods.vscan import LocalAndGlobal
from tests.method_oracles import (
    ORACLES,
    Decision,
    TowerView,
    View,
    clusters_of,
    highest,
    order_in_a_set,
    rope_bias,
    sparsevlm_set,
)

HEADS_OF_LAYER, WIDTH = 4, 24


def make_view(sizes: Sequence[int], text: int, seed: int) -> View:
    """A random prompt: three tokens, pictures of these sizes with a token between, and the text that votes behind."""
    generator = np.random.default_rng(seed)
    images, place = [], 3
    for size in sizes:
        images.append(list(range(place, place + size)))
        place += size + 1
    length = place + text
    logits = 2 * generator.standard_normal((HEADS_OF_LAYER, length, length))
    logits[:, np.triu_indices(length, 1)[0], np.triu_indices(length, 1)[1]] = -np.inf
    attention = np.exp(logits - logits.max(axis=-1, keepdims=True))
    hidden = generator.standard_normal((length, WIDTH)) + 0.5
    first = 0.3 * generator.standard_normal((length, WIDTH))
    voting = list(range(length - text, length))
    return View(
        attention=attention / attention.sum(axis=-1, keepdims=True),
        images=images,
        text=voting,
        positions=list(range(length)),
        keys=generator.standard_normal((length, WIDTH)),
        hidden=hidden,
        normed=hidden * 2,
        first_image=first[[k for image in images for k in image]],
        first_text=first[voting],
        tower=make_tower(sizes, generator),
    )


@dataclass
class DrawnClip(TextTower):
    """Random embeddings of a text, and a random matrix in front of the patches; for the oracles and for the scorers."""

    matrix: np.ndarray
    whole: np.ndarray
    segments_: np.ndarray
    name: str = "drawn"
    fingerprint: str = ""

    def texts(self, text: str = "", reads: TextReads | None = None, **asked: Any) -> Any:
        segments = asked.get("segments") if reads is None else reads.segments
        found = self.segments_ if segments else self.whole
        return list(found) if reads is None else torch.tensor(found).float()

    def patch(self, vector: np.ndarray) -> np.ndarray:
        return vector @ self.matrix

    def patches(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors @ torch.tensor(self.matrix).float()


def make_tower(sizes: Sequence[int], generator: np.random.Generator, layers: int = 6, heads: int = 2) -> TowerView:
    """A random tower over pictures of these sizes. Pictures that are smaller than the largest are padded behind."""
    shape = (len(sizes), heads, 1 + max(sizes))
    query, key = (generator.standard_normal((layers, *shape, 8)) for _ in range(2))
    logits = query @ key.swapaxes(-1, -2) / 8**0.5
    behind = np.arange(shape[-1]) > np.array(sizes)[:, None]
    logits = np.where(behind[None, :, None, None, :], -np.inf, logits)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights = weights / weights.sum(axis=-1, keepdims=True)
    outputs = generator.standard_normal((layers, len(sizes), shape[-1], 12)) + 0.5
    matrix = generator.standard_normal((12, WIDTH))
    attention = [[weights[n, p][:, : 1 + size, : 1 + size] for p, size in enumerate(sizes)] for n in range(layers)]
    cut = lambda part: [[part[n, p][..., : 1 + size, :] for p, size in enumerate(sizes)] for n in range(layers)]  # noqa: E731
    clip = DrawnClip(*(0.4 * generator.standard_normal(shape) for shape in ((12, 8), (1, 8), (3, 8))))
    project = lambda vector: vector @ matrix  # noqa: E731
    return TowerView(attention, cut(query), cut(key), cut(outputs), layers - 2, project, lambda: clip)


def tower_seen(view: View, reads: TowerReads) -> TowerSeen:
    """What the engine would hand a scorer that reads `reads`; pictures that are smaller are padded behind."""
    tower = view.tower
    depth = Tower("a tower", True, [torch.nn.Identity()] * len(tower.keys), tower.feature)
    pictures, most = range(len(view.images)), max(map(len, view.images))
    made = {
        "class_rows": lambda n, p: tower.attention[n][p][:, 0, 1:].mean(axis=0),
        "wide_class_rows": lambda n, p: np.array(tower.wide_scores(p, n)),
        "column_means": lambda n, p: tower.attention[n][p].mean(axis=(0, 1))[1:],
        "keys": lambda n, p: tower.keys[n][p][:, 1:].swapaxes(0, 1),
        "vectors": lambda n, p: tower.outputs[n][p][1:],
    }

    def padded(parts: list[np.ndarray]) -> torch.Tensor:
        tensors = [torch.tensor(part).float() for part in parts]
        return torch.stack([torch.cat([t, t.new_zeros(most - len(t), *t.shape[1:])]) for t in tensors])

    found = {
        (what, layer): padded([make(layer.index(depth), p) for p in pictures])
        for what, make in made.items()
        for layer in ((FEATURES,) if what == "vectors" else getattr(reads, what))
    }
    found["class_vector", FEATURES] = torch.stack(
        [torch.tensor(tower.outputs[tower.feature][p][0]).float() for p in pictures]
    )
    index = torch.tensor([p * most + n for p, image in enumerate(view.images) for n in range(len(image))])
    project = lambda vectors: torch.tensor(tower.project(vectors.double().numpy())).float()  # noqa: E731
    return TowerSeen(found, index, project, "a text", tower.clip())


def seen_of(scorer: Scorer, view: View) -> Seen:
    """What the engine would hand the scorer."""
    rows = {
        Rows.NONE: [],
        Rows.LAST: [len(view.positions) - 1],
        Rows.TEXT: view.text,
        Rows.KEYS: view.text,
        Rows.IMAGE: view.image,
        Rows.ALL: range(len(view.positions)),
    }[scorer.reads]
    attention = torch.tensor(view.attention if scorer.per_head else view.mean).float()[..., list(rows), :]
    embeddings = torch.zeros(len(view.positions), WIDTH)
    embeddings[view.image] = torch.tensor(view.first_image).float()
    embeddings[view.text] = torch.tensor(view.first_text).float()
    return Seen(
        image=torch.tensor(view.image, dtype=torch.int64),
        rows=torch.tensor(list(rows), dtype=torch.int64),
        attention=attention if rows and scorer.reads is not Rows.KEYS else None,
        sizes=tuple(map(len, view.images)),
        text=torch.tensor(view.text),
        positions=torch.tensor(view.positions),
        keys=torch.tensor(view.keys).float(),
        embeddings=embeddings,
        image_embeddings=embeddings[view.image],
        tower=tower_seen(view, scorer.tower_reads) if scorer.tower_reads else None,
    )


def choose(scorer: Scorer, view: View, keep: Sequence[int], keep_scope: str = "image") -> tuple[Decision, torch.Tensor]:
    """The scorer's decision in the oracle's words, and the merged vectors."""
    seen = seen_of(scorer, view)
    scores, weights = scorer.score(seen)
    assert scores.dtype == torch.float32
    assert scores.shape == seen.image.shape
    assert len(weights) == len(seen.rows)
    left = iter(keep)
    choice = scorer.choose(
        Leaving(
            image=seen.image,
            sizes=seen.sizes,
            text=seen.text,
            scores=scores,
            weights=weights,
            hidden=torch.tensor(view.hidden).float(),
            norm=lambda hidden: 2 * hidden,
            keep=lambda size: min(size, next(left)),
            keep_scope=keep_scope,
            original_sizes=seen.sizes,
            tower=seen.tower,
        )
    )
    kept = [part.tolist() for part in seen.image[choice.kept].split(list(choice.sizes))]
    merged, vectors = {}, {}
    for part in choice.merged:
        sources = seen.image[part.sources].tolist()
        place = int(seen.image[choice.kept[part.slot]])
        assert sources[:1] in ([place], [])
        merged[place], vectors[place] = sources, part.vector.numpy()
    return Decision(kept, merged, dict(zip(view.image, scores.tolist(), strict=True)), vectors), scores


SCORERS = [
    *(TextWeighting(importance, heads) for importance in IMPORTANCES for heads in HEADS),
    UNIFORM,
    LAST_ROW,
    ALL_ROWS,
    ImageColumnSums(),
    CutOff(),
    Recycle(),
    Recycle(paper=True),
    Gravity(),
    TextToText(),
    LeastAlike(),
    LeastAlike(order="norm"),
    UniformGrid(),
    Pool(),
    ClassAttention(),
    Apart(),
    DominantAndContextual(),
    DominantAndContextual(mean=True),
    ImportantAndDiverse(),
    Hierarchy(),
    Hierarchy(wrap=False),
    Coverage(),
    *(QuotaOfRuns(surplus=surplus, parts=parts) for surplus in SURPLUS for parts in PARTS),
    *(PrunedAndMerged(grid, mean) for grid in (False, True) for mean in (False, True)),
    Conditional(),
    Conditional("plain"),
    TextMetric(),
    TextMetric("cosine"),
    LocalAndGlobal(),
]


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: scorer.name)
@pytest.mark.parametrize(
    ("sizes", "text", "keep"),
    [
        ((16,), 5, (6,)),
        ((16,), 1, (16,)),
        ((64,), 7, (12,)),
        ((64,), 3, (40,)),
        ((36, 16), 6, (18, 4)),
        ((9, 0, 25), 3, (4, 0, 25)),
        ((10,), 2, (1,)),
        ((10, 12), 4, (0, 3)),
    ],
)
def test_scores_and_choice_are_those_of_plain_loops(scorer, sizes, text, keep):
    for seed in range(4):
        view = make_view(sizes, text, seed)
        found, _ = choose(scorer, view, keep)
        expected = ORACLES[scorer.name](view, keep)
        if expected.scores:
            found_scores = [found.scores[k] for k in expected.scores]
            largest = max(1.0, max(map(abs, expected.scores.values())))
            np.testing.assert_allclose(found_scores, list(expected.scores.values()), atol=1e-5 * largest)
        if scorer.name != "cut_off":
            assert found.kept == expected.kept
            assert [len(part) for part in found.kept] == [min(n, k) for n, k in zip(sizes, keep, strict=True)]
        assert {place: sorted(sources) for place, sources in found.merged.items()} == {
            place: sorted(sources) for place, sources in expected.merged.items()
        }
        for place, sources in expected.merged.items():
            vector = expected.vectors[place] if place in expected.vectors else view.hidden[sources].mean(axis=0)
            np.testing.assert_allclose(found.vectors[place], vector, atol=1e-4)


@pytest.mark.parametrize("scorer", [s for s in SCORERS if s.name != "cut_off"], ids=lambda scorer: scorer.name)
def test_a_whole_prompts_budget_is_kept_over_all_images(scorer):
    view = make_view((20, 16), 4, seed=1)
    found, _ = choose(scorer, view, (11,), keep_scope="prompt")
    assert sum(map(len, found.kept)) == 11
    assert all(set(part) <= set(image) for part, image in zip(found.kept, view.images, strict=True))
    one = make_view((20,), 4, seed=1)
    together, alone = choose(scorer, one, (7,), keep_scope="prompt")[0], choose(scorer, one, (7,))[0]
    assert (together.kept, together.merged, together.scores) == (alone.kept, alone.merged, alone.scores)


@pytest.mark.parametrize("scorer", [s for s in SCORERS if s.nested], ids=lambda scorer: scorer.name)
def test_a_smaller_budget_of_a_nested_choice_is_within_a_larger_one(scorer):
    view = make_view((25,), 4, seed=3)
    kept = [set(choose(scorer, view, (budget,))[0].kept[0]) for budget in range(0, 26, 5)]
    assert all(few < more for few, more in pairwise(kept))


@pytest.mark.parametrize("scorer", [s for s in SCORERS if s.name != "cut_off"], ids=lambda scorer: scorer.name)
def test_keeping_all_changes_nothing(scorer):
    view = make_view((16, 9), 5, seed=2)
    found, _ = choose(scorer, view, (16, 9))
    assert found.kept == view.images
    assert not found.merged


def test_choices_of_a_text_weighting_are_named():
    names = [TextWeighting(importance, heads).name for importance in IMPORTANCES for heads in HEADS]
    assert len(set(names)) == len(names)
    assert TextWeighting().name == "text_weighted"
    assert TextWeighting("causal_mean").name == "text_weighted_debiased"
    with pytest.raises(PlanError, match="unknown importance 'recieved': did you mean 'received'"):
        TextWeighting("recieved")
    with pytest.raises(PlanError, match="unknown heads 'all'"):
        TextWeighting(heads="all")


def test_a_head_that_gives_text_nothing_weighs_nothing():
    """All of one head's text attention underflows: no NaN, and the other heads decide."""
    view = make_view((4,), 3, seed=0)
    view.attention[0][:, view.text] = 0
    found, scores = choose(TextWeighting(heads="per_head"), view, (2,))
    assert torch.isfinite(scores).all()
    rest = View(**{**vars(view), "attention": view.attention[1:]})
    assert found.kept == ORACLES["text_weighted_per_head"](rest, (2,)).kept


# HiMAP.


def test_himap_second_stage_favours_the_earliest_of_three_equal_tokens():
    """Equal logits: rows 0, 1, 2 of the image see 2, 3, 4 tokens; nothing divides by the number of rows."""
    attention = torch.ones(5, 5).tril()
    attention = attention / attention.sum(dim=1, keepdim=True)
    image = torch.tensor([1, 2, 3])
    scores, _ = ImageColumnSums().score(Seen(image, image, attention[image]))
    expected = [1 / 2 + 1 / 3 + 1 / 4, 1 / 3 + 1 / 4, 1 / 4]
    torch.testing.assert_close(scores, torch.tensor(expected))


def test_himap_is_two_stages_and_its_cut_off_a_third():
    stages = HIMAP.stages(1, 72, None)
    assert [(s.scorer.name, s.scored_at, s.layer, s.keep_tokens) for s in stages] == [
        ("uniform", 1, 1, 288),
        ("image_column_sums", 7, 7, 72),
    ]
    kept = [576] * 2 + [288] * 6 + [72] * 24
    assert sum(kept) / 32 == 144
    cut = HiMAP("cut", "cut", "", HIMAP.scorers, HIMAP.layers, HIMAP.counts, cut_off=20)
    last = cut.stages(1, 72, None)[-1]
    assert (last.layer, last.keep_tokens, last.scorer.name) == (20, 0, "cut_off")
    assert cut.fitted(8).cut_off == 4
    with pytest.raises(PlanError, match="cut_off is 7, but cut still chooses after layer 7"):
        HiMAP("cut", "cut", "", HIMAP.scorers, HIMAP.layers, HIMAP.counts, cut_off=7)


# PyramidDrop.


def test_pyramiddrop_halves_the_original_count_three_times():
    stages = PYRAMIDDROP.stages(7, None, 0.125)
    assert [(s.scorer, s.scored_at, s.layer, s.keep_of) for s in stages] == [
        (LAST_ROW, 8, 7, "original"),
        (LAST_ROW, 16, 15, "original"),
        (LAST_ROW, 24, 23, "original"),
    ]
    assert [stage.keep(count, 576) for stage, count in zip(stages, (576, 288, 144), strict=True)] == [288, 144, 72]
    assert [stage.keep(576, 576) for stage in PYRAMIDDROP.stages(7, 72, None)] == [288, 144, 72]
    # An odd number is cut off, not rounded, and never from what a stage left: int(575 / 4) = 143, int(287 / 2) = 143.
    assert [stage.keep(count, 579) for stage, count in zip(stages, (579, 289, 144), strict=True)] == [289, 144, 72]


def test_pyramiddrop_of_another_budget_keeps_its_form():
    """The specification's ratio for a mean of 192 after layers 7, 15 and 23: 0.2531."""
    stages = PYRAMIDDROP.stages(7, None, 0.2531**3)
    counts = [stage.keep(576, 576) for stage in stages]
    assert counts == [145, 36, 9]
    assert (576 + sum(counts)) / 4 == pytest.approx(192, abs=1)


# PruMerge.


@pytest.mark.parametrize("keep", [1, 2, 5, 16, 33, 64, 128, 192, 300, 575])
@pytest.mark.parametrize("mean", [False, True])
def test_prumerge_plus_has_its_budget_with_a_grid_that_leaves_out_the_last_patch(keep, mean):
    view = make_view((576,), 1, seed=keep)
    found, scores = choose(PrunedAndMerged(grid=True, mean=mean), view, (keep,))
    (kept,) = found.kept
    assert len(kept) == len(set(kept)) == keep
    order = highest(scores.tolist(), 576)
    patches = [k - view.image[0] for k in kept][: keep if mean else -1]
    favourites = next((n for n in range(1, keep + 1) if set(order[:n]) - set(patches)), keep + 1) - 1
    grid = sorted(set(patches) - set(order[:favourites]))
    assert 575 not in grid
    steps = {int(int(576 / n) / 3) for n in range(1, favourites + 1)} - {0}
    assert not grid or any(set(range(0, 575, step)) <= set(patches) for step in steps)


def outliers_by_hand(scores: Sequence[float]) -> int:
    first, third = np.percentile(np.array(scores), [25, 75])
    return sum(score > third + 1.5 * (third - first) for score in scores)


@pytest.mark.parametrize("grid", [False, True])
def test_prumerges_own_count_is_that_of_the_outliers(grid):
    """The authors' procedure, written out: favourites by falling attention, the grid, and one more token."""
    scorer = PrunedAndMerged(grid=grid, adaptive=True)
    for seed in range(6):
        view = make_view((576,), 1, seed)
        if seed == 5:
            view.tower.queries[-1][0][:] = 0  # no outlier at all
        found, scores = choose(scorer, view, (576,))
        order, count = highest(scores.tolist(), 576), outliers_by_hand(scores.tolist())
        assert (count == 0) == (seed == 5)
        expected = order[:count]
        if grid:
            expected = order[: max(1, count)]
            step = max(1, int(int(576 / len(expected)) / 3))
            expected = expected + [k for k in range(0, 575, step) if k not in expected]
        assert [k - view.image[0] for k in found.kept[0]][:-1] == expected
        assert outliers(scores) == count


def test_a_budget_is_the_limit_of_prumerges_own_count():
    view = make_view((576,), 1, seed=1)
    scores = choose(PrunedAndMerged(), view, (8,))[1]
    count = outliers_by_hand(scores.tolist())
    for keep in (count - 3, count, count + 1, count + 9):
        found = choose(PrunedAndMerged(adaptive=True), view, (keep,))[0]
        assert len(found.kept[0]) == min(keep, count + 1)


# SparseVLM.


@pytest.mark.parametrize(
    ("counts", "left"),
    [((300, 200, 110), (309, 204, 113)), ((303, 110, 36), (312, 117, 39)), ((66, 30, 17), (82, 32, 18))],
)
def test_sparsevlm_leaves_its_counts_and_the_merged_tokens(counts, left):
    found, tokens = [], 576
    for count in counts:
        view = make_view((tokens,), 2, seed=tokens)
        decision, _ = choose(Recycle(extra=True), view, (count,))
        tokens = len(decision.kept[0])
        found.append(tokens)
        kept, merged = decision.kept[0][:count], decision.kept[0][count:]
        assert kept == sorted(kept)
        assert set(decision.merged) <= set(merged)
        assert not set(kept) & {source for sources in decision.merged.values() for source in sources}
    assert tuple(found) == left


def test_sparsevlms_own_counts_are_those_of_the_plain_loops():
    for seed in range(3):
        view = make_view((60,), 4, seed)
        found, _ = choose(Recycle(extra=True), view, (12,))
        expected = sparsevlm_set(view, (12,), extra=True)
        assert found.kept == expected.kept


@pytest.mark.parametrize("tokens", [1, 2, 7, 16, 100, 576])
def test_with_merged_tokens_every_budget_comes_out(tokens):
    for budget in range(tokens + 1):
        kept = kept_beside_merged(tokens, budget)
        dropped = tokens - kept
        merged = (int(0.3 * dropped) + 1) // 10 + 1 if dropped else 0
        assert kept + merged == budget or (kept == 0 and merged > budget) or budget == tokens == kept


@pytest.mark.parametrize(
    "counts", [((300, 309), (200, 204), (110, 113)), ((303, 312), (110, 117), (36, 39)), ((66, 82), (30, 32), (17, 18))]
)
def test_a_budget_of_the_authors_totals_is_their_setting(counts):
    tokens = 576
    for kept, total in counts:
        assert kept_beside_merged(tokens, total) == kept
        tokens = total


def test_raters_are_above_the_mean_and_never_none():
    image = torch.eye(3)
    text = torch.tensor([[2.0, 2.0, 2.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [3.0, 3.0, 3.0]])
    assert raters(image, text).tolist() == [False, False, False, True]
    assert raters(image, text[:1]).tolist() == [True]
    assert raters(image, torch.ones(4, 3)).tolist() == [True] * 4


def test_raters_share_their_rows_equally():
    view = make_view((16,), 6, seed=3)
    _, weights = Recycle().score(seen_of(Recycle(), view))
    chosen = weights[weights > 0]
    assert 0 < len(chosen) < 6
    torch.testing.assert_close(chosen, torch.full_like(chosen, 1 / len(chosen)))


def test_density_peaks_find_the_groups_that_are_there():
    generator = torch.Generator().manual_seed(0)
    middles = 10 * torch.randn(3, 8, generator=generator)
    vectors = (middles[:, None] + 0.1 * torch.randn(3, 5, 8, generator=generator)).flatten(0, 1)
    centres, member = density_peaks(vectors, 3)
    assert sorted(int(centre) // 5 for centre in centres) == [0, 1, 2]
    assert all(len(set(member[5 * n : 5 * n + 5].tolist())) == 1 for n in range(3))


@pytest.mark.parametrize(("count", "clusters"), [(1, 1), (7, 1), (30, 4), (80, 9)])
def test_density_peaks_are_those_of_plain_loops(count, clusters):
    vectors = np.random.default_rng(count).standard_normal((count, 12))
    centres, member = density_peaks(torch.tensor(vectors).float(), clusters)
    expected = clusters_of(vectors, clusters)
    assert centres.tolist() == [cluster[0] for cluster in expected]
    found = [[n for n in range(count) if member[n] == place] for place in range(clusters)]
    assert found == [sorted(cluster) for cluster in expected]


def test_equal_vectors_are_one_cluster_around_the_first():
    centres, member = density_peaks(torch.ones(6, 4), 1)
    assert centres.tolist() == [0]
    assert member.tolist() == [0] * 6


def test_two_clusters_are_not_one_pair_of_neighbours():
    """The densest pair has one density; its second vector is no centre of its own while a far group is left."""
    vectors = torch.tensor([[0.0, 0.0], [0.1, 0.0], [9.0, 9.0], [9.2, 9.0], [9.0, 9.3]])
    centres, member = density_peaks(vectors, 2)
    assert centres.tolist()[0] == 0
    assert centres.tolist()[1] in (2, 3)
    assert member[:2].tolist() == [0, 0]
    assert member[2:].tolist() == [1, 1, 1]


# SparseVLM+.


def test_gravity_at_no_distance_is_the_root_of_the_width():
    assert gravity(torch.tensor([0]), 128).item() == pytest.approx(11.3137, abs=1e-4)


def test_gravity_is_what_rope_makes_of_two_vectors_of_ones():
    """Both halves of every pair are 1: their product under a rotation by the distance, over the root of the width."""
    width, distances = 16, [0, 1, 5, 100, 700, 2000, 4060]
    rate = [10000 ** (-2 * m / width) for m in range(width // 2)]
    for distance in distances:
        turned = [
            (math.cos(distance * r) - math.sin(distance * r), math.sin(distance * r) + math.cos(distance * r))
            for r in rate
        ]
        product = sum(a + b for a, b in turned) / math.sqrt(width)
        assert gravity(torch.tensor([distance]), width).item() == pytest.approx(product, abs=1e-5)
        assert rope_bias(distance, width) == pytest.approx(product, abs=1e-9)


def test_gravity_of_long_prompts_is_no_correction():
    """The specification's values for a width of 128."""
    values = gravity(torch.tensor([2000, 4060]), 128)
    assert values.tolist() == pytest.approx([0.33, -1.48], abs=0.01)
    assert gravity(torch.arange(700), 128).min().item() == pytest.approx(1.19, abs=0.01)


def test_only_the_best_heads_count():
    view = make_view((16,), 5, seed=4)
    one, _ = Gravity(heads=1).score(seen_of(Gravity(heads=1), view))
    all_of_them, _ = Gravity().score(seen_of(Gravity(), view))
    by_head = []
    for head in range(HEADS_OF_LAYER):
        alone = View(**{**vars(view), "attention": view.attention[head : head + 1]})
        width = WIDTH // HEADS_OF_LAYER
        by_head.append(Gravity(head_width=width).score(seen_of(Gravity(), alone))[0])
    torch.testing.assert_close(all_of_them, torch.stack(by_head).mean(dim=0))
    best = highest([float(scores.sum()) for scores in by_head], 1)[0]
    torch.testing.assert_close(one, by_head[best])


# DART.


def test_dart_keeps_its_authors_counts():
    assert [authors_count(target) for target in (192, 128, 64)] == [196, 132, 68]
    assert [authors_count(target) for target in (7, 8, 15)] == [4, 12, 12]


def test_darts_pivots_choose_in_the_order_of_a_python_set():
    """The specification's example, and the hash table written out."""
    assert as_a_set(torch.tensor([40, 100, 77, 300, 612, 615, 640, 633])).tolist() == [6, 4, 1, 5, 0, 3, 2, 7]
    generator = np.random.default_rng(0)
    for count in range(1, 9):
        for most in (12, 700, 5000):
            for _ in range(40):
                places = generator.choice(most, count, replace=False).tolist()
                order = as_a_set(torch.tensor(places)).tolist()
                assert [places[n] for n in order] == order_in_a_set(places)
    assert as_a_set(torch.zeros(0, dtype=torch.int64)).tolist() == []


def test_the_order_of_darts_pivots_decides_what_stays():
    view = make_view((64,), 7, seed=2)
    by_set, by_norm = (choose(LeastAlike(order=order), view, (20,))[0].kept[0] for order in ("set", "norm"))
    assert by_set != by_norm
    with pytest.raises(PlanError, match="unknown order 'hash'"):
        LeastAlike(order="hash")


def test_dart_keeps_no_second_of_two_equal_tokens_while_others_are_left():
    view = make_view((16,), 4, seed=5)
    view.normed[3:19] = np.eye(16, WIDTH) + 0.01
    view.hidden = view.normed / 2
    pivots = [view.image[n] for n in highest([float(np.abs(view.keys[k]).sum()) for k in view.image], 4)]
    twin = next(k for k in view.image if k not in pivots)
    view.hidden[twin] = view.hidden[pivots[0]]
    view.normed[twin] = view.normed[pivots[0]]
    # Text pivots look like the first image pivot, so that nobody asks for its twin.
    view.hidden[view.text], view.normed[view.text] = view.hidden[pivots[0]], view.normed[pivots[0]]
    view.hidden[pivots[1:]], view.normed[pivots[1:]] = view.hidden[pivots[0]], view.normed[pivots[0]]
    for keep in range(4, 16):
        assert twin not in choose(LeastAlike(), view, (keep,))[0].kept[0]


# HiPrune, HoloV, VisionZip: what the paper says and the code does not do.


def test_a_neighbour_over_the_edge_is_one_in_hiprunes_code_alone():
    view = make_view((576,), 1, seed=0)
    for head in view.tower.attention[TowerLayer(8, of=24).index(Tower("", True, [torch.nn.Identity()] * 6, 4))][0]:
        head[:] = 0
        head[:, 1 + 47] = 1  # the end of the second row
    around = {view.image[n] for n in (23, 46, 47, 71)}
    over = view.image[48]
    scores = choose(Hierarchy(), view, (64,))[1]
    assert scores.argsort(descending=True).tolist().index(48) > 64
    assert {*around, over} <= set(choose(Hierarchy(), view, (64,))[0].kept[0])
    kept = set(choose(Hierarchy(wrap=False), view, (64,))[0].kept[0])
    assert around <= kept
    assert over not in kept


def test_a_crowded_part_gives_zeros_in_holovs_code_alone():
    """All attention within four patches: their run's and their crop's quota is above its 36 patches."""
    view = make_view((576,), 1, seed=0)
    attention = view.tower.attention[view.tower.feature][0]
    attention[:] = 1e-4
    attention[:, 0, 1:5] = 0.2
    code = choose(QuotaOfRuns(), view, (192,))[0]
    paper = choose(QuotaOfRuns(surplus="spread", parts="crops"), view, (192,))[0]
    assert code.merged
    assert not any(vector.any() for vector in code.vectors.values())
    assert not paper.merged
    assert len(set(paper.kept[0])) == 192
    first_crop = {view.image[24 * row + column] for row in range(6) for column in range(6)}
    assert first_crop <= set(paper.kept[0])


def test_a_contextual_token_has_about_the_norm_of_a_patch_in_visionzips_paper_alone():
    view = make_view((576,), 1, seed=0)
    view.tower.project = lambda vectors: np.pad(vectors, [(0, 0)] * (vectors.ndim - 1) + [(0, WIDTH - 12)])
    view.tower.outputs[view.tower.feature][0][:] = 1
    for mean, norm in ((False, 2), (True, 1)):
        vectors = choose(DominantAndContextual(mean=mean), view, (64,))[0].vectors
        lengths = {round(float(np.abs(vector).max()), 5) for vector in vectors.values()}
        assert lengths == {1, norm}


# Grids.


@pytest.mark.parametrize(
    ("tokens", "keep", "rows", "columns"),
    [
        (576, 192, 12, 16),
        (576, 144, 12, 12),
        (576, 128, 8, 16),
        (576, 64, 8, 8),
        (576, 32, 4, 8),
        (576, 16, 4, 4),
        (576, 576, 24, 24),
    ],
)
def test_a_grid_has_its_rows_and_columns(tokens, keep, rows, columns):
    middles = [middle for middle, _ in grid_cells(tokens, keep)]
    side = math.isqrt(tokens)
    assert len(set(middles)) == keep
    assert len({middle // side for middle in middles}) == rows
    assert len({middle % side for middle in middles}) == columns
    assert middles == sorted(middles)


@pytest.mark.parametrize(("tokens", "keep"), [(576, 166), (300, 64), (575, 574), (5, 5), (576, 1), (576, 2), (4, 3)])
def test_a_grids_cells_cover_all_and_hold_their_middles(tokens, keep):
    cells = grid_cells(tokens, keep)
    assert len(cells) == len({middle for middle, _ in cells}) == keep
    assert {member for _, members in cells for member in members} == set(range(tokens))
    assert all(middle in members for middle, members in cells)


def test_pooling_is_torchs_adaptive_average():
    for side, rows, columns in [(24, 12, 16), (24, 8, 8), (6, 4, 5), (7, 3, 3)]:
        vectors = torch.randn(side * side, 3, generator=torch.Generator().manual_seed(side))
        image = vectors.T.reshape(3, side, side)
        pooled = torch.nn.functional.adaptive_avg_pool2d(image[None], (rows, columns))[0].flatten(1).T
        found = torch.stack([vectors[members].mean(dim=0) for _, members in grid_cells(side * side, rows * columns)])
        torch.testing.assert_close(found, pooled)


# Stages, budgets and depth.


@pytest.mark.parametrize("method", [HIMAP, SPARSEVLM, SPARSEVLM_PLUS, ADAPTINFER, PYRAMIDDROP], ids=lambda m: m.name)
def test_a_staged_methods_budget_is_what_stays_last(method):
    counts = [stage.keep(576, 576) for stage in method.stages(method.layer, method.counts[-1], None)]
    assert tuple(counts) == method.counts
    for budget in (1, 16, 64, 192, 576):
        counts = [stage.keep(576, 576) for stage in method.stages(method.layer, budget, None)]
        assert counts[-1] == budget
        assert all(budget <= later <= earlier <= 576 for earlier, later in pairwise(counts))
    ratio = method.counts[-1] / 576
    shares = [stage.keep(576, 576) for stage in method.stages(method.layer, None, ratio)]
    assert shares == pytest.approx(list(method.counts), abs=1)


@pytest.mark.parametrize("method", [HIMAP, SPARSEVLM, SPARSEVLM_PLUS, ADAPTINFER, PYRAMIDDROP], ids=lambda m: m.name)
@pytest.mark.parametrize("depth", [4, 5, 6, 8, 12, 24, 32, 40, 80])
def test_a_staged_method_fits_other_depths(method, depth):
    moved = method.fitted(depth, 16)
    plan = moved.plan(keep_tokens=2)
    plan.check(depth, 16)
    assert len(plan.stages) == len(method.layers)
    assert depth != 32 or moved.layers == method.layers
    exact = [(layer + 1) * depth / 32 - 1 for layer in method.layers]
    if depth >= 24:
        assert all(abs(layer - at) <= 1 for layer, at in zip(moved.layers, exact, strict=True))


def test_layers_at_relative_depth():
    assert relative_layers("x", (7, 15, 23), 32, 32) == (7, 15, 23)
    assert relative_layers("x", (7, 15, 23), 32, 40) == (9, 19, 29)
    assert relative_layers("x", (1, 7), 32, 6) == (0, 1)
    assert relative_layers("x", (2, 6, 15), 32, 4) == (0, 1, 2)
    assert relative_layers("x", (20, 25, 30), 32, 6) == (2, 3, 4)
    with pytest.raises(
        PlanError, match="x removes after 3 layers, but the model has 3 decoder layers: it needs at least 4"
    ):
        relative_layers("x", (2, 6, 15), 32, 3)


def test_stages_that_do_not_fit_together_are_refused():
    with pytest.raises(PlanError, match="has 1 scorers, 2 layers and 2 counts"):
        Staged("x", "x", "", (UNIFORM,), (1, 2), (4, 2))
    with pytest.raises(PlanError, match="counts is \\(2, 4\\)"):
        Staged("x", "x", "", (UNIFORM, UNIFORM), (1, 2), (2, 4))


def test_text_weighting_over_several_stages():
    method = Staged("x", "x", "", (TextWeighting(), TextWeighting(heads="per_head")), (1, 3), (8, 4))
    assert [(stage.layer, stage.keep_tokens) for stage in method.stages(1, 3, None)] == [(1, 6), (3, 3)]
    assert isinstance(method.stages(1, 3, None)[0], Stage)


@pytest.mark.parametrize("keep", [1, 3, 5, 8])
def test_the_determinantal_choice_adds_most_to_the_determinant(keep):
    for seed in range(4):
        generator = np.random.default_rng(seed)
        features, scores = generator.standard_normal((8, 12)), generator.random(8) + 0.1
        units = features / np.linalg.norm(features, axis=1, keepdims=True)
        kernel = scores[:, None] * (units @ units.T) * scores
        chosen: list[int] = []
        while len(chosen) < keep:
            volume = {n: np.linalg.det(kernel[np.ix_([*chosen, n], [*chosen, n])]) for n in range(8) if n not in chosen}
            chosen.append(max(volume, key=volume.__getitem__))
        found = Determinantal().select(torch.tensor(features).float(), torch.tensor(scores).float(), keep)
        assert found.tolist() == sorted(chosen)


def test_the_determinantal_choice_goes_on_where_nothing_is_left_to_span():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 2.0]])
    assert Determinantal().select(features, torch.ones(4), 3).tolist() == [0, 1, 2]
