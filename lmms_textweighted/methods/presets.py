"""Settings that papers report, as methods with a name of their own: plans that are written down, nothing to solve.

A new one is a line in `PRESETS`, whose counts are of 576 image tokens, or in `GRID_PRESETS`, whose counts are of a
LLaVA-1.6's picture of 2,880, five views of 576. All are of 32 layers: on another depth a preset is refused, and its
method, which takes a budget, is the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lmms_textweighted.engine.layers import EMBEDDINGS
from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.errors import PlanError
from lmms_textweighted.methods.adaptinfer import ADAPTINFER
from lmms_textweighted.methods.base import Method
from lmms_textweighted.methods.budget import LLAVA_15_7B, Budget, Geometry
from lmms_textweighted.methods.cdpruner import CDPRUNER
from lmms_textweighted.methods.dart import DART, authors_count
from lmms_textweighted.methods.divprune import DIVPRUNE
from lmms_textweighted.methods.fastervlm import FASTERVLM
from lmms_textweighted.methods.fastv import FASTV, FASTV_K2
from lmms_textweighted.methods.himap import HIMAP
from lmms_textweighted.methods.hiprune import HIPRUNE
from lmms_textweighted.methods.holov import HOLOV
from lmms_textweighted.methods.placed import BeforeTheModel
from lmms_textweighted.methods.prumerge import PRUMERGE, PRUMERGE_PLUS
from lmms_textweighted.methods.pyramiddrop import PYRAMIDDROP, PyramidDrop
from lmms_textweighted.methods.scope import SCOPE
from lmms_textweighted.methods.sparsevlm import SPARSEVLM
from lmms_textweighted.methods.sparsevlm_plus import SPARSEVLM_PLUS
from lmms_textweighted.methods.staged import Staged
from lmms_textweighted.methods.trim import TRIM
from lmms_textweighted.methods.visionzip import VISIONZIP
from lmms_textweighted.methods.vispruner import VISPRUNER, ImportantAndDiverse
from lmms_textweighted.methods.vscan import VSCAN


@dataclass(frozen=True)
class Fixed(Method):
    """A method whose plan is written down; name, label and source as for `Method`."""

    name: str
    label: str
    source: str
    written: Plan
    takes_budget: ClassVar[bool] = False
    layer: int | None = field(init=False, default=None)
    default_positions: str = field(init=False, default="keep")

    def __post_init__(self) -> None:
        first = self.written.stages[0].layer if self.written.stages else None
        object.__setattr__(self, "layer", first)
        object.__setattr__(self, "default_positions", self.written.positions)

    @property
    def stated(self) -> Plan:
        return self.written

    def stages(self, layer: int, keep_tokens: int | None, keep_ratio: float | None) -> tuple[Stage, ...]:
        return self.written.stages

    def solve(
        self,
        budget: Budget | None = None,
        geometry: Geometry | None = None,
        *,
        pruning_layer: int | None = None,
        text_scope: str = "after",
        keep_scope: str = "image",
        positions: str | None = None,
    ) -> Plan:
        """The plan as it is written. Raises PlanError for a budget, a layer or another scope beside it.

        A scope that is everyone's default counts as not given.
        """
        given = {"pruning_layer": pruning_layer, **({budget.kind: budget.value} if budget else {})}
        for name, value in given.items():
            if value is not None:
                raise PlanError(f"{name} is {value!r}, but {self.name} states its own: leave it out")
        choices = {
            "text_scope": (text_scope, "after"),
            "keep_scope": (keep_scope, "image"),
            "positions": (positions, None),
        }
        for name, (value, default) in choices.items():
            stated = getattr(self.written, name)
            if value not in (default, stated):
                raise PlanError(f"{name} is {value!r}, but {self.name} states {stated!r}: leave it out")
        return self.written


@dataclass(frozen=True)
class Preset(Fixed):
    """A paper's setting. of: the method. note: what the authors call it, where they count otherwise than here.
    image_tokens: of the picture that its counts are of."""

    of: str = ""
    note: str = ""
    image_tokens: int = 576

    def solve(self, budget: Budget | None = None, geometry: Geometry | None = None, **given: Any) -> Plan:
        """As `Fixed.solve`. Also raises PlanError on a decoder of another depth than the paper's."""
        depth = (geometry or LLAVA_15_7B).layers
        if depth != LLAVA_15_7B.layers:
            raise PlanError(
                f"{self.name} is a setting for {LLAVA_15_7B.layers} decoder layers, but the model has {depth}: use "
                f"{self.of} with a budget"
            )
        return super().solve(budget, geometry, **given)


def preset(of: Method, name: str, *stages: Stage, note: str = "", image_tokens: int = 576) -> Preset:
    """A setting of a method, whose source and positions it has. name: of the preset, without the method's."""
    full = f"{of.name}_{name}"
    written = Plan(full, stages, positions=of.default_positions)
    return Preset(full, f"{of.label}, {name}", of.source, written, of=of.name, note=note, image_tokens=image_tokens)


def staged(of: Staged, name: str, *counts: int, layers: Sequence[int] | None = None, note: str = "") -> Preset:
    """A setting of a method of several stages: what stays after each. layers: where the setting has others."""
    places = zip(of.scorers, layers or of.layers, counts, strict=True)
    ahead = isinstance(of, PyramidDrop)
    stages = [Stage(scorer, at, count, score_layer=at + 1 if ahead else None) for scorer, at, count in places]
    return preset(of, name, *stages, note=note)


