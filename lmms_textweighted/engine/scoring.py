"""How an image token is scored, and how a budget chooses among scores. The scorers themselves stand in `methods`.

All functions are pure and work on one sequence; float32 in, float32 out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch


class Rows(Enum):
    """The attention rows that a scorer reads: none, the prompt's last one, or those of all text tokens that vote."""

    NONE = "none"
    LAST = "last"
    TEXT = "text"


@dataclass(frozen=True)
class Seen:
    """What a scorer is given of one prompt, at the layer that is scored.

    attention: [R, S], the rows that the scorer reads, mean over the heads: rows are queries, causal, each sums to 1.
    None where it reads none. rows: [R] positions of these rows, in order. image: [I] positions of the image tokens that
    are scored, in order. key, seed: what names the prompt and the run, for a choice by chance.
    """

    image: torch.Tensor
    rows: torch.Tensor
    attention: torch.Tensor | None = None
    key: str = ""
    seed: int = 0


class Scorer(ABC):
    """Gives every image token of one prompt a score; those with the highest stay. To be held by a `plan.Stage`.

    name: what logs, results and errors call it. reads: the rows that it needs. An instance is used for many prompts, so
    it keeps nothing of them; two scorers that are equal (`==`) are taken for one and run once.
    """

    name: str
    reads: Rows = Rows.TEXT

    @abstractmethod
    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        """(scores [I], weights of the rows [R]; empty where none are read), float32, on the device of `seen.image`."""


@dataclass(frozen=True)
class RowWeighting(Scorer):
    """A scorer that weights the rows:

        s_k = sum_{i in R} w_i * A[i, k]        k in I

    with `A` one layer's attention averaged over heads, `R` the rows that are read and `I` the image tokens. weights:
    [R, R], attention among the rows' tokens -> [R], the w.
    """

    name: str
    weights: Callable[[torch.Tensor], torch.Tensor]
    reads: Rows = Rows.TEXT

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        attention = given_attention(self, seen)
        weights = self.weights(attention[:, seen.rows])
        return weights @ attention[:, seen.image], weights


def given_attention(scorer: Scorer, seen: Seen) -> torch.Tensor:
    """The rows that the scorer reads. Raises TypeError when it was given none: it `reads` Rows.NONE."""
    if seen.attention is None:
        raise TypeError(f"scorer {scorer.name!r} reads no attention rows (reads = {scorer.reads}), but asks for them")
    return seen.attention


def prompt_key(token_ids: Iterable[int]) -> str:
    """The default of `Seen.key`: a prompt's token ids without padding, so that a batch does not change it.

    `layout.IMAGE` stands for every image token, so that the same prompt has the same key in every checkpoint format.
    """
    return ",".join(map(str, token_ids))


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
