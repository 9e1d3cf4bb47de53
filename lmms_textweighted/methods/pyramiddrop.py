"""PyramidDrop (Xing et al., CVPR 2025, arXiv 2410.17247): fewer tokens at each of three depths, by what comes next.

    s_k = mean_h softmax_j(q_h . k_hj / sqrt(d))[k]

`q_h` is the query of the prompt's last token and `k_h` the keys, made from the hidden states that leave layer P by the
norm, projections and rotary phases of layer P + 1, which does not run for it. Tokens leave after P = 7, 15 and 23. Of
the N original tokens, int(N r), int(N r^2) and int(N r^3) stay, r = 1/2: 288, 144, 72. What stays is numbered anew from
0.

The repository's settings are these; for other budgets the authors keep the form r, r^2, r^3 and change r (and, below a
mean of 144 tokens, the layers to 2, 8, 16). The authors round the softmax to half precision; here it stays float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmms_textweighted.engine.plan import Stage
from lmms_textweighted.methods.staged import Staged
from lmms_textweighted.methods.uniform import LAST_ROW


@dataclass(frozen=True)
class PyramidDrop(Staged):
    """Of n stages, stage i keeps the share r^i of the original tokens, scored by the layer above it.

    A budget is what stays after the last stage: with `keep_ratio` it is r^n, with `keep_tokens` K the ratio r is that
    of `image_tokens` tokens of which K stay.
    """

    def stages(self, layer: int, keep_tokens: int | None, keep_ratio: float | None) -> tuple[Stage, ...]:
        count = len(self.layers)
        share = keep_ratio if keep_ratio is not None else (keep_tokens or 0) / self.image_tokens
        stages = []
        for place, (scorer, at) in enumerate(zip(self.scorers, self.layers, strict=True), start=1):
            tokens, ratio = (keep_tokens, keep_ratio)
            if place < count and share > 0:
                tokens, ratio = None, min(1.0, share ** (place / count))
            stages.append(Stage(scorer, at, tokens, ratio, score_layer=at + 1, keep_of="original"))
        return tuple(stages)


PYRAMIDDROP = PyramidDrop(
    "pyramiddrop",
    "PyramidDrop",
    "PyramidDrop, Xing et al., CVPR 2025, arXiv 2410.17247",
    (LAST_ROW,) * 3,
    (7, 15, 23),
    (288, 144, 72),
    "renumber",
)
