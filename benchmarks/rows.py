"""A benchmark's outcome as data: one row a claim, with its target, kept as JSON and shown as a table."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "transformers", "lmms-eval", "numpy")


@dataclass(frozen=True)
class Row:
    """what: the claim. value and target: ratios unless unit says otherwise; target None: reported only.

    at_least: whether the value must reach the target or stay below it. value None: not measured, and note says why.
    details: medians, spreads and sizes that the value was made from.
    """

    what: str
    value: float | None
    target: float | None = None
    at_least: bool = True
    unit: str = "x"
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        if self.target is None:
            return "reported"
        return "met" if (self.value >= self.target) == self.at_least or self.value == self.target else "missed"

    @property
    def cells(self) -> tuple[str, str, str, str]:
        sign = ">=" if self.at_least else "<="
        target = "" if self.target is None else f"{sign} {self.target:g} {self.unit}".strip()
        value = "" if self.value is None else f"{self.value:.3g} {self.unit}".strip()
        return self.what, value, target, self.verdict + (f": {self.note}" if self.note else "")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    data = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
        "date": date.today().isoformat(),
    }
    if torch.cuda.is_available():
        data["gpu"] = torch.cuda.get_device_name()
        data["cuda"] = torch.version.cuda
    return data


def machine_name() -> str:
    """A file name for this machine."""
    name = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.machine()}-{machine()['cores']}-cores"
    )
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def show(rows: Sequence[Row]) -> None:
    """Print the rows as a table."""
    table = Table(title=f"{machine()['processor']}, {machine()['cores']} cores")
    for heading in ("what", "measured", "target", ""):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row.cells)
    Console().print(table)


def write(rows: Sequence[Row], folder: Path = RESULTS) -> Path:
    """Write `<machine>.json` and `<machine>.md`; returns the former."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{machine_name()}.json"
    path.write_text(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    lines = ["| what | measured | target | |", "| --- | --- | --- | --- |"]
    lines += ["| " + " | ".join(row.cells) + " |" for row in rows]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    return path


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
