"""DART (Wen et al., EMNLP 2025, arXiv 2502.11494): what is least like a few pivots, so that nothing stays twice.

Scored and gone after layer 1, with the layer's keys k (after RoPE, all heads side by side) and x, the decoder's final
norm of the layer's output. Pivots are the 4 image tokens and the 4 voting text tokens with the largest |k|_1. Pivot
after pivot takes the image tokens with the smallest cos(x_p, x_c) that no earlier one took. The image pivots and all
that was taken stay, at their original positions.

Order of the pivots, of which earlier ones choose first: the authors put their positions in the prompt into a Python
set, image pivots first, then text pivots, each by falling |k|_1, and go through that. Which comes first is then up to
how CPython places whole numbers in a hash table (by their remainder to 32, and where two meet, by more), and has
nothing to do with the picture. `dart` does the same, and keeps what theirs keeps (60 times of 60 on the embedded model
at their three settings). `dart_paper` goes by |k|_1 itself, image pivots first: the paper,
which names no order, has no reason for another.

How many each takes: of K tokens, K - 4 are shared out evenly over the pivots, one more for the first ones where it does
not come out even. The authors give each M // 8 and so keep 4 + 8 (M // 8): 196, 132, 68 for their 192, 128, 64. A
budget of those numbers is their setting. With less than 5 tokens in the budget only pivots stay; without 4 voting text
tokens there are fewer pivots. RoPE turns keys, which changes |k|_1: a padded batch needs position_ids that count from
each prompt's first token, as `generate` makes them. The paper speaks of a threshold of similarity for each pivot. The
authors' layer is K = 2, from 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn.functional import normalize

from lmms_textweighted.engine.groups import as_choice, groups_of
from lmms_textweighted.engine.scoring import Choice, Leaving, Rows, Scorer, Seen
from lmms_textweighted.errors import PlanError, unknown
from lmms_textweighted.methods.base import OneStage

PIVOTS = 4
ORDERS = ("set", "norm")


def authors_count(target: int, pivots: int = PIVOTS) -> int:
    """Tokens that the authors' code keeps for a target: 4 + 8 (M // 8)."""
    return pivots + 2 * pivots * (target // (2 * pivots))


def as_a_set(places: torch.Tensor) -> torch.Tensor:
    """The order in which CPython goes through a set of these whole numbers, put in one by one: indices [P]."""
    given = places.tolist()
    return torch.tensor([given.index(place) for place in set(given)], dtype=torch.int64, device=places.device)


def least_like_pivots(
    image: torch.Tensor,
    text: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    order: torch.Tensor,
    keep: int,
) -> torch.Tensor:
    """The image tokens that stay: indices [keep], ascending.

    image: [I, W] and text: [T, W], the x. first: the image pivots, second: the text pivots, indices into these. order:
    in which turn they choose, indices into both, one behind the other. keep: at least as many as `first`, at most I.
    """
    units = normalize(image.float(), dim=-1)
    sources = torch.cat([units[first], normalize(text.float(), dim=-1)[second]])[order]
    alike = sources @ units.T
    free = torch.ones(len(image), dtype=torch.bool, device=image.device)
    free[first] = False
    left, waiting = keep - len(first), len(sources)
    for row in alike:
        share = -(-left // waiting)
        taken = torch.sort(row.masked_fill(~free, float("inf")), stable=True).indices[:share]
        free[taken] = False
        left, waiting = left - share, waiting - 1
    return (~free).nonzero().flatten()


def _largest(values: torch.Tensor, count: int) -> torch.Tensor:
    return torch.sort(values, descending=True, stable=True).indices[:count]


@dataclass(frozen=True)
class LeastAlike(Scorer):
    """DART's choice. Scores and weights are |k|_1 of image and text tokens. pivots: of each kind. order: of their
    turns, "set" or "norm". Raises PlanError for another."""

    pivots: int = PIVOTS
    order: str = "set"
    name: str = field(init=False)
    reads: Rows = Rows.KEYS

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise PlanError(unknown("order", self.order, ORDERS))
        name = "dart" if self.order == "set" else "dart_paper"
        object.__setattr__(self, "name", name if self.pivots == PIVOTS else f"{name}_{self.pivots}_pivots")

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        if seen.keys is None:
            raise TypeError(f"scorer {self.name!r} was given no keys (reads = {self.reads}), but asks for them")
        norms = seen.keys.abs().sum(dim=-1)
        return norms[seen.image], norms[seen.rows]

    def choose(self, leaving: Leaving) -> Choice:
        vectors = leaving.norm(leaving.hidden)
        image, text = vectors[leaving.image], vectors[leaving.text]
        second = _largest(leaving.weights, self.pivots)
        kept, flops = [], 0
        for group in groups_of(leaving):
            index = group.index
            first = _largest(leaving.scores[index], min(self.pivots, group.keep))
            order = torch.arange(len(first) + len(second), device=index.device)
            if self.order == "set":
                places = torch.cat([leaving.image[index[first]], leaving.text[second].to(index.device)])
                order = as_a_set(places - leaving.start)
            kept.append(index[least_like_pivots(image[index], text, first, second, order, group.keep)])
            flops += 2 * len(order) * len(index) * image.shape[1]
        return as_choice(leaving, kept, flops=flops)


SOURCE = "DART, Wen et al., EMNLP 2025, arXiv 2502.11494"

DART = OneStage("dart", "DART", SOURCE, LeastAlike(), layer=1)
DART_PAPER = OneStage("dart_paper", "DART (paper)", SOURCE, LeastAlike(order="norm"), layer=1)
