"""CLIP's text tower: read from a folder, held against float64, asked by the methods that need it, refused elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from lmms_eval.utils import get_lmms_eval_cache_version
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from lmms_textweighted import load, make_plan, prune
from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.engine.text_tower import TextReads
from lmms_textweighted.errors import CheckpointError, InputError, PlanError
from lmms_textweighted.experiment.points import make_points, run_document
from lmms_textweighted.families.text_tower import load_text_tower
from lmms_textweighted.harness.cache_key import restore_cache_key
from lmms_textweighted.harness.documents import Documents
from lmms_textweighted.harness.model import LlavaTextweighted
from lmms_textweighted.harness.settings import Settings
from lmms_textweighted.inference import Decoding, PrunedLlava
from lmms_textweighted.inference.question import users_text
from lmms_textweighted.methods.cdpruner import QUESTION, Conditional
from lmms_textweighted.methods.trim import WHOLE, TextMetric
from lmms_textweighted.paths import checkpoint_folder
from lmms_textweighted.prompts import SINGLE_PREDICTION_PROMPT, Message, user_message
from lmms_textweighted.provenance.model import model_state
from lmms_textweighted.verify.model import compare_models
from lmms_textweighted.verify.verdict import Verdict
from tests.conftest import IMAGE, build_llava, make_inputs
from tests.method_oracles import ORACLES
from tests.test_method_formulas import choose, make_view
from tests.test_tower import siglip_llava
from tests.text_towers import ClipView, clip_folder, prune_asked, save_clip, text_tower_of, texts_of

LONG = "Which of these things is red? " * 12
BY_TEXT = ("cdpruner", "cdpruner_paper", "trim", "trim_paper")


@pytest.fixture(scope="module")
def tinys_clip(tmp_path_factory) -> Path:
    """A random CLIP that has the shape of the embedded model's vision tower."""
    return save_clip(tmp_path_factory.mktemp("clip"), AutoConfig.from_pretrained(checkpoint_folder()).vision_config)


@pytest.fixture(scope="module")
def tiny(tinys_clip) -> PrunedLlava:
    return PrunedLlava(*load("tiny")).with_text_tower(str(tinys_clip), [make_plan("trim")])


@pytest.fixture(scope="module")
def documents() -> Documents:
    return Documents.of_task("shapes_mcq", 3, single_prediction_prompt=True)


# What a text tower gives.


@pytest.mark.parametrize("end", [2, None])
@pytest.mark.parametrize("text", ["What's this?\nA. red 12", LONG, ""])
def test_texts_and_patches_are_those_of_a_clip_in_float64(text, end):
    model = build_llava(tower_layers=4)
    tower = load_text_tower(str(clip_folder(model, end=end)), model)
    oracle = ClipView(tower, text)
    np.testing.assert_allclose(tower.texts(text, WHOLE), np.stack(oracle.texts()), atol=1e-5)
    if end == 2:  # with its own end token a segment without one is pooled elsewhere, by transformers
        expected = np.stack(oracle.texts(segments=True))
        np.testing.assert_allclose(tower.texts(text, TextReads(segments=True)), expected, atol=1e-5)
        assert len(expected) == (4 if text == LONG else 1)
    vectors = torch.randn(2, 5, 16)
    expected = [[oracle.patch(vector.double().numpy()) for vector in part] for part in vectors]
    np.testing.assert_allclose(tower.patches(vectors), expected, atol=1e-5)
    torch.testing.assert_close(tower.patches(vectors.half()), tower.patches(vectors.half().float()))


def test_cdpruner_leaves_the_closing_instruction_out_and_trim_stops_at_the_context():
    model = build_llava()
    tower = text_tower_of(model)
    asked = "Hint\nWhat is it?\nA. one\nB. two"
    same = tower.texts(asked + SINGLE_PREDICTION_PROMPT, QUESTION)
    assert torch.equal(same, tower.texts(asked, QUESTION))
    assert not torch.equal(tower.texts(asked + SINGLE_PREDICTION_PROMPT, WHOLE), tower.texts(asked, WHOLE))
    assert torch.equal(tower.texts(LONG, WHOLE), tower.texts(LONG + "something else", WHOLE))
    assert not torch.equal(tower.texts(LONG, QUESTION), tower.texts(LONG + "something else", QUESTION))


def test_what_a_user_says_is_the_last_turn_without_tags():
    turns = [user_message("first?", ["picture"]), Message("assistant", (("text", "yes"),))]
    assert (
        users_text([*turns, Message("user", (("text", "look at <image> again\n"),), ("other",))]) == "look at   again"
    )
    assert users_text(turns) == "first?"
    assert users_text([]) == ""


