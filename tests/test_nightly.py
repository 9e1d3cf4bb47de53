"""What `make test` leaves to `make test-slow`: the tests marked nightly, and most examples of each property."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = """
import pytest
from hypothesis import given, strategies
drawn = []

@pytest.mark.nightly
def test_long():
    assert False

@given(strategies.integers())
def test_property(number):
    drawn.append(number)

def test_count():
    print("examples", len(drawn))
"""


@pytest.mark.parametrize(
    ("arguments", "outcome", "examples"),
    [
        ((), "2 passed, 1 skipped", 100),
        pytest.param(("--nightly",), "1 failed, 2 passed", 1000, marks=pytest.mark.nightly),
    ],
    ids=["make test", "make test-slow"],
)
def test_the_option_runs_what_is_too_long_and_ten_times_the_examples(tmp_path, arguments, outcome, examples):
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-s",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        *arguments,
        "tests",
    ]
    ran = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert outcome in ran.stdout
    assert f"examples {examples}\n" in ran.stdout
