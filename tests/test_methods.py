"""Methods that are not of this package: in a script, through an entry point, and as docs/add-a-method.md says."""

from __future__ import annotations

import json
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from lmms_textweighted import cli, methods, prune
from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.errors import PlanError
from lmms_textweighted.experiment.points import make_points
from lmms_textweighted.families.known import family_of, splice_of
from lmms_textweighted.methods import SCORERS, find_method, make_plan, method_names
from tests.conftest import IMAGE, build_llava, make_inputs
from tests.lmms_eval_runs import lmms_eval
from tests.oracles import run_masked

DOCS = Path(__file__).resolve().parent.parent / "docs"


def example(page: str) -> str:
    """The first Python block of a page: the file that it describes."""
    return re.search(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL).group(1)


@pytest.fixture
def script(tmp_path, monkeypatch):
    """docs/add-a-method.md's file, in the working directory as the page has it."""
    (tmp_path / "my_method.py").write_text(example("add-a-method.md"))
    monkeypatch.chdir(tmp_path)
    return "my_method.py:MINE"


def test_the_documented_method_keeps_what_its_formula_says(script):
    model = build_llava()
    inputs = make_inputs(model, [(3, IMAGE, 6)], seed=1)
    with prune(model, make_plan(script, pruning_layer=1, keep_tokens=4)) as trace:
        model(**inputs)
    (stage,) = trace.documents[0].stages
    attention = run_masked(model, inputs, {}).attentions[1][0].mean(dim=0).tolist()
    image, text = range(3, 3 + 16), range(3 + 16, 3 + 16 + 6)
    score = {k: max(attention[i][k] for i in text) for k in image}
    best = sorted(sorted(image, key=lambda k: (-score[k], k))[:4])
    assert stage.kept.tolist() == best
    assert stage.scores.tolist() == pytest.approx([score[k] for k in image], abs=1e-6)


@pytest.mark.slow
def test_the_documented_method_runs_in_the_sweep_and_in_lmms_eval(script, tmp_path, monkeypatch):
    arguments = ["--strategies", f"{script},random", "--tokens", "64,16", "--num-samples", "6", "--output-dir", "sweep"]
    monkeypatch.setattr("sys.argv", ["lmms-textweighted", "sweep", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    data = json.loads(next((tmp_path / "sweep").glob("*.json")).read_text())
    assert list(data["strategies"]) == ["strongest_row", "random"]
    answers = [json.loads(line) for line in next((tmp_path / "sweep").glob("*.answers.jsonl")).read_text().splitlines()]
    swept = [line["answer"] for line in answers if (line["strategy"], line["tokens"]) == ("strongest_row", 16)]

    given = f"pretrained=tiny,strategy={script},keep_tokens=16"
    run = lmms_eval(
        tmp_path, "--model", "llava_textweighted", "--model_args", given, "--tasks", "shapes_mcq", "--limit", "6"
    )
    samples = run.samples("shapes_mcq")
    assert [sample["filtered_resps"][0] for sample in samples] == swept
    assert {sample["token_counts"][0]["settings"]["strategy"] for sample in samples} == {"strongest_row"}


def test_a_method_of_an_installed_package_has_its_name(script, monkeypatch):
    point = EntryPoint("strongest_row", "my_method:MINE", methods.ENTRY_POINTS)
    monkeypatch.syspath_prepend(".")
    monkeypatch.setattr(methods, "entry_points", lambda group: [point] if group == methods.ENTRY_POINTS else [])
    method_names.cache_clear()
    try:
        assert find_method("strongest_row").name == "strongest_row"
        assert method_names()[-1] == "strongest_row"
        with pytest.raises(PlanError, match="did you mean 'strongest_row'"):
            find_method("strongest_rows")
    finally:
        method_names.cache_clear()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("my_method.py:THEIRS", "strategy 'my_method.py:THEIRS': 'my_method.py' has no 'THEIRS'"),
        ("gone.py:MINE", "strategy 'gone.py:MINE': there is no file 'gone.py'"),
        ("no_such_module:MINE", "strategy 'no_such_module:MINE' cannot be imported"),
        ("my_method.py:StrongestRow", "is a class: give an object of lmms_textweighted.methods.Method"),
    ],
)
def test_a_method_that_cannot_be_had_is_named(script, given, said):
    with pytest.raises(PlanError, match=re.escape(said)):
        find_method(given)


def test_a_stage_wants_a_scorer_not_its_name():
    with pytest.raises(PlanError, match="scorer is 'uniform': give an object of"):
        Stage("uniform", 1, keep_tokens=3)


def test_two_methods_of_one_name_are_no_sweep(script):
    with pytest.raises(PlanError, match="strategies names 'strongest_row' twice"):
        make_points([script, find_method(script)], [4], 2)


def test_the_documented_family_is_asked_where_it_is_listed(monkeypatch):
    """docs/add-a-model.md's class, of a model whose type nobody else knows."""
    from lmms_textweighted.families import known

    space: dict = {}
    exec(compile(example("add-a-model.md"), "add-a-model.md", "exec"), space)
    model = build_llava()
    model.config.model_type = "my_vlm"
    with pytest.raises(PlanError, match="model_type 'my_vlm', which is of no known family"):
        splice_of(model)
    monkeypatch.setattr(known, "FAMILIES", (*known.FAMILIES, space["MyFamily"]))
    family = family_of(model, object())
    assert type(family) is space["MyFamily"]
    assert family.default_template() == "hf"
    inputs = make_inputs(model, [(3, IMAGE, 6)])
    plan = Plan("one", (Stage(SCORERS["uniform"], 1, keep_tokens=4),))
    with prune(model, plan) as trace:
        model(**inputs)
    assert len(trace.documents[0].stages[0].kept) == 4
    assert family.image_mask(inputs["input_ids"][0]).sum() == 16
