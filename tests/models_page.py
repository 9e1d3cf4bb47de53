"""Writes the table of kinds of models into README.md, README.zh-CN.md and docs/models.md, from what the tests said.

`make models` runs the tests of every kind with `--junitxml` and gives the file to this. A cell counts the tests that
passed; one that failed makes it a cross.
"""

from __future__ import annotations

import argparse
import re
import sys
import xml.etree.ElementTree as xml
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lmms_eval_models import THEIRS
from tests.test_equal_to_lmms_eval import DOCUMENTS
from tests.vlms import MODELS

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- kinds of models: written by `make models` -->", "<!-- end of kinds of models -->"
# File -> the table's head there.
PAGES = {
    "README.md": "`model_type`|prune|batch, beams|scopes|ranks|sweep|log-likelihood|equal to lmms-eval's|difference",
    "README.zh-CN.md": "`model_type`|剪枝|批处理、束搜索|范围|秩|扫描|对数似然|与 lmms-eval 自带模型相同|最大差异",
}
PAGES["docs/models.md"] = PAGES["README.md"]
_PRUNED = "test_removal_equals_masking_at_the_prefill_and_at_every_step"
_EQUAL = "test_unpruned_it_equals_lmms_evals_own_model"
COLUMNS: tuple[tuple[str, ...], ...] = (
    (_PRUNED, "test_removal_before_the_first_layer_equals_masking", "test_keeping_all_tokens_changes_no_bit"),
    (
        "test_a_left_padded_batch_equals_its_rows_alone",
        "test_a_batch_has_each_rows_own_ids_pixels_and_answer",
        "test_other_methods_give_a_batch_its_rows_answers",
        "test_beams_have_the_masked_models_likelihood",
    ),
    (
        "test_voters_are_the_text_of_the_scope",
        "test_a_budget_is_a_pictures_or_a_prompts_whatever_its_tiles",
        "test_the_question_is_found_among_the_text_that_a_processor_writes",
    ),
    ("test_ranks_are_those_of_the_masked_models_last_layer",),
    ("test_the_fan_out_gives_the_pruners_tokens", "test_every_point_of_a_sweep_is_the_answer_by_itself"),
    ("test_a_continuations_loss_is_the_masked_models",),
)


@dataclass(frozen=True)
class Case:
    """One test that ran. kind: of model, of its parameters. difference: the largest that it recorded."""

    name: str
    kind: str
    passed: bool
    difference: float | None


def read(report: Path) -> list[Case]:
    """The tests of a JUnit file that are of one kind of model, skipped ones left out."""
    cases = []
    for element in xml.parse(report).iter("testcase"):
        name, _, parameters = element.get("name", "").partition("[")
        kinds = set(parameters.rstrip("]").split("-")) & MODELS.keys()
        if len(kinds) != 1 or element.find("skipped") is not None:
            continue
        values = [
            item.get("value", "") for item in element.iter("property") if item.get("name") == "largest_difference"
        ]
        passed = element.find("failure") is None and element.find("error") is None
        cases.append(Case(name, kinds.pop(), passed, float(values[0]) if values else None))
    return cases


def table(cases: Sequence[Case], head: str) -> str:
    """The table under a head. Raises ValueError where a kind has no test of a column: the file is of other tests."""
    names = head.split("|")
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    for kind in MODELS:
        mine = [case for case in cases if case.kind == kind]
        cells = [_cell(kind, [case for case in mine if case.name in column]) for column in COLUMNS]
        largest = _largest([case for case in mine if case.name == _PRUNED])
        lines.append(f"| `{kind}` | {' | '.join(cells)} | {_equal(kind, mine)} | {largest} |")
    return "\n".join(lines)


def _cell(kind: str, cases: Sequence[Case]) -> str:
    if not cases:
        raise ValueError(f"no test of {kind} is in the file for one of the columns: run all of `make models`")
    passed = sum(case.passed for case in cases)
    return f"✓ {passed}" if passed == len(cases) else f"✗ {passed} of {len(cases)}"


def _equal(kind: str, mine: Sequence[Case]) -> str:
    if kind not in THEIRS:
        return "–"
    cases = [case for case in mine if case.name == _EQUAL]
    if _cell(kind, cases).startswith("✗"):
        return "✗"
    return f"{DOCUMENTS}/{DOCUMENTS} `{THEIRS[kind].split('.')[-2]}`, {_largest(cases)}"


def _largest(cases: Sequence[Case]) -> str:
    return f"{max(case.difference or 0 for case in cases):.1e}".replace("e-0", "e-")


def written(page: str) -> str:
    """The table that stands in a page. Raises ValueError where its marks do not."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page} does not have the marks {BEGIN} and {END}")
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("report", type=Path, help="the JUnit file")
    cases = read(parser.parse_args(words).report)
    for page, head in PAGES.items():
        made, path = table(cases, head), ROOT / page
        written(page)
        text = path.read_text(encoding="utf-8")
        between = re.escape(BEGIN) + ".*?" + re.escape(END)
        path.write_text(
            re.sub(between, lambda _, made=made: f"{BEGIN}\n{made}\n{END}", text, flags=re.DOTALL), encoding="utf-8"
        )
    failed = [case for case in cases if not case.passed]
    sys.exit(f"{len(failed)} tests failed, {failed[0].name} of {failed[0].kind} among them" if failed else 0)


if __name__ == "__main__":
    main()
