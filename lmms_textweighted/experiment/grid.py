"""What a sweep runs: every strategy at every budget, after every layer and with every seed asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.errors import PlanError
from lmms_textweighted.experiment.draws import draws, seeded_plan
from lmms_textweighted.inference import PrunedLlava
from lmms_textweighted.methods import Method, find_method
from lmms_textweighted.methods.budget import Geometry


@dataclass(frozen=True)
class Point:
    """One strategy at one budget, a count or a share. budget None: nothing is removed, or the name says how much.

    layer: the pruning layer that it was asked for; None where the method has its own, or removes nothing. seed: what
    its random choice is made from, where the method draws and the sweep was given several seeds; else the run's.
    """

    strategy: str
    budget: float | None
    plan: Plan
    layer: int | None = None
    seed: int | None = None

    @property
    def stage(self) -> Stage | None:
        """The plan's first stage, if it removes anything."""
        return self.plan.stages[0] if self.plan.stages else None


@dataclass(frozen=True)
class LeftOut:
    """A point that cannot be, and why: the method's own words. kind: what the budget is."""

    strategy: str
    layer: int | None
    budget: float | None
    reason: str
    kind: str = "keep_tokens"

    def __str__(self) -> str:
        layer = "" if self.layer is None else f" after layer {self.layer}"
        at = f"{self.budget} tokens" if self.kind == "keep_tokens" else f"{self.kind}={self.budget}"
        return f"{self.strategy} at {at}{layer}: {self.reason}"


def make_grid(
    strategies: Sequence[str | Method],
    budgets: Sequence[float],
    layers: Sequence[int | None],
    *,
    text_scope: str = "after",
    keep_scope: str = "image",
    seeds: Sequence[int] = (),
    kind: str = "keep_tokens",
    geometry: Geometry | None = None,
) -> tuple[list[Point], list[LeftOut]]:
    """All points of a sweep, strategy by strategy, layer by layer; and those that their method refuses.

    strategies: as for `find_method`. layers: pruning layers; a method with layers of its own has its points once,
    whatever they are. seeds: two or more give a method that draws a point for each. kind: what the budgets are, see
    `methods.budget.Budget`. geometry: the model's; without it, plans are LLaVA-1.5-7B's.

    Raises PlanError as `find_method` does, without a strategy, for two of one name, and for a strategy that has no
    point at all.
    """
    if not strategies:
        raise PlanError("strategies is empty: name at least one, as in text_weighted,fastv,random,none")
    points: list[Point] = []
    left_out: list[LeftOut] = []
    for strategy in strategies:
        method = find_method(strategy)
        if any(point.strategy == method.name for point in points):
            raise PlanError(f"strategies names {method.name!r} twice: give each method a name of its own")
        common: dict[str, Any] = {"text_scope": text_scope, "keep_scope": keep_scope, "geometry": geometry}
        own, refused = _of_method(method, budgets, layers, kind, common)
        if not own:
            raise PlanError(refused[0].reason)
        points += [seeded for point in own for seeded in _with_seeds(point, seeds)]
        left_out += refused
    return points, left_out


def make_points(
    strategies: Sequence[str | Method],
    budgets: Sequence[float],
    pruning_layer: int | None,
    *,
    text_scope: str = "after",
    keep_scope: str = "image",
    kind: str = "keep_tokens",
    geometry: Geometry | None = None,
) -> list[Point]:
    """`make_grid` for one layer, where every point must be: raises PlanError for one that its method refuses."""
    points, left_out = make_grid(
        strategies,
        budgets,
        [pruning_layer],
        text_scope=text_scope,
        keep_scope=keep_scope,
        kind=kind,
        geometry=geometry,
    )
    if left_out:
        raise PlanError(left_out[0].reason)
    return points


def check_points(points: Sequence[Point], llava: PrunedLlava) -> None:
    """Raise PlanError when a point does not fit the model, and InputError for pictures that it cannot take."""
    layers = llava.model.config.get_text_config().num_hidden_layers
    for point in points:
        point.plan.check(layers, llava.tokens_per_image if point.plan.keep_scope == "image" else None)
        llava.check_pictures(point.plan)


def _of_method(
    method: Method, budgets: Sequence[float], layers: Sequence[int | None], kind: str, common: dict[str, Any]
) -> tuple[list[Point], list[LeftOut]]:
    def attempt(layer: int | None, budget: float | None) -> Point | LeftOut:
        try:
            asked: dict[str, Any] = {kind: budget}
            plan = method.plan(pruning_layer=layer, **asked, **common)
        except PlanError as error:
            return LeftOut(method.name, layer, budget, str(error), kind)
        return Point(method.name, budget, plan, layer)

    own = method.layer is not None or not method.takes_budget
    tried = [
        attempt(layer, budget)
        for layer in ((None,) if own else layers)
        for budget in (budgets if method.takes_budget else (None,))
    ]
    points = [one for one in tried if isinstance(one, Point)]
    return _once(points), [one for one in tried if isinstance(one, LeftOut)]


def _once(points: list[Point]) -> list[Point]:
    """The same points, each once and without a layer, where they are the same whatever layer was asked for."""
    layers = {point.layer for point in points}
    distinct = list(dict.fromkeys(replace(point, layer=None) for point in points))
    return distinct if len(layers) > 1 and len(distinct) * len(layers) == len(points) else points


def _with_seeds(point: Point, seeds: Sequence[int]) -> list[Point]:
    if len(seeds) < 2 or not draws(point.plan):
        return [point]
    return [replace(point, seed=seed, plan=seeded_plan(point.plan, seed)) for seed in seeds]
