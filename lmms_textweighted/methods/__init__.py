"""The methods that choose image tokens, one file each. A new one is its file and one line in `_OWN` here.

A package brings methods of its own by entry points of the group `lmms_textweighted.methods`, each naming a `Method`; a
script names its own as `FILE.py:NAME` or `MODULE:NAME`, or hands the object over. See docs/add-a-method.md.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.engine.scoring import Scorer
from lmms_textweighted.errors import PlanError, first_line, unknown
from lmms_textweighted.methods.adaptinfer import ADAPTINFER
from lmms_textweighted.methods.base import DEFAULT_KEEP_TOKENS, Method, OneStage
from lmms_textweighted.methods.budget import Geometry
from lmms_textweighted.methods.cdpruner import CDPRUNER, CDPRUNER_PAPER
from lmms_textweighted.methods.chance import RANDOM, RANDOM_ORDER, RANDOM_PRE
from lmms_textweighted.methods.composed import SIGN, Composed
from lmms_textweighted.methods.dart import DART, DART_PAPER
from lmms_textweighted.methods.divprune import DIVPRUNE
from lmms_textweighted.methods.downsample import DOWNSAMPLE
from lmms_textweighted.methods.fastervlm import FASTERVLM
from lmms_textweighted.methods.fastv import FASTV, FASTV_ALL_ROWS, FASTV_K2
from lmms_textweighted.methods.files import is_plan_file, read_plan, source_digest
from lmms_textweighted.methods.grid import POOL, POOL_PRE, UNIFORM_GRID, UNIFORM_GRID_PRE
from lmms_textweighted.methods.himap import HIMAP, CutOff, ImageColumnSums
from lmms_textweighted.methods.hiprune import HIPRUNE, HIPRUNE_PAPER
from lmms_textweighted.methods.holov import HOLOV, HOLOV_PAPER, QuotaOfRuns
from lmms_textweighted.methods.presets import GRID_PRESETS, PRESETS
from lmms_textweighted.methods.prumerge import PRUMERGE, PRUMERGE_PAPER, PRUMERGE_PLUS, PRUMERGE_PLUS_PAPER
from lmms_textweighted.methods.pyramiddrop import PYRAMIDDROP
from lmms_textweighted.methods.scope import SCOPE
from lmms_textweighted.methods.sparsevlm import SPARSEVLM, SPARSEVLM_PAPER, Recycle
from lmms_textweighted.methods.sparsevlm_plus import SPARSEVLM_PLUS, Gravity
from lmms_textweighted.methods.text_weighted import (
    TEXT_WEIGHTED,
    TEXT_WEIGHTED_DEBIASED,
    TEXT_WEIGHTED_GIVEN_RECEIVED,
    TEXT_WEIGHTED_MAX_HEADS,
    TEXT_WEIGHTED_PER_HEAD,
    TEXT_WEIGHTED_UNIFORM,
)
from lmms_textweighted.methods.trim import TRIM, TRIM_PAPER, TextMetric
from lmms_textweighted.methods.uniform import ALL_ROWS, LAST_ROW, UNIFORM
from lmms_textweighted.methods.unpruned import NONE
from lmms_textweighted.methods.visionzip import VISIONZIP, VISIONZIP_PAPER
from lmms_textweighted.methods.vispruner import VISPRUNER
from lmms_textweighted.methods.vscan import LOCAL_AND_GLOBAL, VSCAN

__all__ = [
    "DEFAULT_KEEP_TOKENS",
    "DEFAULT_STRATEGY",
    "GRID_PRESETS",
    "PRESETS",
    "SCORERS",
    "Method",
    "OneStage",
    "find_method",
    "grid_preset_names",
    "label_of",
    "make_plan",
    "method_names",
    "paper_variants",
    "preset_names",
    "strategy_digest",
]

ENTRY_POINTS = "lmms_textweighted.methods"
DEFAULT_STRATEGY = "text_weighted"
PAPER = "_paper"

_OWN: tuple[Method, ...] = (
    TEXT_WEIGHTED,
    TEXT_WEIGHTED_DEBIASED,
    TEXT_WEIGHTED_UNIFORM,
    TEXT_WEIGHTED_GIVEN_RECEIVED,
    TEXT_WEIGHTED_MAX_HEADS,
    TEXT_WEIGHTED_PER_HEAD,
    FASTV,
    FASTV_K2,
    FASTV_ALL_ROWS,
    HIMAP,
    PYRAMIDDROP,
    SPARSEVLM,
    SPARSEVLM_PAPER,
    SPARSEVLM_PLUS,
    ADAPTINFER,
    DART,
    DART_PAPER,
    FASTERVLM,
    DIVPRUNE,
    VISIONZIP,
    VISIONZIP_PAPER,
    VISPRUNER,
    HIPRUNE,
    HIPRUNE_PAPER,
    SCOPE,
    HOLOV,
    HOLOV_PAPER,
    PRUMERGE,
    PRUMERGE_PAPER,
    PRUMERGE_PLUS,
    PRUMERGE_PLUS_PAPER,
    CDPRUNER,
    CDPRUNER_PAPER,
    TRIM,
    TRIM_PAPER,
    VSCAN,
    UNIFORM_GRID,
    UNIFORM_GRID_PRE,
    POOL,
    POOL_PRE,
    DOWNSAMPLE,
    RANDOM,
    RANDOM_PRE,
    NONE,
)

# The scorers by name, for stages that are put together by hand. `text_weighted.TextWeighting` has more options.
SCORERS: dict[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        TEXT_WEIGHTED.scorer,
        TEXT_WEIGHTED_DEBIASED.scorer,
        TEXT_WEIGHTED_UNIFORM.scorer,
        TEXT_WEIGHTED_GIVEN_RECEIVED.scorer,
        TEXT_WEIGHTED_MAX_HEADS.scorer,
        TEXT_WEIGHTED_PER_HEAD.scorer,
        LAST_ROW,
        UNIFORM,
        ALL_ROWS,
        ImageColumnSums(),
        CutOff(),
        Recycle(),
        Recycle(extra=True),
        SPARSEVLM_PAPER.scorers[0],
        Gravity(),
        *ADAPTINFER.scorers[:1],
        DART.scorer,
        DART_PAPER.scorer,
        FASTERVLM.scorer,
        DIVPRUNE.scorer,
        VISIONZIP.scorer,
        VISIONZIP_PAPER.scorer,
        VISPRUNER.scorer,
        HIPRUNE.scorer,
        HIPRUNE_PAPER.scorer,
        SCOPE.scorer,
        HOLOV.scorer,
        HOLOV_PAPER.scorer,
        QuotaOfRuns(surplus="spread"),
        PRUMERGE.scorer,
        PRUMERGE_PAPER.scorer,
        PRUMERGE_PLUS.scorer,
        PRUMERGE_PLUS_PAPER.scorer,
        CDPRUNER.scorer,
        CDPRUNER_PAPER.scorer,
        TRIM.scorer,
        TRIM_PAPER.scorer,
        TextMetric(count="outliers"),
        LOCAL_AND_GLOBAL,
        UNIFORM_GRID.scorer,
        POOL.scorer,
        RANDOM_ORDER,
    )
}


def paper_variants() -> dict[str, str]:
    """Methods that do what a paper says where its authors' code, and so the method itself, does something else.

    {the variant's name: the method's}.
    """
    names = {method.name for method in _OWN}
    return {name: name.removesuffix(PAPER) for name in method_names() if name.removesuffix(PAPER) in names - {name}}


@cache
def method_names() -> tuple[str, ...]:
    """The names that command lines know: the methods of this package, then those of installed packages."""
    own = [method.name for method in _OWN]
    return (*own, *sorted(point.name for point in entry_points(group=ENTRY_POINTS) if point.name not in own))


def preset_names() -> tuple[str, ...]:
    """The names of the papers' settings for 576 image tokens, which stand beside those of the methods."""
    return tuple(preset.name for preset in PRESETS)


