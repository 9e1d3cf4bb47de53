"""How much may stay: four ways to say it, and how the one free number of a method is found for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from lmms_textweighted.engine.cost import DecoderShape, equivalent_tokens, prefill_flops
from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.errors import PlanError

DEFAULT_KEEP_TOKENS = 192


@dataclass(frozen=True)
class Budget:
    """One of four; `Budget.of` has the default.

    keep_tokens: image tokens that stay of each image (of the prompt, with keep_scope="prompt"). Of a method with
    several stages: after its last one, which is what the last layer sees.
    keep_ratio: the same as a share of the image's tokens, in (0, 1].
    equivalent_tokens: the mean number of image tokens over all layers, counted where a layer takes them in.
    flops_ratio: prefill FLOPs of the decoder's layers over those of the same prompt unpruned, in (0, 1].

    Raises PlanError unless exactly one is given, for a count that is no whole number of at least 0, and for a share or
    a mean out of its range.
    """

    keep_tokens: int | None = None
    keep_ratio: float | None = None
    equivalent_tokens: float | None = None
    flops_ratio: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name in BUDGETS if (value := getattr(self, name)) is not None}
        if len(given) != 1:
            said = " and ".join(f"{name} is {value!r}" for name, value in given.items()) or "no budget is given"
            raise PlanError(
                f"{said}: give exactly one of them" if given else f"{said}: give one of {', '.join(BUDGETS)}"
            )
        ((name, value),) = given.items()
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name == "keep_tokens":
            if not isinstance(value, int) or not number or value < 0:
                raise PlanError(f"keep_tokens is {value!r}: give a whole number of at least 0")
        elif name == "equivalent_tokens":
            if not number or not 0 < value < float("inf"):
                raise PlanError(f"equivalent_tokens is {value!r}: give a number above 0")
        elif not number or not 0 < value <= 1:
            raise PlanError(f"{name} is {value!r}: give a number above 0 and at most 1")

    @classmethod
    def of(cls, **given: Any) -> Budget:
        """The budget that is given, by the fields' names; with none, 192 tokens. Raises PlanError as the class does."""
        said = {name: value for name, value in given.items() if value is not None}
        return cls(**said) if said else cls(keep_tokens=DEFAULT_KEEP_TOKENS)

    @property
    def kind(self) -> str:
        """The field that is given."""
        return next(name for name in BUDGETS if getattr(self, name) is not None)

    @property
    def value(self) -> Any:
        return getattr(self, self.kind)

    @property
    def is_solved(self) -> bool:
        """Whether the plan must be searched for: what it costs depends on the decoder and on the image's tokens."""
        return self.kind in ("equivalent_tokens", "flops_ratio")


BUDGETS = tuple(field.name for field in fields(Budget))


@dataclass(frozen=True)
class Geometry:
    """What a plan is solved for.

    decoder: its sizes. image_tokens: of one image, the same for every picture; None where they depend on the picture,
    or where a budget counts a whole prompt's. text_tokens: of a prompt, the system prompt included; only FLOPs depend
    on it, and little: the trace reports what each prompt really took.
    """

    decoder: DecoderShape
    image_tokens: int | None
    text_tokens: int = 64

    @property
    def layers(self) -> int:
        return self.decoder.layers

    def known(self, what: str) -> int:
        """The image's number of tokens. Raises PlanError, headed by `what`, where there is no one number."""
        if self.image_tokens is None:
            raise PlanError(
                f"{what}, but the number of image tokens is not the same for every prompt here: give keep_ratio"
            )
        return self.image_tokens


# What a plan is made for where nobody says: the papers' model. The prompt is LLaVA's, with a short question.
LLAVA_15_7B = Geometry(
    DecoderShape(layers=32, hidden=4096, heads=32, kv_heads=32, head_dim=128, intermediate=11008), 576
)