def test_a_clip_whose_weights_or_tokenizer_are_missing_is_refused(tmp_path):
    model = build_llava()
    folder = save_clip(tmp_path / "clip", model.config.vision_config)
    whole = load_file(folder / "model.safetensors")
    for name in ("text_projection.weight", "visual_projection.weight", "vision_model.post_layernorm.bias"):
        save_file({key: value for key, value in whole.items() if key != name}, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=f"lacks the weights '{name}'"):
            load_text_tower(str(folder), model)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer \(tokenizer.json\)"):
        load_text_tower(str(folder), model)


def test_a_clip_of_another_vision_tower_is_refused_also_by_prune():
    model = build_llava()
    tower = text_tower_of(model)
    assert load_text_tower(tower.name, build_llava(layers=4)).fingerprint == tower.fingerprint
    inputs = make_inputs(model, [(3, IMAGE, 4)])
    for change in ({"image_size": 84}, {"patch": 28}):
        other = build_llava(**change)
        field = "image_size" if "image_size" in change else "patch_size"
        with pytest.raises(PlanError, match=rf"whose {field} is \d+, but the model's is {next(iter(change.values()))}"):
            load_text_tower(tower.name, other)
        with (
            pytest.raises(PlanError, match="is of a vision tower whose"),
            prune(other, make_plan("trim", keep_tokens=4), text_tower=tower, texts=texts_of(inputs)),
        ):
            pass
    with pytest.raises(PlanError, match=r"vision tower of a Llava\w+ is no CLIP \(siglip_vision_model\)"):
        load_text_tower(tower.name, siglip_llava())


# Who needs one.


@pytest.mark.parametrize("name", BY_TEXT)
def test_a_plan_that_reads_the_text_is_refused_without_a_tower_or_a_text(name):
    model = build_llava()
    plan, inputs = make_plan(name, keep_tokens=4), make_inputs(model, [(3, IMAGE, 4), (5,)])
    with (
        pytest.raises(PlanError, match=f"^{name} compares patches with the question.*give text_tower"),
        prune(model, plan),
    ):
        pass
    for texts in (None, [None, "text"]):
        with (
            prune(model, plan, text_tower=text_tower_of(model), texts=texts),
            pytest.raises(PlanError, match="which is not known here: give texts, one a row"),
        ):
            model(**inputs)
    with prune(model, plan, text_tower=text_tower_of(model), texts=["text", None]) as trace:
        model(**inputs)
    assert [document.kept_tokens for document in trace.documents] == [4, 0]


@pytest.mark.parametrize("name", BY_TEXT)
def test_beams_choose_as_one_forward_does_and_another_text_chooses_otherwise(name):
    model = build_llava(image_size=84)
    inputs = make_inputs(model, [(3, IMAGE, 4), (IMAGE, 2, IMAGE, 6)], seed=1)
    plan, tower = make_plan(name, keep_tokens=6), text_tower_of(model)
    with prune_asked(model, plan, inputs) as trace:
        model(**inputs)
        kept = [document.stages[0].kept.tolist() for document in trace.documents]
        trace.documents.clear()
        model.generate(**inputs, max_new_tokens=2, num_beams=2)
    assert [document.stages[0].kept.tolist() for document in trace.documents] == [row for row in kept for _ in (0, 1)]
    with prune(model, plan, text_tower=tower, texts=["Something else.", "And more."]) as trace:
        model(**inputs)
    assert all(document.stages[0].kept.tolist() != row for document, row in zip(trace.documents, kept, strict=True))


def test_outliers_decide_how_many_of_trims_tokens_stay():
    scorer = TextMetric(count="outliers")
    counts = set()
    for seed in range(6):
        view = make_view((36, 16), 4, seed)
        found, _ = choose(scorer, view, (36, 16))
        expected = ORACLES["trim_outliers"](view, (36, 16))
        assert (found.kept, found.merged) == (expected.kept, expected.merged)
        counts.add(len(found.kept[0]))
        limited, _ = choose(scorer, view, (2, 0))
        assert [len(part) for part in limited.kept] == [min(2, len(found.kept[0])), 0]
    assert len(counts) > 1
    assert max(counts) < 20


def test_where_all_patches_are_alike_to_the_text_cdpruner_weighs_none():
    view = make_view((16,), 4, seed=0)
    view.tower.clip().matrix[:] = 0
    found, scores = choose(Conditional(), view, (5,))
    assert scores.tolist() == [1.0] * 16
    assert len(found.kept[0]) == 5


def test_options_of_a_plans_file_are_checked():
    for kind, options in ((Conditional, {"relevance": "most"}), (TextMetric, {"similarity": "dot"})):
        with pytest.raises(PlanError, match="unknown"):
            kind(**options)
    with pytest.raises(PlanError, match="unknown count 'all'"):
        TextMetric(count="all")


# On the embedded model, as users run it.


