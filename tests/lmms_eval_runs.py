"""Run the real lmms-eval command in a folder of its own, and read what it wrote."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms_textweighted.paths import data_folder


@dataclass
class Run:
    """A finished run. output: standard output and error together."""

    code: int
    output: str
    folder: Path

    @property
    def results(self) -> dict[str, Any]:
        """The newest results file."""
        return json.loads(self._newest("*_results.json").read_text())

    def metrics(self, task: str) -> dict[str, Any]:
        """Metric name -> value, filters and standard errors left out."""
        found = self.results["results"][task]
        return {
            key.split(",")[0]: value for key, value in found.items() if key.endswith(",none") and "stderr" not in key
        }

    def samples(self, task: str) -> list[dict[str, Any]]:
        """The newest logged samples, sorted by document."""
        lines = self._newest(f"*_samples_{task}.jsonl").read_text().splitlines()
        return sorted((json.loads(line) for line in lines), key=lambda sample: sample["doc_id"])

    def _newest(self, pattern: str) -> Path:
        found = sorted(self.folder.rglob(pattern), key=lambda path: path.stat().st_mtime_ns)
        assert found, f"no {pattern} under {self.folder}:\n{self.output[-3000:]}"
        return found[-1]


def lmms_eval(
    folder: Path,
    *arguments: str,
    processes: int = 1,
    environment: dict[str, str | None] | None = None,
    name: str = "out",
) -> Run:
    """`lmms-eval …` in `folder`, with its caches there too. Results go to `folder/name`. None unsets a variable."""
    variables: dict[str, str | None] = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "LMMS_TEXTWEIGHTED_CACHE": str(folder / "textweighted"),
        "TOKENIZERS_PARALLELISM": "false",
        **(environment or {}),
    }
    program = [sys.executable, "-m", "lmms_eval"]
    if processes > 1:
        variables["ACCELERATE_USE_CPU"] = "true"
        variables["OMP_NUM_THREADS"] = "1"
        program = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)),
            *("-m", "lmms_eval"),
        ]
    command = [*program, *arguments]
    if "--output_path" not in arguments and "--config" not in arguments:
        command += ["--output_path", str(folder / name), "--log_samples"]
    if "--include_path" not in arguments and "--config" not in arguments:
        command += ["--include_path", str(data_folder("tasks"))]
    set_ones = {key: value for key, value in variables.items() if value is not None}
    done = subprocess.run(command, cwd=folder, env=set_ones, capture_output=True, text=True, timeout=600, check=False)
    return Run(done.returncode, done.stdout + done.stderr, folder / name)


def same(first: Any, second: Any) -> bool:
    """Equal up to rounding, NaN equal to NaN."""
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=1e-5) or (math.isnan(first) and math.isnan(second))
    return first == second
