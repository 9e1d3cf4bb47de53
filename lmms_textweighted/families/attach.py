"""The engine, attached to a model whose family it need not know: `prune` and `run_prefix` with the splice that fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import BatchFeature

from lmms_textweighted.engine import entrance, fanout, pruner
from lmms_textweighted.engine.decoder import find_decoder
from lmms_textweighted.engine.entrance import Entrance
from lmms_textweighted.engine.fanout import Prefix
from lmms_textweighted.engine.finite import check_finite
from lmms_textweighted.engine.generating import refusing
from lmms_textweighted.engine.masks import check_kernel
from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.engine.scoring import Scorer
from lmms_textweighted.engine.text_tower import TextTower
from lmms_textweighted.engine.trace import Trace
from lmms_textweighted.errors import PlanError
from lmms_textweighted.families.known import splice_of
from lmms_textweighted.families.text_tower import check_text_tower


@contextmanager
def prune(
    model: Any,
    plan: Plan,
    *,
    ranks: bool = False,
    random_keys: Sequence[str] | None = None,
    seed: int = 0,
    question: Sequence[torch.Tensor | None] | None = None,
    image_sizes: Sequence[Sequence[int]] | None = None,
    text_tower: TextTower | None = None,
    texts: Sequence[str | None] | None = None,
) -> Iterator[Trace]:
    """Remove image tokens as `plan` says in every forward of `model` while the context is open.

    model: one of transformers of a known family (`families.known`) called with `input_ids`, or one of the `llava`
    package called with its `images`. Image positions are found in the input. image_sizes: for each row of the next
    prefill, the number of tokens of each of its pictures, where the processor said so; else they are counted by the
    family's own rule. text_tower: what `families.text_tower.load_text_tower` gives, for `cdpruner` and `trim`, and
    texts: for each row of the next prefill what the user says, without `<image>`. Everything else as for
    `engine.pruner.prune`: what ranks, random_keys, seed and question mean, what is yielded, and how to generate.

    Raises PlanError when the model is of no known family, or is compiled, or has layers that pruning was not made for;
    when the plan does not fit the model or an input; and when `generate` is asked for what pruning cannot do.
    """
    _check(model)
    splice = splice_of(model)
    splice.stated = image_sizes
    if text_tower is not None and plan.reads_text:
        check_text_tower(text_tower, model)
    given: dict[str, Any] = {"random_keys": random_keys, "seed": seed, "question": question}
    with (
        pruner.prune(model, plan, splice, ranks=ranks, text_tower=text_tower, texts=texts, **given) as trace,
        refusing(model),
    ):
        yield trace


def run_prefix(
    model: Any,
    inputs: BatchFeature,
    layer: int,
    scorers: Sequence[Scorer],
    *,
    image_sizes: Sequence[Sequence[int]] | None = None,
    **options: Any,
) -> Prefix:
    """`engine.fanout.run_prefix` of a model of any family. image_sizes: as for `prune`, and so what is raised."""
    _check(model)
    splice = splice_of(model)
    splice.stated = image_sizes
    prefix = fanout.run_prefix(model, inputs, layer, scorers, splice, **options)
    for scorer, scores in prefix.scores.items():
        check_finite(scores, f"the image tokens' scores by {scorer.name}")
    return prefix


def run_entrance(
    model: Any,
    inputs: BatchFeature,
    plans: Sequence[Plan],
    *,
    image_sizes: Sequence[Sequence[int]] | None = None,
    text_tower: TextTower | None = None,
    **options: Any,
) -> Entrance:
    """`engine.entrance.run_entrance` of a model of any family. Everything as for `prune`, and so what is raised."""
    _check(model)
    splice = splice_of(model)
    splice.stated = image_sizes
    if text_tower is not None and any(plan.reads_text for plan in plans):
        check_text_tower(text_tower, model)
    return entrance.run_entrance(model, inputs, plans, splice, text_tower=text_tower, **options)


def _check(model: Any) -> None:
    """Raise PlanError for a model whose forward would not do what the hooks tell it."""
    if hasattr(model, "_orig_mod"):
        raise PlanError(
            "the model is wrapped by torch.compile, whose graph knows nothing of pruning: give the model inside, "
            "prune(model._orig_mod, …), and call that one inside the block"
        )
    if isinstance(model, torch.nn.Module) and any(part._compiled_call_impl is not None for part in model.modules()):
        raise PlanError(
            "the model or a part of it was compiled in place (model.compile()), and its graph knows nothing of "
            "pruning: load it anew and do not compile it"
        )
    splice_of(model)  # says by itself what is no LLaVA
    check_kernel(find_decoder(model).config._attn_implementation)