def test_a_question_is_answered_from_the_tokens_that_it_chooses(tiny, documents):
    """Asked by its conversation, as by hand; and batched as alone."""
    messages = [[document.message] for document in documents]
    for name in BY_TEXT:
        plan = make_plan(name, keep_tokens=64)
        tiny.plan = plan
        answers = tiny.generate(messages, Decoding(max_new_tokens=2))
        for turns, answer in zip(messages, answers, strict=True):
            encoded = tiny.encode([turns])
            with prune(tiny.model, plan, text_tower=tiny.text_tower, texts=[turns[-1].text.split("\n", 1)[1]]) as trace:
                tiny.model(**encoded.inputs)
            assert answer.trace.stages[0].kept.tolist() == trace.documents[0].stages[0].kept.tolist()
            assert answer.trace.image_lengths == [64] * 8


def test_a_sweeps_points_are_those_of_the_pruned_model_alone(tiny, documents):
    points = make_points([*BY_TEXT, "cdpruner+text_weighted", "fastv"], [192, 48], pruning_layer=None)
    document, decoding = documents[0], Decoding(max_new_tokens=4)
    outcomes = run_document(
        tiny, document.message, points, decoding=decoding, ranks=True, judge=lambda answer: (0.0, False)
    )
    for point, outcome in zip(points, outcomes, strict=True):
        tiny.plan = point.plan
        alone = tiny.generate([[document.message]], decoding)[0]
        assert (outcome.answer, outcome.kept_tokens) == (alone.text, alone.trace.kept_tokens)


def test_the_model_of_a_run_names_its_text_tower_and_another_one_is_another_model(tiny, tmp_path):
    plain = model_state(PrunedLlava(tiny.model, tiny.processor))
    state = model_state(tiny)
    assert {**plain, "text_tower": tiny.text_tower.fingerprint} == state
    folder = save_clip(tmp_path, tiny.model.config.vision_config, seed=1)
    other = model_state(tiny.with_text_tower(str(folder), [make_plan("trim")]))
    for recorded, here, differences in ((state, state, 0), (state, other, 1), (plain, state, 1), (plain, plain, 0)):
        verdict = Verdict(total=1, documents=1)
        compare_models(recorded, here, verdict)
        assert len(verdict.differences) == differences


def test_a_run_of_lmms_eval_keeps_answers_of_two_clips_in_one_folder_apart(tinys_clip, tmp_path, monkeypatch):
    monkeypatch.setenv("LMMS_TEXTWEIGHTED_CACHE", str(tmp_path / "textweighted"))
    monkeypatch.setattr("sys.argv", ["lmms-eval"])
    before, versions, settings = get_lmms_eval_cache_version(), set(), set()
    folder = tmp_path / "clip"
    for seed in (1, 2):
        save_clip(folder, AutoConfig.from_pretrained(checkpoint_folder()).vision_config, seed=seed)
        model = LlavaTextweighted(pretrained="tiny", strategy="cdpruner", keep_tokens=64, text_tower=str(folder))
        versions.add(get_lmms_eval_cache_version())
        assert model.run_settings["text_tower"] == str(folder)
        settings.add(json.dumps(model.run_settings))
        assert model.run_settings["text_tower_weights"] == model.provenance["model"]["text_tower"]
        model.clean()
    assert len({before, *versions}) == 3
    assert len(settings) == 2
    assert get_lmms_eval_cache_version() == before


def test_a_text_tower_that_no_method_needs_is_not_read():
    settings = Settings.parse({"pretrained": "tiny", "strategy": "fastv", "text_tower": "./nowhere"})
    llava = PrunedLlava(*load("tiny"))
    assert llava.with_text_tower(settings.text_tower, [settings.plan()]) is llava
    with pytest.raises(PlanError, match="trim_64 compares patches"):
        Settings.parse({"pretrained": "tiny", "strategy": "trim_64"})
    with pytest.raises((CheckpointError, InputError), match=r"text_tower is './nowhere', which is no folder"):
        llava.with_text_tower("./nowhere", [make_plan("cdpruner")])


def test_a_plan_of_several_stages_reads_the_text_where_one_of_them_does():
    model = build_llava(image_size=84, layers=6)
    inputs = make_inputs(model, [(3, IMAGE, 7)], seed=2)
    stages = (
        Stage(make_plan("divprune").stages[0].scorer, -1, 20),
        Stage(Conditional(), 1, 9),
        Stage(TextMetric(), 3, 4),
    )
    plan = Plan("three", stages)
    assert plan.reads_text
    with prune_asked(model, plan, inputs) as trace:
        model(**inputs)
    first, second, third = trace.documents[0].stages
    assert len(first.kept) == len(second.candidates) == 20
    assert set(second.kept.tolist()) <= set(first.kept.tolist())
    assert third.sources
    assert len(third.kept) == 4


@pytest.fixture(autouse=True)
def _cache_key():
    yield
    restore_cache_key()
    assert not os.environ.get("LMMS_EVAL_GIT_COMMIT")
