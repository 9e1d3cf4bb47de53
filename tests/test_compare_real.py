"""`compare` on what the real lmms-eval and the real sweep write."""

from __future__ import annotations

import json

import pytest
import yaml

from lmms_textweighted.compare import compare_runs
from lmms_textweighted.paths import checkpoint_folder, data_folder
from tests.lmms_eval_runs import lmms_eval
from tests.test_cli import run

pytestmark = pytest.mark.slow

LIMIT = 8


@pytest.mark.nightly
def test_ours_lmms_evals_own_and_a_sweep_stand_in_one_table(tmp_path):
    common = {
        "tasks": "shapes_mcq", "include_path": str(data_folder("tasks")), "limit": LIMIT, "log_samples": True,
    }  # fmt: skip
    ours = {**common, "model": "llava_textweighted", "batch_size": "8"}
    theirs = f"pretrained={checkpoint_folder()},device_map=cpu"
    runs = [
        {**common, "model": "llava_hf", "model_args": theirs, "device": "cpu", "output_path": "theirs"},
        {**ours, "model_args": "pretrained=tiny,strategy=none", "output_path": "whole"},
        {**ours, "model_args": "pretrained=tiny,strategy=random,keep_tokens=4", "output_path": "few"},
    ]
    (tmp_path / "runs.yaml").write_text(yaml.safe_dump(runs))
    done = lmms_eval(tmp_path, "--config", "runs.yaml")
    assert done.code == 0, done.output[-3000:]
    points = ["--tokens", "4", "--strategies", "random,none", "--num-samples", str(LIMIT), "--no-ranks"]
    swept = run("sweep", *points, "--output-dir", "swept", cwd=tmp_path)
    assert swept.returncode == 0, swept.stderr

    table = run("compare", "whole", "few", "--format", "json", cwd=tmp_path)
    assert table.returncode == 0, table.stderr
    whole, few = json.loads(table.stdout)["rows"]
    results = json.loads(next((tmp_path / "few").rglob("*_results.json")).read_text())["results"]["shapes_mcq"]
    assert few["cells"]["shapes_mcq"]["value"] == pytest.approx(100 * results["exact_match,none"])
    assert few["cells"]["shapes_mcq"]["shared"] == LIMIT
    assert few["cells"]["shapes_mcq"]["test"] == "McNemar exact"
    assert (whole["figures"]["kept"], few["figures"]["kept"], few["figures"]["equivalent"]) == (576, 4, 218.5)
    assert whole["figures"]["kv_bytes"] > 2 * few["figures"]["kv_bytes"]

    folders = [tmp_path / name for name in ("theirs", "whole", "few", "swept")]
    comparison = compare_runs(folders, reference="llava_hf")
    rows = {row.name: row.cells["shapes_mcq"] for row in comparison.rows}
    assert len(rows) == 5
    assert {name.split()[0] for name in rows} == {"llava_hf", "unpruned", "random@4"}
    for name, cell in rows.items():
        if name.startswith("unpruned"):  # unpruned, all three are the same model
            assert cell.value == rows["llava_hf"].value
            assert cell.p == 1.0
        if name.startswith("random"):  # and the sweep is the run, whatever computed it
            assert cell.value == pytest.approx(100 * results["exact_match,none"])
