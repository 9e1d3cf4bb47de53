"""Every bad input of tests/bad_inputs.py: one line, exit code and all, which is the one that docs/errors.md shows."""

from __future__ import annotations

import pytest

from tests.bad_inputs import GROUPS, Bad, line_of
from tests.errors_page import HEAD, PAGE, entry

INPUTS = [
    pytest.param(bad, id=f"{group.title}-{number}", marks=[pytest.mark.slow] * bad.slow)
    for group in GROUPS
    for number, bad in enumerate(group.inputs)
]


@pytest.mark.parametrize("bad", INPUTS)
def test_a_bad_input_gives_one_line_that_names_it(tmp_path, bad: Bad):
    said = line_of(bad, tmp_path)
    assert [name for name in bad.names if name not in said] == []
    assert entry(bad, said) in PAGE.read_text(encoding="utf-8"), "docs/errors.md is out of date: `make errors`"


def test_the_page_has_every_group_and_no_input_that_is_not_tried():
    page = PAGE.read_text(encoding="utf-8")
    assert page.startswith(HEAD.format(count=len(INPUTS)))
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == [group.title for group in GROUPS]
    assert page.count("\n```text\n") == len(INPUTS) >= 60
