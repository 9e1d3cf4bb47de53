"""The engine, attached to a model whose family it need not know: `prune` and `run_prefix` with the splice that fits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import BatchFeature

from lmms_textweighted.engine import fanout, pruner
from lmms_textweighted.engine.fanout import Prefix
from lmms_textweighted.engine.plan import Plan
from lmms_textweighted.engine.scoring import Scorer
from lmms_textweighted.engine.trace import Trace
from lmms_textweighted.families.known import splice_of


def prune(
    model: Any,
    plan: Plan,
    *,
    ranks: bool = False,
    random_keys: Sequence[str] | None = None,
    seed: int = 0,
    question: Sequence[torch.Tensor | None] | None = None,
) -> AbstractContextManager[Trace]:
    """Remove image tokens as `plan` says in every forward of `model` while the context is open.

    model: a LLaVA of transformers (1.5, NeXT, OneVision) called with `input_ids`, or one of the `llava` package called
    with its `images`. Image positions are found in the input. Everything else as for `engine.pruner.prune`: what ranks,
    random_keys, seed and question mean, what is yielded, and how to generate.

    Raises PlanError when the model is no such LLaVA, or the plan does not fit the model or an input.
    """
    return pruner.prune(
        model, plan, splice_of(model), ranks=ranks, random_keys=random_keys, seed=seed, question=question
    )


def run_prefix(model: Any, inputs: BatchFeature, layer: int, scorers: Sequence[Scorer], **options: Any) -> Prefix:
    """`engine.fanout.run_prefix` of a model of any family."""
    return fanout.run_prefix(model, inputs, layer, scorers, splice_of(model), **options)
