"""Physical removal of image tokens: `with prune(model, plan, splice) as trace: model.generate(...)`.

Works on any model whose decoder is a list of layers that take `hidden_states`, `attention_mask`, `position_ids` and
`position_embeddings` (transformers' Llama, Mistral, Qwen2 and their kin). After a stage's layer the hidden states,
rotary phases and masks of all later layers are gathered to the tokens that stay; their KV cache is written shorter, and
the kept tokens keep their original positions.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from lmms_textweighted.engine import deepstack
from lmms_textweighted.engine.caches import given_cache
from lmms_textweighted.engine.cost import DecoderShape
from lmms_textweighted.engine.decoder import check_layers, find_decoder
from lmms_textweighted.engine.layout import Prompts, find_layout, unknown_text
from lmms_textweighted.engine.observe import observing
from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.engine.prefill import Prefill
from lmms_textweighted.engine.scoring import Rows, prompt_key
from lmms_textweighted.engine.splice import Splice, removed_at_end, replaced
from lmms_textweighted.engine.text_tower import TextTower
from lmms_textweighted.engine.tower import TowerReads, Watch
from lmms_textweighted.engine.trace import Trace
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
    text_tower: TextTower | None = None,
    texts: Sequence[str | None] | None = None,
) -> Iterator[Trace]:
    """Remove image tokens as `plan` says in every forward of `model` while the context is open.

    splice: finds the image tokens in what the model is called with (`lmms_textweighted.prune` gives the one that suits
    the model). A forward with an empty KV cache is a prefill: it is scored and pruned. Later forwards with its cache
    are decoding steps over the shorter cache. Generate with a cache, and with the whole prompt in one prefill: without
    a cache every step is a prefill of its own, and of a prompt in chunks (`prefill_chunk_size`) only the first chunk
    would be scored.

    ranks: also compute the last layer's ranks over the kept image tokens. random_keys: for `random`, one key a row of
    the next prefill's batch; by default the row's unpadded token ids. seed: goes with the keys. question: for plans
    with `text_scope="question"`, for each row of the next prefill a bool tensor over its text tokens in order, True for
    the question's; None for a row without images. text_tower, texts: for plans that compare patches with the question
    as CLIP does, its text tower, and for each row of the next prefill what the user says; None for a row without
    images.

    Yields the Trace, which grows by one DocumentTrace a row and prefill. On leaving, the model is as it was, also after
    an exception. The logits of a pruned prefill are those of the shorter sequence, right-aligned.

    Raises PlanError when the plan does not fit the model or an input.
    """
    session = _Session(
        model,
        plan,
        splice,
        ranks=ranks,
        random_keys=random_keys,
        seed=seed,
        question=question,
        text_tower=text_tower,
        texts=texts,
    )
    with ExitStack() as stack:
        session.attach(stack)
        yield session.trace


class _Session:
    """The hooks of one open `prune` context. What they find out in a prefill stands in its `Prefill`."""

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
        text_tower: TextTower | None,
        texts: Sequence[str | None] | None,
    ) -> None:
        self.model, self.plan, self.splice, self.ranks = model, plan, splice, ranks
        self.random_keys, self.seed, self.question, self.texts = random_keys, seed, question, texts
        self.decoder = find_decoder(model)
        self.layers: nn.ModuleList = self.decoder.layers
        plan.check(len(self.layers))
        check_layers(self.decoder)
        self.shape = DecoderShape.from_config(self.decoder.config)
        self.trace = Trace()
        self.prefill: Prefill | None = None
        self.prefilling = False
        self.running: int | None = None  # the layer that ran last, of those that may run on fewer tokens
        self.cache: weakref.ref | None = None
        scorers = [stage.scorer for stage in plan.stages if stage.scorer.tower_reads is not None]
        wanted = [scorer.tower_reads for scorer in scorers if scorer.tower_reads is not None]
        name = plan.name or ", ".join(scorer.name for scorer in scorers)  # a fan-out's plans have no name
        reads = functools.reduce(TowerReads.__or__, wanted, TowerReads())
        self.watch = Watch(splice.tower(), reads, name, text_tower) if wanted else None

    def attach(self, stack: ExitStack) -> None:
        """Put all hooks on; `stack` takes them off again."""
        if self.model in _PRUNED:
            raise PlanError("the model is already inside a prune(): leave that one first")
        _PRUNED.add(self.model)
        stack.callback(_PRUNED.discard, self.model)
        self.splice.attach(stack)
        if self.watch is not None:
            self.watch.attach(stack, self.model)
        hook = self.decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True)
        stack.enter_context(removed_at_end(hook))
        for number, layer in enumerate(self.layers):
            embeddings = number == 0 and any(stage.scorer.needs_embeddings for stage in self.plan.stages)
            if embeddings or any(number > stage.layer for stage in self.plan.stages):
                hook = layer.register_forward_pre_hook(partial(self._before_layer, number), with_kwargs=True)
                stack.enter_context(removed_at_end(hook))
        process = getattr(self.decoder, deepstack.NAME, None)
        if process is not None:
            stack.enter_context(replaced(self.decoder, deepstack.NAME, partial(self._deepstack, process)))
        for place, stage in enumerate(self.plan.stages):
            if stage.scorer.reads is not Rows.NONE and not stage.scored_ahead:
                self._observe(stack, stage.scored_at, partial(Prefill.score, place=place))
        if self.ranks:
            last = len(self.layers) - 1
            self._observe(stack, last, partial(Prefill.rank, layer=last))

    def _observe(self, stack: ExitStack, layer: int, note: Callable[..., None]) -> None:
        """Hand a layer's queries and keys to the prefill while there is one."""

        def observe(query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
            if self.prefilling:
                note(self.prefill, query=query, key=key, scaling=scaling)

        stack.enter_context(observing(self._attention(layer), observe))

    def _deepstack(
        self, process: Callable[..., Any], hidden: torch.Tensor, places: torch.Tensor, features: torch.Tensor
    ) -> Any:
        """The features that the layer which ran last adds, for the tokens that it ran on."""
        prefill = self.prefill if self.prefilling else None
        shortened = None if prefill is None or self.running is None else prefill.shortened[self.running]
        if shortened is not None:
            numbers = deepstack.running_numbers(places)
            places, features = deepstack.taken(places, numbers, features, shortened.index, shortened.present)
        return process(hidden, places, features)

    def _attention(self, layer: int) -> nn.Module:
        return self.decoder.layers[layer].self_attn

    def _before_decoder(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Prefill or decoding step? An empty cache tells."""
        cache = given_cache(kwargs)
        if cache is not None and not isinstance(cache, DynamicCache):
            raise PlanError(f"the KV cache is a {type(cache).__name__}: pruning needs transformers' DynamicCache")
        self.prefilling = cache is None or cache.get_seq_length() == 0
        if self.prefilling:
            hidden = kwargs.get("inputs_embeds")
            if hidden is None:  # a model of text alone may be given its ids here
                hidden = args[0] if args else kwargs["input_ids"]
            self.prefill = self._begin(hidden, kwargs.get("attention_mask"))
            self.trace.documents.extend(self.prefill.documents)
            self.running = None
            self.cache = None if cache is None else weakref.ref(cache)
        elif self.prefill is None or (self.cache is not None and self.cache() is not cache):
            raise PlanError("this KV cache was not prefilled under this prune(): prefill inside the context")
        else:
            self.splice.check_step()
            if self.cache is None and cache is not None:
                self.cache = weakref.ref(cache)

    def _begin(self, hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> Prefill:
        rows = hidden.shape[0]
        prompts = self.splice.prompts(rows)
        if prompts is None:
            prompts = unknown_text(hidden, attention_mask)
        scope = self.plan.text_scope if self.plan.stages else "after"
        layout = find_layout(prompts, hidden.device, scope, _by_row(self.question, "question masks", rows))
        picture = self.plan.picture
        if picture is not None or (self.splice.tokens_per_image is not None and self.plan.keep_scope == "image"):
            for size in {size for sizes in layout.image_sizes for size in sizes}:
                if picture is not None and size != picture.tokens:
                    raise PlanError(
                        f"plan {self.plan.name!r} is for pictures of {picture.tokens} tokens, but one has {size}: "
                        f"prepare them inside of families.downsample.downsampled"
                    )
                self.plan.check(len(self.layers), size if picture is None else picture.of)
        tower = () if self.watch is None else self.watch.taken(prompts, _by_row(self.texts, "texts", rows))
        return Prefill(
            self.plan,
            layout,
            self.decoder,
            self.shape,
            keys=self._keys(prompts),
            seed=self.seed,
            tower=tower,
            tower_spent=None if self.watch is None else self.watch.spent,
            grids=prompts.grids_of_rows(self.splice.tokens_per_image),
        )

    def _keys(self, prompts: Prompts) -> Sequence[str]:
        if not any(stage.scorer.reads is Rows.NONE for stage in self.plan.stages):
            return ()
        keys = _by_row(self.random_keys, "random_keys", len(prompts.ids))
        if keys is not None:
            return keys
        return [prompt_key(ids[valid].tolist()) for ids, valid in zip(prompts.ids, prompts.valid, strict=True)]

    def _before_layer(self, number: int, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Give a layer that may run on fewer tokens the arguments of its own sequence."""
        prefill = self.prefill
        if prefill is None:
            return args, kwargs
        kernel, dtype = self.decoder.config._attn_implementation, next(self.layers.parameters()).dtype
        hidden = args[0] if args else kwargs["hidden_states"]
        if not self.prefilling:
            shortened = prefill.shortened[number]
            if shortened is not None:
                shortened.step_phases(hidden, kwargs)
                kwargs["attention_mask"] = (
                    shortened.own_decoding_mask(
                        given_cache(kwargs).get_seq_length(number), hidden.shape[1], kernel, dtype
                    )
                    if prefill.shortened[0] is not None  # the given mask is sized by layer 0's cache
                    else shortened.decoding_mask(kwargs, prefill.full_length, kernel, dtype)
                )
            return args, kwargs
        if any(isinstance(value, torch.Tensor) for value in args[1:]):
            raise PlanError(
                f"decoder layer {number} is given a second tensor besides its hidden states, of which nothing is known "
                f"here: removal from it is not supported"
            )
        kwargs.pop("hidden_states", None)
        self.running = number
        hidden = prefill.enter(number, module, hidden, kwargs)
        shortened = prefill.shortened[number]
        if shortened is not None:
            shortened.fill(hidden, kwargs, kernel, dtype)
        return (hidden, *args[1:]), kwargs


def _by_row(given: Sequence[Any] | None, name: str, rows: int) -> list[Any] | None:
    """One entry a row of the decoder's batch: beam search repeats each row."""
    if given is None:
        return None
    beams, rest = divmod(rows, len(given)) if len(given) else (0, rows)
    if rest or not beams:
        raise PlanError(f"{len(given)} {name} for a batch of {rows}: give one a row")
    return [entry for entry in given for _ in range(beams)]
