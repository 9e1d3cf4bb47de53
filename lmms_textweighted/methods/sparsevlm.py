"""SparseVLM (Zhang et al., ICML 2025, arXiv 2410.04417), v1.5 of its code: raters score, some of the rest is recycled.

    s_k = 1/|R| sum_{i in R} A[i, k]

`A` is the attention of layer P, mean over heads, on the sequence that P runs on; R are the raters, text tokens chosen
once by their embeddings (`raters.py`). Tokens leave the output of P = 2, 6, 15. Of the dropped tokens D the best
int(0.3 |D|) + 1 = q are clustered into C = int(q / 10) + 1 by density peaks on the layer's output (`density_peaks.py`);
each cluster leaves its mean vector. Merged tokens stand behind all kept ones of their image, in the order of the
centres, and all is numbered anew.

Counts in the code: 300, 200, 110 ("192"), 303, 110, 36 ("128"), 66, 30, 17 ("64"), and the merged on top: 309, 204, 113
and so on. They call it 192 by booking a layer as short that still runs long: the mean over layer inputs is 206.5. A
budget here counts the merged tokens in, `Recycle(extra=True)` is the authors' way.

Code and paper. The paper derives counts from a rank (v1.0 of the code, with constants for every benchmark), assigns
clusters by cosine and sums where the code takes means. `sparsevlm_paper` assigns and sums so; its counts are those of a
budget, too. The code's mean divides by n + 1e-6, here by n. It is for one image and one prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from lmms_textweighted.engine.groups import as_choice, groups_of, image_of
from lmms_textweighted.engine.scoring import Choice, Leaving, Merged, Scorer, Seen, given_attention, top_tokens
from lmms_textweighted.methods.density_peaks import density_peaks
from lmms_textweighted.methods.raters import weights_of_raters
from lmms_textweighted.methods.staged import Staged


def recycled(dropped: int) -> tuple[int, int]:
    """Of so many dropped tokens: (how many are recycled, into how many clusters)."""
    taken = min(dropped, int(0.3 * dropped) + 1)
    return taken, int(taken / 10) + 1 if taken else 0


def kept_beside_merged(tokens: int, budget: int) -> int:
    """How many of `tokens` stay as they are so that, with the merged ones, exactly `budget` are left.

    With one token more kept there is at most one cluster less, so every budget has its number. Where even the clusters
    alone are more than the budget, none is kept.
    """
    kept = next((n for n in range(budget, -1, -1) if n + recycled(tokens - n)[1] <= budget), 0)
    return kept if budget < tokens else tokens


@dataclass(frozen=True)
class Recycle(Scorer):
    """SparseVLM's scores and choice. extra: the merged tokens come on top of the budget, as in the authors' code.

    paper: clusters by cosine, and their sum instead of their mean.
    """

    extra: bool = False
    paper: bool = False
    name: str = field(init=False)
    needs_embeddings: ClassVar[bool] = True

    def __post_init__(self) -> None:
        name = "sparsevlm_paper" if self.paper else "sparsevlm"
        object.__setattr__(self, "name", f"{name}_extra" if self.extra else name)

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        attention = given_attention(self, seen)
        weights = weights_of_raters(self, seen)
        return weights @ attention[:, seen.image], weights

    @property
    def merges(self) -> bool:
        return True

    def choose(self, leaving: Leaving) -> Choice:
        vectors = leaving.hidden[leaving.image]
        kept: list[list[torch.Tensor]] = [[] for _ in leaving.sizes]
        clusters: list[list[torch.Tensor]] = [[] for _ in leaving.sizes]
        flops = 0
        for group in groups_of(leaving):
            scores = leaving.scores[group.index]
            count = group.keep if self.extra else kept_beside_merged(len(scores), group.keep)
            best = top_tokens(scores, count)
            for image, part in enumerate(_by_image(leaving, group.index[best])):
                kept[image].append(part)
            most = None if self.extra and group.keep else group.keep
            found = _clusters(scores, best, vectors[group.index], most, self.paper)
            pool = sum(map(len, found))
            flops += 2 * pool * (pool + len(found) * self.paper) * vectors.shape[1]  # distances; the paper's cosines
            for cluster in found:
                members = group.index[cluster]
                clusters[int(image_of(leaving, members[:1]))].append(members)
        order, merged = [], []
        for image in range(len(leaving.sizes)):
            order += kept[image]
            for members in clusters[image]:
                if len(members) > 1:
                    slot = sum(map(len, order))
                    parts = vectors[members].float()
                    new = parts.sum(dim=0) if self.paper else parts.mean(dim=0)
                    merged.append(Merged(slot, new.to(vectors.dtype), members))
                order.append(members[:1])
        return as_choice(leaving, order, merged, flops=flops)


def _clusters(
    scores: torch.Tensor, kept: torch.Tensor, vectors: torch.Tensor, most: int | None, by_cosine: bool
) -> list[torch.Tensor]:
    """The recycled tokens, cluster by cluster, each with its centre first: indices into the scores.

    most: no more clusters than that. by_cosine: see `density_peaks`. Empty where all is kept, or all shall go.
    """
    taken, count = recycled(len(scores) - len(kept))
    count = count if most is None else min(count, most)
    if not count:
        return []
    gone = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    gone[kept] = False
    dropped = gone.nonzero().flatten()
    pool = dropped[torch.sort(scores[dropped], descending=True, stable=True).indices[:taken]]
    centres, member = density_peaks(vectors[pool], count, by_cosine)
    found = []
    for number, centre in enumerate(centres.tolist()):
        others = (member == number).nonzero().flatten()
        found.append(pool[torch.cat([centres[number : number + 1], others[others != centre]])])
    return found


def _by_image(leaving: Leaving, index: torch.Tensor) -> list[torch.Tensor]:
    counts = torch.bincount(image_of(leaving, index), minlength=len(leaving.sizes))
    return list(index.split(counts.tolist()))


SOURCE = "SparseVLM, Zhang et al., ICML 2025, arXiv 2410.04417"

SPARSEVLM = Staged("sparsevlm", "SparseVLM", SOURCE, (Recycle(),) * 3, (2, 6, 15), (309, 204, 113), "renumber")
SPARSEVLM_PAPER = Staged(
    "sparsevlm_paper",
    "SparseVLM (paper)",
    SOURCE,
    (Recycle(paper=True),) * 3,
    SPARSEVLM.layers,
    SPARSEVLM.counts,
    "renumber",
)
