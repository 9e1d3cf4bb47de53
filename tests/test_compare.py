"""`compare`: what it reads, what it says of every cell, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lmms_textweighted.compare import compare_runs
from lmms_textweighted.errors import InputError
from lmms_textweighted.statistics import mean_interval, paired_test
from tests.result_folders import write_run, write_sweep

NUMBER = 60


def hits(share: float, seed: int = 0, number: int = NUMBER) -> list[float]:
    return [float(hit) for hit in np.random.default_rng(seed).random(number) < share]


def cells(comparison, task: str = "gqa") -> dict:
    return {row.name: row.cells[task] for row in comparison.rows if task in row.cells}


@pytest.fixture
def runs(tmp_path):
    """Unpruned, a method that lost nothing, and one that lost much."""
    whole = hits(0.9)
    write_run(tmp_path / "whole", {"gqa": whole}, strategy="none")
    write_run(tmp_path / "good", {"gqa": [*whole[:-1], 1 - whole[-1]]}, strategy="text_weighted")
    write_run(tmp_path / "bad", {"gqa": hits(0.3, 1)}, strategy="random", keep=16)
    return tmp_path


def test_rows_are_methods_at_budgets_with_the_figures_of_the_samples(runs):
    comparison = compare_runs([runs / "whole", runs / "good", runs / "bad"])
    assert [row.name for row in comparison.rows] == ["unpruned", "text_weighted@64", "random@16"]
    figures = [row.figures for row in comparison.rows]
    assert [one.kept for one in figures] == [576, 64, 16]
    assert [one.equivalent for one in figures] == [576, 256, 226]
    assert figures[1].flops_ratio == pytest.approx(256 / 576)
    assert figures[2].kv_bytes == 1024 * 226
    assert [(column.task, column.metric, column.percent) for column in comparison.columns] == [
        ("gqa", "exact_match", True)
    ]


def test_cells_have_their_interval_and_a_paired_test_against_the_unpruned_run(runs):
    comparison = compare_runs([runs])
    found = cells(comparison)
    assert comparison.reference == "unpruned"
    whole, bad = hits(0.9), hits(0.3, 1)
    for name, scores in (("unpruned", whole), ("random@16", bad)):
        low, high = mean_interval(scores)
        assert (found[name].low, found[name].high) == pytest.approx((100 * low, 100 * high))
    expected = paired_test(bad, whole)
    assert found["random@16"].p == pytest.approx(expected.p)
    assert found["random@16"].adjusted_p == pytest.approx(min(1, 2 * expected.p))
    assert found["random@16"].difference == pytest.approx(100 * expected.difference)
    assert found["random@16"].different is True
    assert found["text_weighted@64"].different is False
    assert found["text_weighted@64"].adjusted_p == 1.0
    assert found["unpruned"].test is None


def test_the_order_of_logged_samples_does_not_matter(tmp_path):
    """Ranks leave them interleaved; `write_run` does so too. Pairs would be wrong if lines were zipped."""
    scores = [1.0, 0.0] * 30
    write_run(tmp_path / "a", {"gqa": scores}, strategy="none")
    write_run(tmp_path / "b", {"gqa": scores})
    samples = next((tmp_path / "b").rglob("*_samples_gqa.jsonl"))
    samples.write_text("".join(sorted(samples.read_text().splitlines(keepends=True), key=lambda line: line[::-1])))
    assert cells(compare_runs([tmp_path]))["text_weighted@64"].p == 1.0


def test_any_run_can_be_the_reference_by_name_or_by_path(runs):
    by_name = compare_runs([runs], reference="random@16")
    assert by_name.reference == "random@16"
    assert by_name.base == "unpruned"  # averages stay relative to the unpruned run
    assert cells(by_name)["unpruned"].different is True
    assert compare_runs([runs], reference=str(runs / "bad")).reference == "random@16"
    with pytest.raises(InputError, match="did you mean 'random@16'"):
        compare_runs([runs], reference="random@17")
    with pytest.raises(InputError, match="holds 3 rows"):
        compare_runs([runs], reference=str(runs))


def test_without_one_unpruned_run_nothing_is_tested_and_it_says_so(runs):
    comparison = compare_runs([runs / "good", runs / "bad"])
    assert comparison.reference is None
    assert all(cell.test is None for cell in cells(comparison).values())
    assert any("no reference" in note for note in comparison.notes)


def test_the_average_is_of_ratios_to_the_unpruned_run(tmp_path):
    one, two = hits(0.8), hits(0.5, 1)
    write_run(tmp_path / "whole", {"gqa": one, "pope": two}, strategy="none")
    write_run(tmp_path / "less", {"gqa": hits(0.6, 2), "pope": hits(0.4, 3)}, strategy="fastv")
    write_run(tmp_path / "part", {"gqa": hits(0.6, 2)}, strategy="random")
    rows = {row.name: row for row in compare_runs([tmp_path]).rows}
    ratios = [np.mean(hits(0.6, 2)) / np.mean(one), np.mean(hits(0.4, 3)) / np.mean(two)]
    average = rows["fastv@64"].average
    assert average.value == pytest.approx(100 * np.mean(ratios))
    assert rows["unpruned"].average.value == 100
    assert rows["unpruned"].average.low is None
    assert rows["random@64"].average is None  # no average over some of the tasks
    rng, draws = np.random.default_rng(0), []
    data = [np.array([hits(0.6, 2), one]), np.array([hits(0.4, 3), two])]
    for _ in range(4000):
        means = [task[:, rng.integers(0, NUMBER, NUMBER)].mean(1) for task in data]
        draws.append(100 * np.mean([above / below for above, below in means]))
    assert average.high - average.low == pytest.approx(2 * 1.96 * np.std(draws), rel=0.1)


def test_runs_of_one_method_with_a_task_each_are_one_row(tmp_path):
    write_run(tmp_path / "a", {"gqa": hits(0.9)}, strategy="fastv")
    write_run(tmp_path / "b", {"pope": hits(0.8)}, strategy="fastv", date="20260102_000000")
    write_run(tmp_path / "c", {"gqa": hits(0.9)}, strategy="fastv", seed=1)
    rows = compare_runs([tmp_path]).rows
    assert [(row.name, list(row.cells)) for row in rows] == [
        ("fastv@64 seed=0", ["gqa", "pope"]),
        ("fastv@64 seed=1", ["gqa"]),
    ]


def test_the_same_run_twice_stays_two_rows_that_can_be_told_apart(tmp_path):
    for name in ("monday", "tuesday"):
        write_run(tmp_path / name, {"gqa": hits(0.9)})
    assert [row.name for row in compare_runs([tmp_path]).rows] == [
        "text_weighted@64 (monday)",
        "text_weighted@64 (tuesday)",
    ]


def test_scores_in_records_are_read_and_clusters_widen_the_interval(tmp_path):
    """As pope, whose metrics are records, and as videomme, whose documents share videos."""
    scores = [score for score in hits(0.5, number=15) for _ in range(4)]
    records = [{"question_id": "q", "score": score, "video": f"v{n // 4}"} for n, score in enumerate(scores)]
    write_run(tmp_path / "a", {"gqa": records}, strategy="none", config={"cluster_key": "video"})
    write_run(tmp_path / "b", {"gqa": [{**r, "score": 1.0} for r in records]}, config={"cluster_key": "video"})
    found = cells(compare_runs([tmp_path]))
    low, high = mean_interval(scores, [record["video"] for record in records])
    assert (found["unpruned"].low, found["unpruned"].high) == pytest.approx((100 * low, 100 * high))
    assert high - low > np.diff(mean_interval(scores))[0]
    assert found["text_weighted@64"].test == "paired cluster permutation"


def test_an_aggregate_that_is_no_mean_has_no_interval_and_says_why(tmp_path):
    """As MME, whose score is a sum over categories."""
    write_run(tmp_path / "a", {"mme": hits(0.8)}, strategy="none", value={"mme": 1500.0})
    write_run(tmp_path / "b", {"mme": hits(0.7)}, value={"mme": 1400.0})
    comparison = compare_runs([tmp_path])
    cell = cells(comparison, "mme")["text_weighted@64"]
    assert (cell.value, cell.low, cell.p) == (1400.0, None, None)
    assert "no mean of the documents' scores" in cell.note
    assert not comparison.columns[0].percent
    assert comparison.rows[1].average.value == pytest.approx(100 * 1400 / 1500)
    assert comparison.rows[1].average.low is None


def seed_record(hit, number):
    return {"pred": "B" if hit else "A", "answer": "b", "question_id": str(number)}


def mmmu_record(hit, number):
    """Multiple choice and open questions, as mmmu's own process_results logs them."""
    if number % 2:
        return {"id": f"validation_Art_{number}", "subdomain": "Art", "question_type": "multiple-choice", "answer": "B",
                "parsed_pred": ["B" if hit else "C"]}  # fmt: skip
    return {"id": f"validation_Math_{number}", "subdomain": "Math", "question_type": "open", "answer": "2.5",
            "parsed_pred": [[2.5] if hit else [3.5]]}  # fmt: skip


