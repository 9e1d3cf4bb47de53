"""FastV (Chen et al., ECCV 2024, arXiv 2403.06764): the attention of the prompt's last token to the image.

As its authors' code computes it; the paper speaks of the mean over all rows. Its K counts layers from 1 and tokens
leave before layer K + 1: the paper's K=2 leaves after layer 1 here, its K=3 after layer 2.
"""

from __future__ import annotations

from lmms_textweighted.methods.base import OneStage
from lmms_textweighted.methods.uniform import LAST_ROW

_SOURCE = "FastV, Chen et al., ECCV 2024, arXiv 2403.06764"

FASTV = OneStage("fastv", "FastV", _SOURCE, LAST_ROW)
FASTV_K2 = OneStage("fastv_k2", "FastV (K=2)", _SOURCE, LAST_ROW, layer=1)
