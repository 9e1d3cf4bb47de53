"""Start one command as several processes: torchrun on this machine, or one torchrun a pretended machine on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass
class Launch:
    """The launchers of one run, one a node, and what they print."""

    launchers: list[subprocess.Popen]
    logs: list[Path]

    def wait(self, seconds: float) -> list[int]:
        """Exit codes of all launchers. Fails when one still runs after `seconds`."""
        end = time.monotonic() + seconds
        try:
            return [launcher.wait(max(0.1, end - time.monotonic())) for launcher in self.launchers]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.output[-3000:]}") from None
        finally:
            for launcher in self.launchers:
                launcher.terminate()

    @property
    def output(self) -> str:
        return "".join(log.read_text() for log in self.logs)

    @property
    def lines(self) -> list[str]:
        """Our own lines. A progress bar may stand in front of one."""
        return ["lmms-textweighted:" + part.split("\n")[0] for part in self.output.split("lmms-textweighted:")[1:]]

    def kill(self, rank: int, when: Callable[[], bool], seconds: float = 120) -> None:
        """Kill one worker as soon as `when` is true."""
        end = time.monotonic() + seconds
        while not when():
            assert time.monotonic() < end, self.output
            assert all(launcher.poll() is None for launcher in self.launchers), self.output
            time.sleep(0.05)
        workers = [worker for launcher in self.launchers for worker in psutil.Process(launcher.pid).children()]
        chosen = [worker for worker in workers if worker.environ().get("RANK") == str(rank)]
        assert len(chosen) == 1
        chosen[0].kill()


def launch(
    folder: Path, *arguments: str, processes: int = 1, nodes: int = 1, environment: dict[str, str] | None = None
) -> Launch:
    """`python -m …` in `folder` as `nodes` times `processes` processes on the CPU."""
    variables = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "LMMS_TEXTWEIGHTED_CACHE": str(folder / "textweighted"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **(environment or {}),
    }
    place = ["--standalone"] if nodes == 1 else ["--master_addr", "127.0.0.1", "--master_port", str(_free_port())]
    launchers, logs = [], []
    for node in range(nodes):
        logs.append(folder / f"node{node}.log")
        where = [*place, *(["--nnodes", str(nodes), "--node_rank", str(node)] if nodes > 1 else [])]
        command = [sys.executable, "-m", "torch.distributed.run", *where, "--nproc_per_node", str(processes), "-m"]
        with logs[-1].open("w") as log:
            launchers.append(
                subprocess.Popen(
                    [*command, *arguments], cwd=folder, env=variables, stdout=log, stderr=subprocess.STDOUT
                )
            )
    return Launch(launchers, logs)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