@dataclass(frozen=True)
class Cost:
    """A plan's figures for one image, by arithmetic: all four budgets as they come out, and each layer's image tokens.

    The trace measures the same of every prompt.
    """

    keep_tokens: int
    keep_ratio: float
    equivalent_tokens: float
    flops_ratio: float
    image_lengths: tuple[int, ...]

    def get(self, kind: str) -> float:
        return getattr(self, kind)


def cost_of(plan: Plan, geometry: Geometry) -> Cost:
    """What `plan` costs on one image of `geometry`, whose number of image tokens must be known."""
    whole = geometry.known("the cost of a plan is asked for")
    images = image_lengths(plan, geometry.layers, whole)
    lengths = [geometry.text_tokens + count for count in images]
    full = [geometry.text_tokens + whole] * geometry.layers
    return Cost(
        keep_tokens=images[-1],
        keep_ratio=images[-1] / whole,
        equivalent_tokens=equivalent_tokens(images),
        flops_ratio=prefill_flops(geometry.decoder, lengths) / prefill_flops(geometry.decoder, full),
        image_lengths=tuple(images),
    )


def image_lengths(plan: Plan, layers: int, image_tokens: int) -> list[int]:
    """Image tokens that each of `layers` layers sees of a picture of `image_tokens`: fewer after a stage's layer, and
    from the start where the plan makes pictures smaller."""
    stages = {stage.layer: stage for stage in plan.stages}
    image_tokens = image_tokens if plan.picture is None else plan.picture.tokens
    lengths, left = [], image_tokens
    for layer in range(-1, layers):
        if layer >= 0:
            lengths.append(left)
        if layer in stages:
            left = stages[layer].keep(left, image_tokens)
    return lengths


def closest(make: Callable[[int], Plan], numbers: range, budget: Budget, geometry: Geometry) -> Plan:
    """The plan whose cost comes closest to the budget; of two that come equally close, the one that costs less.

    make: each of `numbers` -> a plan, that costs more the higher the number (or as much). Found by bisection. Raises
    PlanError, with the bound, for a budget out of the method's reach, and where the image's tokens are not known.
    """
    asked = f"{budget.kind} is {budget.value}"
    whole = geometry.known(asked)

    def cost(number: int) -> float:
        return cost_of(make(number), geometry).get(budget.kind)

    low, high = numbers[0], numbers[-1]  # cost(low) <= the budget < cost(high), or high is the highest
    least, most = cost(low), cost(high)
    if budget.value < least - _SLACK or budget.value > most + _SLACK:
        raise PlanError(_out_of_reach(make(low), budget, geometry, least, most, whole))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= budget.value else (low, middle)
    return make(min((low, high), key=lambda number: abs(cost(number) - budget.value)))


_SLACK = 1e-9  # of sums of fractions


def _out_of_reach(plan: Plan, budget: Budget, geometry: Geometry, least: float, most: float, whole: int) -> str:
    layers = [stage.layer for stage in plan.stages]
    if not layers and plan.picture is None:
        return f"{budget.kind} is {budget.value}, but {plan.name} removes nothing: leave it out"
    mean = budget.kind == "equivalent_tokens"
    side, bound = ("above", most) if budget.value > most else ("below", least)
    what = f"a mean of {_rounded(bound)} of {whole} tokens" if mean else f"a FLOPs ratio of {_rounded(bound)}"
    earlier = ", or let tokens leave earlier" if layers else ""
    advice = "give at most that" if side == "above" else f"give at least that{earlier}"
    place = f" with layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))} of {geometry.layers}"
    return (
        f"{plan.name}{place if layers else ''} cannot go {side} {what}, but {budget.kind} is {budget.value:g}: {advice}"
    )


def _rounded(value: float) -> str:
    """Rounded up in the last figure, so that what is printed can be reached."""
    return f"{value + 0.00005:.4f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"


def for_prompt(geometry: Geometry, keep_scope: str) -> Geometry:
    """With keep_scope="prompt" a budget is of all images together, and only the document tells how many there are."""
    return replace(geometry, image_tokens=None) if keep_scope == "prompt" else geometry
