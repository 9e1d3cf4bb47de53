"""One prefill under a plan: what its stages saw and chose, layer by layer, for every row of the batch."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch

from lmms_textweighted.engine.cost import DecoderShape, scoring_flops
from lmms_textweighted.engine.grids import Grid, places_of
from lmms_textweighted.engine.layout import Layout
from lmms_textweighted.engine.observe import attention_rows, observing
from lmms_textweighted.engine.parts import Parts, divided
from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.engine.rank import Ranks, attention_ranks
from lmms_textweighted.engine.scoring import Choice, Leaving, Rows, Scorer, Seen
from lmms_textweighted.engine.shortened import Shortened, shorten, take
from lmms_textweighted.engine.tower import Spent, TowerReads, TowerSeen
from lmms_textweighted.engine.trace import DocumentTrace, StageTrace
from lmms_textweighted.errors import PlanError


class Prefill:
    """A batch that runs through the decoder's layers, shorter after every stage.

    layout: of the whole sequences. keys: for each row, what a choice by chance draws from; empty where no stage does.
    tower: for each row, image tokens' numbers -> what was seen of the vision tower there; empty where no stage looks.
    tower_spent: what that looking cost; it counts with the first stage that looks.
    grids: for each row, which patch each token of its pictures is; None where that is not known.
    documents: the rows' traces, filled in as the layers run. shortened: for each layer, the sequence it runs on where
    that is not the whole one; decoding goes on from it.
    """

    def __init__(
        self,
        plan: Plan,
        layout: Layout,
        decoder: Any,
        shape: DecoderShape,
        *,
        keys: Sequence[str],
        seed: int,
        tower: Sequence[Callable[[torch.Tensor], TowerSeen] | None] = (),
        tower_spent: Spent | None = None,
        grids: Sequence[Sequence[Grid]] | None = None,
    ) -> None:
        self.tower, self.tower_spent, self.grids = tower, tower_spent or Spent(), grids
        self.places = None if grids is None else [places_of(row).to(layout.image.device) for row in grids]
        self.plan, self.layout, self.decoder, self.keys, self.seed = plan, layout, decoder, keys, seed
        self.shape, self.full_length = shape, layout.valid.shape[1]
        self.shortened: list[Shortened | None] = [None] * shape.layers
        element_size = next(decoder.layers.parameters()).element_size()
        spared = 0 if plan.picture is None else plan.picture.of - plan.picture.tokens
        self.documents = [
            DocumentTrace(
                plan=plan,
                shape=shape,
                element_size=element_size,
                full_length=length + spared * len(sizes),
                image_tokens=sum(sizes) + spared * len(sizes),
                lengths=[length] * shape.layers,
                image_lengths=[sum(sizes)] * shape.layers,
                spared=spared * len(sizes),
            )
            for length, sizes in zip(layout.lengths, layout.image_sizes, strict=True)
        ]
        self._embeddings: torch.Tensor | None = None
        # Of each stage: for every row, scores of its image tokens and weights of the rows that were read.
        self._scored: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._seconds: dict[int, float] = defaultdict(float)
        # The stage that looks first pays for all.
        reads = [(place, read) for place, stage in enumerate(plan.stages) if (read := stage.scorer.tower_reads)]
        self._looks_first, self._tower_flops = None, 0
        if reads:
            self._looks_first = reads[0][0]
            self._tower_flops = self.tower_spent.flops_of(functools.reduce(TowerReads.__or__, (r for _, r in reads)))
            self._seconds[self._looks_first] = self.tower_spent.seconds

    def layout_at(self, layer: int) -> Layout:
        """The layout of the sequence that a layer runs on."""
        return self._layout_of(self.shortened[layer])

    def score(self, place: int, query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
        """Score the plan's stage `place` by its layer's queries and keys, as `observe.observing` hands them out."""
        self._score(place, self.shortened[self.plan.stages[place].scored_at], query, key, scaling)

    def rank(self, layer: int, query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
        """Note the ranks of a layer's image-to-image attention; of none where the plan merges (`Plan.unranked`)."""
        if self.plan.unranked:
            return
        layout = self.layout_at(layer)
        for row, document in enumerate(self.documents):
            image, _ = positions_of(layout, row)
            if len(image):
                document.ranks = image_ranks(query[row], key[row], image, layout.valid[row], scaling)

    def enter(self, layer: int, module: Any, hidden: torch.Tensor, kwargs: dict) -> torch.Tensor:
        """The hidden states that `layer` runs on, after the stage between it and the layer below.

        hidden: [B, S, W] of the layer below's sequence. module, kwargs: the layer and its arguments, as the model made
        them for the whole sequence. The sequence itself then stands in `shortened[layer]`.
        """
        if layer == 0 and any(stage.scorer.needs_embeddings for stage in self.plan.stages):
            self._embeddings = hidden
        current = self.shortened[layer - 1] if layer else None
        for place, stage in enumerate(self.plan.stages):
            if stage.layer == layer - 1:
                if stage.scored_ahead:
                    self._score_ahead(place, current, module, hidden, kwargs)
                current, hidden = self._remove(place, stage, current, hidden)
                break
        self.shortened[layer] = current
        if current is not None:
            for row, document in enumerate(self.documents):
                document.lengths[layer] = current.layout.lengths[row]
                document.image_lengths[layer] = sum(current.layout.image_sizes[row])
        return hidden

    def _layout_of(self, shortened: Shortened | None) -> Layout:
        return self.layout if shortened is None else shortened.layout

    def _score(
        self, place: int, current: Shortened | None, query: torch.Tensor, key: torch.Tensor, scaling: float
    ) -> None:
        began = time.perf_counter()
        stage, layout = self.plan.stages[place], self._layout_of(current)
        scored = []
        for row in range(query.shape[0]):
            # With device_map the scored layer may live on another device than the input.
            there, text = (places.to(query.device) for places in positions_of(layout, row))
            parts = self._parts(stage, current, row, there)
            image, sizes = _eligible(parts, there, layout.image_sizes[row])
            if len(image):
                rows = rows_read(stage.scorer.reads, layout, row, image, text)
                attention, keys = read(stage.scorer, query[row], key[row], rows, layout.valid[row], scaling)
                seen = self._seen(stage.scorer, current, row, image, sizes, rows, text, attention, keys)
                scores, weights = stage.scorer.score(seen)
            else:
                scores = weights = query.new_zeros(0, dtype=torch.float32)
            scored.append((scores.to(layout.image.device), weights.to(layout.image.device)))
        self._scored[place] = scored
        self._seconds[place] += time.perf_counter() - began

    def _score_ahead(
        self, place: int, current: Shortened | None, module: Any, hidden: torch.Tensor, kwargs: dict
    ) -> None:
        """Score a stage with the norm, queries and keys of a layer that has not run yet."""
        phases = kwargs["position_embeddings"] if current is None else current.phases(hidden, kwargs)

        def take_them(query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
            self._score(place, current, query, key, scaling)
            raise _Scored

        with observing(module.self_attn, take_them), suppress(_Scored):
            # The attention itself never runs: the observer is asked first.
            module.self_attn(
                hidden_states=module.input_layernorm(hidden), position_embeddings=phases, attention_mask=None
            )

    def _remove(
        self, place: int, stage: Stage, previous: Shortened | None, hidden: torch.Tensor
    ) -> tuple[Shortened | None, torch.Tensor]:
        """Choose the tokens that stay after `stage` and note why: (the sequence from here on, its hidden states)."""
        began = time.perf_counter()
        layout = self._layout_of(previous)
        stays = layout.valid & (layout.image < 0)
        order = torch.arange(stays.shape[1], device=stays.device).repeat(len(stays), 1)
        sizes, merged, reordered = [], [], False
        for row, document in enumerate(self.documents):
            there, text = positions_of(layout, row)
            parts = self._parts(stage, previous, row, there)
            image, groups = _eligible(parts, there, layout.image_sizes[row])
            if not len(image):
                scores = weights = hidden.new_zeros(0, dtype=torch.float32)
            elif stage.scorer.reads is Rows.NONE:
                seen = self._seen(stage.scorer, previous, row, image, groups, text[:0], text)
                scores, weights = stage.scorer.score(seen)
            else:
                scores, weights = self._scored[place][row]
            choice = self._choose(stage, previous, row, image, groups, text, scores, weights, hidden, parts)
            if choice.merged and not stage.scorer.merges:
                raise TypeError(f"scorer {stage.scorer.name!r} merges tokens, but does not say so: set its merges")
            choice = choice if parts is None else parts.joined(choice)
            chosen = there[choice.kept]
            stays[row, chosen] = True
            if not stage.scorer.keeps_the_best:
                order[row, chosen] = chosen.sort().values
                reordered = reordered or bool((chosen.diff() < 0).any())
            sizes.append(choice.sizes)
            if choice.merged:
                slots = torch.tensor([part.slot for part in choice.merged], device=chosen.device)
                merged.append((row, chosen[slots], torch.stack([part.vector for part in choice.merged])))
            document.stages.append(self._trace(stage, previous, row, there, image, text, scores, weights, choice))
            if place == self._looks_first:
                document.stages[-1].flops += self._tower_flops * self._views(row)
        seconds = self._seconds.pop(place, 0.0) + time.perf_counter() - began
        for document in self.documents:
            document.stages[-1].seconds = seconds
        if tuple(sizes) == layout.image_sizes and not merged and not reordered:
            return previous, hidden
        renumber = self.decoder.rotary_emb if self.plan.positions_of(stage) == "renumber" else None
        new_order = order if reordered else None
        current = shorten(layout, stays, tuple(sizes), previous, order=new_order, renumber=renumber)
        hidden = take(hidden, current.inner)
        for row, tokens, vectors in merged:
            there = (current.inner[row] == tokens[:, None]) & current.present[row]
            hidden[row, there.int().argmax(dim=1)] = vectors.to(hidden)
        return current, hidden

    def _choose(
        self,
        stage: Stage,
        previous: Shortened | None,
        row: int,
        image: torch.Tensor,
        sizes: tuple[int, ...],
        text: torch.Tensor,
        scores: torch.Tensor,
        weights: torch.Tensor,
        hidden: torch.Tensor,
        parts: Parts | None,
    ) -> Choice:
        if not len(image):
            return Choice(image, sizes)
        original, keep_scope = self.layout.image_sizes[row], self.plan.keep_scope
        # How many stay is asked of each image in turn, or of all together.
        each = iter([sum(original)] if keep_scope == "prompt" else original)
        counts = None
        if parts is not None:
            counts, keep_scope = iter(parts.keeps), parts.keep_scope
        return stage.scorer.choose(
            Leaving(
                image=image,
                sizes=sizes,
                text=text,
                scores=scores,
                weights=weights,
                hidden=hidden[row],
                norm=self.decoder.norm,
                keep=lambda size: stage.keep(size, next(each, None)) if counts is None else next(counts),
                keep_scope=keep_scope,
                original_sizes=original,
                tower=self._tower(stage.scorer, previous, row, image),
                start=self._layout_of(previous).starts[row],
            )
        )

    def _trace(
        self,
        stage: Stage,
        previous: Shortened | None,
        row: int,
        there: torch.Tensor,
        image: torch.Tensor,
        text: torch.Tensor,
        scores: torch.Tensor,
        weights: torch.Tensor,
        choice: Choice,
    ) -> StageTrace:
        layout, offset = self._layout_of(previous), self.layout.starts[row]
        places = torch.arange(self.full_length, device=image.device) if previous is None else previous.index[row]
        original = places - offset
        rows = rows_read(stage.scorer.reads, layout, row, image, text if len(image) else text[:0])
        kept = original[there[choice.kept]]
        sources = _sources(choice, kept, original[there])
        numbers = self._numbers(previous, row, there)[choice.kept]
        return StageTrace(
            layer=stage.layer,
            kept=kept,
            candidates=original[image],
            scores=scores,
            text=original[rows],
            text_weights=weights,
            sources=sources,
            places=None if self.places is None else self.places[row][numbers.to(self.places[row].device)],
            flops=scoring_flops(
                self.shape,
                len(rows),
                layout.lengths[row],
                projected=stage.scored_ahead,
                keys_only=stage.scorer.reads is Rows.KEYS and len(image) > 0,
            )
            + choice.flops,
        )

    def _seen(
        self,
        scorer: Scorer,
        current: Shortened | None,
        row: int,
        image: torch.Tensor,
        sizes: tuple[int, ...],
        rows: torch.Tensor,
        text: torch.Tensor,
        attention: torch.Tensor | None = None,
        keys: torch.Tensor | None = None,
    ) -> Seen:
        device = image.device
        if current is None:
            positions = torch.arange(self.full_length, device=device) - self.layout.starts[row]
        elif current.renumbered is not None:
            positions = current.renumbered.positions[row].to(device)
        else:
            positions = current.index[row].to(device) - self.layout.starts[row]
        embeddings = image_embeddings = None
        if scorer.needs_embeddings and self._embeddings is not None:
            embeddings = self._embeddings[row].to(device).float()
            image_embeddings = embeddings[positions_of(self.layout, row)[0].to(device)]
            embeddings = embeddings if current is None else embeddings[current.index[row].to(device)]
        return Seen(
            image=image,
            rows=rows,
            attention=attention,
            key=self.keys[row] if self.keys else "",
            seed=self.seed,
            sizes=sizes,
            text=text,
            positions=positions.clamp(min=0),
            keys=keys,
            embeddings=embeddings,
            image_embeddings=image_embeddings,
            tower=self._tower(scorer, current, row, image),
        )

    def _tower(self, scorer: Scorer, current: Shortened | None, row: int, image: torch.Tensor) -> TowerSeen | None:
        at = self.tower[row] if scorer.tower_reads and self.tower else None
        if at is None:
            return None
        return at(self._numbers(current, row, image))

    def _numbers(self, current: Shortened | None, row: int, image: torch.Tensor) -> torch.Tensor:
        """The numbers of image tokens among all that the prompt had, from their positions as the sequence is now."""
        first, _ = positions_of(self.layout, row)
        places = image.to(first.device)
        places = places if current is None else current.index[row].to(first.device)[places]
        return torch.searchsorted(first, places).to(image.device)

    def _views(self, row: int) -> int:
        """How many views of a row's pictures the tower was given."""
        return len(self.layout.image_sizes[row]) if self.grids is None else sum(grid.views for grid in self.grids[row])

    def _parts(self, stage: Stage, current: Shortened | None, row: int, there: torch.Tensor) -> Parts | None:
        """How the stage divides the image tokens that are there; None where they are a picture's, one like another.

        Raises PlanError where the stage needs to know crops and newlines, and they are not known.
        """
        if not stage.divides or not len(there):
            return None
        if self.grids is None:
            # Where the tower was looked at, it was made sure that every patch is a token.
            if stage.scorer.tower_reads is not None:
                return None
            raise PlanError(
                f"plan {self.plan.name!r} says grid={stage.grid_rule} and newlines={stage.newlines_rule}, but where "
                f"crops and newline tokens stand is not known of this model: leave both out"
            )
        grids = self.grids[row]
        if all(grid.is_whole for grid in grids):
            return None
        return divided(stage, self.plan.keep_scope, grids, self._numbers(current, row, there).cpu())


def _eligible(parts: Parts | None, there: torch.Tensor, sizes: tuple[int, ...]) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Positions of the image tokens that may be chosen, group after group, and how many are in each."""
    return (there, sizes) if parts is None else (there[parts.order.to(there.device)], parts.sizes)


def _sources(choice: Choice, kept: torch.Tensor, places: torch.Tensor) -> dict[int, list[int]]:
    """For each merged token what went in. The device is asked twice, however many there are."""
    if not choice.merged:
        return {}
    slots = kept.tolist()
    members = iter(places[torch.cat([part.sources for part in choice.merged])].tolist())
    return {slots[part.slot]: [next(members) for _ in range(len(part.sources))] for part in choice.merged}


class _Scored(Exception):
    """What was wanted of a layer's attention is there: it need not run."""


def image_ranks(
    query: torch.Tensor, key: torch.Tensor, image: torch.Tensor, valid: torch.Tensor, scaling: float
) -> Ranks:
    """Ranks of one layer's image-to-image attention. query [H, S, D], key [G, S, D], image [I] positions, valid [S].

    Rows are softmaxed over all tokens they can see; the block of image columns is taken as it is.
    """
    image = image.to(query.device)  # with device_map, a layer may live elsewhere
    rows = attention_rows(query, key, image, valid, scaling, mean_over_heads=False)
    return attention_ranks(rows[:, :, image])


def positions_of(layout: Layout, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of a row's image tokens and of its voting text tokens, ascending; the device is not asked how many."""
    return (
        _first(layout.image[row] >= 0, sum(layout.image_sizes[row])),
        _first(layout.text[row], layout.text_lengths[row]),
    )


def read(
    scorer: Scorer, query: torch.Tensor, key: torch.Tensor, rows: torch.Tensor, valid: torch.Tensor, scaling: float
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(attention, keys) of one layer that a scorer asks for, as `Seen` has them; None for what it does not.

    query [H, S, D], key [G, S, D], rows [R] positions, valid [S].
    """
    attention = keys = None
    if scorer.reads is not Rows.KEYS:
        attention = attention_rows(query, key, rows, valid, scaling, mean_over_heads=not scorer.per_head)
    if scorer.needs_keys or scorer.reads is Rows.KEYS:
        keys = key.transpose(0, 1).flatten(1).float()
    return attention, keys


def rows_read(reads: Rows, layout: Layout, row: int, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """The positions whose attention rows a scorer reads, or of keys the text's: none in a row without voting text."""
    if reads is Rows.NONE or not len(text):
        return text[:0]
    if reads is Rows.LAST:
        return text.new_tensor([layout.last(row)])
    if reads is Rows.IMAGE:
        return image
    if reads is Rows.ALL:
        return torch.arange(layout.starts[row], layout.last(row) + 1, device=text.device)
    return text


def _first(mask: torch.Tensor, count: int) -> torch.Tensor:
    return mask.int().argsort(descending=True, stable=True)[:count]
