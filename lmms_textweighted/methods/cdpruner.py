"""CDPruner (Zhang et al., NeurIPS 2025, arXiv 2506.10967): what spans most, weighted by what the question is about.

    r_k = -1/M sum_m cos(e_k, u_m)        the authors' code: `cdpruner`
    r_k =  1/M sum_m cos(e_k, u_m)        the paper, section 3.3: `cdpruner_paper`
    a_k = (r_k - min r + 1e-6) / (max r - min r),    L = diag(a) C diag(a),    C_jk = cos(x_j, x_k)

e_k is patch k and u_m a segment of the question in CLIP's own space, x the embeddings as they enter the language model.
K tokens stay that make det(L_K) large, taken one by one (`selectors.Determinantal`). min and max are over all of the
prompt's pictures; where all r are equal, a is 1. What stays is in its order, its positions count from 0.

**Code and paper choose opposite patches**: the paper weights by relevance, the code by its negative, so that the patch
most like the question has a = 0. Its author says that the patch features of CLIP's last layer but one lie the other
way round (issues 9, 14 of Theia-4869/CDPruner). Neither is ours to mend: take the one you want to compare with.

The question is what the user says without LLaVA's closing instructions, options and hints included, as the authors'
scripts have it; a text longer than CLIP's 77 tokens is cut into segments of 77, of which only the first has the begin
token and only the last the end token. Needed is CLIP's text tower (`text_tower`), which no LLaVA has. Its work is not
in the FLOPs. The authors normalise x in half precision; here it is float32. Where all that is left adds less than 1e-6
of what the first token did, the earlier token comes first; the authors' code goes on until it divides by 0, and then
keeps fewer tokens than K without a word. That takes a picture whose tokens span less than K dimensions, as those of the
embedded model do: its 576 tokens, 128 wide, span about 108.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn.functional import normalize

from lmms_textweighted.engine.scoring import Leaving, Rows, Seen, given_tower
from lmms_textweighted.engine.selecting import Selector, SetScorer
from lmms_textweighted.engine.text_tower import TextReads
from lmms_textweighted.engine.tower import TowerReads
from lmms_textweighted.errors import PlanError, unknown
from lmms_textweighted.methods.placed import BeforeTheModel
from lmms_textweighted.methods.selectors import Determinantal
from lmms_textweighted.prompts import SHORT_ANSWER_PROMPT, SINGLE_PREDICTION_PROMPT

# What the authors' scripts leave out of the text, or never put in; the last is MMBench-CN's.
QUESTION = TextReads(without=(SHORT_ANSWER_PROMPT, SINGLE_PREDICTION_PROMPT, "\n请直接回答选项字母。"), segments=True)
RELEVANCE = ("negated", "plain")


@dataclass(frozen=True)
class Conditional(SetScorer):
    """CDPruner's choice; scores are a. relevance: `negated` as in the code, or `plain` as in the paper.

    Raises PlanError for another.
    """

    relevance: str = "negated"
    name: str = field(init=False)
    reads: Rows = Rows.NONE

    def __post_init__(self) -> None:
        if self.relevance not in RELEVANCE:
            raise PlanError(unknown("relevance", self.relevance, RELEVANCE))
        object.__setattr__(self, "name", "cdpruner" if self.relevance == "negated" else "cdpruner_paper")

    @property
    def tower_reads(self) -> TowerReads:
        return TowerReads(text=True)

    @property
    def selector(self) -> Selector:
        return Determinantal()

    def score(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        tower = given_tower(self, seen)
        patches, texts = normalize(tower.clip_patches(), dim=-1), normalize(tower.clip_texts(QUESTION), dim=-1)
        relevance = (patches @ texts.T).mean(dim=-1)
        if self.relevance == "negated":
            relevance = -relevance
        spread = relevance.max() - relevance.min()
        scores = ((relevance - relevance.min() + 1e-6) / spread).where(spread > 0, torch.ones_like(relevance))
        return scores, scores[:0]

    def features(self, leaving: Leaving) -> torch.Tensor:
        return leaving.hidden[leaving.image]


_SOURCE = "CDPruner, Zhang et al., NeurIPS 2025, arXiv 2506.10967"

CDPRUNER = BeforeTheModel("cdpruner", "CDPruner", _SOURCE, Conditional())
CDPRUNER_PAPER = BeforeTheModel("cdpruner_paper", "CDPruner (paper)", _SOURCE, Conditional("plain"))
