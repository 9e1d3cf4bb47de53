"""A sweep that is killed goes on from its journal, and its files are those of a run that was not."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
from pathlib import Path

import pytest

from lmms_textweighted.errors import InputError
from lmms_textweighted.experiment.journal import Journal, journals
from lmms_textweighted.experiment.outcomes import Answered, Outcome
from tests.kills import kill_when, run, start
from tests.launches import launch

NAME = "fastv_textweighted_layer2_experiment"
FILES = [f"{NAME}.{ending}" for ending in ("answers.jsonl", "json", "pictures.jsonl", "png", "views.jsonl")]
HEAD = {"points": [["fastv", 2, 64, None, {}], ["none", None, None, None, {}]], "options": {"tokens": [64]}}
THIRD = 0.1 + 0.2  # a number that needs all of its digits


def sweep(count: int = 6) -> list[str]:
    strategies = "text_weighted,random,none"
    words = ["lmms_textweighted", "sweep", "--num-samples", str(count), "--tokens", "64,16", "--output-dir", "out"]
    return [*words, "--strategies", strategies]


def answered(number: int) -> Answered:
    outcomes = [
        Outcome(f"answer {number}", THIRD, False, None, THIRD * number, 576, 64, 256.5, THIRD / (place + 1))
        for place in range(len(HEAD["points"]))
    ]
    row = {"document": number, "id": str(number), "digest": f"d{number}", "target": "ä"}
    view = {"uid": f"d{number}", "strategies": [{"budget": THIRD, "seed": None, "answer": "ä"}]}
    return Answered(row, 4, None if number else "prompt", outcomes, view, [["data:image/png;base64,AA=="]])


def written(result: Path, count: int, head: dict = HEAD) -> Path:
    with Journal(result, head, overwrite=False) as journal:
        for number in range(count):
            journal.add(answered(number))
    return journal.path


def found(result: Path, head: dict = HEAD, *, overwrite: bool = False) -> dict[int, Answered]:
    with Journal(result, head, overwrite=overwrite) as journal:
        return journal.found


def test_a_journal_gives_back_every_bit_of_what_was_added(tmp_path):
    written(tmp_path / "r.json", 3)
    assert found(tmp_path / "r.json") == {number: answered(number) for number in range(3)}


def test_a_journal_cut_anywhere_gives_its_whole_documents_and_takes_more(tmp_path):
    whole = written(tmp_path / "r.json", 3).read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    assert len(ends) == 4
    for cut in [*range(0, len(whole), 7), *ends, *(end - 1 for end in ends), *(end + 1 for end in ends[:-1])]:
        path = tmp_path / "r.answers.jsonl.part"
        path.write_bytes(whole[:cut])
        left = sum(end <= cut for end in ends[1:])
        with Journal(tmp_path / "r.json", HEAD, overwrite=False) as journal:
            assert sorted(journal.found) == list(range(left))
            for number in range(left, 3):
                journal.add(answered(number))
        assert path.read_bytes() == whole


def test_the_end_of_a_journal_may_be_anything_after_a_loss_of_power(tmp_path):
    path = written(tmp_path / "r.json", 2)
    whole = path.read_bytes()
    for end in (b"\0" * 500, b"\0\n", b"garbage\n", whole[-40:]):
        path.write_bytes(whole + end)
        assert sorted(found(tmp_path / "r.json")) == [0, 1]
        assert path.read_bytes() == whole


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_journal_damaged_inside_is_refused_and_left_as_it_is(tmp_path, line):
    path = written(tmp_path / "r.json", 3)
    lines = path.read_bytes().split(b"\n")
    lines[line] = lines[line].replace(b"64", b"65", 1)
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(InputError, match=rf"journal '.*r.answers.jsonl.part' is damaged in line {line + 1}: --overwr"):
        found(tmp_path / "r.json")
    assert path.read_bytes() == b"\n".join(lines)
    assert found(tmp_path / "r.json", overwrite=True) == {}
    assert path.read_bytes().count(b"\n") == 1


def test_a_journal_of_another_run_is_refused_with_the_first_difference(tmp_path):
    path = written(tmp_path / "r.json", 1)
    before = path.read_bytes()
    other = {**HEAD, "options": {"tokens": [64, 16]}}
    words = r"is of another run: options.tokens is \[64\] there and \[64, 16\] here: --overwrite starts anew"
    with pytest.raises(InputError, match=words):
        found(tmp_path / "r.json", other)
    assert path.read_bytes() == before


def test_a_journal_of_another_run_that_has_answered_nothing_gives_way(tmp_path):
    written(tmp_path / "r.json", 0)
    other = {**HEAD, "options": {"tokens": [16]}}
    assert found(tmp_path / "r.json", other) == {}
    written(tmp_path / "r.json", 1, other)
    assert sorted(found(tmp_path / "r.json", other)) == [0]


def test_what_another_version_wrote_as_a_journal_is_not_deleted(tmp_path):
    old = '{"strategy": "fastv", "layer": 2, "answer": "B"}\n' * 3
    (tmp_path / "r.answers.jsonl.part").write_text(old)
    with pytest.raises(InputError, match="is damaged in line 1"):
        found(tmp_path / "r.json")
    assert (tmp_path / "r.answers.jsonl.part").read_text() == old


def test_a_finished_result_is_replaced_only_where_a_journal_says_that_it_was_to_be(tmp_path):
    result = tmp_path / "r.json"
    result.write_text("{}")
    for torn in (b"", b'{"crc": 1, "ent'):
        (tmp_path / "r.answers.jsonl.part").write_bytes(torn)
        with pytest.raises(InputError, match=r"result '.*r\.json' is there already"):
            found(result)
    with Journal(result, HEAD, overwrite=True) as journal:
        journal.add(answered(0))
    assert sorted(found(result)) == [0]
    with pytest.raises(InputError, match="is of another run"):
        found(result, {**HEAD, "options": {}})


def test_a_run_goes_on_with_another_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        with Journal(tmp_path / "r.json", HEAD, overwrite=False) as journal:
            for number in range(rank, 4, 2):
                journal.add(answered(number))
    assert [path.name for path in journals(tmp_path / "r.json")] == [
        f"r.answers.jsonl.rank{rank}of2.part" for rank in (0, 1)
    ]
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    with Journal(tmp_path / "r.json", HEAD, overwrite=False) as journal:
        assert sorted(journal.found) == [0, 1, 2, 3]
        journal.add(answered(4))
    journal.remove()
    assert journals(tmp_path / "r.json") == []


def test_a_second_process_does_not_write_into_an_open_journal(tmp_path):
    path = written(tmp_path / "r.json", 2)
    before = path.read_bytes()
    with Journal(tmp_path / "r.json", HEAD, overwrite=False):
        for overwrite in (False, True):
            with pytest.raises(InputError, match=r"another sweep writes '.*r\.json' just now"):
                found(tmp_path / "r.json", overwrite=overwrite)
    assert path.read_bytes() == before


def test_a_full_disk_leaves_the_journal_whole_and_is_one_line(tmp_path):
    """The kernel itself refuses to write past the limit, after half of a line."""
    size = written(tmp_path / "r.json", 2).stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, limits[1]))
        with Journal(tmp_path / "r.json", HEAD, overwrite=False) as journal:
            with pytest.raises(
                InputError, match=r"journal '.*' cannot be .*: File too large: when that is mended, the"
            ):
                journal.add(answered(2))
            assert journal.path.stat().st_size == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert written(tmp_path / "r.json", 3)
    assert sorted(found(tmp_path / "r.json")) == [0, 1, 2]


def test_the_journals_name_is_that_of_its_result_alone(tmp_path):
    for name in ("r.answers.jsonl.part", "rs.answers.jsonl.part", "r.answers.jsonl.rank1of2.part", "r.png.part"):
        (tmp_path / name).touch()
    assert [path.name for path in journals(tmp_path / "r.json")] == [
        "r.answers.jsonl.part",
        "r.answers.jsonl.rank1of2.part",
    ]


# The command itself.


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(".lock")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """A folder in which the sweep ran to its end, and the files."""
    folder = tmp_path_factory.mktemp("whole")
    done = run(folder, *sweep())
    assert done.returncode == 0, done.stderr
    assert sorted(contents(folder / "out")) == FILES
    return folder, contents(folder / "out")


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_ends_with_the_same_bytes(tmp_path, whole):
    """Killed in the middle of a document's line, then when the answers are in place and the JSON is not."""
    draw = random.Random(0)
    line = 2 * draw.randrange(2, 6) + 2  # each line is a write and a sync; the folder's name is one more
    killed = run(tmp_path, *sweep(), at=line)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (part,) = (tmp_path / "out").glob("*.part")
    before = part.read_bytes().count(b"\n") - 1
    assert 0 < before < 6
    done = run(tmp_path, *sweep())
    assert done.returncode == 0, done.stderr
    assert f"goes on after {before} of 6 documents" in done.stdout
    assert contents(tmp_path / "out") == whole[1]


