"""`lmms-textweighted regress`: the comparison by itself, the file, and planted faults that it must catch."""

from __future__ import annotations

import functools
import json
import random
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from PIL import Image
from rich.console import Console
from scipy.stats import binomtest

from lmms_textweighted import cli, prompts
from lmms_textweighted.engine import prefill, pruner, shortened
from lmms_textweighted.engine.plan import Stage
from lmms_textweighted.errors import InputError, NotComparableError
from lmms_textweighted.harness import documents
from lmms_textweighted.harness.documents import Document, TaskDocuments
from lmms_textweighted.methods.text_weighted import TEXT_WEIGHTED, TextWeighting
from lmms_textweighted.prompts import Template, user_message
from lmms_textweighted.regress.baseline import (
    Baseline,
    DocumentRecord,
    Outcome,
    PointRecord,
    Settings,
    Setup,
    read_baseline,
    to_text,
    write_baseline,
)
from lmms_textweighted.regress.command import regress
from lmms_textweighted.regress.compact import from_ranges, to_ranges, to_runs
from lmms_textweighted.regress.content import content_hash
from lmms_textweighted.regress.diff import check_contents, compare, is_regression, overlap, paired_p_value
from lmms_textweighted.regress.run import measure

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = REPOSITORY / "baselines" / "tiny.json"
KEPT = 64
LOAD_ONCE = functools.cache(documents._load_task)  # a task, read and drawn once for all runs here


def baseline(scores, *, kept=None, point="text_weighted@64", **changes) -> Baseline:
    """One point; document n was answered right where scores[n] is 1, and keeps the tokens kept[n]."""
    kept = kept or [range(35, 35 + KEPT)] * len(scores)
    records = [
        DocumentRecord(id=str(n), content=f"hash{n}", target="A", prompt=f"USER: <image>\n{n}?", pixels=(0.1, 1.0))
        for n in range(len(scores))
    ]
    outcomes = [
        Outcome(
            point=point,
            document=str(n),
            answer="A" if score else "B",
            score=score,
            lengths="640x3,128x5",
            kept=(to_ranges(sorted(kept[n])),),
        )
        for n, score in enumerate(scores)
    ]
    setup = Setup(
        weights="cafe",
        conv_mode="vicuna_v1",
        metric="exact_match",
        decoding={"max_new_tokens": 16},
        preparation={"image_aspect_ratio": "pad"},
        versions={"torch": "2.14"},
    )
    made = Baseline(
        settings=Settings(num_samples=len(scores)),
        setup=setup,
        documents=tuple(records),
        points=(PointRecord(name=point, accuracy=sum(scores) / len(scores), plan={"strategy": "text_weighted"}),),
        outcomes=tuple(outcomes),
    )
    return made.model_copy(update=changes)


def changed(made: Baseline, field: str, **values) -> Baseline:
    """The same with values of every record in `field` (or of the record itself) replaced."""
    records = getattr(made, field)
    if isinstance(records, tuple):
        return made.model_copy(update={field: tuple(record.model_copy(update=values) for record in records)})
    return made.model_copy(update={field: records.model_copy(update=values)})


def kinds(findings, *, failing: bool) -> list[str]:
    return [finding.kind for finding in findings if finding.fails is failing]


RIGHT = [1.0] * 30 + [0.0] * 2


def test_position_lists_survive_their_short_form():
    rng = random.Random(0)
    for size in (0, 1, 2, 64, 576):
        positions = sorted(rng.sample(range(700), size))
        assert from_ranges(to_ranges(positions)) == positions
    assert to_ranges([35, 36, 37, 40, 42, 43]) == "35-37,40,42-43"
    assert to_runs([640, 640, 640, 128, 128, 7]) == "640x3,128x2,7"
    for text in ("5-3,4", "4,4", "7,3", "a", "3-x"):
        with pytest.raises(ValueError, match=r"ascend|invalid literal"):
            from_ranges(text)


def test_the_same_measurement_has_no_findings():
    assert compare(baseline(RIGHT), baseline(RIGHT)) == []


