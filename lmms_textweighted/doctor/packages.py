"""Python and the installed packages, against what this project asks for, the lock, and what is known to be bad."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from lmms_textweighted.doctor.rows import BAD, OK, WARN, Row
from lmms_textweighted.upstream.known_bad import KNOWN_BAD, found_bad, installed

OURS = "lmms-textweighted"


def python() -> Row:
    """The running Python, against what the installed package asks for."""
    version, asked = platform.python_version(), metadata.metadata(OURS)["Requires-Python"]
    if version in SpecifierSet(asked or ""):
        return Row("Python", OK, version)
    return Row("Python", BAD, f"{version}, asked for is {asked}", f"make an environment with a Python {asked}")


def packages() -> list[Row]:
    """A row for every package that this one requires, and for those known to be bad."""
    from lmms_textweighted.upstream.versions import locked_versions

    locked = locked_versions()
    bad = {canonicalize_name(found.bad.package): found for found in found_bad()}
    asked = {canonicalize_name(one.name): one for one in requirements(OURS)}
    for known in KNOWN_BAD:  # also those that only others require
        asked.setdefault(canonicalize_name(known.package), Requirement(known.package))
    rows = []
    for name in asked:
        version, lock = installed(name), locked.get(name)
        beside = "" if version == lock else f" (lock: {lock})" if lock else " (not in the lock)"
        if name in bad:
            rows.append(Row(name, BAD, f"{version}{beside}, known to be bad", str(bad[name])))
        elif version is None:
            rows.append(Row(name, BAD, f"not installed{beside}", f"pip install {shlex.quote(str(asked[name]))}"))
        elif not asked[name].specifier.contains(version, prereleases=True):
            wanted = f"{name}{asked[name].specifier}"
            rows.append(
                Row(name, BAD, f"{version}{beside}, asked for is {asked[name].specifier}", f"pip install '{wanted}'")
            )
        else:
            rows.append(Row(name, OK, f"{version}{beside}"))
    return rows


def one_another() -> Row:
    """What the required packages ask of each other, which pip leaves unmet when told to install one by itself."""
    unmet = sorted(set(_unmet()))
    if not unmet:
        return Row("packages together", OK, "each has what it asks for")
    return Row("packages together", WARN, "; ".join(unmet), "pip install --upgrade the packages named, or start anew")


def requirements(package: str) -> list[Requirement]:
    """What an installed package requires here, without its extras."""
    found = [Requirement(line) for line in metadata.requires(package) or []]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def _unmet() -> Iterator[str]:
    seen, left = {OURS}, [canonicalize_name(one.name) for one in requirements(OURS)]
    while left:
        package = left.pop()
        if package in seen or installed(package) is None:
            continue
        seen.add(package)
        for one in requirements(package):
            version = installed(one.name)
            if version is None or not one.specifier.contains(version, prereleases=True):
                yield f"{package} asks for {one.name}{one.specifier}, {version or 'nothing'} is installed"
            left.append(canonicalize_name(one.name))
