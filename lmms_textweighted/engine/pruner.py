"""Physical removal of image tokens: `with prune(model, plan, splice) as trace: model.generate(...)`.

Works on any model whose decoder is a list of layers that take `hidden_states`, `attention_mask`, `position_ids` and
`position_embeddings` (transformers' Llama, Mistral, Qwen2 and their kin). After a stage's layer the hidden states,
rotary phases and masks of all later layers are gathered to the tokens that stay; their KV cache is written shorter, and
the kept tokens keep their original positions.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from lmms_textweighted.engine.caches import given_cache
from lmms_textweighted.engine.cost import DecoderShape
from lmms_textweighted.engine.decoder import find_decoder
from lmms_textweighted.engine.layout import Layout, Prompts, find_layout, unknown_text
from lmms_textweighted.engine.observe import attention_rows, observing
from lmms_textweighted.engine.plan import Plan, Stage
from lmms_textweighted.engine.rank import Ranks, attention_ranks
from lmms_textweighted.engine.scoring import Rows, Seen, choose_tokens, prompt_key
from lmms_textweighted.engine.shortened import Shortened, shorten, take
from lmms_textweighted.engine.splice import Splice, removed_at_end
from lmms_textweighted.engine.trace import DocumentTrace, StageTrace, Trace
from lmms_textweighted.errors import PlanError

_PRUNED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@contextmanager
def prune(
    model: nn.Module,
    plan: Plan,
    splice: Splice,
    *,
    ranks: bool = False,
    random_keys: Sequence[str] | None = None,
    seed: int = 0,
    question: Sequence[torch.Tensor | None] | None = None,
) -> Iterator[Trace]:
    """Remove image tokens as `plan` says in every forward of `model` while the context is open.

    splice: finds the image tokens in what the model is called with (`lmms_textweighted.prune` gives the one that suits
    the model). A forward with an empty KV cache is a prefill: it is
    scored and pruned. Later forwards with its cache are decoding steps over the shorter cache. Generate with a cache,
    and with the whole prompt in one prefill: without a cache every step is a prefill of its own, and of a prompt in
    chunks (`prefill_chunk_size`) only the first chunk would be scored.

    ranks: also compute the last layer's ranks over the kept image tokens. random_keys: for `random`, one key a row of
    the next prefill's batch; by default the row's unpadded token ids. seed: goes with the keys. question: for plans
    with `text_scope="question"`, for each row of the next prefill a bool tensor over its text tokens in order, True for
    the question's; None for a row without images.

    Yields the Trace, which grows by one DocumentTrace a row and prefill. On leaving, the model is as it was, also after
    an exception. The logits of a pruned prefill are those of the shorter sequence, right-aligned.

    Raises PlanError when the plan does not fit the model or an input.
    """
    session = _Session(model, plan, splice, ranks=ranks, random_keys=random_keys, seed=seed, question=question)
    with ExitStack() as stack:
        session.attach(stack)
        yield session.trace


class _Session:
    """The hooks of one open `prune` context and what they remember between prefill and decoding."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        splice: Splice,
        *,
        ranks: bool,
        random_keys: Sequence[str] | None,
        seed: int,
        question: Sequence[torch.Tensor | None] | None,
    ) -> None:
        self.model, self.plan, self.ranks, self.random_keys, self.seed = model, plan, ranks, random_keys, seed
        self.question = question
        self.decoder = find_decoder(model)
        self.layers: nn.ModuleList = self.decoder.layers
        plan.check(len(self.layers))
        if any(getattr(layer.self_attn, "sliding_window", None) for layer in self.layers):
            raise PlanError(
                "the decoder has sliding-window attention, whose window would count removed tokens: not supported"
            )
        self.splice = splice
        self.shape = DecoderShape.from_config(self.decoder.config)
        self.trace = Trace()
        self.prefilling = False
        self.full_length = 0
        self.cache: weakref.ref | None = None
        self.layout: Layout | None = None
        self.row_keys: list[str] = []
        self.shortened: list[Shortened | None] = []
        self.observed: dict[int, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        self.rows: list[DocumentTrace] = []

    def attach(self, stack: ExitStack) -> None:
        """Put all hooks on; `stack` takes them off again."""
        if self.model in _PRUNED:
            raise PlanError("the model is already inside a prune(): leave that one first")
        _PRUNED.add(self.model)
        stack.callback(_PRUNED.discard, self.model)
        self.splice.attach(stack)
        hook = self.decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True)
        stack.enter_context(removed_at_end(hook))
        for number, layer in enumerate(self.layers):
            if any(number > stage.layer for stage in self.plan.stages):
                hook = layer.register_forward_pre_hook(self._layer_hook(number), with_kwargs=True)
                stack.enter_context(removed_at_end(hook))
        for place, stage in enumerate(self.plan.stages):
            if stage.scorer.reads is not Rows.NONE:
                stack.enter_context(observing(self._attention(stage.scored_at), self._score_observer(place, stage)))
        if self.ranks:
            last = len(self.layers) - 1
            stack.enter_context(observing(self._attention(last), self._rank_observer))

    def _attention(self, layer: int) -> nn.Module:
        return self.decoder.layers[layer].self_attn

    # The whole decoder: prefill or decoding?

    def _before_decoder(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        cache = given_cache(kwargs)
        if cache is not None and not isinstance(cache, DynamicCache):
            raise PlanError(f"the KV cache is a {type(cache).__name__}: pruning needs transformers' DynamicCache")
        self.prefilling = cache is None or cache.get_seq_length() == 0
        if self.prefilling:
            hidden = kwargs.get("inputs_embeds")
            if hidden is None:  # a model of text alone may be given its ids here
                hidden = args[0] if args else kwargs["input_ids"]
            self._begin_prefill(hidden, kwargs.get("attention_mask"))
            self.cache = None if cache is None else weakref.ref(cache)
        elif self.layout is None or (self.cache is not None and self.cache() is not cache):
            raise PlanError("this KV cache was not prefilled under this prune(): prefill inside the context")
        else:
            self.splice.check_step()
            if self.cache is None and cache is not None:
                self.cache = weakref.ref(cache)

    def _begin_prefill(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
        rows, self.full_length = hidden.shape[:2]
        prompts = self.splice.prompts(rows)
        if prompts is None:
            prompts = unknown_text(hidden, attention_mask)
        scope = self.plan.text_scope if self.plan.stages else "after"
        layout = find_layout(prompts, hidden.device, scope, self._by_row(self.question, rows))
        if self.splice.tokens_per_image is not None and self.plan.keep_scope == "image":
            for size in {size for sizes in layout.image_sizes for size in sizes}:
                self.plan.check(len(self.layers), size)
        self.layout = layout
        self.shortened = [None] * len(self.layers)
        self.observed = {}
        self.row_keys = self._keys(prompts)
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

    def _keys(self, prompts: Prompts) -> list[str]:
        if not any(stage.scorer.reads is Rows.NONE for stage in self.plan.stages):
            return []
        keys = self._by_row(self.random_keys, len(prompts.ids))
        if keys is not None:
            return keys
        return [prompt_key(ids[valid].tolist()) for ids, valid in zip(prompts.ids, prompts.valid, strict=True)]

    def _by_row(self, given: Sequence[Any] | None, rows: int) -> list[Any] | None:
        """One entry a row of the decoder's batch: beam search repeats each row."""
        if given is None:
            return None
        beams, rest = divmod(rows, len(given)) if len(given) else (0, rows)
        if rest or not beams:
            name = "random_keys" if given is self.random_keys else "question masks"
            raise PlanError(f"{len(given)} {name} for a batch of {rows}: give one a row")
        return [entry for entry in given for _ in range(beams)]

    # Scoring: called from inside the scored layer's attention.

    def _score_observer(self, place: int, stage: Stage) -> Any:
        def observe(query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
            if not self.prefilling:
                return
            layout = self._layout_at(stage.scored_at)
            scores, weights = [], []
            for row in range(query.shape[0]):
                # With device_map the scored layer may live on another device than the input.
                image, text = (places.to(query.device) for places in _positions(layout, row))
                text = _rows_read(stage, layout, row, text)
                if not len(image):
                    scores.append(query.new_zeros(0, dtype=torch.float32))
                    weights.append(scores[-1])
                    continue
                attention = attention_rows(query[row], key[row], text, layout.valid[row], scaling)
                row_scores, row_weights = stage.scorer.score(self._seen(row, image, text, attention))
                scores.append(row_scores.to(layout.image.device))
                weights.append(row_weights.to(layout.image.device))
            self.observed[place] = (scores, weights)

        return observe

    def _rank_observer(self, query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
        if not self.prefilling:
            return
        layout = self._layout_at(len(self.layers) - 1)
        for row, document in enumerate(self.rows):
            image = _positions(layout, row)[0]
            if len(image):
                document.ranks = image_ranks(query[row], key[row], image, layout.valid[row], scaling)

    def _seen(self, row: int, image: torch.Tensor, rows: torch.Tensor, attention: torch.Tensor | None = None) -> Seen:
        return Seen(image, rows, attention, self.row_keys[row] if self.row_keys else "", self.seed)

    # Removal: called before every layer that may run on fewer tokens.

    def _layer_hook(self, number: int) -> Any:
        def before(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            if self.prefilling:
                return self._shorten(number, args, kwargs)
            shortened = self.shortened[number]
            if shortened is not None:
                kwargs["attention_mask"] = shortened.decoding_mask(
                    kwargs, self.full_length, self._attention_name(), self._dtype()
                )
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
                    hidden = take(hidden, current.inner)
        self.shortened[number] = current
        if current is not None:
            current.fill(kwargs, self._attention_name(), self._dtype())
            for row, document in enumerate(self.rows):
                document.lengths[number] = current.layout.lengths[row]
                document.image_lengths[number] = sum(current.layout.image_sizes[row])
        return (hidden, *args[1:]), kwargs

    def _remove(self, place: int, stage: Stage, previous: Shortened | None) -> Shortened | None:
        """Choose the tokens that stay after `stage` and note why; the same sequence again when all of them do."""
        layout = previous.layout if previous is not None else self._layout()
        stays = layout.valid & (layout.image < 0)
        sizes = []
        for row, document in enumerate(self.rows):
            image, text = _positions(layout, row)
            if stage.scorer.reads is Rows.NONE:
                scores, weights = stage.scorer.score(self._seen(row, image, text[:0]))
            else:
                scores, weights = (part[row] for part in self.observed[place])
            places, kept_sizes = choose_tokens(scores, layout.image_sizes[row], stage.keep, self.plan.keep_scope)
            chosen = image[places]
            stays[row, chosen] = True
            sizes.append(kept_sizes)
            offset = self._layout().starts[row]
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
        if tuple(sizes) == layout.image_sizes:
            return previous
        return shorten(layout, stays, tuple(sizes), previous)

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
