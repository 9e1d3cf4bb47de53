"""FastV (Chen et al., ECCV 2024, arXiv 2403.06764): the attention of the prompt's last token to the image.

    s_k = A[last, k]                      the authors' code: `fastv`, `fastv_k2`
    s_k = 1/S sum_i A[i, k]               the paper's text, over all S rows of the prompt: `fastv_all_rows`

`A` is one layer's attention, mean over heads. Its K counts layers from 1 and tokens leave before layer K + 1: the
paper's K=2 leaves after layer 1 here, its K=3 after layer 2. Kept tokens keep their positions.

The mean over all rows is what SparseVLM's authors ran as FastV, and so where many published FastV rows come from.
Causal: an early token is seen by more rows, which nothing corrects. The authors' variant that hides tokens instead of
removing them chooses again at every new token; it is not reproduced.
"""

from __future__ import annotations

from lmms_textweighted.methods.base import OneStage
from lmms_textweighted.methods.uniform import ALL_ROWS, LAST_ROW

_SOURCE = "FastV, Chen et al., ECCV 2024, arXiv 2403.06764"

FASTV = OneStage("fastv", "FastV", _SOURCE, LAST_ROW)
FASTV_K2 = OneStage("fastv_k2", "FastV (K=2)", _SOURCE, LAST_ROW, layer=1)
FASTV_ALL_ROWS = OneStage("fastv_all_rows", "FastV (all rows)", _SOURCE, ALL_ROWS)