@pytest.mark.parametrize(("metric", "record"), [("seed_image", seed_record), ("mmmu_acc", mmmu_record)])
def test_answers_that_are_logged_without_a_score_are_judged_by_the_task(tmp_path, metric, record):
    for name, strategy, scores in (("a", "none", hits(0.8)), ("b", "fastv", hits(0.6, 1))):
        records = [record(hit, number) for number, hit in enumerate(scores)]
        write_run(
            tmp_path / name, {"x": records}, strategy=strategy, metric=metric, value={"x": round(np.mean(scores), 5)}
        )
    cell = cells(compare_runs([tmp_path]), "x")["fastv@64"]
    assert cell.p == pytest.approx(paired_test(hits(0.6, 1), hits(0.8)).p)
    low, high = mean_interval(hits(0.6, 1))
    assert (cell.low, cell.high) == pytest.approx((100 * low, 100 * high))


def test_percentages_and_shares_print_alike(tmp_path):
    """Some tasks give 0 to 1, others the same times 100."""
    scores = hits(0.8)
    write_run(tmp_path / "a", {"gqa": scores, "mmb": scores}, strategy="none", value={"mmb": 100 * np.mean(scores)})
    row = compare_runs([tmp_path]).rows[0]
    assert row.cells["gqa"].value == pytest.approx(row.cells["mmb"].value)
    assert row.cells["gqa"].low == pytest.approx(row.cells["mmb"].low)


