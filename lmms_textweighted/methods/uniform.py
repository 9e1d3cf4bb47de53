"""Every row counts alike: with all text rows HiMAP's first stage (arXiv 2503.13108), with the last row alone FastV."""

from __future__ import annotations

import torch

from lmms_textweighted.engine.scoring import Rows, RowWeighting


def uniform_weights(text_attention: torch.Tensor) -> torch.Tensor:
    """w_i = 1 / T: every row counts alike. [..., T, T] -> [..., T]."""
    return torch.full_like(text_attention[..., 0], 1 / text_attention.shape[-1])


UNIFORM = RowWeighting("uniform", uniform_weights)
LAST_ROW = RowWeighting("last_row", uniform_weights, Rows.LAST)
ALL_ROWS = RowWeighting("all_rows", uniform_weights, Rows.ALL)
