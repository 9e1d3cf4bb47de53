"""What the rows are called: a method, at a budget, and only those settings in which rows differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmms_textweighted.compare.records import Run, leave_after
from lmms_textweighted.errors import InputError, unknown

_NAMING = (
    *("leave_after", "text_scope", "keep_scope", "seed", "dtype", "loader", "attn_implementation"),
    *("min_pixels", "max_pixels", "min_patches", "max_patches"),
)


def name_runs(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(name, method) of each run. Names are unique: `fastv@64`, `unpruned`, `random@64 seed=1`."""
    methods = [_method(run) for run in runs]
    counts = Counter((method, _budget(run)) for method, run in zip(methods, runs, strict=True))
    details = []
    for method, run in zip(methods, runs, strict=True):
        same = [o for m, o in zip(methods, runs, strict=True) if (m, _budget(o)) == (method, _budget(run))]
        varied = [n for n in _NAMING if len({str(_setting(o, n)) for o in same}) > 1]
        said = " ".join(f"{n}={_setting(run, n)}" for n in varied if _setting(run, n) is not None)
        details.append(said if counts[method, _budget(run)] > 1 else "")
    layers = {str(_setting(run, "leave_after")) for run in runs if not run.unpruned}
    if len(layers) > 1:  # then every pruned row says its own
        details = [_with_layer(run, said) for run, said in zip(runs, details, strict=True)]
    methods = [f"{method} {said}".strip() for method, said in zip(methods, details, strict=True)]
    names = [method if run.unpruned else _at(method, run) for method, run in zip(methods, runs, strict=True)]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    for place, name in enumerate(names):
        if name in repeated:
            names[place] = f"{name} ({_place(runs[place].path)})"
            methods[place] = f"{methods[place]} ({_place(runs[place].path)})"
    again = Counter(names)
    for place, name in enumerate(list(names)):
        if again[name] > 1:
            number = names[:place].count(name) + 1
            names[place], methods[place] = f"{name} #{number}", f"{methods[place]} #{number}"
    return list(zip(names, methods, strict=True))


def find_reference(wanted: str | None, names: Sequence[str], runs: Sequence[Run]) -> int | None:
    """The place of the reference: a row's name, or the path of a run; without one the only unpruned run, if it is.

    Raises InputError for a name that no row has, or a path of several rows.
    """
    if wanted is None:
        unpruned = [place for place, run in enumerate(runs) if run.unpruned]
        return unpruned[0] if len(unpruned) == 1 else None
    if wanted in names:
        return names.index(wanted)
    path = Path(wanted).resolve()
    found = [p for p, run in enumerate(runs) if path in (run.path.resolve(), *run.path.resolve().parents)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"reference {wanted!r} holds {len(found)} rows: name one, {', '.join(names)}")
    raise InputError(unknown("reference", wanted, names))


def _method(run: Run) -> str:
    return "unpruned" if run.strategy == "none" else run.strategy


def _budget(run: Run) -> str | None:
    return None if run.unpruned or run.figures.kept is None else f"{run.figures.kept:.4g}"


def _at(method: str, run: Run) -> str:
    strategy, _, details = method.partition(" ")
    budget = _budget(run) or "?"
    return f"{strategy}@{budget} {details}".strip()


def _setting(run: Run, name: str) -> Any:
    if name == "leave_after" and "stages" in run.settings:
        return leave_after(run.settings["stages"])
    return run.settings.get(name)


def _with_layer(run: Run, said: str) -> str:
    layer = _setting(run, "leave_after")
    if run.unpruned or layer is None or "leave_after=" in said:
        return said
    return f"leave_after={layer} {said}".strip()


def _place(path: Path) -> str:
    """Where a run lies, as far as it tells two apart: lmms-eval's results stand in OUTPUT/MODEL/DATE_results.json."""
    return path.parent.parent.name or path.parent.name or path.name