# The limit comes when data and model are there: what writes then is the journal.
_LIMITED = """
import resource, sys
from lmms_textweighted import cli
from lmms_textweighted.experiment import answering

def load(*given, whole=answering.load):
    loaded = whole(*given)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))
    return loaded

answering.load = load
sys.argv[0] = "lmms-textweighted"
cli.main()
"""


@pytest.mark.nightly
def test_a_sweep_whose_disk_is_full_ends_with_one_line_and_goes_on_later(tmp_path, whole):
    (tmp_path / "limited.py").write_text(_LIMITED)
    failed = run(tmp_path, "limited", *sweep()[1:], environment={"PYTHONDONTWRITEBYTECODE": "1"})
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1, failed.stderr
    assert "cannot be read or written: File too large: when that is mended, the same command" in failed.stderr
    done = run(tmp_path, *sweep())
    assert done.returncode == 0, done.stderr
    assert "goes on after" in done.stdout
    assert contents(tmp_path / "out") == whole[1]


@pytest.mark.nightly
def test_a_journal_of_other_options_is_refused_by_the_command(tmp_path, whole):
    run(tmp_path, *sweep(), at=8)
    refused = run(tmp_path, *sweep(5))
    assert refused.returncode == 1
    assert "is of another run: options.num_samples is 6 there and 5 here: --overwrite starts anew" in refused.stderr
    anew = run(tmp_path, *sweep(), "--overwrite")
    assert anew.returncode == 0, anew.stderr
    assert "goes on" not in anew.stdout
    found = {name: data.replace(b" --overwrite", b"") for name, data in contents(tmp_path / "out").items()}
    assert found == whole[1]


