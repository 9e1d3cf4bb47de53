"""What a leaderboard costs, by arithmetic: documents, FLOPs, and hours at stated rates. Nothing here is measured.

One document: the vision tower and the projector over each of its pictures, the decoder's prefill over text and image
tokens (`cost.prefill_flops`, shorter after each removal), and a decoding step for each token of the answer after the
first. Left out: the output head (one row a step), the few rows read for scoring, preparing pictures, loading data and
weights, and the task's own scoring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lmms_textweighted.engine.cost import (
    DecoderShape,
    equivalent_tokens,
    kv_bytes,
    layer_bytes,
    layer_flops,
    prefill_flops,
)
from lmms_textweighted.engine.plan import NONE, Plan
from lmms_textweighted.errors import InputError
from lmms_textweighted.leaderboard.commands import Run
from lmms_textweighted.leaderboard.geometry import Geometry, VisionShape, WindowedShape
from lmms_textweighted.leaderboard.schema import Assumptions, Matrix, Part, Task
from lmms_textweighted.methods import budget
from lmms_textweighted.methods.budget import image_lengths


@dataclass(frozen=True)
class Cost:
    """FLOPs by where they are done, and the seconds of decoding, which memory bounds rather than arithmetic."""

    vision: float = 0
    prefill: float = 0
    decode: float = 0
    decode_seconds: float = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(self._values(), other._values(), strict=True)))

    def times(self, count: float) -> Cost:
        return Cost(*(value * count for value in self._values()))

    @property
    def flops(self) -> float:
        return self.vision + self.prefill + self.decode

    def _values(self) -> tuple[float, float, float, float]:
        return self.vision, self.prefill, self.decode, self.decode_seconds


@dataclass(frozen=True)
class Rates:
    """What the hours stand on, all devices together. batch: documents that share one reading of the weights."""

    flops_per_second: float
    bytes_per_second: float
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("flops_per_second", "bytes_per_second"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}: give a rate above 0, as 1e14")

    def seconds(self, cost: Cost) -> float:
        return (cost.vision + cost.prefill) / self.flops_per_second + cost.decode_seconds


@dataclass(frozen=True)
class RunEstimate:
    """One run. equivalent: equivalent tokens of a document with one picture. tasks: by the task's name."""

    run: Run
    kept: int
    equivalent: float
    tasks: dict[str, Cost]

    @property
    def total(self) -> Cost:
        return sum(self.tasks.values(), Cost())


@dataclass(frozen=True)
class Estimate:
    """A leaderboard's cost. parts: each task's documents by number of pictures. unpruned: by task, without removal."""

    geometry: Geometry
    rates: Rates
    assumed: Assumptions
    parts: dict[str, list[Part]]
    runs: list[RunEstimate] = field(default_factory=list)
    unpruned: dict[str, Cost] = field(default_factory=dict)

    def documents(self, task: str) -> int:
        return sum(part.count for part in self.parts[task])

    @property
    def total(self) -> Cost:
        return sum((run.total for run in self.runs), Cost())


def estimate(
    matrix: Matrix, runs: Sequence[Run], geometry: Geometry, rates: Rates, parts: dict[str, list[Part]]
) -> Estimate:
    """The cost of `runs`. parts: each task's documents, a limit already taken off (see `limited`).

    Raises PlanError for a run whose plan does not fit the geometry.
    """
    assumed = matrix.estimate
    done = Estimate(geometry, rates, assumed, parts)
    layers, tokens, fixed = geometry.decoder.layers, geometry.image_tokens, geometry.fixed_tokens
    done.unpruned.update({task.name: _task_cost(task, NONE, done) for task in matrix.tasks})
    for run in runs:
        plan = run.settings.plan(budget.Geometry(geometry.decoder, fixed))
        plan.check(layers, fixed)
        kept = image_lengths(plan, layers, tokens)
        tasks = {task.name: _task_cost(task, plan, done) for task in matrix.tasks}
        done.runs.append(RunEstimate(run, kept[-1], equivalent_tokens(kept), tasks))
    return done