def test_another_metric_can_be_named(runs):
    with pytest.raises(InputError, match=r"metric 'f1' is not in task gqa .* it has exact_match"):
        compare_runs([runs], metrics={"gqa": "f1"})
    assert compare_runs([runs], metrics={"gqa": "exact_match"}).columns[0].metric == "exact_match"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompts": "another question {}"}, "other prompt: 60 of 60 documents, document 0 first"),
        ({"targets": "another target {}"}, "other documents: 60 have another target"),
        ({"pretrained": "liuhaotian/llava-v1.5-7b"}, "other checkpoint: liuhaotian/llava-v1.5-7b, not tiny"),
        ({"conv_template": "plain"}, "other conv_template: plain, not vicuna_v1"),
        ({"image_aspect_ratio": "square"}, "other image_aspect_ratio: square, not pad"),
        ({"version": 2.0}, "other task version: 2.0, not 1.0"),
        ({"config": {"generation_kwargs": {"max_new_tokens": 64}}}, "other max_new_tokens: 64, not 16"),
        ({"first": 3}, r"other documents: 60 \(documents 3 to 62\), not 60 \(documents 0 to 59\)"),
    ],
)
def test_what_cannot_be_compared_says_why_and_is_refused(tmp_path, changes, reason):
    write_run(tmp_path / "a", {"gqa": hits(0.9)}, strategy="none")
    write_run(tmp_path / "b", {"gqa": hits(0.8)}, **changes)
    with pytest.raises(InputError, match=reason) as caught:
        compare_runs([tmp_path])
    assert "\n" not in str(caught.value)
    forced = compare_runs([tmp_path], force=True)
    assert len(forced.forced) == 1
    assert len(forced.rows) == 2


def test_a_limit_is_named_and_forced_runs_are_tested_on_what_both_answered(tmp_path):
    whole = hits(0.9)
    write_run(tmp_path / "a", {"gqa": whole}, strategy="none")
    write_run(tmp_path / "b", {"gqa": hits(0.2, 1)[:20]}, total=NUMBER)
    with pytest.raises(InputError, match=r"a --limit: 20 of 60 answered"):
        compare_runs([tmp_path])
    comparison = compare_runs([tmp_path], force=True)
    cell = cells(comparison)["text_weighted@64"]
    assert (cell.documents, cell.shared) == (20, 20)
    assert cell.p == pytest.approx(paired_test(hits(0.2, 1)[:20], whole[:20]).p)
    assert comparison.rows[1].average.low is None  # the two are not over the same documents


