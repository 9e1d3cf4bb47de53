"""The table of kinds of models in README and docs/models.md: of every listed kind, the same everywhere, from tests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests import models_page
from tests.models_page import COLUMNS, PAGES, Case, read, table, written
from tests.vlms import MODELS

TESTS = Path(__file__).parent


def rows(page: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in written(page).splitlines()[2:]]


def test_every_page_has_every_kind_and_the_same_cells():
    first, *others = (rows(page) for page in PAGES)
    assert [row[0] for row in first] == [f"`{kind}`" for kind in MODELS]
    assert all(other == first for other in others)
    assert "✗" not in str(first)


def test_every_test_that_a_column_counts_is_there():
    functions = {
        node.name
        for name in ("test_families.py", "test_vlm_prompts.py", "test_equal_to_lmms_eval.py")
        for node in ast.walk(ast.parse((TESTS / name).read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name for column in COLUMNS for name in column} | {models_page._EQUAL} <= functions


def cases(**failed: str) -> list[Case]:
    """One test of every column and kind; failed: kind -> the test that does not pass."""
    names = [*(column[0] for column in COLUMNS), models_page._EQUAL]
    return [Case(name, kind, failed.get(kind) != name, 2e-5) for name in names for kind in MODELS]


def test_a_cell_counts_what_passed_and_shows_what_failed():
    made = table(cases(internvl=COLUMNS[3][0], idefics3=models_page._EQUAL), PAGES["README.md"]).splitlines()
    of = {line.split("`")[1]: line for line in made[2:]}
    assert of["qwen3_vl"].endswith("| ✓ 1 | ✓ 1 | 60/60 `qwen3_vl`, 2.0e-5 | 2.0e-5 |")
    assert of["internvl"].count("✗ 0 of 1") == 1
    assert "| ✗ | 2.0e-5 |" in of["idefics3"]
    assert "| – | 2.0e-5 |" in of["qwen2_vl"]
    with pytest.raises(ValueError, match="no test of qwen2_5_vl is in the file for one of the columns"):
        table(cases()[1:], PAGES["README.md"])


def test_a_report_is_read_with_its_kinds_and_differences(tmp_path):
    (tmp_path / "junit.xml").write_text(
        '<testsuites><testsuite><testcase name="test_a[sdpa-qwen3_vl-layer_0]"><properties>'
        '<property name="largest_difference" value="3e-06"/></properties></testcase>'
        '<testcase name="test_b[internvl]"><failure/></testcase><testcase name="test_c[glm4v]"><skipped/></testcase>'
        '<testcase name="test_d"/></testsuite></testsuites>'
    )
    assert read(tmp_path / "junit.xml") == [
        Case("test_a", "qwen3_vl", True, 3e-6),
        Case("test_b", "internvl", False, None),
    ]
