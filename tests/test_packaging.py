"""What pyproject.toml asks for, what the lock answers, and what installs and checks it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from lmms_textweighted.upstream.report import differences, installed_versions, kept_out, project_requirements, report
from lmms_textweighted.upstream.versions import LOCK, lock_lines, locked_versions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parent.parent
PYPROJECT = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
SETTINGS: dict[str, Any] = tomllib.loads(PYPROJECT)
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
# Operators that keep newer versions out.
BOUNDS = {"<", "<=", "!=", "==", "===", "~="}


def running(python: str) -> dict[str, str]:
    return {"python_version": python, "python_full_version": f"{python}.4"}


def installed_requirements() -> list[str]:
    """What `pip install .[test,lint]` asks for."""
    project = SETTINGS["project"]
    asked = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    return [line for line in asked if Requirement(line).name != project["name"]]  # an extra may name another one


def all_requirements() -> list[str]:
    return [
        *installed_requirements(),
        *SETTINGS["build-system"]["requires"],
        *chain.from_iterable(SETTINGS["dependency-groups"].values()),
    ]


def is_bounded(specifier: SpecifierSet) -> bool:
    return bool({one.operator for one in specifier} & BOUNDS)


def comment_above(line: int, lines: list[str]) -> str:
    comment: list[str] = []
    while line and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        comment.insert(0, lines[line].strip(" #"))
    return " ".join(comment)


def make(*arguments: str) -> str:
    done = subprocess.run(["make", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def test_no_requirement_stands_twice():
    names = [canonicalize_name(Requirement(line).name) for line in installed_requirements()]
    assert sorted(names) == sorted(set(names))


def test_what_keeps_a_newer_version_out_says_what_breaks_and_what_lifts_it():
    lines = PYPROJECT.splitlines()
    bounded = [line for line in all_requirements() if is_bounded(Requirement(line).specifier)]
    assert any(line.startswith("filelock") for line in bounded)
    for requirement in [*bounded, SETTINGS["project"]["requires-python"]]:
        places = [place for place, line in enumerate(lines) if f'"{requirement}"' in line]
        assert places, f"{requirement} does not stand on a line of its own"
        for place in places:
            assert lines[place].count('"') == 2, f"{requirement} shares its line"
            assert "to be lifted" in comment_above(place, lines), f"{requirement}: no comment says what lifts it"


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_what_is_asked_for_within_its_bounds(python):
    assert SpecifierSet(SETTINGS["project"]["requires-python"]).contains(f"{python}.0")
    assert f"Programming Language :: Python :: {python}" in SETTINGS["project"]["classifiers"]
    locked = locked_versions(running(python))
    for line in all_requirements():
        needed = Requirement(line)
        if needed.marker is None or needed.marker.evaluate(running(python)):
            version = locked[canonicalize_name(needed.name)]
            assert needed.specifier.contains(version), f"{line}: the lock has {version} (`make lock`)"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_the_lock_has_one_version_of_each_package(python, system):
    here = {**running(python), "sys_platform": system}
    lines = [line for line in lock_lines(LOCK.read_text()) if line.marker is None or line.marker.evaluate(here)]
    names = [canonicalize_name(line.name) for line in lines]
    assert len(names) > 100
    assert sorted(names) == sorted(set(names))


def test_the_lock_has_exact_versions_and_neither_path_nor_address():
    # A path inside the repository, in a comment, is none of a machine.
    text = LOCK.read_text(encoding="utf-8")
    assert not re.search(r"://|(?<!\w)[/~]|[\\@]|--", text)
    for line in lock_lines(text):
        assert line.url is None
        assert not line.extras
        (pin,) = line.specifier
        assert pin.operator == "=="
        assert "*" not in pin.version


def test_the_lock_has_the_versions_that_the_figures_were_measured_with():
    locked = locked_versions(running("3.11"))
    measured = {line.name: line for line in lock_lines((LOCK.parent / "measured.txt").read_text())}
    assert {"torch", "torchvision"} <= measured.keys()
    for name, line in measured.items():
        assert line.specifier.contains(locked[name])
    assert f"torch {locked['torch']}" in (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_markers_choose_the_version_for_the_running_python():
    assert int(locked_versions(running("3.10"))["transformers"].split(".")[1]) <= 20  # later ones refuse Python 3.10
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert locked_versions() == locked_versions(running(own))
    assert "huggingface-hub" in locked_versions()


def test_the_report_names_what_is_not_the_locks():
    locked = {"same": "1.0", "newer": "1.0", "absent": "1.0"}
    aside = {"pip": "2", "lmms-textweighted": "0", "llava-torch": "1"}
    installed = {"same": "1.0", "newer": "2.0", "extra": "3.0", **aside}
    assert differences(locked, installed) == [("extra", "-", "3.0"), ("newer", "1.0", "2.0")]
    head, bounds, *table = report(locked, installed, ["newer>=1", "held>=1,<2"]).splitlines()
    assert head.endswith(": 1 packages as in the lock, 2 not")
    assert bounds.endswith(": held<2")
    assert [line.split() for line in table] == [
        ["package", "lock", "installed"],
        ["extra", "-", "3.0"],
        ["newer", "1.0", "2.0"],
    ]
    assert report(locked, {"same": "1.0"}, []).count("\n") == 1


def test_the_report_says_what_the_bounds_keep_out():
    lines = [
        "Held.By>=1,<2,!=1.5",
        "free>=1",
        "any",
        "exact==3; python_version > '3'",
        'extra[a]~=1.0; extra == "test"',
    ]
    assert kept_out(lines) == ["exact==3", "extra~=1.0", "held-by!=1.5,<2"]
    assert "filelock<4.3" in kept_out(SETTINGS["project"]["dependencies"])


def test_the_report_is_printed_and_written(tmp_path):
    file = tmp_path / "new" / "versions.txt"
    command = [sys.executable, "-m", "lmms_textweighted.upstream.report", "--output", file]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == file.read_text() == report(locked_versions(), installed_versions(), project_requirements())


def test_the_report_needs_packaging_alone():
    code = "import sys, lmms_textweighted.upstream.report; print(sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=60
    )
    assert "packaging" in done.stdout
    for heavy in ("torch", "transformers", "pydantic", "numpy", "yaml", "rich", "typer"):
        assert f"'{heavy}'" not in done.stdout


@needs_make
@pytest.mark.parametrize("target", ["demo", "test", "bench", "dist"])
def test_make_installs_the_locks_versions(target):
    """In the environments where packages are built, too: hence both variables, one for each age of pip."""
    installs = [line for line in make("--dry-run", "--always-make", target).splitlines() if " install " in line]
    lock = LOCK.relative_to(REPOSITORY).as_posix()
    locked = [line for line in installs if line.startswith(f"PIP_CONSTRAINT={lock} PIP_BUILD_CONSTRAINT={lock} ")]
    assert locked
    for line in set(installs) - set(locked):
        assert re.search(r"--no-deps \S+==\S+$", line), line


@needs_make
def test_make_test_latest_leaves_the_lock_aside():
    commands = make("--dry-run", "test-latest")
    assert " install " in commands
    assert "CONSTRAINT" not in commands
    assert LOCK.name not in commands


@needs_make
def test_another_lock_installs_again():
    assert re.search(rf"^\.venv/\.installed:.* {LOCK.relative_to(REPOSITORY)}\b", make("-np", "demo"), re.MULTILINE)


def workflow_files() -> list[Path]:
    return [*sorted((REPOSITORY / ".github" / "workflows").glob("*.yml")), REPOSITORY / "docs" / "ci-example.yml"]


def steps_of(file: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def made_by(steps: list[dict[str, Any]]) -> list[str]:
    return re.findall(r"^\s*make (\S+)", "\n".join(step.get("run", "") for step in steps), re.MULTILINE)


@pytest.mark.parametrize("file", workflow_files(), ids=lambda file: file.name)
def test_workflows_use_actions_of_a_stated_major_version_and_targets_that_exist(file):
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    steps = steps_of(file)
    assert steps
    assert set(made_by(steps)) <= targets
    for step in steps:
        assert ("uses" in step) != ("run" in step)
        assert re.search(r"@(release/)?v\d+$", step.get("uses", "x@v1")), step["uses"]


def test_workflows_run_the_makefile_on_the_oldest_and_the_newest_python():
    folder = REPOSITORY / ".github" / "workflows"
    for name, target in [("test", "test"), ("latest", "test-latest")]:
        (job,) = yaml.safe_load((folder / f"{name}.yml").read_text())["jobs"].values()
        assert job["strategy"]["matrix"]["python"] == [PYTHONS[0], PYTHONS[-1]]
        assert made_by(job["steps"]) == [target]
    assert made_by(steps_of(folder / "release.yml")) == ["dist"]


def test_the_bug_form_asks_for_the_doctors_words():
    form = yaml.safe_load((REPOSITORY / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    asked = [field for field in form["body"] if "lmms-textweighted doctor" in field["attributes"]["label"]]
    assert [field["validations"]["required"] for field in asked] == [True]
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))


def test_every_folder_with_code_is_in_the_wheel_and_under_the_typer_contract():
    own = REPOSITORY / "lmms_textweighted"
    folders = {".".join(path.parent.relative_to(REPOSITORY).parts) for path in own.rglob("__init__.py")}
    data = {"lmms_textweighted.tasks", "lmms_textweighted.configs"}
    packages = {name for name in SETTINGS["tool"]["setuptools"]["packages"] if not name.startswith(tuple(data))}
    assert packages == folders
    (contract,) = [c for c in SETTINGS["tool"]["importlinter"]["contracts"] if c["name"] == "only cli imports typer"]
    rooms = {f"lmms_textweighted.{path.stem}" for path in own.iterdir() if path.suffix == ".py" or path.is_dir()}
    kinds = {"__init__", "__main__", "__pycache__", "cli"}
    assert set(contract["source_modules"]) == rooms - {f"lmms_textweighted.{name}" for name in kinds}
