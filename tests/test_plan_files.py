"""Plans from YAML files: read, refused with file and line, written, and never confused by lmms-eval's cache."""

from __future__ import annotations

import os
import re

import pytest
import yaml

from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.errors import PlanError
from lmms_textweighted.harness.cache_key import add_to_cache_key, restore_cache_key
from lmms_textweighted.harness.settings import Settings
from lmms_textweighted.methods import SCORERS, find_method, make_plan, method_names
from lmms_textweighted.methods.files import plan_text, read_plan
from tests.lmms_eval_runs import lmms_eval

PLAN = """\
name: mine
source: my own, 2026
stages:
  - {scorer: uniform, layer: 0, keep_tokens: 64}
  # A comment acts on nothing.
  - scorer: last_row
    layer: 3
    score_layer: 2
    keep_ratio: 0.25
text_scope: question
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


def test_a_file_is_the_plan_that_it_states(file):
    plan = make_plan("plan.yaml")
    assert plan == Plan(
        "mine",
        (
            Stage(SCORERS["uniform"], 0, keep_tokens=64),
            Stage(SCORERS["last_row"], 3, keep_ratio=0.25, score_layer=2),
        ),
        "question",
    )
    method = find_method("plan.yaml")
    assert (method.name, method.source, method.takes_budget, method.removes) == ("mine", "my own, 2026", False, True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("layer: 3", "layer: three"),
            "plan 'plan.yaml', line 7: stages.1.layer is 'three': input should be a val",
        ),
        (("layer: 3", "layer: -3"), "plan 'plan.yaml', line 6: pruning layer is -3"),
        (("layer: 0", "layer: 2"), "plan 'plan.yaml', line 6: plan 'mine': a stage is scored on layer 2"),
        (("layer: 3", "layer: 3\n    layer: 4"), "plan 'plan.yaml', line 8: layer is stated twice"),
        (("layer: 3", "layers: 3"), "unknown field 'layers': did you mean 'layer'"),
        (("    layer: 3\n", ""), "plan 'plan.yaml', line 6: stages.1.layer is missing: state it"),
        (("keep_ratio: 0.25", "keep_ratio: 25"), "plan 'plan.yaml', line 6: keep_ratio is 25"),
        (("    keep_ratio: 0.25\n", ""), "plan 'plan.yaml', line 6: keep_tokens is None and keep_ratio is None"),
        (("last_row", "last_rows"), "plan 'plan.yaml', line 6: unknown scorer 'last_rows': did you mean 'last_row'"),
        (
            ("last_row\n", "last_row\n    options: {heads: 3}\n"),
            "line 6: scorer 'last_row' takes no options: leave",
        ),
        (("question", "answer"), "plan 'plan.yaml', line 10: text_scope is 'answer'"),
        (("name: mine", "name: fastv"), "plan 'plan.yaml', line 1: name is 'fastv', which is a method's: give another"),
        (("name: mine", "name: 'a b'"), "plan 'plan.yaml', line 1: name is 'a b'"),
        (("name: mine\n", ""), "plan 'plan.yaml', line 1: name is missing: state it"),
        (("name: mine", "name: mine\ntext: x"), "plan 'plan.yaml', line 2: text is no field of a plan"),
        (("name: mine", "name: [mine"), "plan 'plan.yaml', line 2, is no YAML"),
        (("name: mine", "name: !!python/object:os.system mine"), "plan 'plan.yaml', line 1, is no YAML"),
        ((PLAN, ""), "plan 'plan.yaml' states no plan: write `name:` and `stages:`"),
        ((PLAN, "- a\n- b\n"), "plan 'plan.yaml' states no plan"),
    ],
)
def test_a_file_that_states_no_plan_is_refused_in_a_line_that_names_the_place(file, change, said):
    assert change[0] in PLAN
    file.write_text(PLAN.replace(*change))
    with pytest.raises(PlanError, match=re.escape(said)) as error:
        find_method("plan.yaml")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_no_text_is_named(file):
    with pytest.raises(PlanError, match=re.escape("plan 'gone.yaml' cannot be read (No such file")):
        find_method("gone.yaml")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match=re.escape("plan 'plan.yaml' cannot be read (it is no text)")):
        find_method("plan.yaml")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"keep_tokens": 64}, "keep_tokens is 64, but mine states its own: leave it out"),
        ({"equivalent_tokens": 64}, "equivalent_tokens is 64, but mine states its own"),
        ({"pruning_layer": 2}, "pruning_layer is 2, but mine states its own"),
        ({"text_scope": "all"}, "text_scope is 'all', but mine states 'question'"),
        ({"keep_scope": "prompt"}, "keep_scope is 'prompt', but mine states 'image'"),
    ],
)
def test_nothing_may_be_said_beside_a_file(file, given, said):
    with pytest.raises(PlanError, match=re.escape(said)):
        make_plan("plan.yaml", **given)
    with pytest.raises(PlanError, match=re.escape(said)):
        Settings.parse({"strategy": "plan.yaml", **given})


@pytest.mark.parametrize("strategy", [name for name in method_names() if find_method(name).removes])
def test_every_methods_plan_can_be_written_and_read(strategy, tmp_path):
    plan = make_plan(strategy, keep_tokens=48, text_scope="all")
    path = tmp_path / "written.yaml"
    path.write_text(plan_text(plan, SCORERS, name="written", source=find_method(strategy).source))
    assert yaml.safe_load(path.read_text())["name"] == "written"
    method = read_plan(path, SCORERS, method_names())
    assert {**method.solve().to_dict(), "strategy": plan.name} == plan.to_dict()
    assert method.solve().stages == plan.stages


def test_a_files_digest_is_of_what_acts(file):
    before = Settings.parse({"strategy": "plan.yaml"})
    assert before.resolved()["strategy_digest"] == before.digest()
    digest = before.digest()
    file.write_text("# Another comment.\n" + PLAN.replace("{scorer: uniform, layer: 0", "{layer: 0, scorer: uniform"))
    assert Settings.parse({"strategy": "plan.yaml"}).digest() == digest
    file.write_text(PLAN.replace("64", "63"))
    assert Settings.parse({"strategy": "plan.yaml"}).digest() != digest
    assert Settings.parse({"strategy": "fastv"}).digest() is None


def test_the_cache_key_is_as_it_was_after_a_run(monkeypatch):
    from lmms_eval.utils import get_lmms_eval_cache_version

    monkeypatch.delenv("LMMS_EVAL_GIT_COMMIT", raising=False)
    monkeypatch.setenv("GIT_DIR", "/somewhere")
    before, version = dict(os.environ), get_lmms_eval_cache_version()
    for digest in ("one", "two"):  # the second model of a list, whose first was never let go of
        add_to_cache_key(digest, [])
        assert get_lmms_eval_cache_version() == f"{version}+{digest}"
    restore_cache_key()
    assert dict(os.environ) == before
    add_to_cache_key(None, [])
    assert dict(os.environ) == before


SMALL = "name: mine\nstages:\n  - {scorer: uniform, layer: 0, keep_tokens: KEEP}\n"
SCRIPT = """\
from lmms_textweighted.methods import SCORERS, OneStage

