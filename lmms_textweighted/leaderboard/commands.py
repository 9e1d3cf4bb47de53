"""A leaderboard -> its runs, and each run -> lmms-eval's command line or an entry of its `--config` file."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lmms_textweighted.errors import InputError
from lmms_textweighted.harness.names import MODEL_NAME
from lmms_textweighted.harness.settings import Settings
from lmms_textweighted.leaderboard.schema import Budget, Matrix, Method
from lmms_textweighted.methods import find_method

# lmms-eval makes up a new id for each run of its response cache, and then finds nothing of a killed one's.
RUN_ID = "LMMS_CACHE_RUN_ID"
# lmms-eval keys its cache by the commit of the git checkout that it is installed in: of the user's own project, where a
# virtual environment lies in one. Any commit there, and no answer is found again. So git must not look further up.
GIT_CEILING = "GIT_CEILING_DIRECTORIES"
_NOT_IN_ARGUMENTS = ",{}[]'\""  # what lmms-eval's reading of `a=1,b=2` would take apart


@dataclass(frozen=True)
class Run:
    """One lmms-eval run: a method at a budget (None: it takes none) over all tasks.

    options: lmms-eval's options by name, as in a `--config` file. environment: variables it needs.
    """

    name: str
    method: str
    budget: Budget | None
    settings: Settings
    folder: Path
    options: dict[str, Any]
    environment: dict[str, str]

    @property
    def tasks(self) -> list[str]:
        return str(self.options["tasks"]).split(",")


def expand(matrix: Matrix, *, output: Path, limit: int | None = None) -> list[Run]:
    """All runs of a leaderboard, in its order: methods, and their budgets from the first named on.

    Each gets a folder of its own under `output`, named for what it is. limit: documents of each task, for trying out.
    Raises InputError or PlanError for model arguments that cannot be, and for two runs of one name.
    """
    runs: list[Run] = []
    for method in matrix.methods:
        budgets = method.budgets or matrix.budgets if find_method(method.strategy).takes_budget else [None]
        runs += [_run(matrix, method, budget, output, limit) for budget in budgets]
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"leaderboard {matrix.name!r} has two runs of the name {name!r}: rename a method")
    return runs


def command(run: Run, launcher: str | None = None) -> list[str]:
    """The run's lmms-eval command. launcher: what starts lmms-eval instead of this Python, as a shell would read it.

    Raises InputError for a launcher that no shell could read.
    """
    start = [sys.executable, "-m", "lmms_eval"]
    if launcher is not None:
        try:
            start = shlex.split(launcher)
        except ValueError as error:
            raise InputError(f"launcher is {launcher!r}: {error}") from error
        if not start:
            raise InputError(f"launcher is {launcher!r}: give a command, as `accelerate launch -m lmms_eval`")
    for name, value in run.options.items():
        start += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return start


def shell_line(run: Run, launcher: str | None = None) -> str:
    """The run's command as a line for a shell, its variables in front."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in run.environment.items()]
    return " ".join([*variables, shlex.join(command(run, launcher))])


def config_text_of(runs: list[Run], heading: str) -> str:
    """The runs as a file for `lmms-eval --config`: a YAML list, under a comment."""
    entries = [{**run.options, "env": run.environment} for run in runs]
    return f"# {heading}\n{yaml.safe_dump(entries, sort_keys=False, width=1000)}"


def _run(matrix: Matrix, method: Method, budget: Budget | None, output: Path, limit: int | None) -> Run:
    label = method.name or find_method(method.strategy).name  # of a file, what it calls itself
    name = label if budget is None else f"{label}-{budget}"
    arguments: dict[str, Any] = {**matrix.model_args, "strategy": method.strategy, **method.model_args}
    if budget is not None:
        kind, value = budget.given
        arguments[kind] = value
    settings = Settings.parse(arguments)
    digest = settings.digest()  # of a strategy's file: after a change of it, what was done is not done any more
    folder = output / (name if digest is None else f"{name}-{digest}")
    options: dict[str, Any] = {
        "model": MODEL_NAME,
        "model_args": ",".join(f"{key}={_plain(key, value)}" for key, value in arguments.items()),
        "tasks": ",".join(task.name for task in matrix.tasks),
        **matrix.options.model_dump(exclude_defaults=True),
        "batch_size": matrix.options.batch_size,
        "log_samples": True,
        "output_path": str(folder),
        "use_cache": str(folder / "cache"),
    }
    if limit is not None:
        options["limit"] = limit
    # The same for all runs, since a `--config` file sets the variables of all its entries before the first one runs;
    # the caches are apart, each in its run's folder.
    environment = {RUN_ID: matrix.name, GIT_CEILING: str(_above_lmms_eval())}
    return Run(name, label, budget, settings, folder, options, environment)


def _above_lmms_eval() -> Path:
    """The folder above the one that holds the package. In a checkout of lmms-eval itself its commit is still found."""
    found = importlib.util.find_spec("lmms_eval")  # imports nothing
    if found is None or not found.submodule_search_locations:
        raise InputError("lmms_eval is not installed: install lmms-textweighted with its requirements")
    return Path(found.submodule_search_locations[0]).resolve().parent.parent


def _plain(name: str, value: Any) -> str:
    text = str(value)
    if not text or any(sign in text for sign in _NOT_IN_ARGUMENTS) or text != text.strip():
        raise InputError(f"model argument {name} is {text!r}: lmms-eval takes no text with commas, quotes or brackets")
    return text