def before(of: BeforeTheModel, *counts: int, notes: Sequence[str] = ()) -> tuple[Preset, ...]:
    """Settings of a method that removes at the embeddings: what stays, which is each setting's name."""
    said = notes or [str(count) for count in counts]
    places = zip(counts, said, strict=True)
    return tuple(preset(of, str(count), Stage(of.scorer, EMBEDDINGS, count), note=note) for count, note in places)


# PyramidDrop's repository has one setting. For the others its author gives the form, and 2, 8, 16 as layers from 1
# (issue 29): the ratio is solved for the mean, and counts are int(576 ratio^i).
_EARLY = (1, 7, 15)

PRESETS: tuple[Preset, ...] = (
    preset(FASTV, "k3_half", Stage(FASTV.scorer, 2, keep_tokens=288), note="K=3, R=50 %"),
    *(
        preset(FASTV_K2, f"mean{mean}", Stage(FASTV_K2.scorer, 1, keep_tokens=count), note=f"K=2, a mean of {mean}")
        for mean, count in ((192, 166), (128, 98), (64, 30))
    ),
    staged(HIMAP, "paper", 288, 72, note="K1=2, K2=8"),
    staged(PYRAMIDDROP, "paper", 288, 144, 72, note="layers 8, 16, 24"),
    staged(PYRAMIDDROP, "192", 322, 180, 100, layers=_EARLY, note="2, 8, 16, ratio 0.5596"),
    staged(PYRAMIDDROP, "128", 241, 101, 42, layers=_EARLY, note="2, 8, 16, ratio 0.4197"),
    staged(PYRAMIDDROP, "64", 110, 21, 4, layers=_EARLY, note="2, 8, 16, ratio 0.1916"),
    # The counts in its code, and the merged tokens that it has on top.
    staged(SPARSEVLM, "192", 309, 204, 113, note="192, at layers' outputs"),
    staged(SPARSEVLM, "128", 312, 117, 39, note="128, at layers' outputs"),
    staged(SPARSEVLM, "64", 82, 32, 18, note="64, at layers' outputs"),
    staged(SPARSEVLM_PLUS, "192", 300, 200, 118, note="192, at layers' outputs"),
    staged(SPARSEVLM_PLUS, "128", 238, 108, 60, note="128, at layers' outputs"),
    staged(SPARSEVLM_PLUS, "64", 66, 34, 20, note="64, at layers' outputs"),
    staged(ADAPTINFER, "128", 290, 72, 18, note="128, at layers' outputs"),
    staged(ADAPTINFER, "64", 133, 27, 3, note="64, at layers' outputs"),
    staged(ADAPTINFER, "48", 80, 24, 2, note="48, at layers' outputs"),
    staged(ADAPTINFER, "32", 40, 12, 0, note="32, at layers' outputs"),
    *(
        preset(DART, str(target), Stage(DART.scorer, 1, authors_count(target)), note=f"{target}, pivots on top")
        for target in (192, 128, 64)
    ),
    *before(FASTERVLM, 192, 128, 64),
    preset(DIVPRUNE, "56", Stage(DIVPRUNE.scorer, EMBEDDINGS, 56), note="a ratio of 0.098"),
    *before(DIVPRUNE, 192, 128, 64, notes=("a ratio of 1/3", "a ratio of 2/9", "a ratio of 1/9")),
    *before(VISIONZIP, 192, 128, 64, notes=("162 + 30", "108 + 20", "54 + 10")),
    *before(VISPRUNER, 192, 128, 64),
    preset(VISPRUNER, "64_mme", Stage(ImportantAndDiverse(0.75), EMBEDDINGS, 64), note="ratio 0.75, for MME"),
    *before(HIPRUNE, 192, 128, 64, notes=("alpha 0.1, 4 anchors", "alpha 0.1, 3 anchors", "alpha 0.1, 1 anchor")),
    *before(SCOPE, 192, 128, 64),
    *before(HOLOV, 192, 128, 64),
    # The authors' count is the picture's; these are the ones that others compare it at.
    *before(PRUMERGE, 192, 128, 64, notes=("a fixed count",) * 3),
    *before(PRUMERGE_PLUS, 192, 128, 64, notes=("a fixed count",) * 3),
    *before(CDPRUNER, 192, 128, 64, 32),
    *before(TRIM, 192, 128, 64, notes=("191 and a mean", "127 and a mean", "63 and a mean")),
    *(
        preset(VSCAN, str(mean), *VSCAN.stages(15, mean // 2, None), note=f"{3 * mean // 2}, then {mean // 2}")
        for mean in (192, 128, 64)
    ),
)

# Budgets of a whole picture. Where the method looks at the tower each of the five views gets a fifth: VisionZip's
# authors write 108 + 20, 54 + 10 and 27 + 5 a view. HoloV's and DivPrune's are of all tokens together. The authors
# force five whole views; a picture whose views are cut has fewer tokens here, and the same budget.
_GRID, _BUDGETS = 5 * 576, (640, 320, 160)
_VIEWS = ("128 a view", "64 a view", "32 a view")

GRID_PRESETS: tuple[Preset, ...] = tuple(
    preset(of, str(count), Stage(of.scorer, EMBEDDINGS, count), note=note, image_tokens=_GRID)
    for of, notes in (
        (FASTERVLM, _VIEWS),
        (DIVPRUNE, ("a ratio of 2/9", "a ratio of 1/9", "a ratio of 1/18")),
        (VISIONZIP, ("108 + 20 a view", "54 + 10 a view", "27 + 5 a view")),
        (VISPRUNER, _VIEWS),
        (HIPRUNE, _VIEWS),
        (SCOPE, _VIEWS),
        (HOLOV, ("640", "320", "160")),
        (CDPRUNER, _VIEWS),
    )
    for count, note in zip(_BUDGETS, notes, strict=True)
)
