"""How an image token is scored, and how a budget chooses among scores. The scorers themselves stand in `methods`.

All functions are pure and work on one sequence; float32 in, float32 out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch

from lmms_textweighted.engine.tower import TowerReads, TowerSeen


class Rows(Enum):
    """The attention rows that a scorer reads: none, the prompt's last one, those of all text tokens that vote, those of
    the image tokens, or all. (With all, the block that is read is quadratic in the prompt's length.) Keys: no row
    either, but the scored layer's keys; `Seen.rows` are then the voting text tokens."""

    NONE = "none"
    KEYS = "keys"
    LAST = "last"
    TEXT = "text"
    IMAGE = "image"
    ALL = "all"


@dataclass(frozen=True)
class Seen:
    """What a scorer is given of one prompt, at the layer that is scored. Positions count in the sequence of that layer.

    image: [I] positions of the image tokens that are scored, in order. sizes: how many of them are of each image. Where
    a stage divides a picture into its crops, an "image" is a crop, and positions ascend within each.
    text: [T] positions of the text tokens that vote. rows: [R] positions of the rows that are read, in order.
    attention: [R, S], these rows' attention, mean over the heads: rows are queries, causal, each sums to 1; [H, R, S]
    for a scorer that is `per_head`, None where no row is read. positions: [S] rotary positions. keys: [S, G x D] keys
    after RoPE, heads side by side, for a scorer that `needs_keys` or reads Rows.KEYS. embeddings: [S, W] what entered
    layer 0, for one that `needs_embeddings`, and image_embeddings: [N, W] the same of all the prompt's image tokens,
    also of those that have left. tower: for a scorer with `tower_reads`, what it asked for. All float32. key, seed:
    what names the prompt and the run, for a choice by chance.
    """

    image: torch.Tensor
    rows: torch.Tensor
    attention: torch.Tensor | None = None
    key: str = ""
    seed: int = 0
    sizes: tuple[int, ...] = ()
    text: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None
    image_embeddings: torch.Tensor | None = None
    tower: TowerSeen | None = None


@dataclass(frozen=True)
class Leaving:
    """What a scorer chooses from when tokens leave. Positions count in the sequence that the stage's layer ran on.

    image, sizes, text: as in `Seen`. scores: [I], weights: what `Scorer.score` gave. hidden: [S, W], what the stage's
    layer put out. norm: the decoder's final norm. keep: number of image tokens -> how many of them stay, to be asked
    once for each image in order, or with `keep_scope="prompt"` once for all together. original_sizes: of each image
    before anything left. tower: as in `Seen`. start: the place of the prompt's first token, behind
    a batch's fillers.
    """

    image: torch.Tensor
    sizes: tuple[int, ...]
    text: torch.Tensor
    scores: torch.Tensor
    weights: torch.Tensor
    hidden: torch.Tensor
    norm: Callable[[torch.Tensor], torch.Tensor]
    keep: Callable[[int], int]
    keep_scope: str
    original_sizes: tuple[int, ...]
    tower: TowerSeen | None = None
    start: int = 0


@dataclass(frozen=True)
class Merged:
    """A new vector in the place of a token that stays. slot: which of `Choice.kept`. vector: [W]. sources: indices into
    the image tokens that went into it, the slot's own first; none where the vector is made of no image token."""

    slot: int
    vector: torch.Tensor
    sources: torch.Tensor


@dataclass(frozen=True)
class Choice:
    """Which image tokens stay. kept: [K] indices into the image tokens, image by image, in the order in which they
    stand afterwards. sizes: how many stay of each image, K in all. merged: those that get a new vector. flops: of the
    choice's matrix products and distances, 2 a b c for [a, b] x [b, c]; a new vector's way through the projector, sums
    and sorts are not counted."""

    kept: torch.Tensor
    sizes: tuple[int, ...]
    merged: tuple[Merged, ...] = ()
    flops: int = 0


class Scorer(ABC):
    """Gives every image token of one prompt a score; those with the highest stay. To be held by a `plan.Stage`.

    name: what logs, results and errors call it. reads: the rows that it needs. per_head, needs_keys, needs_embeddings:
    what else of `Seen` it needs. tower_reads: what it needs to know of the vision tower. draws: whether another
    `Seen.seed` may give other scores. An instance is used for many prompts, so it keeps nothing of them; two scorers
    that are equal (`==`) are taken for one and run once. One that does not just keep the best overrides `choose`, and
    says whether its choice is `nested`.
    """

    name: str
    reads: Rows = Rows.TEXT
    per_head: ClassVar[bool] = False
    needs_keys: ClassVar[bool] = False
    needs_embeddings: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    @property
    def tower_reads(self) -> TowerReads | None:
        return None

    @property
    def grid_rule(self) -> str:
        """How a stage's budget is meant where a picture is cut into crops, unless the stage says it (`plan.GRIDS`)."""
        return "over_all" if self.tower_reads is None else "per_crop"

    @property
    def newlines_rule(self) -> str:
        """What becomes of newline tokens, unless the stage says it (`plan.NEWLINES`)."""
        return "eligible" if self.tower_reads is None else "drop"

    @abstractmethod
    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        """(scores [I], weights of the rows [R]; empty where none are read), float32, on the device of `seen.image`."""

    def choose(self, leaving: Leaving) -> Choice:
        """The tokens with the highest scores, in their order; of equal scores, the earlier one's."""
        kept, sizes = choose_tokens(leaving.scores, leaving.sizes, leaving.keep, leaving.keep_scope)
        return Choice(kept, sizes)

    @property
    def keeps_the_best(self) -> bool:
        """Whether scores alone decide, so that many budgets can share them."""
        return type(self).choose is Scorer.choose

    @property
    def merges(self) -> bool:
        """Whether what stays may be new vectors, of several tokens or of none."""
        return False

    @property
    def nested(self) -> bool:
        """Whether what stays at a budget of `keep_tokens` stays at every larger one, too."""
        return self.keeps_the_best


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


def given_tower(scorer: Scorer, given: Seen | Leaving) -> TowerSeen:
    """What the scorer asked of the tower. Raises TypeError when it was given none: it has no `tower_reads`."""
    if given.tower is None:
        raise TypeError(f"scorer {scorer.name!r} was shown no vision tower (tower_reads), but asks for it")
    return given.tower


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
