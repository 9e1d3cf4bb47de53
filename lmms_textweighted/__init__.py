"""Prune a LLaVA's image tokens by text-weighted attention, and measure what that costs and saves.

from lmms_textweighted import load, make_plan, prune

model, processor = load("tiny")
with prune(model, make_plan("text_weighted", keep_tokens=64)) as trace:
    model.generate(...)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmms_textweighted.engine.plan import Plan, Stage
    from lmms_textweighted.families import load
    from lmms_textweighted.families.attach import prune
    from lmms_textweighted.inference.geometry import geometry_of
    from lmms_textweighted.methods import make_plan

    show_trace: Any  # `show.notebook`, which stands above rooms that ask this file for the version

__version__ = "0.1.0"
__all__ = ["Plan", "Stage", "geometry_of", "load", "make_plan", "prune", "show_trace"]

_HOMES = {
    "Plan": "lmms_textweighted.engine.plan",
    "Stage": "lmms_textweighted.engine.plan",
    "geometry_of": "lmms_textweighted.inference.geometry",
    "load": "lmms_textweighted.families",
    "make_plan": "lmms_textweighted.methods",
    "prune": "lmms_textweighted.families.attach",
    "show_trace": "lmms_textweighted.show.notebook",
}


def __getattr__(name: str) -> Any:
    # Lazy: lmms-eval imports this package for its entry point at every command, which must not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lmms_textweighted.upstream.known_bad import check_versions

    check_versions()  # before the import that a known-bad version would break
    return getattr(import_module(_HOMES[name]), name)