def test_a_fall_from_30_to_22_of_32_fails_and_names_the_documents():
    now = [0.0] * 8 + [1.0] * 22 + [0.0] * 2
    (finding,) = compare(baseline(RIGHT), baseline(now))
    assert finding.fails
    assert finding.kind == "accuracy of text_weighted@64"
    assert "93.8% -> 68.8% (8 lost, 0 gained of 32" in finding.summary
    assert [change.subject for change in finding.changes] == [f"{n} (right: A)" for n in range(8)]
    assert (finding.changes[0].old, finding.changes[0].new) == ("'A' scores 1", "'B' scores 0")


def test_a_fall_that_the_paired_test_does_not_confirm_is_reported_only():
    findings = compare(baseline(RIGHT), baseline([0.0] * 5 + [1.0] * 25 + [0.0] * 2))
    assert kinds(findings, failing=False) == ["accuracy of text_weighted@64"]
    assert not is_regression(findings)
    assert is_regression(findings, strict=True)


def test_a_fall_within_the_tolerance_does_not_fail_however_sure_it_is():
    old, new = baseline([1.0] * 400), baseline([0.0] * 8 + [1.0] * 392)
    assert paired_p_value([1.0] * 400, [0.0] * 8 + [1.0] * 392) < 0.01
    assert not is_regression(compare(old, new))
    stricter = changed(old, "tolerances", accuracy_fall=0.01)
    assert is_regression(compare(stricter, new))


def test_a_gain_and_other_wrong_answers_do_not_fail():
    assert not is_regression(compare(baseline([0.0] * 32), baseline([1.0] * 32)))
    findings = compare(baseline([0.0] * 32), changed(baseline([0.0] * 32), "outcomes", answer="C"))
    assert kinds(findings, failing=False) == ["answers of text_weighted@64"]
    assert len(findings[0].changes) == 32


def test_the_paired_test_is_mcnemars_exact_one_for_hits_and_a_permutation_test_otherwise():
    rng = np.random.default_rng(0)
    for _ in range(20):
        old, new = rng.integers(0, 2, (2, 40)).astype(float)
        lost, gained = int((old > new).sum()), int((old < new).sum())
        assert paired_p_value(old, new) == pytest.approx(binomtest(lost, lost + gained).pvalue)
    assert paired_p_value([0.5, 1.0], [0.5, 1.0]) == 1.0
    # All falls alike: of the 2^10 ways to flip the signs, two are as extreme.
    assert paired_p_value([0.6] * 10, [0.3] * 10) == pytest.approx(2 / 2**10)
    assert paired_p_value([0.3, 0.6] * 10, [0.6, 0.3] * 10) == pytest.approx(1.0, abs=0.01)


def test_one_exchanged_token_is_noise_but_many_or_one_lost_document_are_not():
    same = list(range(35, 35 + KEPT))
    old = baseline(RIGHT, kept=[same] * 32)
    noise = compare(old, baseline(RIGHT, kept=[[*same[:-1], 300]] * 32))
    assert kinds(noise, failing=False) == ["kept tokens of text_weighted@64"]
    assert noise[0].changes[0].old == "1 (98) left"
    assert noise[0].changes[0].new == "1 (300) came"

    everywhere = compare(old, baseline(RIGHT, kept=[[*same[:-4], 300, 301, 302, 303]] * 32))
    assert kinds(everywhere, failing=True) == ["kept tokens of text_weighted@64"]

    once = compare(old, baseline(RIGHT, kept=[list(range(400, 400 + KEPT)), *[same] * 31]))
    assert kinds(once, failing=True) == ["kept tokens of text_weighted@64"]
    assert [change.subject for change in once[0].changes] == ["0 (overlap 0.00)"]
    assert overlap({1, 2, 3}, {2, 3, 4}) == 0.5
    assert overlap(set(), set()) == 1.0


def test_a_changed_prompt_fails_and_shows_old_and_new():
    (finding,) = compare(baseline(RIGHT), changed(baseline(RIGHT), "documents", prompt="[INST] <image> ?"))
    assert finding.fails
    assert (finding.changes[0].old, finding.changes[0].new) == ("USER: <image>\n0?", "[INST] <image> ?")