def test_equal_limits_can_be_compared_and_are_named(tmp_path):
    for name, strategy in (("a", "none"), ("b", "fastv")):
        write_run(tmp_path / name, {"gqa": hits(0.9)[:20]}, strategy=strategy, total=NUMBER)
    assert "gqa: 20 of its 60 documents, a --limit" in compare_runs([tmp_path]).notes


def test_weights_decide_before_names(tmp_path):
    write_run(tmp_path / "a", {"gqa": hits(0.9)}, strategy="none", pretrained="here/copy", weights="same")
    write_run(tmp_path / "b", {"gqa": hits(0.9)}, pretrained="tiny", weights="same")
    assert len(compare_runs([tmp_path]).rows) == 2
    write_run(tmp_path / "c", {"gqa": hits(0.9)}, pretrained="tiny", weights="others", strategy="fastv")
    with pytest.raises(InputError, match="the weights of tiny are not those of here/copy"):
        compare_runs([tmp_path])


def test_lmms_evals_own_model_stands_beside_ours_as_unpruned(tmp_path):
    write_run(tmp_path / "a", {"gqa": hits(0.9)}, model="llava_hf", model_args="pretrained=hub/tiny,device_map=cpu")
    write_run(tmp_path / "b", {"gqa": hits(0.9)})
    comparison = compare_runs([tmp_path])
    assert comparison.reference == "llava_hf"
    assert [row.figures.kept for row in comparison.rows] == [None, 64]
    assert any("not recorded: conv_template, image_aspect_ratio" in note for note in comparison.notes)
    write_run(tmp_path / "c", {"gqa": hits(0.9)}, model="qwen", model_args="pretrained=hub/other")
    with pytest.raises(InputError, match="other checkpoint: hub/other"):
        compare_runs([tmp_path])


def test_both_names_of_our_model_are_ours(tmp_path):
    write_run(tmp_path / "a", {"gqa": hits(0.9)}, strategy="none", model="vlm_textweighted")
    write_run(tmp_path / "b", {"gqa": hits(0.8)}, model="llava_textweighted")
    write_run(tmp_path / "c", {"gqa": hits(0.7)}, keep=16, model="vlm_textweighted")
    comparison = compare_runs([tmp_path])
    assert comparison.reference == "unpruned"
    assert [row.figures.kept for row in comparison.rows] == [576, 64, 16]
    assert not any("not a model of this project" in note for note in comparison.notes)


def test_another_system_prompt_is_another_prompt(tmp_path):
    """lmms-eval logs the task's text alone: nothing else in a run's files tells them apart."""
    write_run(tmp_path / "a", {"gqa": hits(0.9)}, strategy="none", system_prompt="Be brief.")
    write_run(tmp_path / "b", {"gqa": hits(0.9)}, system_prompt="Be brief.")
    assert len(compare_runs([tmp_path]).rows) == 2
    write_run(tmp_path / "c", {"gqa": hits(0.9)}, strategy="fastv")
    with pytest.raises(InputError, match="other system_prompt: , not Be brief"):
        compare_runs([tmp_path])
    state = {"provenance": {"model": {"system_prompt": None}}}
    write_sweep(tmp_path / "s", {("none", None): hits(0.9)}, **state)
    write_run(tmp_path / "t", {"shapes_mcq": hits(0.8)}, system_prompt="Be brief.")
    with pytest.raises(InputError, match="other system_prompt: Be brief"):
        compare_runs([tmp_path / "s", tmp_path / "t"])


def test_a_table_names_its_model_and_rows_of_other_picture_limits_say_theirs(tmp_path):
    limits = {"options": {"load_options": {"max_pixels": 100352, "min_pixels": None}}}
    write_sweep(tmp_path / "a", {("none", None): hits(0.9), ("fastv", 64): hits(0.9)}, model_type="qwen3_vl")
    write_sweep(tmp_path / "b", {("fastv", 64): hits(0.9)}, model_type="qwen3_vl", **limits)
    comparison = compare_runs([tmp_path])
    assert comparison.notes[0] == "model: tiny (qwen3_vl)"
    assert [row.name for row in comparison.rows] == ["unpruned", "fastv@64", "fastv@64 max_pixels=100352"]


