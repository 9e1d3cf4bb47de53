"""The embedded set and model: no leak, no shortcut, and what the model must be able to do and to lose."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from scipy.stats import binomtest

from lmms_textweighted.families import load
from lmms_textweighted.harness.documents import Documents
from lmms_textweighted.inference import PrunedLlava
from lmms_textweighted.methods import make_plan
from lmms_textweighted.paths import EMBEDDED, checkpoint_folder
from lmms_textweighted.tiny import scenes, train
from lmms_textweighted.tiny.evaluate import answers
from lmms_textweighted.tiny.questions import KINDS, caption, make_question, object_f1, true_caption
from lmms_textweighted.tiny.testset import SHA256, load_testset, make_documents, scenes_file, to_lines

SCIENCEQA_FIELDS = {
    "image", "question", "choices", "answer", "hint", "task", "grade", "subject", "topic", "category", "skill",
    "lecture", "solution",
}  # fmt: skip


@pytest.fixture(scope="module")
def descriptions():
    return [json.loads(line) for line in scenes_file().read_text().splitlines()]


def test_the_shipped_set_is_what_its_script_writes(descriptions):
    text = to_lines(make_documents())
    assert hashlib.sha256(text.encode()).hexdigest() == SHA256
    assert text == scenes_file().read_text()


def test_the_set_has_scienceqas_schema_and_loads_with_pictures():
    documents = load_testset()
    assert len(documents) == 500
    assert set(documents.features) - {"id"} == SCIENCEQA_FIELDS
    first = documents[0]
    assert isinstance(first["image"], Image.Image)
    assert first["image"].size == (336, 336)


def test_every_question_has_one_right_answer_that_the_scene_gives(descriptions):
    for document in descriptions:
        objects = json.loads(document["scene"])["objects"]
        asked, _, named = document["category"].partition(" by ")
        matching = [item for item in objects if item[named] in document["question"].replace("?", "").split()]
        assert len(matching) == 1, document["question"]
        assert document["choices"][document["answer"]] == matching[0][asked]
        present = {item[asked] for item in objects}
        assert set(document["choices"]) <= present
        assert len(set(document["choices"])) == len(document["choices"])


def test_letters_are_balanced_and_guessers_stay_at_chance(descriptions):
    """Always one letter, or the choice that is right most often in the set itself for the question's words."""
    by_count = {count: [d for d in descriptions if len(d["choices"]) == count] for count in range(2, 6)}
    assert all(len(group) == 125 for group in by_count.values())
    for count, group in by_count.items():
        letters = Counter(document["answer"] for document in group)
        assert max(letters.values()) - min(letters.values()) <= 1
        assert set(letters) == set(range(count))
    chance = sum(1 / len(d["choices"]) for d in descriptions) / len(descriptions)
    assert chance == pytest.approx(0.3208, abs=1e-3)

    # A question-only guesser, trained on other held-out documents: the most frequent right word of each question.
    favourite: dict[str, Counter] = {}
    for document in make_documents(3000, seed=1):
        favourite.setdefault(document["question"], Counter())[document["choices"][document["answer"]]] += 1
    hits = sum(
        max(d["choices"], key=lambda c: favourite.get(d["question"], Counter())[c]) == d["choices"][d["answer"]]
        for d in descriptions
    )
    assert binomtest(hits, len(descriptions), chance).pvalue > 0.01


def test_no_test_scene_is_on_the_training_side(descriptions):
    tested = {scenes.Scene.from_dict(json.loads(d["scene"])).digest() for d in descriptions}
    assert all(scenes.Scene.from_dict(json.loads(d["scene"])).is_held_out() for d in descriptions)
    rng = np.random.default_rng(0)
    trained = {scenes.random_scene(rng, held_out=False).digest() for _ in range(2000)}
    assert not tested & trained


@given(st.integers(0, 10**6))
def test_a_scene_survives_json_and_is_drawn_where_it_says(seed):
    scene = scenes.random_scene(np.random.default_rng(seed), held_out=True)
    assert scenes.Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene
    pixels, labels = scenes.render(scene), scenes.patch_labels(scene)
    assert pixels.shape == (336, 336, 3)
    patches = pixels.reshape(24, 14, 24, 14, 3).transpose(0, 2, 1, 3, 4).reshape(576, -1)
    coloured = (patches != scene.background).any(axis=1)
    assert not coloured[labels[:, 0] < 0].any()
    for item in scene.objects:
        mine = patches.reshape(576, 196, 3)[labels[:, 0] == scenes.SHAPES.index(item.shape)].reshape(-1, 3)
        colours = {tuple(pixel) for pixel in mine.tolist()} - {(scene.background,) * 3}
        assert colours == {scenes.COLORS[item.color]}
        row, column = item.row // 8, item.column // 8
        assert scenes.PLACES.index(item.place) == row * 3 + column


