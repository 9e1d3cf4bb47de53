"""Which requests are answered together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lmms_textweighted.harness.batches import WINDOW, batches

REQUESTS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9)), max_size=120)


def split(requests, size):
    return list(batches(requests, size, kind=lambda request: request[0], length=lambda request: request[1]))


@given(REQUESTS, st.integers(1, 4))
def test_every_request_is_answered_once_with_others_of_its_kind(requests, size):
    found = split(requests, size)
    assert sorted(place for batch in found for place in batch) == list(range(len(requests)))
    assert all(1 <= len(batch) <= size for batch in found)
    assert all(len({requests[place][0] for place in batch}) == 1 for batch in found)


@given(REQUESTS, st.integers(1, 4))
def test_no_request_waits_for_more_than_a_window(requests, size):
    asked = [place for batch in split(requests, size) for place in batch]
    assert all(abs(turn - place) < size * WINDOW for turn, place in enumerate(asked))


@given(REQUESTS)
def test_one_by_one_keeps_the_order(requests):
    assert split(requests, 1) == [[place] for place in range(len(requests))]


def test_requests_of_like_length_share_a_batch():
    requests = [("a", length) for length in (5, 1, 5, 1, 9, 5)]
    assert split(requests, 2) == [[1, 3], [0, 2], [5, 4]]