def test_a_sweeps_points_are_rows_and_stand_beside_runs(tmp_path):
    whole = hits(0.9)
    write_sweep(tmp_path / "sweep", {("none", None): whole, ("fastv", 64): whole, ("fastv", 16): hits(0.3, 1)})
    alone = compare_runs([tmp_path / "sweep"])
    assert [(row.name, row.figures.kept) for row in alone.rows] == [
        ("unpruned", 576),
        ("fastv@64", 64),
        ("fastv@16", 16),
    ]
    assert cells(alone, "shapes_mcq")["fastv@16"].different is True
    write_run(tmp_path / "run", {"shapes_mcq": hits(0.8)})
    both = compare_runs([tmp_path])
    cell = cells(both, "shapes_mcq")["text_weighted@64"]
    assert cell.p == pytest.approx(paired_test(hits(0.8), whole).p)
    assert any("the prompt of every document" in note for note in both.notes)
    write_run(tmp_path / "other", {"shapes_mcq": hits(0.8)}, prompts="Say {}", strategy="random")
    with pytest.raises(InputError, match="the sweep's prompt of document 0 does not hold the run's"):
        compare_runs([tmp_path])


def test_sweeps_of_other_pictures_are_refused(tmp_path):
    write_sweep(tmp_path / "a", {("none", None): hits(0.9)})
    path = (
        write_sweep(tmp_path / "b", {("fastv", 64): hits(0.9)}) / "fastv_textweighted_layer2_experiment.answers.jsonl"
    )
    path.write_text(path.read_text().replace('"digest 7"', '"another"'))
    with pytest.raises(InputError, match="other prompt: 1 of 60 documents, document 7 first"):
        compare_runs([tmp_path])


def test_answers_from_a_cache_leave_the_budget_to_the_others_and_say_so(tmp_path):
    write_run(tmp_path, {"gqa": hits(0.9)})
    samples = next(tmp_path.rglob("*_samples_gqa.jsonl"))
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    lines[0]["token_counts"] = [None]
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = compare_runs([tmp_path]).rows[0]
    assert row.figures.kept == 64
    assert "budget figures are of 59 of 60 documents: the others came from a cache" in row.notes


def drop_results(folder):
    next(folder.rglob("*_results.json")).unlink()


def drop_samples(folder):
    next(folder.rglob("*_samples_gqa.jsonl")).unlink()


def cut_samples(folder):
    path = next(folder.rglob("*_samples_gqa.jsonl"))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:7]))


def cut_a_line(folder):
    path = next(folder.rglob("*_samples_gqa.jsonl"))
    path.write_text(path.read_text()[:-20])


def cut_results(folder):
    path = next(folder.rglob("*_results.json"))
    path.write_text(path.read_text()[:-20])


def empty_results(folder):
    next(folder.rglob("*_results.json")).write_text('{"results": {}, "n-samples": {}}')


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (drop_results, "has samples but no .*_results.json: the run did not finish"),
        (drop_samples, "has no samples of gqa: run lmms-eval with --log_samples"),
        (cut_samples, "has samples of 7 of 60 documents of gqa"),
        (cut_a_line, "line 60, is no JSON"),
        (cut_results, "is no JSON .* not written whole"),
        (empty_results, "has no results: it is empty"),
    ],
)
def test_unfinished_runs_are_one_clear_line(tmp_path, fault, message):
    write_run(tmp_path, {"gqa": hits(0.9)})
    fault(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        compare_runs([tmp_path])
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_unfinished_sweeps_and_empty_paths_are_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="no run is given"):
        compare_runs([])
    with pytest.raises(InputError, match="does not exist"):
        compare_runs([tmp_path / "nothing"])
    with pytest.raises(InputError, match="it is empty or did not finish"):
        compare_runs([tmp_path])
    folder = write_sweep(tmp_path / "s", {("none", None): hits(0.9)})
    answers = folder / "fastv_textweighted_layer2_experiment.answers.jsonl"
    whole = answers.read_text()
    answers.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match="has 59 of 60 documents for none"):
        compare_runs([folder])
    answers.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        compare_runs([folder])
    answers.write_text(whole)
    answers.with_name("fastv_textweighted_layer2_experiment.json").unlink()
    with pytest.raises(InputError, match="the sweep did not finish"):
        compare_runs([folder])


def test_what_a_task_hands_in_is_not_taken_for_results(tmp_path):
    write_run(tmp_path / "run", {"task": [1.0, 0.0]}, strategy="none")
    (tmp_path / "run" / "submissions").mkdir()
    (tmp_path / "run" / "submissions" / "mmbench_en_dev_results.json").write_text('{"0": "A"}')
    assert len(compare_runs([tmp_path / "run"]).rows) == 1