@given(st.integers(0, 10**6), st.sampled_from(KINDS))
def test_questions_are_reproducible(seed, kind):
    scene = scenes.random_scene(np.random.default_rng(seed), held_out=False)
    first, second = (make_question(scene, np.random.default_rng(seed), kind=kind) for _ in range(2))
    assert first == second


def test_the_checkpoints_are_small_and_safe():
    files = [path for name in EMBEDDED for path in checkpoint_folder(name).iterdir()]
    assert sum(path.stat().st_size for path in files) < 12e6
    assert all(path.stat().st_size <= 6e6 for path in files)
    assert {path.suffix for path in files} <= {".json", ".jinja", ".safetensors"}


@pytest.mark.nightly  # `make regress`, in front of `make test`, sees 48 of these documents
@pytest.mark.slow
def test_the_model_sees_and_loses_what_it_cannot_see():
    """The whole test set. Random pruning's intervals must lie apart from the unpruned model's."""
    right = answers("tiny", strategies=["random"], budgets=(64, 16))
    accuracy = {name: sum(hits) / len(hits) for name, hits in right.items()}
    interval = {name: binomtest(sum(hits), len(hits)).proportion_ci(method="wilson") for name, hits in right.items()}
    assert len(right["all"]) == 500
    assert accuracy["all"] >= 0.95
    assert interval["blank picture"].low <= 0.3208 <= interval["blank picture"].high
    assert accuracy["all"] - accuracy["no image tokens"] >= 0.30
    assert accuracy["all"] - accuracy["random 64"] >= 0.10
    assert accuracy["all"] - accuracy["random 16"] >= 0.25
    assert interval["random 64"].high < interval["all"].low
    assert interval["random 16"].high < interval["random 64"].low


@pytest.mark.slow
def test_training_that_was_interrupted_ends_in_the_same_weights(tmp_path, monkeypatch):
    """Every stage of the real script, two steps each, on two pictures."""
    stages = {
        name: replace(settings, steps=2, pictures=2, horizon=None, warmup=1) for name, settings in train.STAGES.items()
    }
    options = {"seed": 0, "device": "cpu", "stages": stages, "save_every": 1}
    train.train(tmp_path / "whole", **options)

    calls = []
    real = train.make_batch

    def failing(*arguments, **kwargs):
        calls.append(1)
        if len(calls) % 3 == 0:
            raise KeyboardInterrupt
        return real(*arguments, **kwargs)

    monkeypatch.setattr(train, "make_batch", failing)
    for _ in range(20):
        try:
            train.train(tmp_path / "pieces", **options)
            break
        except KeyboardInterrupt:
            continue
    monkeypatch.undo()
    assert len(calls) > 2 * len(stages)
    whole, pieces = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("whole", "pieces"))
    assert whole.keys() == pieces.keys()
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
    assert load(str(tmp_path / "whole" / "checkpoint")).model.config.image_seq_length == 576


def test_a_description_is_scored_by_the_objects_that_it_names_whole(descriptions):
    scene = scenes.Scene.from_dict(json.loads(descriptions[0]["scene"]))
    true, objects = true_caption(scene), scene.objects
    assert object_f1(true, true) == 1
    assert object_f1(caption(scene, np.random.default_rng(1)), true) == 1  # in any order
    assert object_f1("", true) == 0
    first = f"{objects[0].color} {objects[0].shape} in the {objects[0].place}."
    assert object_f1(first, true) == pytest.approx(2 * 1 / (1 + len(objects)))
    assert object_f1(f"{first[:-1]}, {first}", true) == object_f1(first, true)  # once, however often
    wrong = first.replace(objects[0].color, objects[1].color)
    assert object_f1(wrong, true) == 0
    assert object_f1(true.replace(".", f", {wrong}"), true) < 1


@pytest.mark.slow
def test_descriptions_need_the_picture_in_layers_where_questions_do_not():
    """Unpruned all is named; after layer 3, where the questions are answered with 16 tokens, descriptions are not."""
    documents = Documents.of_task("shapes_caption", 12, single_prediction_prompt=False)
    assert documents.metric == "object_f1"
    assert "choices" not in documents[0].fields  # the sweep would call their share chance
    llava = PrunedLlava(*load("tiny"))

    def mean(plan) -> float:
        pruned = replace(llava, plan=plan)
        answered = [(d, pruned.generate([[d.message]], documents.decoding)[0].text) for d in documents]
        return float(np.mean([documents.score(document, answer) for document, answer in answered]))

    assert mean(make_plan("none")) > 0.97
    assert mean(make_plan("random", pruning_layer=3, keep_tokens=16)) < 0.8
