"""The project's own method: every text token's attention to the image counts, weighted by the attention it receives.

    s_k = sum_{i in T} w_i A[i, k]        k in I

`A` is one layer's attention, mean over heads, `T` the text tokens that vote and `I` the image tokens. `TextWeighting`
has the formula's choices as options: what makes a text token important, and what becomes of the heads.

Prior art: AdaptInfer (arXiv 2508.06084, August 2025) weights text rows by text-to-text attention, too: there the
attention that a token receives plus the attention that it gives, head by head, at three layers (`adaptinfer.py`). Here
it is the received part alone, of the mean over heads, once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from lmms_textweighted.engine.scoring import Rows, Scorer, Seen, given_attention
from lmms_textweighted.errors import PlanError, unknown
from lmms_textweighted.methods.base import OneStage
from lmms_textweighted.methods.uniform import uniform_weights


def column_sum_weights(text_attention: torch.Tensor) -> torch.Tensor:
    """w_i = sum_j A[j, i] / sum_i sum_j A[j, i] over the text tokens: the attention a token receives.

    text_attention: [..., T, T], rows are queries. Returns [..., T], summing to 1. Source: the text-weighted method's
    formula (README: "Strategies"). Under a causal mask early tokens are seen by more rows and so weigh more; see
    `debiased_column_sum_weights`.
    """
    return _normalised(text_attention.sum(dim=-2))


def debiased_column_sum_weights(text_attention: torch.Tensor) -> torch.Tensor:
    """`column_sum_weights` with each sum divided by the number of rows that can see the token, then normalised.

    Token i of T is seen by rows i … T-1, so its column sum has T - i terms. [..., T, T] -> [..., T], summing to 1.
    """
    count = text_attention.shape[-1]
    seen_by = torch.arange(count, 0, -1, device=text_attention.device)
    return _normalised(text_attention.sum(dim=-2) / seen_by)


def given_and_received(text_attention: torch.Tensor) -> torch.Tensor:
    """m_t = sum_i W[i, t] with W = A + A^T - diag(A): what a token receives plus what it gives, its own counted once.

    AdaptInfer's importance, not normalised. [..., T, T] -> [..., T].
    """
    own = text_attention.diagonal(dim1=-2, dim2=-1)
    return text_attention.sum(dim=-2) + text_attention.sum(dim=-1) - own


def given_received_weights(text_attention: torch.Tensor) -> torch.Tensor:
    """`given_and_received`, normalised. [..., T, T] -> [..., T], summing to 1."""
    return _normalised(given_and_received(text_attention))


def _normalised(importance: torch.Tensor) -> torch.Tensor:
    # Of one head, all that text gives to text can be 0 in float32: then no row weighs anything.
    return importance / importance.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(importance.dtype).tiny)


_IMPORTANCE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "received": column_sum_weights,
    "causal_mean": debiased_column_sum_weights,
    "uniform": uniform_weights,
    "last": uniform_weights,
    "given_received": given_received_weights,
}
IMPORTANCES = tuple(_IMPORTANCE)
HEADS = ("mean", "max", "per_head")
_SUFFIX = {"received": "", "causal_mean": "_debiased", "mean": "", "max": "_max_heads"}


@dataclass(frozen=True)
class TextWeighting(Scorer):
    """The text-weighted score with its choices.

    importance: what the weight `w_i` of a text row is, always summing to 1:
      received: its column sum over the text rows (the method's own);
      causal_mean: that sum divided by the number of rows that can see the token;
      uniform: 1 / T, HiMAP's first stage;
      last: the prompt's last row alone, FastV;
      given_received: AdaptInfer's, column sum plus row sum minus the diagonal.
    heads: what becomes of the heads' attention A_h:
      mean: A is their mean;
      max: A[i, j] is the largest A_h[i, j], in weights and scores alike;
      per_head: each head has weights of its own, and s_k = sum_h sum_i w_hi A_h[i, k]; the trace has the heads' mean
      weights.

    Raises PlanError for a choice that is not among these.
    """

    importance: str = "received"
    heads: str = "mean"
    name: str = field(init=False)
    reads: Rows = field(init=False)
    per_head: bool = field(init=False)  # type: ignore[misc]

    def __post_init__(self) -> None:
        if self.importance not in IMPORTANCES:
            raise PlanError(unknown("importance", self.importance, IMPORTANCES))
        if self.heads not in HEADS:
            raise PlanError(unknown("heads", self.heads, HEADS))
        suffix = "".join(_SUFFIX.get(choice, f"_{choice}") for choice in (self.importance, self.heads))
        object.__setattr__(self, "name", "text_weighted" + suffix)
        object.__setattr__(self, "reads", Rows.LAST if self.importance == "last" else Rows.TEXT)
        object.__setattr__(self, "per_head", self.heads != "mean")

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        attention = given_attention(self, seen)
        if self.heads == "max":
            attention = attention.amax(dim=0)
        weights = _IMPORTANCE[self.importance](attention[..., seen.rows])
        to_image = attention[..., seen.image]
        if self.heads == "per_head":
            return torch.einsum("hi,hik->k", weights, to_image), weights.mean(dim=0)
        return weights @ to_image, weights


_SOURCE = "this project; compare AdaptInfer, 2025, arXiv 2508.06084"


def _named(label: str, importance: str = "received", heads: str = "mean") -> OneStage:
    scorer = TextWeighting(importance, heads)
    return OneStage(scorer.name, label, _SOURCE, scorer)


TEXT_WEIGHTED = _named("text-weighted")
TEXT_WEIGHTED_DEBIASED = _named("text-weighted, debiased", "causal_mean")
TEXT_WEIGHTED_UNIFORM = _named("text-weighted, uniform", "uniform")
TEXT_WEIGHTED_GIVEN_RECEIVED = _named("text-weighted, given and received", "given_received")
TEXT_WEIGHTED_MAX_HEADS = _named("text-weighted, max over heads", heads="max")
TEXT_WEIGHTED_PER_HEAD = _named("text-weighted, per head", heads="per_head")
