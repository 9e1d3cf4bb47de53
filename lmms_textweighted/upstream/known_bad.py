"""Versions of other packages that are known to break something, and what to install instead.

Reads the installed packages' metadata only: it is asked before anything heavy is imported.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.specifiers import SpecifierSet

from lmms_textweighted.errors import InputError

EVERYTHING, LMMS_EVAL, SENTENCE_PIECES = "everything here", "lmms-eval runs", "checkpoints with a tokenizer.model"


@dataclass(frozen=True)
class KnownBad:
    """versions: a specifier of those that break. breaks: what of ours, as a user names it.

    install: a requirement that works. lifted_by: whose release may take the entry away.
    """

    package: str
    versions: str
    breaks: str
    reason: str
    install: str
    lifted_by: str


KNOWN_BAD = (
    KnownBad(
        "filelock",
        ">=4.3",
        LMMS_EVAL,
        "lmms-eval 0.7.3 imports filelock._api before every run, and filelock 4.3 has it no longer",
        "filelock<4.3",
        "lmms-eval",
    ),
    KnownBad(
        "transformers",
        "<5",
        EVERYTHING,
        "before 5.0 a CLIP tower's weights have other names, and AttentionInterface has no get_interface",
        "transformers>=5.20,<6",
        "nobody: older ones will not change",
    ),
    KnownBad(
        "sentencepiece",
        ">=0.2.3",
        SENTENCE_PIECES,
        "what 0.2.3 generated refuses the protobuf below 7 that lmms-eval's wandb needs",
        "sentencepiece<0.2.3",
        "lmms-eval, with a wandb that takes protobuf 7",
    ),
)


@dataclass(frozen=True)
class Found:
    """A known-bad version that is installed."""

    bad: KnownBad
    version: str

    @property
    def command(self) -> str:
        return f"pip install {shlex.quote(self.bad.install)}"

    def __str__(self) -> str:
        bad = self.bad
        return f"{bad.package} {self.version} is installed, which breaks {bad.breaks}: {bad.reason}: {self.command}"


def installed(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def found_bad() -> Iterator[Found]:
    """The known-bad versions that are installed."""
    for bad in KNOWN_BAD:
        version = installed(bad.package)
        if version is not None and SpecifierSet(bad.versions).contains(version, prereleases=True):
            yield Found(bad, version)


def check_versions(*, lmms_eval: bool = False) -> None:
    """Raise InputError for an installed version that breaks everything here; with lmms_eval, also its runs alone."""
    for found in found_bad():
        if lmms_eval or found.bad.breaks == EVERYTHING:
            raise InputError(str(found))
