"""docs/code-and-paper.md has a row for every variant that does what a paper says, and counts as it says it counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.papers import HEADINGS, WORDS, Kept, pairs, row
from lmms_textweighted.methods import find_method, method_names

PAGE = Path(__file__).resolve().parent.parent / "docs" / "code-and-paper.md"


def test_every_variant_is_a_row_of_the_page_in_the_words_of_the_benchmark():
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    rows = {cells[1].strip("`"): cells for cells in lines if len(cells) == len(HEADINGS)}
    assert set(rows) == set(pairs()) == set(WORDS)
    for variant, method in pairs().items():
        assert rows[variant][0] == f"`{method}`"
        assert tuple(rows[variant][2:4]) == WORDS[variant]
    named = {name for name in method_names() if name.endswith("_paper")}
    assert named == set(pairs()) - {"fastv_all_rows"}


@pytest.mark.parametrize("variant", sorted(pairs()))
def test_a_variant_keeps_as_many_tokens_as_its_method_of_the_same_source(variant):
    method, other = find_method(pairs()[variant]), find_method(variant)
    assert method.source == other.source
    plans = [one.plan(keep_tokens=64) for one in (method, other)]
    counts = [[(stage.layer, stage.keep(576, 576)) for stage in plan.stages] for plan in plans]
    assert counts[0] == counts[1]
    assert plans[0].stages != plans[1].stages


def test_a_token_that_is_no_patch_differs():
    code = [Kept((4, 7, 9), frozenset({4})), Kept((1, 2, 3), frozenset())]
    paper = [Kept((4, 7, 9), frozenset()), Kept((3, 2, 1), frozenset())]
    cells = row("visionzip_paper", "visionzip", code, paper)
    assert cells[-2:] == ["0.5 of 3", "1 of 2"]