@pytest.mark.parametrize(
    ("field", "values", "kind"),
    [
        ("setup", {"conv_mode": "plain"}, "prompt template"),
        ("setup", {"metric": "f1"}, "metric"),
        ("setup", {"decoding": {"max_new_tokens": 4}}, "decoding"),
        ("setup", {"preparation": {"image_aspect_ratio": "square"}}, "image preparation"),
        ("points", {"plan": {"strategy": "fastv"}}, "plan of text_weighted@64"),
        ("documents", {"pixels": (0.15, 1.0)}, "pixels"),
        ("documents", {"pixels": None}, "pixels"),
        ("outcomes", {"lengths": "640x8"}, "removal of text_weighted@64"),
    ],
)
def test_other_settings_fail(field, values, kind):
    findings = compare(baseline(RIGHT), changed(baseline(RIGHT), field, **values))
    assert kinds(findings, failing=True) == [kind]


def test_other_packages_are_noted_and_never_fail():
    findings = compare(baseline(RIGHT), changed(baseline(RIGHT), "setup", versions={"torch": "2.15"}))
    assert [(each.kind, each.notice) for each in findings] == [("versions", True)]
    assert not is_regression(findings, strict=True)


def test_other_documents_or_weights_are_no_regression_but_no_comparison():
    old = baseline(RIGHT)
    with pytest.raises(InputError, match=r"32 of 32 documents are not the baseline's, the first is '0'"):
        compare(old, changed(old, "documents", content="other"))
    with pytest.raises(InputError, match="has 32 documents, the task gives 31"):
        check_contents(old, [(each.id, each.content) for each in old.documents[1:]], {})
    with pytest.raises(InputError, match="fingerprint beef, the baseline's have cafe"):
        compare(old, changed(old, "setup", weights="beef"))


def document(text="What?", target="A", colour=(1, 2, 3), **fields) -> Document:
    fields = {"question": "What?", "choices": ["a", "b"], "image": "/here/5.png", **fields}
    message = user_message(text, [Image.new("RGB", (8, 8), colour)])
    return Document(0, "0", "document 0", message, target, "", fields)


def test_a_documents_hash_is_of_its_content_not_of_its_prompt_or_place():
    same = content_hash(document())
    assert same == content_hash(document(text="Say what!")) == content_hash(document(image="/there/5.png"))
    others = [
        document(target="B"), document(colour=(1, 2, 4)), document(question="Who?"), document(choices=["b", "a"]),
        document(image="/here/6.png"), document(raw=b"1"), document(raw=b"2"), document(raw=None),
    ]  # fmt: skip
    assert len({same, *map(content_hash, others)}) == 1 + len(others)


def test_a_baseline_file_is_a_record_a_line_and_comes_back_whole(tmp_path):
    made = baseline(RIGHT)
    path = tmp_path / "deep" / "b.json"
    write_baseline(path, made)
    assert read_baseline(path) == made
    lines = path.read_text().splitlines()
    for kind in ('"content":', '"answer":'):
        assert sum(kind in line for line in lines) == 32
    other = to_text(changed(made, "outcomes", answer="C")).splitlines()
    assert sum(a != b for a, b in zip(lines, other, strict=True)) == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(schema_version=2), "schema_version 2, this program reads 1"),
        (lambda data: data.pop("setup"), "damaged: setup: Field required"),
        (lambda data: data["outcomes"].pop(), "not every document at every point"),
        (lambda data: data["outcomes"][0].update(kept=["7,3"]), "damaged: outcomes.0.kept.*do not ascend"),
        (lambda data: data["points"][0].update(accuracy=0.5), "not the mean of its scores"),
        (lambda data: data["settings"].update(colour="red"), "damaged: settings.colour"),
    ],
)
def test_a_damaged_baseline_is_refused_in_one_line(tmp_path, change, message):
    path = tmp_path / "b.json"
    data = json.loads(to_text(baseline(RIGHT)))
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=message) as caught:
        read_baseline(path)
    assert "\n" not in str(caught.value)


def test_a_baseline_that_is_missing_or_no_json_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read .*--update makes a new one"):
        read_baseline(tmp_path / "none.json")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(InputError, match="is no JSON"):
        read_baseline(tmp_path / "b.json")


