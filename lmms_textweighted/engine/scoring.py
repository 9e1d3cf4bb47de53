"""How an image token is scored: attention rows of the text -> one score per image token.

Every attention scorer here is a weighting of the text rows:

    s_k = sum_{i in T} w_i * A[i, k]        k in I

with `A` one layer's attention averaged over heads (rows are queries, causal, each row sums to 1), `T` the text tokens
after the image and `I` the image tokens. A scorer is the function that makes `w` from the text-to-text block of `A`.
All functions are pure and work on one sequence; float32 in, float32 out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

RANDOM = "random"


@dataclass(frozen=True)
class Scorer:
    """weights: [R, R] text-to-text attention -> [R] weights of the rows. last_row_only: R is 1, the last text token."""

    weights: Callable[[torch.Tensor], torch.Tensor]
    last_row_only: bool = False


def column_sum_weights(text_attention: torch.Tensor) -> torch.Tensor:
    """w_i = sum_j A[j, i] / sum_i sum_j A[j, i] over the text tokens: the attention a token receives.

    text_attention: [T, T], rows are queries. Returns [T], summing to 1. Source: the text-weighted method's formula
    (DESIGN: "The method"). Under a causal mask early tokens are seen by more rows and so weigh more; see
    `debiased_column_sum_weights`.
    """
    received = text_attention.sum(dim=0)
    return received / received.sum()


def debiased_column_sum_weights(text_attention: torch.Tensor) -> torch.Tensor:
    """`column_sum_weights` with each sum divided by the number of rows that can see the token, then normalised.

    Token i of T is seen by rows i … T-1, so its column sum has T - i terms. [T, T] -> [T], summing to 1.
    """
    count = text_attention.shape[0]
    seen_by = torch.arange(count, 0, -1, device=text_attention.device)
    received = text_attention.sum(dim=0) / seen_by
    return received / received.sum()


def uniform_weights(text_attention: torch.Tensor) -> torch.Tensor:
    """w_i = 1 / T: every text row counts alike (HiMAP's first stage). [T, T] -> [T]."""
    count = text_attention.shape[0]
    return text_attention.new_full((count,), 1 / count)


SCORERS: dict[str, Scorer] = {
    "text_weighted": Scorer(column_sum_weights),
    "text_weighted_debiased": Scorer(debiased_column_sum_weights),
    "last_row": Scorer(uniform_weights, last_row_only=True),
    "uniform": Scorer(uniform_weights),
}


def score_image_tokens(
    attention: torch.Tensor, text: torch.Tensor, image: torch.Tensor, scorer: Scorer
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of the image tokens and weights of the text rows.

    attention: [R, S] rows of the text tokens `text` [R] (positions in the sequence), in order; image: [I] positions.
    Returns (scores [I], weights [R]).
    """
    weights = scorer.weights(attention[:, text])
    return weights @ attention[:, image], weights


def prompt_key(token_ids: Iterable[int]) -> str:
    """The default key of `random_scores`: a prompt's token ids without padding, so that a batch does not change it.

    `layout.IMAGE` stands for every image token, so that the same prompt has the same key in every checkpoint format.
    """
    return ",".join(map(str, token_ids))


def random_scores(count: int, key: str, seed: int = 0) -> torch.Tensor:
    """Scores in a random order that depends on `key` and `seed` alone: [count] float32 on the CPU.

    The same key gives the same order at every budget, so a smaller budget keeps a subset of a larger one's tokens.
    """
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randperm(count, generator=generator).float()


def top_tokens(scores: torch.Tensor, keep: int) -> torch.Tensor:
    """Indices of the `keep` highest scores, ascending. Equal scores: the earlier position wins. [I] -> [keep]."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[:keep].sort().values


def choose_tokens(
    scores: torch.Tensor, image_sizes: Sequence[int], keep: Callable[[int], int], keep_scope: str = "image"
) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Which image tokens of one prompt stay: (indices into `scores`, ascending; tokens that stay of each image).

    scores: [I], the tokens of all images in order. image_sizes: tokens of each image, I in all. keep: number of tokens
    -> how many of them stay; asked once an image, or with `keep_scope="prompt"` once for all images together.
    """
    if keep_scope == "prompt" and image_sizes:
        chosen = top_tokens(scores, keep(len(scores)))
        ends = torch.tensor(image_sizes, device=chosen.device).cumsum(0)
        counts = torch.bincount(torch.bucketize(chosen, ends, right=True), minlength=len(image_sizes))
        return chosen, tuple(counts.tolist())
    kept, counts_, start = [scores.new_zeros(0, dtype=torch.int64)], [], 0
    for size in image_sizes:
        counts_.append(keep(size))
        kept.append(start + top_tokens(scores[start : start + size], counts_[-1]))
        start += size
    return torch.cat(kept), tuple(counts_)