def grid_preset_names() -> tuple[str, ...]:
    """The same for a LLaVA-1.6's picture of 2,880."""
    return tuple(preset.name for preset in GRID_PRESETS)


def _own_names() -> tuple[str, ...]:
    return (*method_names(), *preset_names(), *grid_preset_names())


def find_method(strategy: str | Method) -> Method:
    """A method or a preset by its name, by `plan.yaml`, `FILE.py:NAME` or `MODULE:NAME`, or itself; or two as one.

    `FIRST+SECOND` of two such names is what `composed.Composed` makes of them. This package's own names go before those
    of installed packages. Raises PlanError for an unknown name (with the nearest one), for what is there but is no
    Method, and for a file that states no plan.
    """
    if isinstance(strategy, Method):
        return strategy
    if is_plan_file(str(strategy)) and (SIGN not in str(strategy) or Path(strategy).exists()):
        return read_plan(strategy, SCORERS, _own_names())
    for method in (*_OWN, *PRESETS, *GRID_PRESETS):
        if method.name == strategy:
            return method
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == strategy:
            return _checked(point.load(), f"entry point {point.value}")
    halves = _halves(str(strategy))
    if halves is not None:
        return Composed(first=find_method(halves[0]), second=find_method(halves[1]))
    place, colon, name = str(strategy).rpartition(":")
    if not colon:
        raise PlanError(unknown("strategy", strategy, _own_names()))
    try:
        module = _module(place)
    except FileNotFoundError as error:
        raise PlanError(
            f"strategy {strategy!r}: there is no file {place!r}, give FILE.py:NAME or MODULE:NAME"
        ) from error
    except (ImportError, OSError, AttributeError, SyntaxError) as error:
        raise PlanError(
            f"strategy {strategy!r} cannot be imported ({first_line(error)}): correct it, or give FILE.py:NAME"
        ) from error
    if not hasattr(module, name):
        raise PlanError(f"strategy {strategy!r}: {place!r} has no {name!r}, give the name of its Method")
    return _checked(getattr(module, name), f"strategy {strategy!r}")