MINE = OneStage("mine", "mine", "my own", SCORERS["WHICH"])
"""


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["plan.yaml", "my_method.py:MINE"])
def test_lmms_evals_cache_answers_one_file_not_for_another_of_its_name(kind, tmp_path):
    """Through the real command: the same words, the same cache folder, another content of the file."""
    path = tmp_path / kind.partition(":")[0]
    contents = (
        [SMALL.replace("KEEP", keep) for keep in ("1", "500")]
        if kind == "plan.yaml"
        else [SCRIPT.replace("WHICH", name) for name in ("random", "uniform")]
    )
    budget = "" if kind == "plan.yaml" else ",keep_tokens=8"
    arguments = (
        *("--model", "llava_textweighted", "--model_args", f"pretrained=tiny,strategy={kind}{budget}"),
        *("--tasks", "shapes_mcq", "--limit", "12", "--batch_size", "4"),
    )
    first, second = contents
    answers, digests = {}, {}
    for name, content, cache in (
        ("first", first, "cache"),
        ("second", second, "cache"),
        ("apart", second, "another"),
        ("again", first, "cache"),
    ):
        path.write_text(content)
        run = lmms_eval(tmp_path, *arguments, "--use_cache", str(tmp_path / cache), name=name)
        assert run.code == 0, run.output[-3000:]
        samples = run.samples("shapes_mcq")
        answers[name] = [sample["filtered_resps"][0] for sample in samples]
        digests[name] = {
            (sample["token_counts"][0] or {}).get("settings", {}).get("strategy_digest") for sample in samples
        }
        served = "served from cache" in run.output or "cache hits" in run.output
        assert served == (name == "again"), run.output[-3000:]
        assert "+" not in str(run.results["git_hash"])
    assert answers["second"] == answers["apart"] != answers["first"] == answers["again"]
    assert digests["first"] != digests["second"] == digests["apart"]
    assert None not in digests["first"] | digests["second"]
