"""Many budgets of one prompt for the price of one prefill, and a second way to do what `pruner` does.

The vision tower and the decoder layers up to the pruning layer are the same for every strategy and budget, and so are
the scores. They run once; then each kept set goes on from there as a row of one batch. No hooks: the layers after the
pruning layer are called here, on gathered hidden states, so that the two implementations can check each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import BatchFeature, DynamicCache

from lmms_textweighted.engine.caches import CACHE_NAME
from lmms_textweighted.engine.cost import DecoderShape
from lmms_textweighted.engine.decoder import check_layers, end_tokens, find_decoder
from lmms_textweighted.engine.deepstack import Deepstack
from lmms_textweighted.engine.finite import check_finite
from lmms_textweighted.engine.layout import Layout, find_layout, unknown_text
from lmms_textweighted.engine.masks import decoding_mask, prefill_mask
from lmms_textweighted.engine.observe import observing
from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.engine.prefill import image_ranks, positions_of, read, rows_read
from lmms_textweighted.engine.rank import Ranks
from lmms_textweighted.engine.scoring import Rows, Scorer, Seen, choose_tokens, prompt_key
from lmms_textweighted.engine.splice import Splice, removed_at_end
from lmms_textweighted.engine.trace import StageTrace
from lmms_textweighted.errors import PlanError


def can_share(plan: Plan) -> bool:
    """Whether a plan can go on from a shared prefix: it removes once, by scores alone, where it scores, or never.

    Not with pictures of another size: the prefix is of the model's own.
    """
    if plan.picture is not None:
        return False
    return not plan.stages or (
        len(plan.stages) == 1
        and all(
            stage.layer >= 0
            and plan.positions_of(stage) == "keep"
            and stage.scored_at == stage.layer
            and stage.keep_tokens is not None
            and stage.scorer.keeps_the_best
            and stage.scorer.tower_reads is None
            and not stage.divides
            for stage in plan.stages
        )
    )


@dataclass
class Prefix:
    """One prompt, run once. hidden: [1, S, D] after the pruning layer. phases: the rotary ones, [1, S, D] each, of
    all layers. following: the position of the first generated token, which is not S where pictures have several axes
    (M-RoPE). deepstack: the features that the first layers add. scores: of each scorer asked for, [I]. read: the
    positions of the tokens whose rows it read, and their weights; nothing of a scorer that reads none."""

    layer: int
    layout: Layout
    hidden: torch.Tensor
    phases: tuple[torch.Tensor, torch.Tensor]
    following: int
    deepstack: Deepstack | None
    cache: DynamicCache
    scores: dict[Scorer, torch.Tensor] = field(default_factory=dict)
    read: dict[Scorer, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    @property
    def image(self) -> torch.Tensor:
        """Positions of the image tokens, ascending."""
        return (self.layout.image[0] >= 0).nonzero().flatten()

    def keep(self, scorer: Scorer, budget: int, keep_scope: str = "image") -> torch.Tensor:
        """Positions of the `budget` best image tokens, ascending: of each image, or of all images together."""
        sizes = self.layout.image_sizes[0]
        if not sizes:
            return self.image
        chosen, _ = choose_tokens(self.scores[scorer], sizes, lambda size: min(size, budget), keep_scope)
        return self.image[chosen]

    def stage(self, scorer: Scorer, budget: int, keep_scope: str = "image") -> StageTrace:
        """What a pruned prefill's trace says of such a choice. Nothing was timed or counted."""
        nothing = self.image[:0]
        rows, weights = self.read.get(scorer, (nothing, nothing.float()))
        return StageTrace(
            layer=self.layer,
            kept=self.keep(scorer, budget, keep_scope),
            candidates=self.image,
            scores=self.scores[scorer],
            text=rows,
            text_weights=weights,
        )


@dataclass(frozen=True)
class Continuation:
    """One kept set's outcome: the generated tokens, up to and with the end token, and the last layer's ranks."""

    tokens: list[int]
    ranks: Ranks | None