def label_of(strategy: str) -> str:
    """What pictures call a method of this package, or two of them as one; the name itself where it is another's."""
    labels = {method.name: method.label for method in (*_OWN, *PRESETS, *GRID_PRESETS)}
    first, _, second = strategy.partition(SIGN)
    if strategy not in labels and first in labels and second in labels:
        return f"{labels[first]}, then {labels[second]}"
    return labels.get(strategy, strategy)


def make_plan(
    strategy: str | Method = DEFAULT_STRATEGY,
    *,
    pruning_layer: int | None = None,
    keep_tokens: int | None = None,
    keep_ratio: float | None = None,
    equivalent_tokens: float | None = None,
    flops_ratio: float | None = None,
    text_scope: str = "after",
    keep_scope: str = "image",
    positions: str | None = None,
    geometry: Geometry | None = None,
) -> Plan:
    """The plan of a method for a budget. strategy: as for `find_method`. The rest: see `Method.plan`; `geometry_of` in
    `families` has a loaded model's geometry.

    Raises PlanError as both do.
    """
    return find_method(strategy).plan(
        pruning_layer=pruning_layer,
        keep_tokens=keep_tokens,
        keep_ratio=keep_ratio,
        equivalent_tokens=equivalent_tokens,
        flops_ratio=flops_ratio,
        text_scope=text_scope,
        keep_scope=keep_scope,
        positions=positions,
        geometry=geometry,
    )


def strategy_digest(strategy: str | Method) -> str | None:
    """What tells two contents of one strategy apart, see `files.source_digest`; of two as one, of both."""
    if isinstance(strategy, Composed):
        parts: tuple[str | Method, ...] = (strategy.first, strategy.second)
    else:
        method = find_method(strategy)
        parts = _halves(str(strategy)) or () if isinstance(method, Composed) and isinstance(strategy, str) else ()
        if not parts:
            return source_digest(method) or source_digest(strategy)
    digests = [strategy_digest(part) for part in parts]
    return hashlib.sha256(repr(digests).encode()).hexdigest()[:16] if any(digests) else None


def _halves(strategy: str) -> tuple[str, str] | None:
    """FIRST and SECOND of `FIRST+SECOND`; None where it is one name, or one `FILE.py:NAME` whose path has the sign.

    Of several signs, which may be of paths, the first one that has a method on both sides.
    """
    place, _, name = strategy.rpartition(":")
    places = [at for at, sign in enumerate(strategy) if sign == SIGN]
    named = strategy in _own_names()
    if not places or named or (name.isidentifier() and Path(place).exists()):
        return None
    splits = [(strategy[:at], strategy[at + 1 :]) for at in places]
    for first, second in splits[:-1]:
        try:
            find_method(first), find_method(second)
        except PlanError:
            continue
        return first, second
    return splits[-1]


def _checked(found: object, named: str) -> Method:
    if not isinstance(found, Method):
        what = "a class" if isinstance(found, type) else f"{found!r:.60}, a {type(found).__name__}"
        raise PlanError(f"{named} is {what}: give an object of lmms_textweighted.methods.Method")
    return found


def _module(place: str) -> ModuleType:
    """A module by name, or by the path of its file, which then keeps one name however often it is asked for."""
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place).resolve()
    name = f"_methods_of_{path.stem}_{abs(hash(path)):x}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{place} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
