"""Which installed packages are not the lock's: `python -m lmms_textweighted.upstream.report [--output FILE]`.

Needs `packaging` alone, so that it can still speak when a newer package broke all the rest.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lmms_textweighted.upstream.versions import locked_versions

# Not the lock's business: the project itself, the tool that installs, and what is installed without its requirements.
_PROJECT = "lmms-textweighted"
_ASIDE = {_PROJECT, "pip", "llava-torch"}


def installed_versions() -> dict[str, str]:
    """The version of each package that this Python finds, by its canonical name. The first on the path counts."""
    versions: dict[str, str] = {}
    for found in distributions():
        versions.setdefault(canonicalize_name(found.metadata["Name"]), found.version)
    return versions


def differences(locked: dict[str, str], installed: dict[str, str]) -> list[tuple[str, str, str]]:
    """(name, the lock's version, the installed one) of each installed package where they differ, by name.

    A package that the lock does not have has "-" there. One that is not installed is no difference: the lock also has
    what only some extras need.
    """
    return [
        (name, locked.get(name, "-"), version)
        for name, version in sorted(installed.items())
        if name not in _ASIDE and locked.get(name) != version
    ]


def project_requirements() -> list[str]:
    """What the installed project asks for, its extras too; nothing where it runs without being installed."""
    first = next(iter(distributions(name=_PROJECT)), None)
    return (first and first.requires) or []


def kept_out(requirements: Iterable[str]) -> list[str]:
    """`filelock<4.3` and the like: of each requirement what refuses newer versions, by name."""
    bounds = []
    for requirement in map(Requirement, requirements):
        refused = [str(one) for one in requirement.specifier if not one.operator.startswith(">")]
        if refused:
            bounds.append(canonicalize_name(requirement.name) + ",".join(sorted(refused)))
    return sorted(bounds)


def report(locked: dict[str, str], installed: dict[str, str], requirements: Iterable[str]) -> str:
    """The differences as a table of plain text; above it their count, and what no newer version gets past."""
    rows = differences(locked, installed)
    same = sum(locked.get(name) == version for name, version in installed.items())
    head = f"Python {platform.python_version()}: {same} packages as in the lock, {len(rows)} not\n"
    bounds = kept_out(requirements)
    if bounds:
        head += f"kept back by pyproject.toml: {', '.join(bounds)}\n"
    if not rows:
        return head
    table = [("package", "lock", "installed"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table)
    return head + "\n".join(lines) + "\n"


def main() -> None:
    """Print the report; with --output also write it to that file."""
    parser = argparse.ArgumentParser(prog="python -m lmms_textweighted.upstream.report", description=__doc__)
    parser.add_argument("--output", type=Path, help="a file for the same text")
    arguments = parser.parse_args()
    text = report(locked_versions(), installed_versions(), project_requirements())
    print(text, end="")
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
