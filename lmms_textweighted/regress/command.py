"""`lmms-textweighted regress`: read, measure, compare, print; or measure and write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from lmms_textweighted.errors import InputError, NotComparableError, TextweightedError, first_problem
from lmms_textweighted.experiment.ranges import parse_budgets
from lmms_textweighted.harness.output import check_writable
from lmms_textweighted.harness.quiet import quiet_libraries
from lmms_textweighted.methods.budget import BUDGETS
from lmms_textweighted.regress.baseline import (
    Baseline,
    Settings,
    read_baseline,
    write_baseline,
)
from lmms_textweighted.regress.diff import compare, is_regression, paired_p_value
from lmms_textweighted.regress.report import print_accuracies, print_findings
from lmms_textweighted.regress.run import measure

SAME, REGRESSION = 0, 1  # exit codes; NotComparableError has the third

# How a measurement runs, not what is measured: may differ from the baseline's.
RUNNING = ("device", "attn_implementation", "batch_size")


def regress(
    path: Path,
    options: dict[str, Any],
    *,
    update: bool = False,
    strict: bool = False,
    output: Path | None = None,
) -> int:
    """The exit code: 0 no regression or updated, 1 regression. options: settings that were given, by name.

    Raises NotComparableError, whatever keeps the two from being compared.
    """
    console = Console()
    quiet_libraries()
    try:
        if update and (strict or output):
            raise InputError("--update writes the baseline itself: leave out --strict and --output")
        return _update(path, options, console) if update else _check(path, options, console, strict, output)
    except TextweightedError as error:
        raise NotComparableError(str(error)) from error


def _check(path: Path, options: dict[str, Any], console: Console, strict: bool, output: Path | None) -> int:
    fixed = [name for name in options if name not in RUNNING]
    if fixed:
        raise InputError(
            f"{fixed[0]} is {options[fixed[0]]!r}, but the baseline says what is measured: leave it out, or give "
            f"--update for another baseline"
        )
    if output is not None:
        check_writable(output)
    old = read_baseline(path)
    new = measure(_settings(old.settings, options), old, console)
    new = new.model_copy(update={"tolerances": old.tolerances})
    if output is not None:
        write_baseline(output, new)
    findings = compare(old, new)
    print_findings(console, findings, strict=strict)
    print_accuracies(console, old, new)
    failed = is_regression(findings, strict=strict)
    what = f"{len(old.documents)} documents x {len(old.points)} points against {path}"
    console.print(f"regression: {what}" if failed else f"no regression: {what}", markup=False, soft_wrap=True)
    return REGRESSION if failed else SAME


def _update(path: Path, options: dict[str, Any], console: Console) -> int:
    check_writable(path)
    old = read_baseline(path) if path.exists() else None
    settings = _settings(old.settings if old else Settings(), options)
    new = measure(settings, None, console)
    if old is not None:
        new = new.model_copy(update={"tolerances": old.tolerances})
        _show_changes(old, new, console)
    size = write_baseline(path, new)
    _warn_of_low_power(new, console)
    console.print(
        f"wrote {path}: {len(new.documents)} documents x {len(new.points)} points, {size / 1000:.0f} kB",
        markup=False,
        soft_wrap=True,
    )
    return SAME


def _settings(base: Settings, options: dict[str, Any]) -> Settings:
    given = dict(options)
    if "strategies" in given:
        given["strategies"] = [name.strip() for name in given["strategies"].split(",") if name.strip()]
    kinds = [kind for kind in BUDGETS if kind in given]
    for kind in kinds:
        given[kind] = parse_budgets(given[kind], kind)
    if kinds:  # in place of the baseline's, whatever their kind
        given = {**dict.fromkeys(BUDGETS), **given}
    try:
        return Settings.model_validate({**base.model_dump(), **given})
    except ValidationError as error:
        raise InputError(first_problem(error)) from error


def _show_changes(old: Baseline, new: Baseline, console: Console) -> None:
    """What the update accepts, where old and new can be compared."""
    try:
        findings = compare(old, new)
    except TextweightedError as error:
        console.print(f"not compared with the old baseline: {error}", markup=False, soft_wrap=True)
        return
    print_findings(console, findings, strict=False)
    print_accuracies(console, old, new)


def _warn_of_low_power(new: Baseline, console: Console) -> None:
    """Say so when the test would not even agree if every answer turned from right to wrong."""
    count = len(new.documents)
    if paired_p_value([1.0] * count, [0.0] * count) > new.tolerances.alpha:
        console.print(f"note: with {count} documents the paired test can never agree that accuracy fell: take more")
