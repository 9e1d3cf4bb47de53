"""What is used of other packages without their promise: each thing is still there, and nothing is used that is not
listed. A failure names the thing, who uses it, and the releases that are known to have it."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import lmms_textweighted
from lmms_textweighted.errors import InputError
from lmms_textweighted.upstream import known_bad
from lmms_textweighted.upstream.known_bad import EVERYTHING, KNOWN_BAD, check_versions, found_bad
from lmms_textweighted.upstream.names import NAMES
from lmms_textweighted.upstream.unpromised import Unpromised
from lmms_textweighted.upstream.versions import locked_versions

PACKAGE = Path(lmms_textweighted.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "upstream" not in path.relative_to(PACKAGE).parts)


def identifier(name: Unpromised) -> str:
    return f"{name.package}: {name.what} (used by {name.used_by})"


@pytest.mark.parametrize("name", NAMES, ids=identifier)
def test_it_is_still_there(name, monkeypatch):
    if not name.is_here:
        pytest.skip(f"{name.package} is not installed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    problem = name.problem()
    assert problem is None, problem


def test_every_entry_is_said_once_and_names_modules_that_exist():
    assert len({(name.package, name.what) for name in NAMES}) == len(NAMES)
    for name in NAMES:
        for user in name.used_by.split(", "):
            module = PACKAGE.joinpath(*user.split("."))
            known = user == "lmms-eval" or user.startswith("the tasks'")
            assert known or module.with_suffix(".py").is_file(), f"{name.what}: there is no module {user}"


# What a break looks like: each of these is planted, and must be named by the entry that is there for it.
PLANTED = [
    ("transformers.models.llama.modeling_llama.eager_attention_forward", "LlamaAttention: eager_attention_forward"),
    ("transformers.models.llava_next.modeling_llava_next.unpad_image", "unpad_image"),
    ("transformers.image_processing_utils.select_best_resolution", "select_best_resolution"),
    ("torch.distributed.distributed_c10d._get_default_store", "_get_default_store"),
    ("lmms_eval.api.task.ConfigurableTask.doc_to_target", "ConfigurableTask(config="),
    ("lmms_eval.tasks.scienceqa.utils.sqa_process_results", "sqa_process_results"),
    ("datasets.utils._filelock.FileLock", "_filelock.FileLock"),
    ("filelock._api.FileLockMeta", "_api.FileLockMeta"),
]


@pytest.mark.parametrize(("path", "words"), PLANTED, ids=[path for path, _ in PLANTED])
def test_a_name_that_is_gone_is_named_with_its_user_and_its_releases(path, words, monkeypatch):
    monkeypatch.delattr(path)
    problems = [name.problem() for name in NAMES if words in name.what]
    (said,) = [problem for problem in problems if problem]
    (entry,) = [name for name in NAMES if words in name.what and name.problem()]
    assert said.startswith(f"{entry.package} {metadata.version(entry.package)} no longer has `{entry.what}` (")
    assert said.endswith(f"): used by {entry.used_by}, known to be there in {entry.since}")
    assert "\n" not in said


def test_an_argument_that_is_renamed_is_named_too(monkeypatch):
    from transformers.models.llama import modeling_llama

    forward = modeling_llama.ALL_ATTENTION_FUNCTIONS.get_interface

    class Renaming:
        def get_interface(self, *arguments):
            function = forward(*arguments)

            def renamed(*args, scaling, **kwargs):
                return function(*args, scale=scaling, **kwargs)

            return renamed

    monkeypatch.setattr(modeling_llama, "ALL_ATTENTION_FUNCTIONS", Renaming())
    said = [problem for name in NAMES if "scaling=" in name.what if (problem := name.problem())]
    assert len(said) == 1  # Llama's, not Mistral's
    assert "LlamaAttention: asks module.config at every call" in said[0]
    assert "KeyError: 'scaling'" in said[0]
    assert "used by engine.observe" in said[0]


# Nothing private beside the list.


def private_names(tree: ast.Module) -> Iterator[str]:
    """Names with one leading underscore that a module takes from elsewhere: parts of imported modules, imported names,
    attributes of anything but self and the standard library, and such names in getattr and setattr."""
    standard = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name.partition(".")[0] in sys.stdlib_module_names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls", *standard}):
                yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr"):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def own_names(tree: ast.Module) -> Iterator[str]:
    """Names that a module defines: its functions, classes, variables and what it sets on self."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node, ast.Name):
                yield node.id
            elif isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                yield node.attr


