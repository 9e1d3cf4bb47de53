"""Many plans that remove before layer 0, of one prompt: the vision tower and the embeddings are made once for all.

What `fanout` is for methods that remove in the model. Each plan chooses from what entered the decoder, as under
`prune`, and goes on as a row of one batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import nn
from transformers import BatchFeature, DynamicCache

from lmms_textweighted.engine.caches import CACHE_NAME
from lmms_textweighted.engine.cost import DecoderShape
from lmms_textweighted.engine.decoder import check_layers, find_decoder
from lmms_textweighted.engine.deepstack import Deepstack
from lmms_textweighted.engine.fanout import Continuation, decode_rows, following_position, run_layers, stopping_before
from lmms_textweighted.engine.finite import check_finite
from lmms_textweighted.engine.grids import Grid
from lmms_textweighted.engine.layers import EMBEDDINGS
from lmms_textweighted.engine.layout import Prompts, find_layout, unknown_text
from lmms_textweighted.engine.masks import prefill_mask
from lmms_textweighted.engine.observe import observing
from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.engine.prefill import Prefill, image_ranks
from lmms_textweighted.engine.rank import Ranks
from lmms_textweighted.engine.scoring import prompt_key
from lmms_textweighted.engine.splice import Splice, removed_at_end
from lmms_textweighted.engine.text_tower import TextTower
from lmms_textweighted.engine.tower import Spent, TowerReads, TowerSeen, Watch
from lmms_textweighted.engine.trace import DocumentTrace
from lmms_textweighted.errors import PlanError


def can_enter(plan: Plan) -> bool:
    """Whether a plan removes once, before layer 0, from pictures of the model's own size."""
    return plan.picture is None and [stage.layer for stage in plan.stages] == [EMBEDDINGS]


@dataclass
class Entrance:
    """One prompt as it enters the decoder. hidden: [1, S, D]. arguments: those of layer 0. following: the position of
    the first generated token. tower, spent: what was seen of the vision tower, and what that took. grids: which
    patch each image token is, where that is known."""

    prompts: Prompts
    hidden: torch.Tensor
    arguments: dict[str, Any]
    following: int
    deepstack: Deepstack | None
    tower: list[Callable[[torch.Tensor], TowerSeen] | None]
    spent: Spent
    seed: int
    question: torch.Tensor | None
    grids: list[list[Grid]] | None = None


@dataclass
class _Row:
    """What one plan made of it: [n, D], rotary phases of [n, d] each, places in the original prompt, and of its image
    tokens in the row; the position that follows."""

    trace: DocumentTrace
    hidden: torch.Tensor
    phases: tuple[torch.Tensor, ...]
    index: torch.Tensor
    image: torch.Tensor
    following: int


def run_entrance(
    model: Any,
    inputs: BatchFeature,
    plans: Sequence[Plan],
    splice: Splice,
    *,
    seed: int = 0,
    question: torch.Tensor | None = None,
    text_tower: TextTower | None = None,
    texts: Sequence[str | None] | None = None,
) -> Entrance:
    """Run one prompt (batch 1) up to the decoder's first layer, with all that the plans look at in the vision tower.

    splice, seed, text_tower and texts: as for `prune`, and question, of the one prompt. Raises PlanError for a batch, a
    padded prompt, a plan that does not `can_enter`, and as `prune` does.
    """
    decoder = find_decoder(model)
    check_layers(decoder)
    if inputs["input_ids"].shape[0] != 1 or not inputs["attention_mask"].all():
        raise PlanError("the fan-out takes one unpadded prompt at a time: encode it alone")
    wrong = next((plan for plan in plans if not can_enter(plan)), None)
    if wrong is not None:
        raise PlanError(f"plan {wrong.name!r} does not remove once, before layer 0: prune with it alone")
    reads = [(plan, stage.scorer.tower_reads) for plan in plans for stage in plan.stages]
    wanted = [(plan, read) for plan, read in reads if read is not None]
    # A tower that lacks something is named together with the first plan that needs it.
    needing = next((plan for plan, read in wanted if read.needs_class_token), wanted[0][0] if wanted else None)
    watch = None
    if needing is not None:
        name = needing.name or needing.stages[0].scorer.name
        watch = Watch(splice.tower(), reduce(TowerReads.__or__, (read for _, read in wanted)), name, text_tower)
    found: list[tuple[Prompts, int, Deepstack | None]] = []

    def locate(module: nn.Module, args: tuple, kwargs: dict) -> None:
        hidden = kwargs.get("inputs_embeds")
        hidden = kwargs["input_ids"] if hidden is None else hidden  # a text alone may come as its ids
        prompts = splice.prompts(1) or unknown_text(hidden)
        length = find_layout(prompts, hidden.device, "after", [None]).lengths[0]
        found.append((prompts, following_position(kwargs.get("position_ids"), length), Deepstack.given(kwargs)))

    with contextlib.ExitStack() as stack:
        splice.attach(stack)
        if watch is not None:
            watch.attach(stack, model)
        stack.enter_context(removed_at_end(decoder.register_forward_pre_hook(locate, with_kwargs=True)))
        caught = stack.enter_context(stopping_before(decoder, 0))
        stack.enter_context(caught.stopped())
        model(**inputs, **{CACHE_NAME: DynamicCache(config=decoder.config)}, use_cache=True)
    ((prompts, following, deepstack),) = found
    tower = [] if watch is None else watch.taken(prompts, texts)
    spent = Spent() if watch is None else watch.spent
    hidden, arguments = caught.seen
    grids = prompts.grids_of_rows(splice.tokens_per_image)
    return Entrance(prompts, hidden, arguments, following, deepstack, tower, spent, seed, question, grids)