def test_settings_are_the_baselines_unless_it_is_updated(tmp_path):
    path = tmp_path / "b.json"
    write_baseline(path, baseline(RIGHT))
    with pytest.raises(NotComparableError, match="keep_tokens is '32', but the baseline says what is measured"):
        regress(path, {"keep_tokens": "32"})
    for options, message in (
        ({"num_samples": 0}, "num_samples is 0: .*greater than 0"),
        ({"keep_tokens": "x"}, "tokens is 'x'"),
        ({"keep_tokens": "0"}, "keep_tokens.*greater than 0"),
        ({"flops_ratio": "1.5"}, "of flops_ratio give shares above 0 and at most 1"),
        ({"keep_ratio": "0.5", "keep_tokens": "64"}, "keep_tokens and keep_ratio given: give exactly one of"),
        ({"strategies": "fastw"}, "did you mean 'fastv'"),
    ):
        with pytest.raises(NotComparableError, match=message):
            regress(path, options, update=True)


def _flops(*images: int) -> int:
    """Of the embedded model's layers (128 wide, 384 in the MLP), each over so many image tokens and 64 of text."""
    return sum(8 * n * 128**2 + 4 * n * n * 128 + 6 * n * 128 * 384 for n in (image + 64 for image in images))


HALF = 0.5 * _flops(*[576] * 8)
AFTER_2 = min(range(577), key=lambda kept: abs(_flops(*[576] * 3, *[kept] * 5) - HALF))
SMALLER = min((side**2 for side in range(25)), key=lambda tokens: abs(_flops(*[tokens] * 8) - HALF))


@pytest.mark.parametrize(
    ("options", "point", "kept", "picture"),
    [
        ({"keep_tokens": "64"}, "fastv@64", 64, 64),
        ({"keep_ratio": "0.25"}, "fastv@ratio0.25", 144, 144),
        ({"equivalent_tokens": "256"}, "fastv@equivalent256", 64, 256),  # 3 x 576 + 5 x 64 = 8 x 256
        ({"flops_ratio": "0.5"}, "fastv@flops0.5", AFTER_2, SMALLER),
    ],
)
def test_budgets_of_every_kind_are_measured_kept_and_compared(tmp_path, monkeypatch, options, point, kept, picture):
    monkeypatch.setattr(documents, "_load_task", LOAD_ONCE)
    path = tmp_path / "b.json"
    assert regress(path, {**options, "strategies": "fastv,downsample", "num_samples": 2}, update=True) == 0
    made = read_baseline(path)
    assert [one.name for one in made.points] == [point, point.replace("fastv", "downsample")]
    assert [len(found) for found in made.outcomes[0].kept_sets()] == [kept]
    assert made.points[1].plan["picture"] == {"tokens": picture, "of": 576}
    assert made.documents[0].pixels == read_baseline(TINY).documents[0].pixels  # of the whole picture
    assert regress(path, {}) == 0
    # Another kind takes the place of the first.
    assert regress(path, {"keep_tokens": "32"}, update=True) == 0
    assert read_baseline(path).settings.budgets == ("keep_tokens", (32,))


@pytest.mark.parametrize(("model", "kept"), [("tiny", 64), ("tiny-qwen", 32)])
def test_the_committed_baselines_are_whole_small_and_of_every_strategy(model, kept):
    path = TINY.with_name(f"{model}.json")
    found = read_baseline(path)
    assert path.stat().st_size < 200_000
    assert found.settings.model_path == model
    names = [f"text_weighted@{kept}", f"fastv@{kept}", f"random@{kept}", "none"]
    assert [point.name for point in found.points] == names
    assert found.settings.dtype == "float32"
    assert found.settings.device is None
    assert all(
        sum(map(len, outcome.kept_sets())) == (0 if outcome.point == "none" else kept) for outcome in found.outcomes
    )


def test_the_ci_example_is_a_workflow_of_commands_and_options_that_exist():
    workflow = yaml.safe_load((REPOSITORY / "docs" / "ci-example.yml").read_text())
    assert workflow[True]  # YAML 1.1 reads the key `on` as a truth value
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(("uses" in step) != ("run" in step) for step in steps)
    script = "\n".join(step.get("run", "") for step in steps).replace("\\\n", " ")
    commands = [shlex.split(line) for line in script.splitlines() if line.strip().startswith("lmms-textweighted")]
    known = typer.main.get_command(cli.app).commands
    assert commands
    for _, name, *arguments in commands:
        options = {option for parameter in known[name].params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("-")} <= options
    for named in re.findall(r"baselines/\S+\.json", script):
        assert (REPOSITORY / named).is_file()


