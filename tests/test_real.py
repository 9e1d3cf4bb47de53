"""`make test-real` on a tiny random checkpoint: what it reports, what it finds, and what it says when it is off."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from lmms_textweighted.families.qwen import Qwen3VlFamily
from tests import real
from tests.vlm_checkpoints import make_checkpoint


def test_without_a_checkpoint_one_line_says_what_to_set(monkeypatch, capsys):
    monkeypatch.delenv(real.VARIABLE, raising=False)
    assert real.main([]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("LMMS_TEXTWEIGHTED_REAL is not set: give a hub name or a folder")
    made = subprocess.run(
        ["make", "--silent", "test-real"], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True
    )
    (line,) = made.stdout.splitlines()
    assert line.startswith("LMMS_TEXTWEIGHTED_REAL is not set: give a hub name or a folder, make test-real")


def test_a_checkpoint_of_no_known_kind_ends_with_one_line(monkeypatch, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "molmo2"}))
    monkeypatch.setenv(real.VARIABLE, str(tmp_path))
    assert real.main([]) == 1
    assert "its model_type is 'molmo2', known are" in capsys.readouterr().err


@pytest.mark.slow
def test_the_report_counts_what_is_equal_and_finds_other_pixels(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(real.VARIABLE, str(make_checkpoint("qwen3_vl", tmp_path / "qwen3_vl")))
    monkeypatch.setenv("LMMS_TEXTWEIGHTED_CACHE", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["lmms-eval"])
    words = ["--documents", "6", "--device", "cpu", "--output", str(tmp_path / "real")]
    assert real.main(words) == 0
    report = json.loads((tmp_path / "real" / "qwen3_vl.json").read_text())
    assert (report["model_type"], report["lmms_eval"].rpartition(".")[2]) == ("qwen3_vl", "Qwen3_VL")
    assert [check["what"].split(":")[0] for check in report["checks"]] == ["unpruned"] * 4 + ["keep-all"] * 2
    assert all((check["equal"], check["of"], check["passed"]) == (6, 6, True) for check in report["checks"])
    assert report["answers"] == report["lmms_evals_answers"]

    plain = Qwen3VlFamily.prepared

    def mirrored(family, pictures):
        return [picture.transpose(0) for picture in plain(family, pictures)]

    monkeypatch.setattr(Qwen3VlFamily, "prepared", mirrored)
    assert real.main(words) == 1
    report = json.loads((tmp_path / "real" / "qwen3_vl.json").read_text())
    pixels = next(check for check in report["checks"] if check["what"].startswith("unpruned: pixels"))
    assert pixels["equal"] == 1  # the document without a picture
    assert "DIFFERS" in capsys.readouterr().out