def limited(parts: Sequence[Part], limit: int | None) -> list[Part]:
    """The first `limit` documents, as if each kind of document were its share of them."""
    total = sum(part.count for part in parts)
    if limit is None or limit >= total:
        return list(parts)
    shares = [part.count * limit // total for part in parts]
    shares[0] += limit - sum(shares)
    return [Part(count=count, images=part.images) for part, count in zip(parts, shares, strict=True) if count]


def vision_flops(shape: VisionShape | WindowedShape) -> int:
    """FLOPs of the tower and the projector over one picture.

    The patches' projection 2 p x d; in each layer, over n = p + 1 tokens, 8 n d^2 for the four projections, 4 n^2 d for
    scores and values, 4 n d m for the MLP; the projector 2 p (d o + o^2). x: a patch's values, o: the decoder's width.

    Of Qwen2.5-VL n = p, the MLP is gated, 6 n d m, a layer of windows of w patches has 4 n w d, and the merger of every
    k patches 2 p d (k d + o).
    """
    if isinstance(shape, WindowedShape):
        return _windowed_flops(shape)
    tokens, width = shape.patches + 1, shape.hidden
    layer = 8 * tokens * width**2 + 4 * tokens**2 * width + 4 * tokens * width * shape.intermediate
    projector = 2 * shape.patches * (width * shape.output + shape.output**2)
    return 2 * shape.patches * shape.pixels * width + shape.layers * layer + projector


def _windowed_flops(shape: WindowedShape) -> int:
    count, width = shape.patches, shape.hidden
    seen = shape.whole * count + (shape.layers - shape.whole) * min(shape.window, count)
    layers = shape.layers * (8 * count * width**2 + 6 * count * width * shape.intermediate) + 4 * count * seen * width
    merger = 2 * count * width * (shape.merged * width + shape.output)
    return 2 * count * shape.pixels * width + layers + merger


def document_cost(
    geometry: Geometry, plan: Plan, *, text: int, images: int, answer: int, element_size: int, rates: Rates
) -> Cost:
    """One document: `text` tokens, `images` pictures, an answer of `answer` tokens."""
    shape = geometry.decoder
    if plan.keep_scope == "prompt":
        kept = image_lengths(plan, shape.layers, images * geometry.image_tokens)
    else:
        kept = [images * tokens for tokens in image_lengths(plan, shape.layers, geometry.image_tokens)]
    lengths = [text + tokens for tokens in kept]
    # A smaller picture is less work for the tower, too. (Only a LLaVA-1.5 takes one: a patch a token.)
    patches = geometry.vision.patches if plan.picture is None else plan.picture.tokens
    steps = [[length + step for length in lengths] for step in range(1, answer)]
    moved = sum(_step_bytes(shape, seen, element_size, rates.batch) for seen in steps) / rates.batch
    return Cost(
        vision=images * vision_flops(replace(geometry.vision, patches=patches)),
        prefill=prefill_flops(shape, lengths),
        decode=sum(_step_flops(shape, seen) for seen in steps),
        decode_seconds=moved / rates.bytes_per_second,
    )


def _task_cost(task: Task, plan: Plan, made: Estimate) -> Cost:
    text, geometry = task.text_tokens or made.assumed.text_tokens, made.geometry.of_pictures(task.image_tokens)
    total = Cost()
    for part in made.parts[task.name]:
        one = document_cost(
            geometry,
            plan,
            text=text,
            images=part.images,
            answer=made.assumed.answer_tokens,
            element_size=made.assumed.element_size,
            rates=made.rates,
        )
        total += one.times(part.count)
    return total


def _step_flops(shape: DecoderShape, seen: Sequence[int]) -> int:
    """One decoding step whose token sees `seen` keys in each layer, itself among them."""
    width = shape.heads * shape.head_dim
    return sum(layer_flops(shape, 1, layer=n) + 4 * width * (keys - 1) for n, keys in enumerate(seen))


def _step_bytes(shape: DecoderShape, seen: Sequence[int], element_size: int, batch: int) -> int:
    """Bytes that a decoding step of `batch` documents must move: the weights once, and each document's keys, values."""
    weights = shape.layers * layer_bytes(shape, 1, element_size, batch)
    return weights + batch * kv_bytes(shape, seen, element_size)
