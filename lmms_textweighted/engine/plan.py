"""What to remove where: stages and plans.

Layers are numbered from 0. A stage with `layer=P` removes image tokens after decoder layer P, so layers 0 … P see all
that was there before and layers P+1 … L-1 run on the shorter sequence.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from lmms_textweighted.engine.layers import EMBEDDINGS
from lmms_textweighted.engine.scoring import Rows, Scorer
from lmms_textweighted.errors import PlanError, unknown

DEFAULT_LAYER = 2

# Which text tokens vote. after: those after the last image. all: all text tokens, also between and before images.
# question: the question's own, without options, instruction and role tags.
TEXT_SCOPES = ("after", "all", "question")
# What a budget counts: the tokens of each image, or of all images of a prompt together.
KEEP_SCOPES = ("image", "prompt")
# The rotary positions of what stays: those it had in front of the stage, or 0, 1, … as in a prompt that never had more.
POSITIONS = ("keep", "renumber")
# What a share is of: the image tokens before the stage, or those before anything left.
KEEP_OF = ("current", "original")
# Of a picture that is cut into crops (LLaVA-NeXT): whether each crop, the whole view among them, has an equal share of
# the budget, or all of the picture's tokens are ranked together.
GRIDS = ("per_crop", "over_all")
# Newline tokens: chosen like the others, all kept beside the budget, or none.
NEWLINES = ("eligible", "keep", "drop")


@dataclass(frozen=True)
class Stage:
    """One removal.

    scorer: gives every image token its score.
    layer: image tokens leave after this decoder layer; -1: before layer 0, for a scorer that reads no attention.
    keep_tokens: how many tokens of each image stay (0 removes them all), or
    keep_ratio: which share of each image's tokens stays, in (0, 1], rounded down, at least 1. keep_of: what it is a
    share of, see KEEP_OF.
    score_layer: the layer whose attention is scored; `layer` itself when None. `layer + 1` scores what leaves `layer`
    with the next layer's norm, queries and keys, without running it.
    grid, newlines: see GRIDS and NEWLINES; None is the scorer's own. Newlines that are kept or dropped count in no
    budget. A newline is of no crop and has no patch: with per_crop, and for a scorer that looks at the vision tower,
    it cannot be eligible.
    positions: see POSITIONS; None is the plan's.

    Raises PlanError when the values make no stage.
    """

    scorer: Scorer
    layer: int
    keep_tokens: int | None = None
    keep_ratio: float | None = None
    score_layer: int | None = None
    keep_of: str = "current"
    grid: str | None = None
    newlines: str | None = None
    positions: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.scorer, Scorer):
            raise PlanError(
                f"scorer is {self.scorer!r}: give an object of engine.scoring.Scorer, as those in methods.SCORERS"
            )
        unread = self.scorer.reads is Rows.NONE
        if not _is_int(self.layer) or self.layer < (EMBEDDINGS if unread else 0):
            raise PlanError(f"pruning layer is {self.layer!r}: give a decoder layer's number, counted from 0")
        if self.score_layer is not None and not (_is_int(self.score_layer) and 0 <= self.score_layer <= self.layer + 1):
            raise PlanError(
                f"score_layer is {self.score_layer!r}: give a layer from 0 to {self.layer + 1}, the one after the "
                f"pruning layer"
            )
        if self.keep_of not in KEEP_OF:
            raise PlanError(unknown("keep_of", self.keep_of, KEEP_OF))
        if (self.keep_tokens is None) == (self.keep_ratio is None):
            raise PlanError(
                f"keep_tokens is {self.keep_tokens!r} and keep_ratio is {self.keep_ratio!r}: give exactly one of them"
            )
        if self.keep_tokens is not None and not (_is_int(self.keep_tokens) and self.keep_tokens >= 0):
            raise PlanError(f"keep_tokens is {self.keep_tokens!r}: give a whole number of at least 0")
        if self.keep_ratio is not None and not (_is_number(self.keep_ratio) and 0 < self.keep_ratio <= 1):
            raise PlanError(f"keep_ratio is {self.keep_ratio!r}: give a number above 0 and at most 1")
        rules = (("grid", self.grid, GRIDS), ("newlines", self.newlines, NEWLINES))
        for name, value, known in (*rules, ("positions", self.positions, POSITIONS)):
            if value is not None and value not in known:
                raise PlanError(unknown(name, value, known))
        tower = self.scorer.tower_reads is not None
        if self.newlines == "eligible" and (tower or self.grid_rule == "per_crop"):
            why = f"scorer {self.scorer.name!r} looks at patches" if tower else "grid is 'per_crop'"
            raise PlanError(f"newlines is 'eligible', but {why}, and a newline token is none of a crop's: keep or drop")

    @property
    def grid_rule(self) -> str:
        """The one of GRIDS that holds."""
        return self.scorer.grid_rule if self.grid is None else self.grid

    @property
    def newlines_rule(self) -> str:
        """The one of NEWLINES that holds."""
        if self.newlines is None and self.grid_rule == "per_crop" and self.scorer.newlines_rule == "eligible":
            return "drop"
        return self.scorer.newlines_rule if self.newlines is None else self.newlines

    @property
    def divides(self) -> bool:
        """Whether crops and newline tokens are anything but image tokens like the others to this stage."""
        return (self.grid_rule, self.newlines_rule) != ("over_all", "eligible")

    @property
    def scored_at(self) -> int:
        """The layer whose attention is scored."""
        return self.layer if self.score_layer is None else self.score_layer

    @property
    def scored_ahead(self) -> bool:
        """Whether the layer after `layer` scores what leaves it."""
        return self.scored_at > self.layer and self.scorer.reads is not Rows.NONE

    def keep(self, image_tokens: int, original: int | None = None) -> int:
        """How many of `image_tokens` tokens stay: a share of them, or `keep_tokens`, or all where there are fewer.

        original: how many there were before anything left, for a share of these.
        """
        if self.keep_tokens is not None:
            return min(image_tokens, self.keep_tokens)
        assert self.keep_ratio is not None
        whole = image_tokens if self.keep_of == "current" or original is None else original
        # The small addition undoes a product that rounding left just below a whole number, as 0.29 x 100.
        return min(image_tokens, max(1, math.floor(self.keep_ratio * whole + 1e-9)))


@dataclass(frozen=True)
class Picture:
    """Pictures that are made smaller before the model sees them.

    tokens: what each of them gives, and of: what it gives at the model's own size. Raises PlanError unless tokens is a
    whole number from 1 to `of`.
    """

    tokens: int
    of: int

    def __post_init__(self) -> None:
        if not (_is_int(self.tokens) and _is_int(self.of) and 1 <= self.tokens <= self.of):
            raise PlanError(
                f"picture is {self.tokens!r} of {self.of!r} tokens: give whole numbers from 1 on, the first not the "
                f"larger one"
            )


@dataclass(frozen=True)
class Plan:
    """A named list of stages, in the order in which the layers run. No stages: nothing is removed.

    text_scope: which text tokens vote (TEXT_SCOPES). A scorer of the last row alone (FastV) always reads the prompt's
    last token. keep_scope: what the stages' budgets count (KEEP_SCOPES). positions: those of what stays (POSITIONS),
    behind stages that state none; renumbered, a layer counts on from its own length while decoding. picture: the size
    that pictures have; None is the model's own. What a smaller one never had counts as removed in all figures.

    Raises PlanError for an unknown scope, and when a stage would be scored before the stage in front of it has taken
    effect.
    """

    name: str
    stages: tuple[Stage, ...] = ()
    text_scope: str = "after"
    keep_scope: str = "image"
    positions: str = "keep"
    picture: Picture | None = None

    def __post_init__(self) -> None:
        if self.positions not in POSITIONS:
            raise PlanError(unknown("positions", self.positions, POSITIONS))
        if self.text_scope not in TEXT_SCOPES:
            raise PlanError(unknown("text_scope", self.text_scope, TEXT_SCOPES))
        if self.keep_scope not in KEEP_SCOPES:
            raise PlanError(unknown("keep_scope", self.keep_scope, KEEP_SCOPES))
        for before, after in zip(self.stages, self.stages[1:], strict=False):
            if min(after.scored_at, after.layer) <= before.layer:
                raise PlanError(
                    f"plan {self.name!r}: a stage is scored on layer {after.scored_at}, not above layer "
                    f"{before.layer} of the stage in front of it: order the stages by layer"
                )

    def positions_of(self, stage: Stage) -> str:
        """The one of POSITIONS that holds behind a stage of this plan."""
        return self.positions if stage.positions is None else stage.positions

    @property
    def reads_text(self) -> bool:
        """Whether a stage compares patches with the question as CLIP does, for which it needs a text tower."""
        reads = [stage.scorer.tower_reads for stage in self.stages]
        return any(read is not None and read.text for read in reads)

    @property
    def unranked(self) -> str:
        """Why the last layer's ranks cannot be measured under this plan; "" where they can."""
        for stage in self.stages:
            if stage.scorer.merges:
                return f"{stage.scorer.name} merges tokens: the last layer's attention is not among image tokens alone"
        return ""

    def check(self, num_layers: int, image_tokens: int | None = None) -> None:
        """Raise PlanError when the plan does not fit a decoder of `num_layers` layers.

        `image_tokens` is the number of tokens of one image, where it is the same for every input: then a larger
        `keep_tokens` is a mistake. Where it depends on the picture, or the budget is a whole prompt's, `keep_tokens` is
        a limit that a small input may stay below.
        """
        if self.picture is not None and image_tokens is not None:
            if image_tokens != self.picture.of:
                raise PlanError(
                    f"plan {self.name!r} is for pictures of {self.picture.of} tokens, but the model's have "
                    f"{image_tokens}: solve it for this model"
                )
            image_tokens = self.picture.tokens
        original = image_tokens
        for stage in self.stages:
            if stage.layer > num_layers - 2:
                raise PlanError(
                    f"pruning layer is {stage.layer}, but the model has {num_layers} decoder layers (0 to "
                    f"{num_layers - 1}): give one from 0 to {num_layers - 2}, so that a layer after it runs shorter"
                )
            if image_tokens is not None:
                if stage.keep_tokens is not None and stage.keep_tokens > image_tokens:
                    raise PlanError(
                        f"keep_tokens is {stage.keep_tokens}, but the image has {image_tokens} tokens before layer "
                        f"{stage.layer}: give at most {image_tokens}"
                    )
                image_tokens = stage.keep(image_tokens, original)

    def to_dict(self) -> dict:
        """The plan as plain data, for logs, result files and hashes."""
        return {
            "strategy": self.name,
            "text_scope": self.text_scope,
            "keep_scope": self.keep_scope,
            **({} if self.positions == "keep" else {"positions": self.positions}),
            **({} if self.picture is None else {"picture": asdict(self.picture)}),
            "stages": [
                {
                    "scorer": stage.scorer.name,
                    "scored_at": stage.scored_at,
                    "leave_after": stage.layer,
                    "keep_tokens": stage.keep_tokens,
                    "keep_ratio": stage.keep_ratio,
                    **({} if stage.keep_of == "current" else {"keep_of": stage.keep_of}),
                    **({} if stage.positions is None else {"positions": stage.positions}),
                    **({"grid": stage.grid_rule, "newlines": stage.newlines_rule} if stage.divides else {}),
                }
                for stage in self.stages
            ],
        }


NONE = Plan("none")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
