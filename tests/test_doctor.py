"""`lmms-textweighted doctor`: what is well, what is bad and what to do, and that nothing can end it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from rich.console import Console

from lmms_textweighted import cli
from lmms_textweighted.doctor import examine, machine, packages, running
from lmms_textweighted.doctor.rows import BAD, OK, WARN, Checked, Row, run_checks
from lmms_textweighted.upstream import known_bad
from lmms_textweighted.upstream.names import NAMES
from lmms_textweighted.upstream.versions import locked_versions


def printed(rows: list[Row], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    examine.show(rows, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def row_of(name: str) -> Row:
    (row,) = [row for row in packages.packages() if row.name == name]
    return row


def installed_as(monkeypatch: pytest.MonkeyPatch, name: str, version: str | None) -> None:
    real = metadata.version

    def of(asked: str) -> str:
        if asked != name:
            return real(asked)
        if version is None:
            raise metadata.PackageNotFoundError(asked)
        return version

    monkeypatch.setattr(metadata, "version", of)


def run_doctor(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["lmms-textweighted", "doctor", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), capsys.readouterr().out


def as_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "80", **environment}
    command = [sys.executable, "-m", "lmms_textweighted", "doctor", *arguments]
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_this_installation_is_well_and_the_json_is_all_that_is_printed(tmp_path):
    done = as_command("--json", LMMS_TEXTWEIGHTED_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    said = json.loads(done.stdout)
    assert said["well"] is True
    rows = {row["name"]: row for row in said["rows"]}
    assert {checked.name for checked in examine.CHECKS} - {"packages"} <= set(rows)
    assert rows["torch"]["found"].startswith(metadata.version("torch"))
    assert rows["hub"]["found"] == "not asked: HF_HUB_OFFLINE is set"
    assert rows["cache folder"]["found"] == str(tmp_path)
    assert rows["upstream names"]["found"].endswith(f"of {len(NAMES)} looked at, all there")
    assert "shapes_mcq" in rows["tasks"]["found"]
    assert "with 192 of 576 image tokens, which is right" in rows["embedded model"]["found"]
    assert not [row for row in said["rows"] if row["status"] != OK or row["advice"]]


@pytest.mark.slow
def test_without_torch_and_lmms_eval_it_still_runs_and_says_so(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = sys.modules['lmms_eval'] = None\n")
    path = os.pathsep.join([str(tmp_path), str(Path(cli.__file__).parent.parent.parent)])
    done = as_command(PYTHONPATH=path)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    for name in ("accelerator", "upstream names", "lmms-eval model", "tasks", "embedded model"):
        assert f"bad  {name}" in done.stdout
        assert f"bad {name}: " in done.stdout  # what to do
    assert "ok   Python" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_version_beside_the_lock_is_shown_and_well(monkeypatch):
    installed_as(monkeypatch, "rich", "99.0")
    assert row_of("rich") == Row("rich", OK, f"99.0 (lock: {locked_versions()['rich']})")


def test_a_known_bad_version_is_bad_with_its_reason_and_the_command(monkeypatch, capsys):
    installed_as(monkeypatch, "filelock", "4.3.1")
    row = row_of("filelock")
    assert (row.status, row.found) == (BAD, f"4.3.1 (lock: {locked_versions()['filelock']}), known to be bad")
    assert "imports filelock._api" in row.advice
    assert "pip install 'filelock<4.3'" in row.advice
    monkeypatch.setattr(examine, "CHECKS", (Checked("packages", packages.packages, ""),))
    code, out = run_doctor(monkeypatch, capsys)
    assert code == 1
    assert "bad: filelock" in out.splitlines()[-1]


def test_a_version_outside_of_what_is_asked_for_is_bad(monkeypatch):
    installed_as(monkeypatch, "rich", "1.0")
    row = row_of("rich")
    assert (row.status, row.advice) == (BAD, "pip install 'rich>=13.0'")
    assert "asked for is >=13.0" in row.found


def test_a_package_that_is_not_installed_is_bad(monkeypatch):
    installed_as(monkeypatch, "scipy", None)
    assert row_of("scipy").status == BAD
    assert row_of("scipy").advice.startswith("pip install 'scipy")


def test_packages_that_do_not_fit_each_other_are_named(monkeypatch):
    asked = {"lmms-textweighted": ["torchvision"], "torchvision": ["torch==1.0", "numpy", "nothing; extra == 'more'"]}
    monkeypatch.setattr(metadata, "requires", lambda name: asked.get(name, []))
    row = packages.one_another()
    assert (row.status, row.found) == (
        WARN,
        f"torchvision asks for torch==1.0, {metadata.version('torch')} is installed",
    )
    asked["torchvision"] = ["numpy"]
    assert packages.one_another().status == OK


def test_another_python_is_bad(monkeypatch):
    monkeypatch.setattr("platform.python_version", lambda: "3.9.1")
    row = packages.python()
    assert (row.status, row.found) == (
        BAD,
        f"3.9.1, asked for is {metadata.metadata(packages.OURS)['Requires-Python']}",
    )


@pytest.mark.parametrize("error", [RuntimeError("first\nsecond"), ImportError("no wheel"), SystemExit("ended")])
def test_a_check_that_fails_is_a_row_and_ends_nothing(error):
    def fail() -> Row:
        print("noise")
        raise error

    rows = list(run_checks([Checked("one", fail, "mend it"), Checked("two", lambda: Row("two", OK, "fine"), "")]))
    assert rows[0] == Row("one", BAD, f"{type(error).__name__}: {str(error).splitlines()[0]}", "mend it")
    assert rows[1].status == OK


def test_a_folder_that_cannot_be_written_is_bad(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LMMS_TEXTWEIGHTED_CACHE", str(tmp_path / "file" / "folder"))
    row = machine.cache()
    assert (row.status, "LMMS_TEXTWEIGHTED_CACHE" in row.advice) == (BAD, True)
    assert str(tmp_path) in row.found


def test_no_home_is_bad_and_said(monkeypatch):
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LMMS_TEXTWEIGHTED_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert machine.cache() == Row(
        "cache folder",
        BAD,
        "no home folder is known, and so no cache folder: set LMMS_TEXTWEIGHTED_CACHE",
        "set LMMS_TEXTWEIGHTED_CACHE to a folder that can be written",
    )


def test_a_hub_out_of_reach_is_a_warning_and_no_failure(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("lmms_textweighted.hub.no_connection", lambda: "refused")
    row = machine.hub()
    assert row.status == WARN
    assert row.found.endswith(": refused")
    assert "HF_HUB_OFFLINE=1" in row.advice
    assert examine.is_well([row])
    monkeypatch.setattr("lmms_textweighted.hub.no_connection", lambda: None)
    assert machine.hub().status == OK


def test_cards_are_named_with_their_memory(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda number: f"Card {number}")
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda number: (number * 2**30, 80 * 2**30))
    found = machine.accelerator().found
    assert found == "Card 0, 0.0 of 80.0 GiB free; Card 1, 1.0 of 80.0 GiB free"


@pytest.mark.parametrize("available", [True, False])
def test_flash_attention_is_named_where_transformers_can_use_it(monkeypatch, available):
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: available)
    assert ("flash_attention_2" in machine.kernels().found) is available


def test_names_that_are_gone_are_said_with_the_version_to_install(monkeypatch):
    monkeypatch.delattr("transformers.image_processing_utils.select_best_resolution")
    row = running.names()
    assert (row.status, row.found) == (BAD, f"1 of {sum(name.is_here for name in NAMES)} are gone")
    assert "select_best_resolution" in row.advice
    assert "used by families.images" in row.advice
    assert row.advice.endswith(f": pip install transformers=={locked_versions()['transformers']}")


def test_a_model_that_lmms_eval_does_not_know_is_bad(monkeypatch):
    def unknown(name: str) -> None:
        raise ValueError(f"Model '{name}' not found in available models: …")

    assert running.entry_point().status == OK
    monkeypatch.setattr("lmms_eval.models.get_model_manifest", unknown)
    assert running.entry_point().status == BAD
    assert "pip install ." in running.entry_point().advice


def test_tasks_whose_files_are_lost_are_bad(monkeypatch, tmp_path):
    monkeypatch.setattr("lmms_textweighted.paths.data_folder", lambda name: tmp_path)
    row = running.tasks()
    assert (row.status, str(tmp_path) in row.found) == (BAD, True)


def test_a_wrong_answer_is_bad(monkeypatch):
    monkeypatch.setattr("lmms_textweighted.harness.documents.TaskDocuments.score", lambda *_: 0.0)
    row = running.answer()
    assert row.status == BAD
    assert "right is" in row.found


def test_the_table_fits_80_columns_and_what_to_do_stands_under_it_bad_first():
    rows = [
        Row("hub", WARN, "no connection to [somewhere]: " + "word " * 30, "wait " * 30),
        Row("Python", OK, "3.11.7"),
        Row("torch", BAD, "not installed", "pip install torch"),
    ]
    text = printed(rows)
    assert max(map(len, text.splitlines())) <= 80
    assert "[somewhere]" in text
    assert text.index("bad torch: pip install torch") < text.index("warn hub: wait")
    assert text.splitlines()[-1] == "bad: torch"
    assert printed(rows[1:2]).splitlines()[-1] == "Nothing is wrong."


def test_every_check_says_what_to_do_when_it_fails():
    assert all(checked.advice for checked in examine.CHECKS)
    assert known_bad.KNOWN_BAD
