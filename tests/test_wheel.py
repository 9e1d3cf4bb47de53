"""What `pip install` gives: the wheel alone, away from the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

CODE = """
import importlib.metadata, pathlib, lmms_textweighted
from lmms_textweighted.paths import checkpoint_folder, data_folder
from lmms_textweighted.harness.documents import Documents
home = pathlib.Path(lmms_textweighted.__file__).parent
print(home)
assert data_folder("tasks") == home / "tasks", data_folder("tasks")
assert data_folder("configs") == home / "configs"
points = [e for e in importlib.metadata.entry_points(group="lmms_eval.models") if e.name == "llava_textweighted"]
assert points and points[0].load().model_id == "llava_textweighted"
model, processor = lmms_textweighted.load("tiny")
document = next(iter(Documents.of_task("shapes_mcq", 1, single_prediction_prompt=True)))
from lmms_textweighted.inference import Decoding, PrunedLlava
llava = PrunedLlava(model, processor, lmms_textweighted.make_plan("text_weighted", keep_tokens=192))
answer = llava.generate([[document.message]], Decoding(max_new_tokens=4))[0]
assert answer.text in "ABCDE" and answer.trace.kept_tokens == 192
print("ANSWER", answer.text)
"""


@pytest.mark.slow
def test_the_wheel_works_from_an_empty_folder(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, REPOSITORY], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size <= 15 * 2**20
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "lmms_textweighted/tiny/checkpoint/model.safetensors",
        "lmms_textweighted/tiny/checkpoint_qwen/model.safetensors",
        "lmms_textweighted/tasks/shapes_mcq/scenes_test.jsonl",
        "lmms_textweighted/tasks/shapes_mcq/_shapes_mcq.yaml",
        "lmms_textweighted/tasks/scienceqa_img_rank/scienceqa_img_rank.yaml",
        "lmms_textweighted/tasks/qwen3_vl/mmmu_val_qwen3_vl.yaml",
        "lmms_textweighted/tasks/qwen3_vl/utils.py",
        "lmms_textweighted/configs/experiment.yaml",
        "lmms_textweighted/configs/leaderboard/tiny.yaml",
        "lmms_textweighted/configs/published/fastv_192.yaml",
        "lmms_textweighted/statistics.py",
        "lmms_textweighted/upstream/constraints.txt",
    ):
        assert needed in names
    assert not [name for name in names if name.startswith(("tests/", "tasks/", "configs/"))]

    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True, timeout=300)
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    done = run("-c", CODE)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(str(site))
    assert "ANSWER" in done.stdout
    doctor = run("-m", "lmms_textweighted", "doctor", "--json")
    assert (doctor.returncode, json.loads(doctor.stdout)["well"]) == (0, True), doctor.stdout
