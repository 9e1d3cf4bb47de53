"""What the vision tower did with the pictures of a prefill: looked at while it runs, a few rows and sums of a layer.

The tower runs once, by whatever kernel it has; an observed layer hands over its queries and keys (`observe.observing`),
and of its attention only one row, or the sums of the columns, are computed beside it. They are made a few heads at a
time, in float32; what is kept is one number a token.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from lmms_textweighted.engine.grids import Grid, patches_of
from lmms_textweighted.engine.layout import Prompts
from lmms_textweighted.engine.observe import observing
from lmms_textweighted.engine.splice import Tower, removed_at_end, replaced
from lmms_textweighted.engine.text_tower import TextReads, TextTower, no_text_tower
from lmms_textweighted.errors import PlanError

_CHUNK_ELEMENTS = 1 << 23  # float32 elements of a tower's attention held at a time: 32 MB


@dataclass(frozen=True)
class TowerLayer:
    """A layer of a vision tower of any depth, layers counted from 0.

    of 0: the layer `number` behind the one that makes the model's features, which is TowerLayer(0). Else the one at the
    relative depth of layer `number` of `of`: round((number + 1) depth / of) - 1, halves up, at least 0.
    """

    number: int
    of: int = 0

    def index(self, tower: Tower) -> int:
        """Its number in this tower. Raises PlanError where the tower has no such layer."""
        depth = len(tower.layers)
        index = tower.feature + self.number
        if self.of:
            index = max(0, math.floor((self.number + 1) * depth / self.of + 0.5) - 1)
        if not 0 <= index < depth:
            raise PlanError(f"layer {index} of the vision tower is to be looked at, but {tower.name} has {depth}")
        return index


FEATURES = TowerLayer(0)


@dataclass(frozen=True)
class TowerReads:
    """What a scorer needs to know of the tower: see `TowerSeen`, whose methods these are. vectors: the features that
    the projector is given. text: these and the prompt's text in CLIP's own space."""

    class_rows: tuple[TowerLayer, ...] = ()
    wide_class_rows: tuple[TowerLayer, ...] = ()
    column_means: tuple[TowerLayer, ...] = ()
    keys: tuple[TowerLayer, ...] = ()
    vectors: bool = False
    class_vector: bool = False
    text: bool = False

    @property
    def needs_class_token(self) -> bool:
        return bool(self.class_rows or self.wide_class_rows or self.class_vector)

    def __or__(self, other: TowerReads) -> TowerReads:
        """What either needs."""
        return TowerReads(
            tuple(dict.fromkeys(self.class_rows + other.class_rows)),
            tuple(dict.fromkeys(self.wide_class_rows + other.wide_class_rows)),
            tuple(dict.fromkeys(self.column_means + other.column_means)),
            tuple(dict.fromkeys(self.keys + other.keys)),
            self.vectors or other.vectors,
            self.class_vector or other.class_vector,
            self.text or other.text,
        )


@dataclass(frozen=True)
class TowerSeen:
    """The tower, as far as a scorer's `TowerReads` asked for it, at the image tokens of one prompt that are there: I.

    found: what was noted, of all patches of the views of the prompt's pictures: {(what, layer): [P, N, …]}; a picture
    that is not cut into crops is one view. index: [I] the number of each token's patch among these P N. Float32,
    vectors in the tower's type, on the device that the scorer works on.
    """

    found: dict[tuple[str, TowerLayer], torch.Tensor]
    index: torch.Tensor
    project: Callable[[torch.Tensor], torch.Tensor]
    text: str | None = None
    text_tower: TextTower | None = None

    def class_row(self, layer: TowerLayer = FEATURES) -> torch.Tensor:
        """[I] the attention that the class token gives to each patch, mean over heads. Every row sums to 1 with the
        class token itself, which is left out."""
        return self._of("class_rows", layer)

    def wide_class_row(self, layer: TowerLayer) -> torch.Tensor:
        """[I] the same with all heads as one: softmax(q k^T / sqrt(W)) of queries and keys of the tower's width W."""
        return self._of("wide_class_rows", layer)

    def column_mean(self, layer: TowerLayer) -> torch.Tensor:
        """[I] the attention that each patch gets, mean over heads and over all rows, the class token's among them."""
        return self._of("column_means", layer)

    def keys(self, layer: TowerLayer = FEATURES) -> torch.Tensor:
        """[I, H, D] the keys of each head."""
        return self._of("keys", layer)

    @property
    def vectors(self) -> torch.Tensor:
        """[I, W] the features in front of the projector."""
        return self._of("vectors", FEATURES)

    def class_vector(self, token: torch.Tensor) -> torch.Tensor:
        """[W] the class token's feature of the view that an image token is of. token: index into the I, a tensor."""
        whole = self.found["vectors", FEATURES]
        return self.found["class_vector", FEATURES][self.index[token] // whole.shape[1]]

    def clip_patches(self) -> torch.Tensor:
        """[I, P] the features in front of the projector, in the space where CLIP compares them with a text."""
        return self._asked_text_tower[0].patches(self.vectors)

    def clip_texts(self, reads: TextReads) -> torch.Tensor:
        """[M, P] the prompt's text there, one row a segment."""
        tower, text = self._asked_text_tower
        return tower.texts(text, reads).to(self.index.device)

    @property
    def _asked_text_tower(self) -> tuple[TextTower, str]:
        if self.text_tower is None or self.text is None:
            raise TypeError("the text was not asked for: name it in the scorer's tower_reads")
        return self.text_tower, self.text

    @property
    def patches(self) -> int:
        """Patches of a view."""
        return next(iter(self.found.values())).shape[1]

    @property
    def patch(self) -> torch.Tensor:
        """[I] the number of each token's patch in its view, in raster order."""
        return self.index % self.patches

    def _of(self, what: str, layer: TowerLayer) -> torch.Tensor:
        if (what, layer) not in self.found:
            raise TypeError(f"{what} of {layer} was not asked for: name it in the scorer's tower_reads")
        return self.found[what, layer].flatten(0, 1)[self.index]


@dataclass(frozen=True)
class Spent:
    """What looking cost in one prefill. seconds: on the host, of all pictures. flops: of each view, by what was noted
    and of which layer: 2 S W for a row of attention over S tokens, all heads together W wide; 2 S^2 W for the means of
    its columns."""

    seconds: float = 0.0
    flops: Mapping[tuple[str, TowerLayer], int] = field(default_factory=dict)

    def flops_of(self, reads: TowerReads) -> int:
        """Of each view, for a plan that reads these."""
        return sum(flops for (what, layer), flops in self.flops.items() if layer in getattr(reads, what))


@dataclass
class Watch:
    """Notes what `reads` names of every picture that a tower is given while it is attached. text_tower: for `text`.

    spent: what that took, of the pictures that were `taken` last.
    """

    tower: Tower
    reads: TowerReads
    plan_name: str
    text_tower: TextTower | None = None
    found: dict[tuple[str, TowerLayer], list[torch.Tensor]] = field(default_factory=dict)
    count: int = 0
    seconds: float = 0.0
    flops: dict[tuple[str, TowerLayer], int] = field(default_factory=dict)
    spent: Spent = field(default_factory=lambda: Spent())
    _generating: bool = False
    _patches: int = 0

    def attach(self, stack: ExitStack, model: Any) -> None:
        """Start watching; `stack` ends it. Raises PlanError where the tower has not what is to be looked at."""
        tower, reads = self.tower, self.reads
        if reads.text and self.text_tower is None:
            raise no_text_tower(self.plan_name)
        if reads.needs_class_token and not tower.class_token:
            raise PlanError(
                f"{self.plan_name} reads the class token of the vision tower, but {tower.name} has none: use a method "
                f"that needs none"
            )
        if not tower.layers:
            raise PlanError(
                f"{self.plan_name} looks at the vision tower, but of {tower.name} in a {type(model).__name__} nothing "
                f"is known here: use a method that does not"
            )
        stack.enter_context(self._calls_of(model))
        notes: dict[int, list[tuple[str, TowerLayer]]] = {}
        for what in ("class_rows", "wide_class_rows", "column_means", "keys"):
            for layer in getattr(reads, what):
                notes.setdefault(layer.index(tower), []).append((what, layer))
        for index, wanted in notes.items():
            attention: Any = tower.layers[index]
            stack.enter_context(observing(attention.self_attn, functools.partial(self._note, wanted)))
        # The layer that makes the features counts the pictures, whatever else is wanted.
        layer = tower.layers[tower.feature]
        stack.enter_context(removed_at_end(layer.register_forward_hook(self._features)))

    def taken(
        self, prompts: Prompts, texts: Sequence[str | None] | None = None
    ) -> list[Callable[[torch.Tensor], TowerSeen] | None]:
        """For each row, what was seen of its pictures, given the numbers of its image tokens that are asked for.

        None for a row without pictures. texts: of each row. What was noted is forgotten. Raises PlanError where the
        tower did not run on the pictures of these prompts, a token is not one patch, or a row's text is needed and not
        given.
        """
        found = {key: torch.cat(parts) for key, parts in self.found.items()}
        patches, count, grids = self._patches, self.count, prompts.grids
        self.spent = Spent(self.seconds, {key: flops // max(1, count) for key, flops in self.flops.items()})
        self._clear()
        if grids is None:  # every picture is one view, and every patch a token
            for size in {size for sizes in prompts.image_sizes for size in sizes} if count else ():
                if size != patches:
                    raise PlanError(
                        f"{self.plan_name} looks at the vision tower, whose patches have to be the image's tokens, but "
                        f"they are {patches} and {size}: use a method that does not"
                    )
            grids = (Grid.whole(patches),) * count
        rows = prompts.pictures_of_rows(len(grids))
        fits = prompts.grids is None or prompts.grids_of_rows() is not None
        if rows is None or not fits or sum(grid.views for grid in grids) != count:
            raise PlanError(
                f"{self.plan_name} looks at the vision tower, which ran on {count} pictures for prompts with "
                f"{sum(map(len, prompts.image_sizes))}: let the model make the features, inside the block"
            )
        ends = list(accumulate(grid.views for grid in grids))
        views = [range(end - grid.views, end) for end, grid in zip(ends, grids, strict=True)]

        texts = [None] * len(rows) if texts is None else texts
        if self.reads.text and any(row and text is None for row, text in zip(rows, texts, strict=True)):
            raise PlanError(
                f"{self.plan_name} compares patches with the question, which is not known here: give texts, one a row"
            )

        def of(row: tuple[int, ...], text: str | None) -> Callable[[torch.Tensor], TowerSeen]:
            mine = [view for number in row for view in views[number]]
            patch = patches_of([grids[number] for number in row])

            def at(index: torch.Tensor) -> TowerSeen:
                seen = {key: part[mine].to(index.device) for key, part in found.items()}
                return TowerSeen(seen, patch.to(index.device)[index], self.tower.project, text, self.text_tower)

            return at

        return [of(row, text) if row else None for row, text in zip(rows, texts, strict=True)]

    @contextmanager
    def _calls_of(self, model: Any) -> Iterator[None]:
        """Nothing may be left of a call that failed: `generate` makes features before the model runs."""

        def before(module: nn.Module, args: tuple) -> None:
            if not self._generating:
                self._clear()

        generate = getattr(model, "generate", None)
        with ExitStack() as stack:
            stack.enter_context(removed_at_end(model.register_forward_pre_hook(before)))
            if generate is not None:

                @functools.wraps(generate)
                def watched(*args: Any, **kwargs: Any) -> Any:
                    self._clear()
                    self._generating = True
                    try:
                        return generate(*args, **kwargs)
                    finally:
                        self._generating = False

                stack.enter_context(replaced(model, "generate", watched))
            yield

    def _clear(self) -> None:
        self.found, self.count, self._patches = {}, 0, 0
        self.seconds, self.flops = 0.0, {}

    def _note(
        self, wanted: Sequence[tuple[str, TowerLayer]], query: torch.Tensor, key: torch.Tensor, scaling: float
    ) -> None:
        began = time.perf_counter()
        front = int(self.tower.class_token)
        pictures, heads, length, width = query.shape
        for what, layer in wanted:
            rows = {"keys": 0, "column_means": length}.get(what, 1)
            flops = 2 * pictures * rows * length * heads * width
            self.flops[what, layer] = self.flops.get((what, layer), 0) + flops
            if what == "keys":
                made = key[:, :, front:].transpose(1, 2).float()
            elif what == "column_means":
                made = torch.stack([_column_mean(q, k, scaling) for q, k in zip(query, key, strict=True)])[:, front:]
            else:
                first, keys, scale = query[:, :, :1].float(), key.float(), scaling
                if what == "wide_class_rows":
                    first, keys = _wide(first), _wide(keys)
                    scale = first.shape[-1] ** -0.5
                made = (first * scale @ keys.mT).softmax(dim=-1).mean(dim=1)[:, 0, front:]
            self.found.setdefault((what, layer), []).append(made)
        self.seconds += time.perf_counter() - began

    def _features(self, module: nn.Module, args: tuple, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        front = int(self.tower.class_token)
        self.count += len(hidden)
        self._patches = hidden.shape[1] - front
        if self.reads.vectors or self.reads.class_vector or self.reads.text:
            self.found.setdefault(("vectors", FEATURES), []).append(hidden[:, front:])
        if self.reads.class_vector:
            self.found.setdefault(("class_vector", FEATURES), []).append(hidden[:, 0])


def _wide(heads: torch.Tensor) -> torch.Tensor:
    """[B, H, S, D] -> [B, 1, S, H D]."""
    return heads.transpose(1, 2).flatten(2)[:, None]


def _column_mean(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """[S] mean over heads and rows of one picture's attention, of which a few heads are held at a time. [H, S, D]."""
    heads, length = query.shape[0], key.shape[1]
    step = max(1, _CHUNK_ELEMENTS // (query.shape[1] * length))
    total = query.new_zeros(length, dtype=torch.float32)
    for start in range(0, heads, step):
        queries, keys = query[start : start + step].float() * scaling, key[start : start + step].float()
        total += (queries @ keys.mT).softmax(dim=-1).sum(dim=(0, 1))
    return total / (heads * query.shape[1])
