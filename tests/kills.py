"""Kill real processes, at a call that is counted or at a moment of the clock, and say what two results differ in."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
# Of this module, started as `python -m tests.kills`: the call at which the process kills itself, counted from 1.
AT = "TESTS_KILL_AT"
_CALLS = ("fsync", "pwrite", "replace", "unlink")


def run(
    folder: Path, *words: str, at: int | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m WORDS` in `folder`, to its end. at: it kills itself at that call of those that change what is on disk;
    of a write, half is then written."""
    variables = {**_environment(folder), **(environment or {})}
    program = ["-m", *words]
    if at is not None:
        variables[AT], program = str(at), ["-m", "tests.kills", *words]
    return subprocess.run(
        [sys.executable, *program], cwd=folder, env=variables, capture_output=True, text=True, timeout=600, check=False
    )


def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """`python -m WORDS` in `folder`; what it prints goes to `folder/log`."""
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *words], cwd=folder, env=_environment(folder), stdout=log, stderr=subprocess.STDOUT
        )


def kill_when(process: subprocess.Popen[bytes], ready: Callable[[], bool], then: float) -> bool:
    """Kill a process and all its children `then` seconds after `ready` is true; False when it ended before by itself.

    The parent goes first, so that it cannot see to it that its children end in order.
    """
    end = time.monotonic() + 500
    while not ready() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.005)
    try:
        process.wait(then)
        return False
    except subprocess.TimeoutExpired:
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in children:
            child.kill()
        psutil.wait_procs(children)
        return process.wait() == -signal.SIGKILL


def _environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "LMMS_TEXTWEIGHTED_CACHE": str(folder / "textweighted"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _kill_itself_at(number: int) -> None:
    """From now on the process kills itself at the numbered call of _CALLS, when it is half done."""
    count = 0

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            if os.getpid() == own and _ours(arguments):
                count += 1
                if count == number:
                    if name == "pwrite":
                        file, data, place = arguments
                        real(file, data[: len(data) // 2], place)
                    os.kill(own, signal.SIGKILL)
            return real(*arguments, **named)

        return call

    own = os.getpid()
    for name in _CALLS:
        setattr(os, name, counted(name, getattr(os, name)))


def _ours(arguments: Sequence[Any]) -> bool:
    """Whether a call is about a file under the current folder: libraries keep files of their own."""
    first = arguments[0]
    try:
        path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else os.path.abspath(first)
    except OSError:
        return False
    return path.startswith(os.getcwd())


if __name__ == "__main__":
    _kill_itself_at(int(os.environ.pop(AT)))
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