def unlisted(trees: dict[str, ast.Module]) -> list[str]:
    ours = {name for tree in trees.values() for name in own_names(tree)}
    listed = {word for name in NAMES for word in re.findall(r"\w+", name.what)}
    return [
        f"{module} uses {name}"
        for module, tree in trees.items()
        for name in private_names(tree)
        if re.match(r"_[^_]", name) and name not in ours | listed
    ]


def test_no_private_name_of_another_package_is_used_that_is_not_listed():
    found = unlisted({str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in MODULES})
    assert not found, f"{found}: add each to lmms_textweighted/upstream, with a check"


@pytest.mark.parametrize(
    "line",
    [
        "from torch.distributed import _new_thing",
        "import filelock._unix",
        "config._attn_other = 1",
        "value = model.layers[0]._private",
        "getattr(model, '_private')",
        "import torch\ntorch._dynamo.reset()",
    ],
)
def test_a_private_name_that_is_not_listed_is_found(line):
    assert unlisted({"there": ast.parse(line)})


@pytest.mark.parametrize("line", ["import os\nos._exit(1)", "self._mine", "def _f(): ...\nx._f()", "x.__class__"])
def test_what_is_our_own_or_the_standard_library_is_no_finding(line):
    assert not unlisted({"there": ast.parse(line)})


# Known-bad versions.


def test_the_lock_holds_no_known_bad_version_and_every_way_out_is_none_itself():
    for bad in KNOWN_BAD:
        locked = locked_versions().get(bad.package)
        if locked is not None:
            assert locked not in known_bad.SpecifierSet(bad.versions)
            assert locked in Requirement(bad.install).specifier
        assert Requirement(bad.install).name == bad.package


def test_what_is_installed_is_not_known_to_be_bad():
    assert [str(found) for found in found_bad()] == []


@pytest.mark.parametrize("bad", KNOWN_BAD, ids=lambda bad: bad.package)
def test_a_known_bad_version_is_one_line_with_its_reason_and_the_command(bad, monkeypatch):
    version = {"filelock": "4.3.1", "transformers": "4.57.1", "sentencepiece": "0.2.3"}[bad.package]
    monkeypatch.setattr(known_bad.metadata, "version", lambda name: version if name == bad.package else "0")
    monkeypatch.setattr(known_bad, "KNOWN_BAD", (bad,))
    (found,) = found_bad()
    line = str(found)
    assert line.startswith(
        f"{bad.package} {version} is installed, which breaks {bad.breaks}: {bad.reason}: pip install "
    )
    assert "\n" not in line
    if bad.breaks == EVERYTHING:
        with pytest.raises(InputError, match=re.escape(line)):
            check_versions()
    else:
        check_versions()


def test_only_lmms_eval_runs_are_refused_for_what_breaks_only_them(monkeypatch):
    real = metadata.version
    monkeypatch.setattr(known_bad.metadata, "version", lambda name: "4.3.1" if name == "filelock" else real(name))
    check_versions()
    with pytest.raises(InputError, match=r"filelock 4\.3\.1 is installed, which breaks lmms-eval runs"):
        check_versions(lmms_eval=True)
    lmms_textweighted.load("tiny")  # does not need what filelock lost


def test_the_model_says_a_known_bad_version_before_anything_else(monkeypatch):
    from lmms_textweighted.harness.model import LlavaTextweighted
    from lmms_textweighted.harness.stops import RunEnded

    real = metadata.version
    monkeypatch.setattr(known_bad.metadata, "version", lambda name: "4.3.1" if name == "filelock" else real(name))
    with pytest.raises(RunEnded, match=r"filelock 4\.3\.1 .* pip install 'filelock<4\.3'"):
        LlavaTextweighted(pretrained="nowhere/at/all")


def test_the_package_says_a_known_bad_version_before_it_imports_what_that_breaks(monkeypatch):
    real = metadata.version
    monkeypatch.setattr(known_bad.metadata, "version", lambda name: "4.57.1" if name == "transformers" else real(name))
    for name in lmms_textweighted.__all__:
        with pytest.raises(InputError, match=r"transformers 4\.57\.1 is installed, which breaks everything here"):
            getattr(lmms_textweighted, name)