def enter(model: Any, entrance: Entrance, plan: Plan) -> DocumentTrace:
    """What a plan keeps of a prompt and why, without running any layer."""
    return _row(model, find_decoder(model), entrance, plan).trace


def continue_entrance(
    model: Any, entrance: Entrance, plans: Sequence[Plan], *, max_new_tokens: int, ranks: bool = False
) -> list[tuple[Continuation, DocumentTrace]]:
    """Go on from a prompt's entrance under each of several plans, decoding greedily. One batch."""
    decoder = find_decoder(model)
    name, dtype = decoder.config._attn_implementation, entrance.hidden.dtype
    rows = [_row(model, decoder, entrance, plan) for plan in plans]
    longest = max(len(row.hidden) for row in rows)
    hidden = torch.stack([_padded(row.hidden, longest) for row in rows])
    phases = tuple(
        torch.stack([_padded(part, longest) for part in parts]) for parts in zip(*(r.phases for r in rows), strict=True)
    )
    index = torch.stack([_padded(row.index, longest) for row in rows])
    lengths = torch.tensor([len(row.hidden) for row in rows], device=index.device)
    present = torch.arange(longest, device=index.device) >= longest - lengths[:, None]
    even = all(len(row.hidden) == longest for row in rows)
    found: list[Ranks | None] = [None] * len(rows)

    def rank(query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
        for place, (row, plan) in enumerate(zip(rows, plans, strict=True)):
            if len(row.image) and not plan.unranked:
                image = row.image + longest - len(row.hidden)
                found[place] = image_ranks(query[place], key[place], image, present[place], scaling)

    def add_features(number: int, hidden: torch.Tensor) -> torch.Tensor:
        deepstack = entrance.deepstack
        return deepstack.add(decoder, number, hidden, index, present) if deepstack else hidden

    cache = DynamicCache(config=decoder.config)
    # Without a mask SDPA and flash are causal by themselves; eager attention would see everything.
    mask = None if even and name != "eager" else prefill_mask(present, name, dtype)
    with observing(decoder.layers[-1].self_attn, rank) if ranks else contextlib.nullcontext():
        hidden = run_layers(decoder, hidden, phases, mask, cache, 0, len(decoder.layers), behind=add_features)
    following = torch.tensor([row.following for row in rows], device=hidden.device)
    tokens = decode_rows(model, hidden, cache, present, following, split=0, even=even, max_new_tokens=max_new_tokens)
    for row, ranked in zip(rows, found, strict=True):
        row.trace.ranks = ranked
    return [(Continuation(made, row.trace.ranks), row.trace) for made, row in zip(tokens, rows, strict=True)]


def _row(model: Any, decoder: Any, entrance: Entrance, plan: Plan) -> _Row:
    hidden = entrance.hidden
    plan.check(len(decoder.layers))
    layout = find_layout(entrance.prompts, hidden.device, plan.text_scope, [entrance.question])
    prefill = Prefill(
        plan,
        layout,
        decoder,
        DecoderShape.from_config(decoder.config),
        keys=[prompt_key(entrance.prompts.ids[0].tolist())],
        seed=entrance.seed,
        tower=entrance.tower,
        tower_spent=entrance.spent,
        grids=entrance.grids,
    )
    short = prefill.enter(0, decoder.layers[0], hidden, entrance.arguments)
    (trace,) = prefill.documents
    (stage,) = trace.stages
    check_finite(stage.scores, f"the image tokens' scores by {plan.stages[0].scorer.name}")
    trace.lengths = trace.lengths[:1] * len(trace.lengths)
    trace.image_lengths = trace.image_lengths[:1] * len(trace.image_lengths)
    shortened = prefill.shortened[0]
    if shortened is None:
        phases, index = entrance.arguments["position_embeddings"], torch.arange(hidden.shape[1], device=hidden.device)
        following, image = entrance.following, layout.image[0] >= 0
    else:
        phases, index = shortened.phases(short, entrance.arguments), shortened.index[0]
        following = entrance.following if shortened.renumbered is None else short.shape[1]
        image = shortened.layout.image[0] >= 0
    return _Row(trace, short[0], tuple(part[0] for part in phases), index, image.nonzero().flatten(), following)


def _padded(values: torch.Tensor, length: int) -> torch.Tensor:
    """[n, …] -> [length, …], zeros in front."""
    return torch.cat([values.new_zeros(length - len(values), *values.shape[1:]), values])
