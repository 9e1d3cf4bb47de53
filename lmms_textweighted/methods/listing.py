"""What a method is, in words and figures: for `lmms-textweighted methods` and docs/methods.md."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lmms_textweighted.engine.layers import EMBEDDINGS
from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.engine.scoring import RowWeighting
from lmms_textweighted.methods.base import Method
from lmms_textweighted.methods.budget import LLAVA_15_7B, Cost, Geometry, cost_of
from lmms_textweighted.methods.presets import Fixed, Preset

_IMPORTERS = ("lmms_textweighted.methods", "lmms_textweighted.methods.presets")  # name methods that are another file's


@dataclass(frozen=True)
class Entry:
    """One method. leaves_after: its layers on a decoder of 32 (-1: before layer 0). text_guided: what stays depends on
    the text. positions: what its authors do with them. presets: the settings that have a name of their own."""

    name: str
    label: str
    source: str
    paper: str
    year: str
    leaves_after: tuple[int, ...]
    text_guided: bool
    positions: str
    presets: tuple[str, ...] = ()


@dataclass(frozen=True)
class PresetEntry:
    """One preset at LLaVA-1.5-7B's sizes and its own number of image tokens.

    stages: (layer, tokens that stay after it). note: the authors' own words.
    """

    name: str
    of: str
    source: str
    note: str
    stages: tuple[tuple[int, int], ...]
    cost: Cost


@dataclass(frozen=True)
class Details:
    """A method at a budget. formula: its docstring. cost: of one image; None where a budget counts a whole prompt's."""

    entry: Entry
    formula: str
    plan: dict[str, Any]
    cost: Cost | None
    unpruned: int
    others: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def entry_of(method: Method, presets: Sequence[Preset] = ()) -> Entry:
    plan = method.solve()
    head = method.source.partition(";")[0]
    year = re.search(r"\b(19|20)\d\d\b", re.sub(r"arXiv \S+", "", head))
    return Entry(
        name=method.name,
        label=method.label,
        source=method.source,
        paper=head.partition(",")[0].strip() if method.removes or plan.picture else "",
        year=year.group() if year else "",
        leaves_after=tuple(stage.layer for stage in plan.stages) or ((EMBEDDINGS,) if plan.picture else ()),
        text_guided=method.is_text_guided,
        positions=_positions(plan),
        presets=tuple(preset.name for preset in presets if preset.of == method.name),
    )


def _positions(plan: Plan) -> str:
    """Each once, in the order of the stages."""
    if not plan.stages:
        return plan.positions if plan.picture else ""
    return ", then ".join(dict.fromkeys(plan.positions_of(stage) for stage in plan.stages))


def preset_entry(preset: Preset) -> PresetEntry:
    plan = preset.solve()
    cost = cost_of(plan, replace(LLAVA_15_7B, image_tokens=preset.image_tokens))
    stages = tuple((stage.layer, cost.image_lengths[stage.layer + 1]) for stage in plan.stages)
    return PresetEntry(preset.name, preset.of, preset.source, preset.note, stages, cost)


def details_of(method: Method, plan: Plan, geometry: Geometry, presets: Sequence[Preset] = ()) -> Details:
    return Details(
        entry=entry_of(method, presets),
        formula=formula_of(method),
        plan=plan.to_dict(),
        cost=None if plan.keep_scope == "prompt" else cost_of(plan, geometry),
        unpruned=geometry.known("the cost of a plan is asked for"),
    )


def formula_of(method: Method) -> str:
    """The docstring of the file that a method stands in, or else those of its scorers; "" where nobody wrote one."""
    for name, module in sorted(sys.modules.items()):
        if name in _IMPORTERS or name.startswith("tests") or isinstance(method, Fixed):
            continue
        if module.__doc__ and any(value is method for value in vars(module).values()):
            return inspect.cleandoc(module.__doc__)
    docs = []
    for scorer in dict.fromkeys(stage.scorer for stage in method.solve().stages):
        said = inspect.getdoc(scorer.weights if isinstance(scorer, RowWeighting) else type(scorer))
        docs.append(f"{scorer.name}: {said}" if said else scorer.name)
    return "\n\n".join(docs)


def where(layers: Sequence[int]) -> str:
    """`2`, `1, 7`, `before 0`, `pre, 15`, `never`."""
    if not layers:
        return "never"
    before = "before 0" if len(layers) == 1 else "pre"
    return ", ".join(before if layer < 0 else str(layer) for layer in layers)