def run_prefix(
    model: Any,
    inputs: BatchFeature,
    layer: int,
    scorers: Sequence[Scorer],
    splice: Splice,
    *,
    seed: int = 0,
    text_scope: str = "after",
    question: torch.Tensor | None = None,
) -> Prefix:
    """Prefill one prompt (batch 1) up to decoder layer `layer` and score its image tokens there.

    splice: as for `prune`, and so text_scope and question, of the one prompt. Raises PlanError for a batch, a padded
    prompt, and a decoder that pruning was not made for.
    """
    decoder = find_decoder(model)
    check_layers(decoder)
    if inputs["input_ids"].shape[0] != 1 or not inputs["attention_mask"].all():
        raise PlanError("the fan-out takes one unpadded prompt at a time: encode it alone")
    layouts: list[Layout] = []
    keys: list[str] = []
    embeddings: list[torch.Tensor | None] = []
    following: list[int] = []
    features: list[Deepstack | None] = []
    scores: dict[Scorer, torch.Tensor] = {}
    rows_of: dict[Scorer, tuple[torch.Tensor, torch.Tensor]] = {}

    def locate(module: nn.Module, args: tuple, kwargs: dict) -> None:
        hidden = kwargs.get("inputs_embeds")
        hidden = kwargs["input_ids"] if hidden is None else hidden  # a text alone may come as its ids
        prompts = splice.prompts(1) or unknown_text(hidden)
        layout = find_layout(prompts, hidden.device, text_scope, [question])
        layouts.append(layout)
        following.append(following_position(kwargs.get("position_ids"), layout.lengths[0]))
        features.append(Deepstack.given(kwargs))
        keys.append(prompt_key(prompts.ids[0].tolist()))
        embeddings.append(hidden[0].float() if hidden.ndim == 3 else None)
        image, text = positions_of(layout, 0)
        for scorer in scorers:
            if scorer.reads is Rows.NONE:
                scores[scorer], _ = scorer.score(seen(scorer, image, text[:0], text))

    def seen(scorer: Scorer, image: torch.Tensor, rows: torch.Tensor, text: torch.Tensor, **more: Any) -> Seen:
        layout = layouts[0]
        entered = embeddings[0] if scorer.needs_embeddings else None
        entered = None if entered is None else entered.to(image.device)
        return Seen(
            image=image,
            rows=rows,
            key=keys[0],
            seed=seed,
            sizes=layout.image_sizes[0],
            text=text,
            positions=torch.arange(layout.lengths[0], device=image.device),
            embeddings=entered,
            image_embeddings=None if entered is None else entered[image],
            **more,
        )

    def score(query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
        layout = layouts[0]
        # With device_map the scored layer may live on another device than the input.
        image, text = (places.to(query.device) for places in positions_of(layout, 0))
        for scorer in scorers:
            if scorer.reads is not Rows.NONE and len(image):
                rows = rows_read(scorer.reads, layout, 0, image, text)
                attention, flat = read(scorer, query[0], key[0], rows, layout.valid[0], scaling)
                found, weights = scorer.score(seen(scorer, image, rows, text, attention=attention, keys=flat))
                scores[scorer] = found.to(layout.image.device)
                rows_of[scorer] = rows.to(layout.image.device), weights.to(layout.image.device)

    cache = DynamicCache(config=decoder.config)
    with contextlib.ExitStack() as stack:
        splice.attach(stack)
        stack.enter_context(removed_at_end(decoder.register_forward_pre_hook(locate, with_kwargs=True)))
        stack.enter_context(observing(decoder.layers[layer].self_attn, score))
        caught = stack.enter_context(stopping_before(decoder, layer + 1))
        stack.enter_context(caught.stopped())
        model(**inputs, **{CACHE_NAME: cache}, use_cache=True)
    hidden, arguments = caught.seen
    phases = arguments["position_embeddings"]
    return Prefix(layer, layouts[0], hidden, phases, following[0], features[0], cache, scores, rows_of)


def following_position(positions: torch.Tensor | None, length: int) -> int:
    """The position behind a prompt's last. positions: as the decoder is given them: none, [1, S], one of each axis
    [3, 1, S], or the plain ones in front of these [4, 1, S]."""
    if positions is None:
        return length
    return int((positions[1:] if positions.ndim == 3 and len(positions) == 4 else positions).max()) + 1


def continue_prefix(
    model: Any, prefix: Prefix, kept: Sequence[torch.Tensor], *, max_new_tokens: int, ranks: bool = False
) -> list[Continuation]:
    """Go on from a prefix with each of several kept sets (image positions), decoding greedily. One batch."""
    decoder = find_decoder(model)
    name, dtype = decoder.config._attn_implementation, prefix.hidden.dtype
    rest = ((prefix.layout.image[0] < 0) & prefix.layout.valid[0]).nonzero().flatten()
    rows = [torch.cat([rest, images]).sort().values for images in kept]
    count, longest = len(rows), max(len(row) for row in rows)
    index = torch.stack([nn.functional.pad(row, (longest - len(row), 0)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows], device=index.device)
    present = torch.arange(longest, device=index.device) >= longest - lengths[:, None]
    even = all(len(row) == longest for row in rows)

    cache = _shared_cache(decoder, prefix, count)
    hidden = prefix.hidden[0][index.to(prefix.hidden.device)]
    found: list[Ranks | None] = [None] * count

    def rank(query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
        for row, images in enumerate(kept):
            if len(images):
                places = torch.searchsorted(rows[row], images) + longest - len(rows[row])
                found[row] = image_ranks(query[row], key[row], places, present[row], scaling)

    def add_features(number: int, hidden: torch.Tensor) -> torch.Tensor:
        return prefix.deepstack.add(decoder, number, hidden, index, present) if prefix.deepstack else hidden

    # Without a mask SDPA and flash are causal by themselves; eager attention would see everything.
    mask = None if even and name != "eager" else prefill_mask(present, name, dtype)
    with observing(decoder.layers[-1].self_attn, rank) if ranks else contextlib.nullcontext():
        where = index.to(prefix.phases[0].device)
        phases = tuple(part[0][where] for part in prefix.phases)
        first, end = prefix.layer + 1, len(decoder.layers)
        hidden = run_layers(decoder, hidden, phases, mask, cache, first, end, behind=add_features)

    following = torch.full((count,), prefix.following, device=hidden.device)
    tokens = decode_rows(
        model, hidden, cache, present, following, split=prefix.layer + 1, even=even, max_new_tokens=max_new_tokens
    )
    return [Continuation(row, ranks_) for row, ranks_ in zip(tokens, found, strict=True)]


def decode_rows(
    model: Any,
    hidden: torch.Tensor,
    cache: DynamicCache,
    present: torch.Tensor,
    following: torch.Tensor,
    *,
    split: int,
    even: bool,
    max_new_tokens: int,
) -> list[list[int]]:
    """Greedy tokens of each row of a prefill, up to and with its end token.

    hidden: [R, S, D], what the last layer put out. cache: of the prefill; the layers before `split` hold no fillers,
    the others those in front of `present` [R, S]; even: there are none. following: [R] the next token's position.
    """
    decoder = find_decoder(model)
    name, dtype = decoder.config._attn_implementation, hidden.dtype
    tokens: list[list[int]] = [[] for _ in hidden]
    ends, going = end_tokens(model), [True] * len(tokens)
    while True:
        logits = model.get_output_embeddings()(decoder.norm(hidden[:, -1:])).float()
        chosen = logits.argmax(dim=-1)
        check_finite(logits.gather(-1, chosen[..., None]), "the model's logits")
        for row, token in enumerate(chosen[:, 0].tolist()):
            if going[row]:
                tokens[row].append(token)
                going[row] = token not in ends and len(tokens[row]) < max_new_tokens
        if not any(going):
            return tokens
        hidden = model.get_input_embeddings()(chosen)
        phases = decoder.rotary_emb(hidden, following[:, None].to(hidden.device))
        hidden = run_layers(decoder, hidden, phases, None, cache, 0, split)
        present = torch.cat([present, present.new_ones(len(tokens), 1)], dim=1)
        mask = None if even else decoding_mask(present, name, dtype)
        hidden = run_layers(decoder, hidden, phases, mask, cache, split, len(decoder.layers))
        following = following + 1


def row_lengths(prefix: Prefix, shape: DecoderShape, kept_tokens: int) -> tuple[list[int], list[int]]:
    """Tokens and image tokens that each decoder layer sees when `kept_tokens` of the prompt's stay."""
    whole, images = prefix.layout.lengths[0], sum(prefix.layout.image_sizes[0])
    before, after = prefix.layer + 1, shape.layers - prefix.layer - 1
    return (
        [whole] * before + [whole - images + kept_tokens] * after,
        [images] * before + [kept_tokens] * after,
    )


def run_layers(
    decoder: Any,
    hidden: torch.Tensor,
    phases: Any,
    mask: torch.Tensor | None,
    cache: DynamicCache,
    start: int,
    stop: int,
    behind: Callable[[int, torch.Tensor], torch.Tensor] = lambda number, hidden: hidden,
) -> torch.Tensor:
    """The hidden states behind layers `start` to `stop`. behind: (layer's number, output) -> what the next one gets."""
    order = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[0], -1)
    for number in range(start, stop):
        output = decoder.layers[number](
            hidden,
            attention_mask=mask,
            position_ids=order,
            position_embeddings=phases,
            **{CACHE_NAME: cache},
            use_cache=True,
        )
        hidden = behind(number, output)
    return hidden


def _shared_cache(decoder: Any, prefix: Prefix, count: int) -> DynamicCache:
    """A cache of `count` rows whose first layers hold the prefix's keys and values."""
    cache = DynamicCache(config=decoder.config)
    for number in range(prefix.layer + 1):
        layer: Any = prefix.cache.layers[number]
        cache.update(layer.keys.expand(count, -1, -1, -1), layer.values.expand(count, -1, -1, -1), number)
    return cache


class _Stopped(Exception):
    """The prefix is done: leave the model's forward."""


@dataclass
class Caught:
    """What a layer was about to be given, once the forward has come to it."""

    _found: list[tuple[torch.Tensor, dict]] = field(default_factory=list)

    @property
    def seen(self) -> tuple[torch.Tensor, dict]:
        """(hidden states, the layer's other arguments)."""
        return self._found[0]

    def stopped(self) -> contextlib.AbstractContextManager[None]:
        """The context in which the model is called: it is left where the layer would have run."""
        return contextlib.suppress(_Stopped)


@contextlib.contextmanager
def stopping_before(decoder: Any, number: int) -> Iterator[Caught]:
    """Keep what enters decoder layer `number`, and stop the forward there."""
    caught = Caught()

    def stop(module: nn.Module, args: tuple, kwargs: dict) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        caught._found.append((hidden, {name: value for name, value in kwargs.items() if name != "hidden_states"}))
        raise _Stopped

    layer: nn.Module = decoder.layers[number]
    with removed_at_end(layer.register_forward_pre_hook(stop, with_kwargs=True)):
        yield caught