# Planted faults: each breaks one part of the running code, in the way that such code breaks.


def a_scorer_that_is_another(monkeypatch):
    monkeypatch.setitem(vars(TEXT_WEIGHTED.scorer), "importance", "causal_mean")


def a_scorer_upside_down(monkeypatch):
    right = TextWeighting.score

    def scores(self, seen):
        found, weights = right(self, seen)
        return -found, weights

    monkeypatch.setattr(TextWeighting, "score", scores)


def a_score_of_the_layer_in_front(monkeypatch):
    monkeypatch.setattr(pruner._Session, "_attention", lambda self, layer: self.decoder.layers[layer - 1].self_attn)


def a_removal_one_layer_late(monkeypatch):
    monkeypatch.setattr(Stage, "__post_init__", lambda self: object.__setattr__(self, "layer", self.layer + 1))


def a_prompt_without_system_words(monkeypatch):
    write = lambda messages, processor: f"USER: {messages[0].text} ASSISTANT:"  # noqa: E731
    monkeypatch.setitem(prompts.TEMPLATES, "vicuna_v1", Template(write, "</s>"))


def a_prompt_that_asks_in_other_words(monkeypatch):
    monkeypatch.setattr(
        TaskDocuments,
        "_make",
        lambda self, number, text, images, **rest: super(TaskDocuments, self)._make(
            number, text.replace("directly", "now"), images, **rest
        ),
    )


def a_removal_that_never_happens(monkeypatch):
    """The published run's fault: which tokens would stay is computed, and all of them stay."""
    right = prefill.Prefill._remove

    def remove(self, place, stage, previous, hidden):
        right(self, place, stage, previous, hidden)
        return previous, hidden

    monkeypatch.setattr(prefill.Prefill, "_remove", remove)


def a_removal_that_only_the_trace_tells_of(monkeypatch):
    monkeypatch.setattr(prefill, "take", lambda values, index: values)
    monkeypatch.setattr(shortened.Shortened, "fill", lambda self, *_: None)
    monkeypatch.setattr(shortened.Shortened, "decoding_mask", lambda self, kwargs, *_: kwargs["attention_mask"])


def a_removal_of_the_neighbours(monkeypatch):
    """As many tokens as it should be, each the one beside the chosen one."""
    right = prefill.take
    monkeypatch.setattr(prefill, "take", lambda values, index: right(values, (index - 1).clamp(min=0)))


FAULTS = [
    (a_scorer_that_is_another, {"kept tokens of text_weighted@64"}),
    (a_scorer_upside_down, {"kept tokens of text_weighted@64"}),
    (a_score_of_the_layer_in_front, {"kept tokens of text_weighted@64"}),
    (a_removal_one_layer_late, {"plan of text_weighted@64", "removal of text_weighted@64"}),
    (a_prompt_without_system_words, {"prompt"}),
    (a_prompt_that_asks_in_other_words, {"prompt"}),
    (a_removal_that_never_happens, {"removal of text_weighted@64"}),
    (a_removal_that_only_the_trace_tells_of, {"removal of text_weighted@64"}),
    (a_removal_of_the_neighbours, {"accuracy of text_weighted@64"}),
]


@pytest.fixture(scope="module")
def part(tmp_path_factory) -> Path:
    """The committed baseline's first 24 documents at text_weighted@64: seconds instead of half a minute."""
    whole, count = read_baseline(TINY), 24
    outcomes = tuple(whole.at("text_weighted@64")[:count])
    accuracy = sum(outcome.score for outcome in outcomes) / count
    made = Baseline(
        settings=whole.settings.model_copy(update={"num_samples": count, "strategies": ("text_weighted",)}),
        setup=whole.setup,
        documents=whole.documents[:count],
        points=(whole.points[0].model_copy(update={"accuracy": accuracy}),),
        outcomes=outcomes,
    )
    path = tmp_path_factory.mktemp("baseline") / "part.json"
    write_baseline(path, made)
    return path


