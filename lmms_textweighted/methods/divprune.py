"""DivPrune (Alvar et al., CVPR 2025, arXiv 2503.02175): the tokens that are furthest apart.

    d(i, j) = 1 - cos(x_i, x_j),    x the image tokens' embeddings as they enter the language model

The first is the one whose nearest other token is furthest away; then, again and again, the one whose nearest chosen
token is. What stays is in its order, its positions count from 0. Neither the text nor any attention has a say, and the
vision tower is not looked at, so it works for every model. A picture of several crops is one list, with its newline
tokens, as in the authors' code.

The authors' budget is a share, 0.098 of 576 tokens, which they round half to even: 56. They compute in half precision,
where many distances are equal and a token may be taken twice; here it is float32, and no token is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lmms_textweighted.engine.scoring import Leaving, Rows, Seen
from lmms_textweighted.engine.selecting import Selector, SetScorer
from lmms_textweighted.methods.placed import BeforeTheModel
from lmms_textweighted.methods.selectors import MaxMin


@dataclass(frozen=True)
class Apart(SetScorer):
    """Max-min cosine distance of the vectors that leave the stage's layer. Scores are all 0."""

    name: str = "divprune"
    reads: Rows = Rows.NONE

    @property
    def selector(self) -> Selector:
        return MaxMin()

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.zeros(len(seen.image), dtype=torch.float32, device=seen.image.device)
        return scores, scores[:0]

    def features(self, leaving: Leaving) -> torch.Tensor:
        return leaving.hidden[leaving.image]


DIVPRUNE = BeforeTheModel("divprune", "DivPrune", "DivPrune, Alvar et al., CVPR 2025, arXiv 2503.02175", Apart())
