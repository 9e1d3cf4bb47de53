"""The bias report's figures of one choice: naive loops, closed forms against drawing, places and mirrors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmms_textweighted.bias import chance, measures
from lmms_textweighted.bias.figures import NO_CROPS, NO_PADDING, figures_of, groups_of
from lmms_textweighted.bias.looks import MERGES, NO_TEXT, UNSCORED, Look
from lmms_textweighted.bias.places import Places, places_of
from lmms_textweighted.families.geometry import Canvas, PictureGeometry, TokenGrid
from lmms_textweighted.methods.text_weighted import column_sum_weights, debiased_column_sum_weights
from lmms_textweighted.statistics import bootstrap_means


def square(side: int, *, content: tuple[float, float, float, float] | None = None) -> PictureGeometry:
    """A picture of side x side tokens of 10 pixels."""
    box = (0, 0, 10 * side, 10 * side)
    canvas = Canvas((10 * side, 10 * side), content or box, box)
    return PictureGeometry((10 * side, 10 * side), (canvas,), (TokenGrid(side, side, 0, box),))


def with_crops() -> PictureGeometry:
    """A view of 2 x 2 tokens, and 1 x 2 crops put together, 2 x 4 tokens with a newline behind each row."""
    view = Canvas((20, 20), (0, 0, 20, 20), (0, 0, 40, 20))
    crops = Canvas((40, 20), (0, 0, 40, 20), (0, 0, 40, 20), (1, 2))
    grids = (TokenGrid(2, 2, 0, (0, 0, 20, 20)), TokenGrid(2, 4, 1, (0, 0, 40, 20), newlines=True))
    return PictureGeometry((40, 20), (view, crops), grids)


sets = st.lists(st.integers(0, 35), min_size=1, max_size=36, unique=True).map(lambda found: np.array(sorted(found)))


@given(sets, sets)
def test_overlap_is_counted_token_by_token(first, second):
    common = sum(1 for token in first if any(token == other for other in second))
    united = sum(1 for token in range(36) if token in first or token in second)
    iou, share = measures.overlap(first, second)
    assert iou == pytest.approx(common / united)
    assert share == pytest.approx(common / min(len(first), len(second)))
    assert measures.overlap(second, first) == (iou, share)
    assert measures.overlap(first, first) == (1, 1)


@given(sets)
def test_regions_and_places_are_those_of_a_loop_over_rows_and_columns(kept):
    places = places_of([square(6)])
    rows, columns = kept // 6, kept % 6
    edge = sum(r in (0, 5) or c in (0, 5) for r, c in zip(rows, columns, strict=True))
    middle = sum(1.5 < r + 0.5 < 4.5 and 1.5 < c + 0.5 < 4.5 for r, c in zip(rows, columns, strict=True))
    assert measures.share_in(kept, places.edge) == pytest.approx(edge / len(kept))
    assert measures.share_in(kept, places.middle) == pytest.approx(middle / len(kept))
    assert measures.mean_place(kept, places.centres[1]) == pytest.approx(np.mean((rows + 0.5) / 6))
    assert measures.bands(kept, places.centres[0], 6) == pytest.approx(np.bincount(columns, minlength=6) / len(kept))


def test_the_middle_of_24_rows_is_the_middle_12():
    places = places_of([square(24)])
    middle = np.zeros((24, 24), dtype=bool)
    middle[6:18, 6:18] = True
    assert (places.middle == middle.flatten()).all()
    assert places.edge.sum() == 4 * 23


@given(sets)
def test_mirroring_exchanges_left_and_right_and_twice_is_nothing(kept):
    mirrored = places_of([square(6)]).mirrored()
    there = measures.turned_back(kept, mirrored)
    assert there.tolist() == sorted(token // 6 * 6 + 5 - token % 6 for token in kept)
    assert measures.turned_back(there, mirrored).tolist() == kept.tolist()


def test_a_grid_is_mirrored_view_by_view_and_its_newlines_have_no_partner():
    places = places_of([with_crops()])
    #          the view    crops' first row and newline, second row and newline
    expected = [1, 0, 3, 2, 7, 6, 5, 4, -1, 12, 11, 10, 9, -1]
    assert places.mirrored().tolist() == expected
    assert places.base.tolist() == [True] * 4 + [False] * 10
    assert places.placed.tolist() == [expected[token] >= 0 for token in range(14)]
    assert places.edge.tolist() == places.placed.tolist()  # two rows: all of them are outermost
    assert measures.with_partner(np.array([3, 8, 9]), places.mirrored()).tolist() == [3, 9]


def test_padding_is_what_the_picture_does_not_cover():
    places = places_of([square(4, content=(0, 10, 40, 30))])
    assert places.padded.reshape(4, 4)[:, 0].tolist() == [True, False, False, True]
    # By half: the row is padding for less than half of its height.
    assert not places_of([square(4, content=(0, 4, 40, 40))]).padded.any()
    assert places_of([square(4, content=(0, 5, 40, 40))]).padded.sum() == 4


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_strongest_is_the_share_of_the_ten_largest(scores):
    found = measures.strongest_share(np.array(scores))
    total = math.fsum(scores)
    if total == 0:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(math.fsum(sorted(scores)[-10:]) / total)
        assert found >= min(1, 10 / len(scores)) - 1e-9  # never below what ten drawn at random have


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=30), st.integers(1, 12))
def test_weights_by_position_lose_no_weight(values, parts):
    weights = np.array(values) / sum(values)
    found = measures.by_position(weights, parts)
    assert found.mean() == pytest.approx(1)
    assert measures.by_position(np.full(len(values), 1 / len(values)), parts) == pytest.approx(np.ones(parts))
    first, last, centre = measures.ends_and_centre(weights)
    assert (first, last) == (weights[0], weights[-1])
    assert centre == pytest.approx(sum(w * i for i, w in enumerate(weights)) / (len(weights) - 1))


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize(("rows", "before"), [(1, 0), (5, 0), (7, 600)])
def test_even_attention_is_the_methods_own_weights_of_an_even_causal_matrix(rows, before, debiased):
    import torch

    whole = torch.ones(before + rows, before + rows, dtype=torch.float64).tril()
    text = (whole / whole.sum(dim=1, keepdim=True))[before:, before:]
    weights = (debiased_column_sum_weights if debiased else column_sum_weights)(text)
    assert measures.even_attention(rows, before, debiased=debiased) == pytest.approx(weights.numpy())


def test_the_closed_forms_are_the_means_of_drawn_sets():
    rng = np.random.default_rng(0)
    sizes = (20, 12)
    groups = groups_of(sizes, "image")
    region, coordinate = rng.random(32) < 0.4, rng.random(32)

    def drawn(first: int, second: int) -> np.ndarray:
        return np.concatenate([rng.choice(20, first, False), 20 + rng.choice(12, second, False)])

    one, other = drawn(6, 3), drawn(8, 2)
    trials = [(drawn(6, 3), drawn(8, 2)) for _ in range(4000)]
    shares, means, ious, overlaps = [], [], [], []
    for first, second in trials:
        shares.append(measures.share_in(first, region))
        means.append(measures.mean_place(first, coordinate))
        iou, share = measures.overlap(first, second)
        ious.append(iou)
        overlaps.append(share)
    assert chance.expected_share(one, region, groups) == pytest.approx(np.mean(shares), abs=0.01)
    assert chance.expected_mean(one, coordinate, groups) == pytest.approx(np.mean(means), abs=0.01)
    assert chance.expected_overlap(one, other, groups) == pytest.approx((np.mean(ious), np.mean(overlaps)), abs=0.01)
    together = groups_of(sizes, "prompt")
    assert chance.expected_overlap(one, other, together)[1] == pytest.approx(9 * 10 / 32 / 9)


def test_what_cannot_be_measured_has_a_reason_and_no_number():
    places, groups = places_of([square(4)]), groups_of((16,), "image")
    nothing = Look(why={"kept": MERGES, "scores": UNSCORED, "words": NO_TEXT})
    found = figures_of(nothing, places, groups, nothing, nothing).figures
    assert {figure.reason for name, figure in found.items() if name not in ("strongest", "first_word")} >= {MERGES}
    assert (found["strongest"].reason, found["first_word"].reason) == (UNSCORED, NO_TEXT)
    assert all(math.isnan(figure.value) and figure.reason for figure in found.values())

    look = Look(np.array([0, 5]), np.full(16, 1.0), np.array([0.5, 0.3, 0.2]))
    found = figures_of(look, places, groups, look, look).figures
    assert (found["padding"].reason, found["base"].reason) == (NO_PADDING, NO_CROPS)
    assert all(math.isfinite(one.value) for name, one in found.items() if name not in ("padding", "base"))
    assert found["question"].value == 1
    assert found["question"].random == pytest.approx(2 / 16)
    assert found["strongest"].value == pytest.approx(10 / 16)
    unknown = figures_of(look, "nobody knows", groups, look, look).figures
    assert {unknown[name].reason for name in ("edge", "row", "same_place", "same_content_iou")} == {"nobody knows"}
    assert unknown["question"].value == 1


def test_the_bootstrap_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    draws = rng.exponential(size=(60, 400))  # 400 figures of 60 documents, their mean is 1
    means, low, high = bootstrap_means(draws, resamples=500)
    assert means == pytest.approx(draws.mean(axis=0))
    covered = ((low <= 1) & (high >= 1)).mean()
    assert 0.89 <= covered <= 0.97


def test_the_bootstrap_leaves_out_documents_without_a_figure():
    values = np.array([[1.0, np.nan, np.nan, 2.0], [3.0, np.nan, np.nan, 2.0], [np.nan, 5.0, np.nan, 2.0]])
    means, low, high = bootstrap_means(values)
    assert means.tolist()[:2] == [2, 5]
    assert np.isnan(means[2])
    assert (low[0], high[0]) == (1, 3)
    assert np.isnan([low[1], high[1], low[2], high[2]]).all()
    assert (low[3], high[3]) == (2, 2)


def test_places_of_no_picture_are_none():
    places = places_of([])
    assert isinstance(places, Places)
    assert len(places) == 0
    assert places.mirrored().tolist() == []
