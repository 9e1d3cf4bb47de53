"""The versions that `make lock` wrote down: those that `make demo`, `make test` and `make bench` install."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = Path(__file__).resolve().with_name("constraints.txt")


def lock_lines(text: str) -> list[Requirement]:
    """The requirements of a constraints file, in its order: every line that is not empty and not a comment."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line]


def locked_versions(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The lock's version of each package, by its canonical name: `{"lmms-eval": "0.7.3", …}`.

    environment: the markers' values, such as {"python_full_version": "3.12.1"}; those not named are the running
    Python's. A package whose marker does not hold is left out.
    """
    versions: dict[str, str] = {}
    for line in lock_lines(LOCK.read_text(encoding="utf-8")):
        if line.marker is None or line.marker.evaluate(dict(environment or {})):
            versions[canonicalize_name(line.name)] = str(line.specifier).removeprefix("==")
    return versions
