"""TRIM (Song et al., COLING 2025, arXiv 2409.10994): the patches that stand out against the text, and one for the rest.

    p = softmax_k(-e_k . u)               the authors' code: `trim`
    p = softmax_k(cos(e_k, u))            the paper: `trim_paper`

e_k is patch k and u what the user says, in CLIP's own space. Of a budget of K tokens, the K - 1 patches with the
highest p stay, in their order, and behind them comes one token for all others: the mean of their features, which then
goes through the projector. Positions count from 0. A budget of one is that mean of the whole picture; one of all tokens
changes nothing.

**Code and paper choose opposite patches**: the code negates the similarity (issue 3 of FreedomIntelligence/TRIM, where
an author suspects the layer that the features are of), and does not normalise what it compares.

How many stay, the authors read off the picture (`TRIM:-1`, which their weights were trained with): all N' patches above
Q3 + 1.5 IQR of p over all of the prompt's patches give the share N'/N, of which int(n share) patches stay of a picture
of n, and the mean. That is the scorer `trim_outliers`, for plans in a file: a stage's own budget is then the most that
may stay. `TRIM:k`, a share stated by hand, is a budget of int(576 k) + 1 here.

What the user says is all of it, instructions and options included, cut off at CLIP's 77 tokens. Needed is CLIP's text
tower (`text_tower`), which no LLaVA has; its work is not in the FLOPs. Their released weights are trained with TRIM:
without training is what others ran.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn.functional import normalize

from lmms_textweighted.engine.groups import as_choice, groups_by_image
from lmms_textweighted.engine.scoring import Choice, Leaving, Merged, Rows, Scorer, Seen, given_tower, top_tokens
from lmms_textweighted.engine.text_tower import TextReads
from lmms_textweighted.engine.tower import TowerReads
from lmms_textweighted.errors import PlanError, unknown
from lmms_textweighted.methods.placed import BeforeTheModel

WHOLE = TextReads()
SIMILARITY = ("negated", "cosine")
COUNT = ("budget", "outliers")


@dataclass(frozen=True)
class TextMetric(Scorer):
    """TRIM's choice, with its merging; scores are p. similarity: `negated` as in the code, or `cosine` as in the paper.
    count: `budget`, or `outliers`, what stands out, within the budget. Raises PlanError for others."""

    similarity: str = "negated"
    count: str = "budget"
    name: str = field(init=False)
    reads: Rows = Rows.NONE

    def __post_init__(self) -> None:
        for kind, value, known in (("similarity", self.similarity, SIMILARITY), ("count", self.count, COUNT)):
            if value not in known:
                raise PlanError(unknown(kind, value, known))
        paper = "" if self.similarity == "negated" else "_paper"
        object.__setattr__(self, "name", f"trim{paper}{'' if self.count == 'budget' else '_outliers'}")

    @property
    def tower_reads(self) -> TowerReads:
        return TowerReads(text=True)

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        tower = given_tower(self, seen)
        patches, text = tower.clip_patches(), tower.clip_texts(WHOLE)[0]
        if self.similarity == "cosine":
            alike = normalize(patches, dim=-1) @ normalize(text, dim=-1)
        else:
            alike = -(patches @ text)
        # Each picture by itself.
        scores = torch.cat([part.softmax(dim=-1) for part in alike.split(list(seen.sizes))])
        return scores, scores[:0]

    @property
    def merges(self) -> bool:
        return True

    def choose(self, leaving: Leaving) -> Choice:
        tower = given_tower(self, leaving)
        share = outlier_share(leaving.scores) if self.count == "outliers" else 1.0
        kept: list[torch.Tensor] = []
        merged: list[Merged] = []
        for group in groups_by_image(leaving):
            most = min(group.keep, int(len(group.index) * share) + 1)
            if group.keep == 0 or most == len(group.index):
                kept.append(group.index[: group.keep])
                continue
            chosen = group.index[top_tokens(leaving.scores[group.index], most - 1)]
            others = group.index[~torch.isin(group.index, chosen)]
            mean = tower.vectors[others].float().mean(dim=0).to(tower.vectors)
            merged.append(Merged(sum(map(len, kept)) + len(chosen), tower.project(mean), others))
            kept += [chosen, others[:1]]
        return as_choice(leaving, kept, merged)


def outlier_share(scores: torch.Tensor) -> float:
    """The share of values above Q3 + 1.5 (Q3 - Q1), quartiles between two values by the line. scores: [N], float."""
    first, third = torch.quantile(scores.double(), scores.new_tensor([0.25, 0.75]).double())
    return (scores > third + 1.5 * (third - first)).double().mean().item()


_SOURCE = "TRIM, Song et al., COLING 2025, arXiv 2409.10994"

TRIM = BeforeTheModel("trim", "TRIM", _SOURCE, TextMetric())
TRIM_PAPER = BeforeTheModel("trim_paper", "TRIM (paper)", _SOURCE, TextMetric("cosine"))