def exit_code(monkeypatch, *arguments: object) -> int:
    """Of the command line, in this process, so that what is broken here is broken there."""
    monkeypatch.setattr(documents, "_load_task", LOAD_ONCE)
    monkeypatch.setattr("sys.argv", ["lmms-textweighted", "regress", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


@pytest.mark.slow
def test_the_code_as_it_is_passes_and_says_so(part, monkeypatch, capsys, tmp_path):
    output = tmp_path / "now.json"
    assert exit_code(monkeypatch, "--baseline", part, "--output", output, "--attn-implementation", "eager") == 0
    printed = capsys.readouterr().out
    assert "no regression: 24 documents x 1 points" in printed
    assert "FAIL" not in printed
    assert read_baseline(output).documents == read_baseline(part).documents


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "expected"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_fault_is_caught_and_documents_are_named(part, monkeypatch, capsys, fault, expected):
    fault(monkeypatch)
    assert exit_code(monkeypatch, "--baseline", part) == 1
    printed = capsys.readouterr().out
    failing = set(re.findall(r"^FAIL +(.+?): ", printed, re.MULTILINE))
    assert expected <= failing, printed
    assert "regression: 24 documents x 1 points" in printed
    assert re.search(r"^ {10}\d+( \(.*\))?:", printed, re.MULTILINE), printed  # a document, by its id
    if "prompt" in expected:
        assert re.search(r"old: ['\"]A chat between a curious user", printed)
        assert "new: " in printed


@pytest.mark.slow
def test_the_noise_of_half_precision_stays_within_the_tolerances(part):
    """Far more noise than between two machines in float32: if this fails, the tolerances are too narrow."""
    old = read_baseline(part)
    new = measure(old.settings.model_copy(update={"dtype": "bfloat16"}), None, Console(quiet=True))
    assert new.setup.weights != old.setup.weights  # the same ones, rounded: the command would refuse them
    findings = compare(old, changed(new, "setup", weights=old.setup.weights))
    assert "kept tokens of text_weighted@64" in kinds(findings, failing=False)
    assert not kinds(findings, failing=True)


@pytest.mark.slow
def test_changed_documents_and_other_weights_are_exit_code_2_and_one_line(part, monkeypatch, capsys, tmp_path):
    found = read_baseline(part)
    others = (found.documents[0].model_copy(update={"content": "0" * 16}), *found.documents[1:])
    write_baseline(tmp_path / "documents.json", found.model_copy(update={"documents": others}))
    write_baseline(tmp_path / "weights.json", changed(found, "setup", weights="0" * 16))
    for name, message in (
        ("documents", "1 of 24 documents are not the baseline's, the first is '0'"),
        ("weights", "0" * 16),
    ):
        assert exit_code(monkeypatch, "--baseline", tmp_path / f"{name}.json") == 2
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1
        assert message in error[0]
    assert exit_code(monkeypatch, "--baseline", tmp_path / "none.json") == 2
    assert exit_code(monkeypatch, "--nonsense") == 2


@pytest.mark.slow
def test_an_update_makes_a_baseline_of_ones_own_settings_that_passes_afterwards(monkeypatch, capsys, tmp_path):
    path = tmp_path / "own.json"
    assert exit_code(
        monkeypatch, "--baseline", path, "--update", "--num-samples", 5, "--strategies", "fastv_k2,none",
        "--keep-tokens", "32,16", "--single-pred-prompt", "--batch-size", 2, "--task", "shapes_mcq",
    ) == 0  # fmt: skip
    assert "5 documents the paired test can never agree" in capsys.readouterr().out
    found = read_baseline(path)
    assert [point.name for point in found.points] == ["fastv_k2@32", "fastv_k2@16", "none"]
    assert found.points[0].plan["stages"][0]["leave_after"] == 1
    assert found.settings.single_pred_prompt is True
    before = path.read_text()
    assert exit_code(monkeypatch, "--baseline", path, "--batch-size", 5) == 0
    assert exit_code(monkeypatch, "--baseline", path, "--update", "--keep-tokens", "16") == 0
    assert "not compared with the old baseline: the baseline has the points" in capsys.readouterr().out
    assert path.read_text() != before
