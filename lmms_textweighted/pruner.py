"""Physical removal of image tokens: `with prune(model, plan) as trace: model.generate(...)`.

Works on any model whose decoder is a list of layers that take `hidden_states`, `attention_mask`, `position_ids` and
`position_embeddings` (transformers' Llama, Mistral, Qwen2 and their kin). After a stage's layer the hidden states,
rotary phases and masks of all later layers are gathered to the tokens that stay; their KV cache is written shorter, and
the kept tokens keep their original positions.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from lmms_textweighted.cost import DecoderShape
from lmms_textweighted.errors import PlanError
from lmms_textweighted.layout import Layout, find_layout
from lmms_textweighted.masks import decoding_mask, prefill_mask
from lmms_textweighted.observe import attention_rows, observing
from lmms_textweighted.plan import Plan, Stage
from lmms_textweighted.rank import Ranks, attention_ranks
from lmms_textweighted.scorers import RANDOM, SCORERS, prompt_key, random_scores, score_image_tokens, top_tokens
from lmms_textweighted.trace import DocumentTrace, StageTrace, Trace

_PRUNED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@contextmanager
def prune(
    model: nn.Module,
    plan: Plan,
    *,
    ranks: bool = False,
    random_keys: Sequence[str] | None = None,
    seed: int = 0,
) -> Iterator[Trace]:
    """Remove image tokens as `plan` says in every forward of `model` while the context is open.

    model: a LLaVA of transformers, called with `input_ids`. Image positions are found in the input. A forward with an
    empty KV cache is a prefill: it is scored and pruned. Later forwards with its cache are decoding steps over the
    shorter cache. Generate with a cache, and with the whole prompt in one prefill: without a cache every step is a
    prefill of its own, and of a prompt in chunks (`prefill_chunk_size`) only the first chunk would be scored.

    ranks: also compute the last layer's ranks over the kept image tokens. random_keys: for `random`, one key a row of
    the next prefill's batch; by default the row's unpadded input ids. seed: goes with the keys.

    Yields the Trace, which grows by one DocumentTrace a row and prefill. On leaving, the model is as it was, also after
    an exception. The logits of a pruned prefill are those of the shorter sequence, right-aligned.

    Raises PlanError when the plan does not fit the model or an input.
    """
    session = _Session(model, plan, ranks=ranks, random_keys=random_keys, seed=seed)
    with ExitStack() as stack:
        session.attach(stack)
        yield session.trace


def find_decoder(model: nn.Module) -> Any:
    """The decoder inside a model: the module that owns the list of layers. Raises PlanError when there is none."""
    given: Any = model
    decoder = given.get_decoder() if hasattr(given, "get_decoder") else given
    if not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        raise PlanError(f"{type(model).__name__} has no list of decoder layers: give a LLaVA with a Llama-like decoder")
    return decoder


@dataclass
class _Shortened:
    """The sequence that the layers after a stage see.

    inner: [B, L] positions in the sequence that the stage's layer saw, ascending, right-aligned. index: the same
    tokens' positions in the original sequence. present: bool [B, L], False at fillers in front of shorter rows.
    """

    inner: torch.Tensor
    index: torch.Tensor
    present: torch.Tensor
    layout: Layout
    even: bool  # every row is present throughout
    position_ids: torch.Tensor
    rotary: tuple[torch.Tensor, ...] | None = None
    mask: torch.Tensor | None = None
    mask_made: bool = False


class _Session:
    """The hooks of one open `prune` context and what they remember between prefill and decoding."""

    def __init__(
        self, model: nn.Module, plan: Plan, *, ranks: bool, random_keys: Sequence[str] | None, seed: int
    ) -> None:
        self.model, self.plan, self.ranks, self.random_keys, self.seed = model, plan, ranks, random_keys, seed
        self.decoder = find_decoder(model)
        self.layers: nn.ModuleList = self.decoder.layers
        config: Any = model.config
        plan.check(len(self.layers))
        if any(getattr(layer.self_attn, "sliding_window", None) for layer in self.layers):
            raise PlanError(
                "the decoder has sliding-window attention, whose window would count removed tokens: not supported"
            )
        if getattr(config, "image_token_id", None) is None:
            raise PlanError(f"{type(model).__name__} names no image_token_id in its config: give a LLaVA")
        self.image_token_id: int = config.image_token_id
        self.tokens_per_image = getattr(config, "image_seq_length", None)
        self.shape = DecoderShape.from_config(self.decoder.config)
        self.trace = Trace()
        self.prefilling = False
        self.full_length = 0
        self.cache: weakref.ref | None = None
        self.layout: Layout | None = None
        self.row_keys: list[str] = []
        self.shortened: list[_Shortened | None] = []
        self.observed: dict[int, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        self.rows: list[DocumentTrace] = []

    def attach(self, stack: ExitStack) -> None:
        """Put all hooks on; `stack` takes them off again."""
        if self.model in _PRUNED:
            raise PlanError("the model is already inside a prune(): leave that one first")
        _PRUNED.add(self.model)
        stack.callback(_PRUNED.discard, self.model)
        stack.enter_context(_hook(self.model.register_forward_pre_hook(self._before_model, with_kwargs=True)))
        for number, layer in enumerate(self.layers):
            if any(number > stage.layer for stage in self.plan.stages):
                hook = layer.register_forward_pre_hook(self._layer_hook(number), with_kwargs=True)
                stack.enter_context(_hook(hook))
        for place, stage in enumerate(self.plan.stages):
            if stage.scorer != RANDOM:
                stack.enter_context(observing(self._attention(stage.scored_at), self._score_observer(place, stage)))
        if self.ranks:
            last = len(self.layers) - 1
            stack.enter_context(observing(self._attention(last), self._rank_observer))

    def _attention(self, layer: int) -> nn.Module:
        return self.decoder.layers[layer].self_attn

    # The whole model: prefill or decoding?

    def _before_model(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        input_ids = args[0] if args else kwargs.get("input_ids")
        if input_ids is None:
            raise PlanError("the model was called without input_ids: image positions are read off them")
        cache = kwargs.get("past_key_values")
        if cache is not None and not isinstance(cache, DynamicCache):
            raise PlanError(f"the KV cache is a {type(cache).__name__}: pruning needs transformers' DynamicCache")
        self.prefilling = cache is None or cache.get_seq_length() == 0
        if self.prefilling:
            self._begin_prefill(input_ids, kwargs.get("attention_mask"))
            self.cache = None if cache is None else weakref.ref(cache)
        elif self.layout is None or (self.cache is not None and self.cache() is not cache):
            raise PlanError("this KV cache was not prefilled under this prune(): prefill inside the context")
        elif input_ids.shape[1] > 1 and (input_ids == self.image_token_id).any():
            raise PlanError("image tokens arrive on top of a KV cache: give the whole prompt in one prefill")
        elif self.cache is None and cache is not None:
            self.cache = weakref.ref(cache)

    def _begin_prefill(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
        layout = find_layout(input_ids, attention_mask, self.image_token_id, self.tokens_per_image)
        for sizes in layout.image_sizes:
            for size in sizes:
                self.plan.check(len(self.layers), size)
        self.layout = layout
        self.full_length = input_ids.shape[1]
        self.shortened = [None] * len(self.layers)
        self.observed = {}
        self.row_keys = self._keys(input_ids, layout)
        element_size = next(self.layers.parameters()).element_size()
        self.rows = [
            DocumentTrace(
                plan=self.plan,
                shape=self.shape,
                element_size=element_size,
                full_length=length,
                image_tokens=sum(sizes),
                lengths=[length] * len(self.layers),
                image_lengths=[sum(sizes)] * len(self.layers),
            )
            for length, sizes in zip(layout.lengths, layout.image_sizes, strict=True)
        ]
        self.trace.documents.extend(self.rows)

    def _keys(self, input_ids: torch.Tensor, layout: Layout) -> list[str]:
        if not any(stage.scorer == RANDOM for stage in self.plan.stages):
            return []
        if self.random_keys is not None:
            beams, rest = divmod(len(input_ids), max(1, len(self.random_keys)))
            if rest or not beams:
                raise PlanError(f"{len(self.random_keys)} random_keys for a batch of {len(input_ids)}: give one a row")
            return [key for key in self.random_keys for _ in range(beams)]  # beam search repeats each row
        return [prompt_key(ids[valid].tolist()) for ids, valid in zip(input_ids.cpu(), layout.valid.cpu(), strict=True)]

    # Scoring: called from inside the scored layer's attention.

    def _score_observer(self, place: int, stage: Stage) -> Any:
        scorer = SCORERS[stage.scorer]

        def observe(query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
            if not self.prefilling:
                return
            layout = self._layout_at(stage.scored_at)
            scores, weights = [], []
            for row in range(query.shape[0]):
                # With device_map the scored layer may live on another device than the input.
                image, text = (places.to(query.device) for places in _positions(layout, row))
                text = text[-1:] if scorer.last_row_only else text
                if not len(image):
                    scores.append(query.new_zeros(0, dtype=torch.float32))
                    weights.append(scores[-1])
                    continue
                attention = attention_rows(query[row], key[row], text, layout.valid[row], scaling)
                row_scores, row_weights = score_image_tokens(attention, text, image, scorer)
                scores.append(row_scores.to(layout.image.device))
                weights.append(row_weights.to(layout.image.device))
            self.observed[place] = (scores, weights)

        return observe

    def _rank_observer(self, query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
        if not self.prefilling:
            return
        layout = self._layout_at(len(self.layers) - 1)
        for row, document in enumerate(self.rows):
            image = _positions(layout, row)[0].to(query.device)
            if len(image):
                document.ranks = image_ranks(query[row], key[row], image, layout.valid[row], scaling)

    # Removal: called before every layer that may run on fewer tokens.

    def _layer_hook(self, number: int) -> Any:
        def before(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            if self.prefilling:
                return self._shorten(number, args, kwargs)
            shortened = self.shortened[number]
            if shortened is not None:
                kwargs["attention_mask"] = self._decoding_mask(shortened, kwargs)
            return args, kwargs

        return before

    def _shorten(self, number: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        hidden = args[0] if args else kwargs.pop("hidden_states")
        previous = self.shortened[number - 1]
        current = previous
        for place, stage in enumerate(self.plan.stages):
            if stage.layer == number - 1:
                current = self._remove(place, stage, previous)
                if current is not previous:
                    assert current is not None
                    hidden = _take(hidden, current.inner)
        self.shortened[number] = current
        if current is not None:
            self._fill(current, kwargs)
            for row, document in enumerate(self.rows):
                document.lengths[number] = current.layout.lengths[row]
                document.image_lengths[number] = sum(current.layout.image_sizes[row])
        return (hidden, *args[1:]), kwargs

    def _remove(self, place: int, stage: Stage, previous: _Shortened | None) -> _Shortened | None:
        """Choose the tokens that stay after `stage` and note why; the same sequence again when all of them do."""
        layout = previous.layout if previous is not None else self._layout()
        stays = layout.valid & (layout.image < 0)
        sizes = []
        for row, document in enumerate(self.rows):
            image, text = _positions(layout, row)
            if stage.scorer == RANDOM:
                scores = random_scores(len(image), self.row_keys[row], self.seed).to(stays.device)
                weights = scores.new_zeros(0)
            else:
                scores, weights = (part[row] for part in self.observed[place])
            kept, kept_sizes, start = [image[:0]], [], 0
            for size in layout.image_sizes[row]:
                kept_sizes.append(stage.keep(size))
                kept.append(image[start : start + size][top_tokens(scores[start : start + size], kept_sizes[-1])])
                start += size
            chosen = torch.cat(kept)
            stays[row, chosen] = True
            sizes.append(tuple(kept_sizes))
            offset = self._layout().starts[row]
            original = torch.arange(self.full_length, device=stays.device) if previous is None else previous.index[row]
            document.stages.append(
                StageTrace(
                    layer=stage.layer,
                    kept=original[chosen] - offset,
                    candidates=original[image] - offset,
                    scores=scores,
                    text=original[text[-len(weights) :] if len(weights) else text[:0]] - offset,
                    text_weights=weights,
                )
            )
        if tuple(sizes) == layout.image_sizes:
            return previous
        return self._gathered(layout, stays, tuple(sizes), previous)

    def _gathered(
        self, layout: Layout, stays: torch.Tensor, sizes: tuple[tuple[int, ...], ...], previous: _Shortened | None
    ) -> _Shortened:
        counts = [
            length - sum(old) + sum(new)
            for length, old, new in zip(layout.lengths, layout.image_sizes, sizes, strict=True)
        ]
        longest = max(counts)
        # A stable sort puts what leaves in front, in order; the last `longest` columns hold all that stays.
        inner = stays.int().argsort(dim=1, stable=True)[:, -longest:]
        index = inner if previous is None else previous.index.gather(1, inner)
        present = stays.gather(1, inner)
        return _Shortened(
            inner=inner,
            index=index,
            present=present,
            layout=layout.select(inner, present, sizes),
            even=min(counts) == longest,
            position_ids=torch.arange(longest, device=inner.device).expand(len(counts), -1),
        )

    def _fill(self, shortened: _Shortened, kwargs: dict) -> None:
        """Replace the layer's arguments by those of the shorter sequence; they are made once for all its layers."""
        if shortened.rotary is None:
            rows = shortened.index.shape[0]
            shortened.rotary = tuple(
                _take(part.expand(rows, -1, -1), shortened.index) for part in kwargs["position_embeddings"]
            )
        if not shortened.mask_made:
            whole = kwargs.get("attention_mask") is None and shortened.even
            shortened.mask = None if whole else prefill_mask(shortened.present, self._attention_name(), self._dtype())
            shortened.mask_made = True
        kwargs["position_embeddings"] = shortened.rotary
        kwargs["attention_mask"] = shortened.mask
        if kwargs.get("position_ids") is not None:
            # Without gaps: flash attention reads gaps as packed sequences. The rotary phases are already chosen.
            kwargs["position_ids"] = shortened.position_ids

    def _decoding_mask(self, shortened: _Shortened, kwargs: dict) -> torch.Tensor | None:
        """The mask of a decoding step over this layer's shorter cache. The given one is sized by layer 0's cache."""
        mask = kwargs.get("attention_mask")
        if mask is None and shortened.even:
            return None
        rows = shortened.index.shape[0]
        if mask is None:  # transformers leaves out a mask that hides nothing: one new token sees all
            length = kwargs["past_key_values"].get_seq_length()
            new = shortened.present.new_ones(rows, length - self.full_length)
            present = torch.cat([shortened.present, new], dim=1)
            return decoding_mask(present, self._attention_name(), self._dtype())
        length = mask.shape[-1]
        new = torch.arange(self.full_length, length, device=mask.device).expand(rows, -1)
        keys = torch.cat([shortened.index, new], dim=1)
        present = torch.cat([shortened.present, torch.ones_like(new, dtype=torch.bool)], dim=1)
        if mask.ndim == 2:
            return mask.expand(rows, -1).gather(1, keys) * present.to(mask.dtype)
        mask = mask.expand(rows, -1, -1, -1)
        gathered = mask.gather(3, keys[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1))
        return _hide(gathered, ~present[:, None, None, :])

    # Small look-ups.

    def _layout(self) -> Layout:
        assert self.layout is not None
        return self.layout

    def _layout_at(self, layer: int) -> Layout:
        shortened = self.shortened[layer]
        return self._layout() if shortened is None else shortened.layout

    def _attention_name(self) -> str:
        return self.decoder.config._attn_implementation

    def _dtype(self) -> torch.dtype:
        return next(self.layers.parameters()).dtype


def image_ranks(
    query: torch.Tensor, key: torch.Tensor, image: torch.Tensor, valid: torch.Tensor, scaling: float
) -> Ranks:
    """Ranks of one layer's image-to-image attention. query [H, S, D], key [G, S, D], image [I] positions, valid [S].

    Rows are softmaxed over all tokens they can see; the block of image columns is taken as it is.
    """
    rows = attention_rows(query, key, image, valid, scaling, mean_over_heads=False)
    return attention_ranks(rows[:, :, image])


@contextmanager
def _hook(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _positions(layout: Layout, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of a row's image tokens and of its text tokens, ascending, without asking the device how many."""
    return (
        _first(layout.image[row] >= 0, sum(layout.image_sizes[row])),
        _first(layout.text[row], layout.text_lengths[row]),
    )


def _first(mask: torch.Tensor, count: int) -> torch.Tensor:
    return mask.int().argsort(descending=True, stable=True)[:count]


def _take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """values [B, S, D] at index [B, L] -> [B, L, D]."""
    index = index.to(values.device)
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def _hide(mask: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    if mask.dtype == torch.bool:
        return mask & ~hidden
    return mask.masked_fill(hidden, torch.finfo(mask.dtype).min)