@pytest.mark.nightly
@pytest.mark.slow
def test_a_sweep_killed_twenty_times_ends_with_the_same_bytes(tmp_path, whole):
    """Ten kills at counted calls, from the first write to the last file's name, and ten by the clock."""
    draw, kills = random.Random(1), 0
    calls = range(1, 45)
    for at in draw.sample(calls, 10):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        kills += run(tmp_path, *sweep(), at=at).returncode == -signal.SIGKILL
        done = run(tmp_path, *sweep())
        assert done.returncode == 0 or "is there already" in done.stderr, done.stderr
        assert contents(tmp_path / "out") == whole[1], at
    while kills < 20:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        process, lines = start(tmp_path, *sweep()), draw.randrange(0, 7)
        kills += kill_when(process, lambda lines=lines: answered_lines(tmp_path / "out") >= lines, draw.uniform(0, 1))
        done = run(tmp_path, *sweep())
        assert done.returncode == 0 or "is there already" in done.stderr, done.stderr
        assert contents(tmp_path / "out") == whole[1]


def answered_lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*.part")) if folder.is_dir() else 0


@pytest.mark.nightly
def test_two_processes_go_on_where_one_was_killed(tmp_path, whole):
    killed = run(tmp_path, *sweep(), at=9)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    both = launch(tmp_path, *sweep(), processes=2)
    assert both.wait(180) == [0], both.output[-3000:]
    assert both.output.count("goes on after") == 1
    assert contents(tmp_path / "out") == whole[1]


def test_every_setting_of_a_run_stands_in_its_journals_first_line(tmp_path):
    from dataclasses import fields

    from lmms_textweighted.experiment.answering import documents_of
    from lmms_textweighted.experiment.head import head_of
    from lmms_textweighted.experiment.options import Experiment
    from lmms_textweighted.families import LoadOptions, load
    from lmms_textweighted.inference import PrunedLlava, StatedLengths, geometry_of

    experiment = Experiment(
        model_path="tiny", conv_mode=None, task="shapes_mcq", question_file=None, image_folder=None, skip_missing=False,
        num_samples=2, layers=[2], tokens=[64], budget="keep_tokens", strategies=["fastv"], text_scope="after",
        keep_scope="image", single_pred_prompt=False, stated=StatedLengths(), ranks=True, seeds=[0],
        load_options=LoadOptions(), output_dir=tmp_path,
    )  # fmt: skip
    llava = PrunedLlava(*load("tiny"))
    head = head_of(experiment, experiment.grid(geometry_of(llava.model))[0], llava, documents_of(experiment))
    assert json.loads(json.dumps(head)) == head
    assert set(head["options"]) == {item.name for item in fields(Experiment)} - {
        "output_dir",
        "overwrite",
        "html",
    }
    assert head["options"]["load_options"]["loader"] == "auto"
    ((strategy, layer, budget, _, plan),) = head["points"]
    assert (strategy, layer, budget, plan["stages"][0]["keep_tokens"]) == ("fastv", 2, 64, 64)
    assert {"weights", "dtype", "device", "attn_implementation", "conv_template_digest"} <= set(head["model"])
    assert head["software"]["versions"]["lmms-textweighted"]
