"""`lmms-textweighted methods`, and docs/methods.md, which has its tables and an example."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from lmms_textweighted import cli, prune
from lmms_textweighted.engine.cost import DecoderShape
from lmms_textweighted.engine.parts import shares
from lmms_textweighted.errors import PlanError
from lmms_textweighted.methods import (
    GRID_PRESETS,
    PRESETS,
    find_method,
    grid_preset_names,
    make_plan,
    method_names,
    preset_names,
)
from lmms_textweighted.methods.budget import LLAVA_15_7B, Geometry, cost_of
from lmms_textweighted.methods.visionzip import contextual_count
from tests.conftest import IMAGE, build_llava, make_inputs

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"


@pytest.fixture
def said(monkeypatch, capsys):
    """What the command prints, and how it ends."""

    def run(*arguments: str) -> str:
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr("sys.argv", ["lmms-textweighted", "methods", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        if ended.value.code:
            return printed.err
        return printed.out

    return run


def test_every_method_and_preset_is_a_line_of_80_columns(said):
    lines = said().splitlines()
    assert max(map(len, lines)) <= 80
    first = [line.split()[0] for line in lines if line]
    assert [name for name in first if name in method_names()] == list(method_names())
    assert [name for name in first if name in preset_names()] == list(preset_names())
    assert [name for name in first if name in grid_preset_names()] == list(grid_preset_names())
    fastv = next(line for line in lines if line.startswith("fastv_k2 "))
    assert fastv.split() == ["fastv_k2", "FastV", "2024", "1", "yes", "keep"]


def test_the_page_has_the_commands_tables(said):
    printed = said("--markdown")
    between = PAGE.read_text().partition("a test holds them equal -->")[2]
    assert between.partition("<!-- end -->")[0].strip() == printed.strip()


@pytest.mark.parametrize("name", [*method_names(), *preset_names(), *grid_preset_names()])
def test_one_method_is_shown_with_its_formula_its_plan_and_its_cost(said, name):
    text, data = said(name), json.loads(said(name, "--json"))
    plan = make_plan(name)
    cost = cost_of(plan, replace(LLAVA_15_7B, image_tokens=2880 if name in grid_preset_names() else 576))
    assert data["plan"] == plan.to_dict()
    assert data["cost"]["equivalent_tokens"] == cost.equivalent_tokens
    assert f"{cost.equivalent_tokens:.1f} equivalent tokens" in text
    assert f"{cost.flops_ratio:.1%} of the prefill's FLOPs" in text
    assert data["formula"].strip()
    assert find_method(name).source in text
    if plan.picture is not None:
        assert f"the picture itself is smaller: {plan.picture.tokens} tokens in place of 576" in text
    for stage in plan.stages:
        place = "before layer 0" if stage.layer < 0 else f"after layer {stage.layer}"
        assert f"{place}: {cost.image_lengths[stage.layer + 1]} stay, by {stage.scorer.name}" in text


def test_a_budget_and_other_sizes_are_those_of_the_plan(said):
    data = json.loads(
        said(
            "fastv", "--flops-ratio", "0.6", "--layers", "8", "--image-tokens", "100", "--pruning-layer", "1", "--json"
        )
    )
    decoder = LLAVA_15_7B.decoder
    small = DecoderShape(8, decoder.hidden, decoder.heads, decoder.kv_heads, decoder.head_dim, decoder.intermediate)
    plan = make_plan("fastv", flops_ratio=0.6, pruning_layer=1, geometry=Geometry(small, 100))
    assert data["plan"] == plan.to_dict()
    assert data["cost"]["flops_ratio"] == pytest.approx(0.6, abs=0.01)
    assert len(data["cost"]["image_lengths"]) == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fastw"], "unknown strategy 'fastw': did you mean 'fastv'?"),
        (["fastv", "--keep-tokens", "577"], "keep_tokens is 577, but the image has 576 tokens"),
        (["fastv", "--keep-tokens", "5", "--keep-ratio", "1"], "give exactly one of them"),
        (["fastv", "--layers", "1"], "layers is 1: give at least 2"),
        (["fastv", "--layers", "3"], "pruning layer is 2, but the model has 3 decoder layers"),
        (["fastv_k2_mean192", "--layers", "40"], "is a setting for 32 decoder layers, but the model has 40"),
        (["--keep-tokens", "5"], "keep_tokens is given, but no method: name one"),
        (["--output", "x.yaml"], "output is given, but no method"),
        (["fastv", "--output", "nowhere/x.yaml"], "output 'nowhere/x.yaml' cannot be written"),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_line(said, arguments, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = said(*arguments)
    assert words in text
    assert text.count("\n") == 1


@pytest.mark.parametrize("file", ["plan.yaml", "fastv.yaml"])
def test_a_plan_that_is_written_is_read_as_a_strategy(said, file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = said("fastv_k2", "--equivalent-tokens", "128", "--output", file)
    assert f"wrote {file}: strategy={file}" in text
    assert make_plan(file).stages == make_plan("fastv_k2", equivalent_tokens=128).stages
    assert find_method(file).name not in method_names()


def test_presets_name_a_method_and_none_is_called_like_one():
    assert not {*preset_names(), *grid_preset_names()} & set(method_names())
    for preset in (*PRESETS, *GRID_PRESETS):
        assert preset.of in method_names()
        assert preset.source == find_method(preset.of).source
        preset.solve().check(32, 576 if preset in PRESETS else 2880)
        with pytest.raises(PlanError, match="is a setting for 32 decoder layers, but the model has 8"):
            preset.plan(geometry=replace(LLAVA_15_7B, decoder=replace(LLAVA_15_7B.decoder, layers=8)))


def test_a_view_of_a_grid_gets_what_its_authors_write():
    """VisionZip's 108 + 20, 54 + 10 and 27 + 5 in each of five views."""
    plans = [find_method(f"visionzip_{count}").plan() for count in (640, 320, 160)]
    assert [shares(plan.stages[0].keep_tokens, [576] * 5) for plan in plans] == [[128] * 5, [64] * 5, [32] * 5]
    assert [contextual_count(count) for count in (128, 64, 32)] == [20, 10, 5]


def test_the_pages_plan_runs_as_it_is_written(monkeypatch, tmp_path):
    """On a model: what leaves where, by the lengths that the layers saw."""
    text = re.search(r"```yaml\n(.*?)```", PAGE.read_text(), flags=re.DOTALL).group(1)
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text(text.replace("288", "12"))
    assert "288" in text
    model = build_llava(layers=6)
    inputs = make_inputs(model, [(3, IMAGE, 6)], seed=1)
    with prune(model, make_plan("plan.yaml")) as trace:
        model(**inputs)
    assert trace.documents[0].image_lengths == [16, 12, 12, 12, 2, 2]
