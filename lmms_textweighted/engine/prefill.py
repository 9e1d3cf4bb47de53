"""One prefill under a plan: what its stages saw and chose, layer by layer, for every row of the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lmms_textweighted.engine.cost import DecoderShape
from lmms_textweighted.engine.layout import Layout
from lmms_textweighted.engine.observe import attention_rows
from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.engine.rank import Ranks, attention_ranks
from lmms_textweighted.engine.scoring import Rows, Seen, choose_tokens
from lmms_textweighted.engine.shortened import Shortened, shorten
from lmms_textweighted.engine.trace import DocumentTrace, StageTrace


class Prefill:
    """A batch that runs through the decoder's layers, shorter after every stage.

    layout: of the whole sequences. keys: for each row, what a choice by chance draws from; empty where no stage does.
    documents: the rows' traces, filled in as the layers run. shortened: for each layer, the sequence it runs on where
    that is not the whole one; decoding goes on from it.
    """

    def __init__(
        self, plan: Plan, layout: Layout, shape: DecoderShape, element_size: int, *, keys: Sequence[str], seed: int
    ) -> None:
        self.plan, self.layout, self.keys, self.seed = plan, layout, keys, seed
        self.full_length = layout.valid.shape[1]
        self.shortened: list[Shortened | None] = [None] * shape.layers
        self.documents = [
            DocumentTrace(
                plan=plan,
                shape=shape,
                element_size=element_size,
                full_length=length,
                image_tokens=sum(sizes),
                lengths=[length] * shape.layers,
                image_lengths=[sum(sizes)] * shape.layers,
            )
            for length, sizes in zip(layout.lengths, layout.image_sizes, strict=True)
        ]
        # Of each stage: for every row, scores of its image tokens and weights of the rows that were read.
        self._scored: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def layout_at(self, layer: int) -> Layout:
        """The layout of the sequence that a layer runs on."""
        shortened = self.shortened[layer]
        return self.layout if shortened is None else shortened.layout

    def score(self, place: int, query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
        """Score the plan's stage `place` by its layer's queries and keys, as `observe.observing` hands them out."""
        stage = self.plan.stages[place]
        layout = self.layout_at(stage.scored_at)
        scored = []
        for row in range(query.shape[0]):
            # With device_map the scored layer may live on another device than the input.
            image, text = (places.to(query.device) for places in _positions(layout, row))
            if len(image):
                rows = _rows_read(stage, layout, row, text)
                attention = attention_rows(query[row], key[row], rows, layout.valid[row], scaling)
                scores, weights = stage.scorer.score(self._seen(row, image, rows, attention))
            else:
                scores = weights = query.new_zeros(0, dtype=torch.float32)
            scored.append((scores.to(layout.image.device), weights.to(layout.image.device)))
        self._scored[place] = scored

    def rank(self, layer: int, query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
        """Note the ranks of a layer's image-to-image attention."""
        layout = self.layout_at(layer)
        for row, document in enumerate(self.documents):
            image, _ = _positions(layout, row)
            if len(image):
                document.ranks = image_ranks(query[row], key[row], image, layout.valid[row], scaling)

    def enter(self, layer: int) -> tuple[Shortened | None, torch.Tensor | None]:
        """The sequence that `layer` runs on, None for the whole one, after the stages between it and the layer below.

        Also which positions of the layer below's sequence stay, [B, L]; None where all do.
        """
        current, inner = self.shortened[layer - 1], None
        for place, stage in enumerate(self.plan.stages):
            if stage.layer == layer - 1:
                removed = self._remove(place, stage, current)
                if removed is not None:
                    current, inner = removed, removed.inner
        self.shortened[layer] = current
        if current is not None:
            for row, document in enumerate(self.documents):
                document.lengths[layer] = current.layout.lengths[row]
                document.image_lengths[layer] = sum(current.layout.image_sizes[row])
        return current, inner

    def _remove(self, place: int, stage: Stage, previous: Shortened | None) -> Shortened | None:
        """Choose the tokens that stay after `stage` and note why. None when all of them do."""
        layout = self.layout if previous is None else previous.layout
        stays = layout.valid & (layout.image < 0)
        sizes = []
        for row, document in enumerate(self.documents):
            image, text = _positions(layout, row)
            if stage.scorer.reads is Rows.NONE:
                scores, weights = stage.scorer.score(self._seen(row, image, text[:0]))
            else:
                scores, weights = self._scored[place][row]
            places, kept_sizes = choose_tokens(scores, layout.image_sizes[row], stage.keep, self.plan.keep_scope)
            chosen = image[places]
            stays[row, chosen] = True
            sizes.append(kept_sizes)
            offset = self.layout.starts[row]
            original = torch.arange(self.full_length, device=stays.device) if previous is None else previous.index[row]
            document.stages.append(
                StageTrace(
                    layer=stage.layer,
                    kept=original[chosen] - offset,
                    candidates=original[image] - offset,
                    scores=scores,
                    text=original[_rows_read(stage, layout, row, text if len(image) else text[:0])] - offset,
                    text_weights=weights,
                )
            )
        return None if tuple(sizes) == layout.image_sizes else shorten(layout, stays, tuple(sizes), previous)

    def _seen(self, row: int, image: torch.Tensor, rows: torch.Tensor, attention: torch.Tensor | None = None) -> Seen:
        return Seen(image, rows, attention, self.keys[row] if self.keys else "", self.seed)


def image_ranks(
    query: torch.Tensor, key: torch.Tensor, image: torch.Tensor, valid: torch.Tensor, scaling: float
) -> Ranks:
    """Ranks of one layer's image-to-image attention. query [H, S, D], key [G, S, D], image [I] positions, valid [S].

    Rows are softmaxed over all tokens they can see; the block of image columns is taken as it is.
    """
    image = image.to(query.device)  # with device_map, a layer may live elsewhere
    rows = attention_rows(query, key, image, valid, scaling, mean_over_heads=False)
    return attention_ranks(rows[:, :, image])


def _positions(layout: Layout, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of a row's image tokens and of its text tokens, ascending, without asking the device how many."""
    return (
        _first(layout.image[row] >= 0, sum(layout.image_sizes[row])),
        _first(layout.text[row], layout.text_lengths[row]),
    )


def _rows_read(stage: Stage, layout: Layout, row: int, text: torch.Tensor) -> torch.Tensor:
    """The text positions whose attention rows the stage's scorer reads."""
    if stage.scorer.reads is Rows.NONE or not len(text):
        return text[:0]
    return text.new_tensor([layout.last(row)]) if stage.scorer.reads is Rows.LAST else text


def _first(mask: torch.Tensor, count: int) -> torch.Tensor:
    return mask.int().argsort(descending=True, stable=True)[:count]
