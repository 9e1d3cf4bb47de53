"""Both ranks of 32 heads of 576 x 576 causal attention, against two loops of per-head `svdvals` in float32.

`python -m benchmarks.spectrum`. The two loops are what the published script does: one for each rank. The numeric ranks
must agree within what the tolerance allows: float32 puts a singular value near 1e-6 of the largest on either side, so
the float32 count may differ by the number of values within a factor of two of the tolerance.
"""

from __future__ import annotations

import torch
import typer

from benchmarks.rows import Row, show
from benchmarks.timing import take_turns
from lmms_textweighted.engine.rank import TOLERANCE, attention_ranks, singular_values

HEADS, TOKENS = 32, 576


def attention(seed: int = 0) -> torch.Tensor:
    """[H, K, K] causal softmax rows of random scores, float32."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(HEADS, TOKENS, TOKENS, generator=generator)
    hidden = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)


def two_loops(blocks: torch.Tensor) -> tuple[list[int], list[float]]:
    """(numeric, effective) rank of each head, an SVD for each."""
    numeric = []
    for block in blocks:
        values = torch.linalg.svdvals(block)
        numeric.append(int((values > TOLERANCE * values[0]).sum()))
    effective = []
    for block in blocks:
        energy = torch.linalg.svdvals(block).square()
        share = energy / energy.sum()
        share = share[share > 1e-12]
        effective.append(float((-(share * share.log()).sum()).exp()))
    return numeric, effective


def run(repeats: int = 5) -> list[Row]:
    """The speed, and how far the values agree."""
    blocks = attention()
    times = take_turns({"ours": lambda: attention_ranks(blocks), "loops": lambda: two_loops(blocks)}, repeats)
    ours, (numeric, effective) = attention_ranks(blocks), two_loops(blocks)
    relative = max(abs(a - b) / b for a, b in zip(ours.effective, effective, strict=True))
    values = singular_values(blocks)
    near = ((values > TOLERANCE / 2 * values[:, :1]) & (values < 2 * TOLERANCE * values[:, :1])).sum(dim=-1).tolist()
    excess = max(abs(a - b) - allowed for a, b, allowed in zip(ours.numeric, numeric, near, strict=True))
    return [
        Row(
            f"spectrum, {HEADS} x {TOKENS} x {TOKENS}: two SVD loops / ours",
            times["loops"].median / times["ours"].median,
            4.0,
            details={name: {"median_s": value.median, "spread": value.spread} for name, value in times.items()},
        ),
        Row("spectrum: effective rank, largest relative difference", relative, 1e-4, False, unit=""),
        Row("spectrum: numeric rank, difference beyond values near the tolerance", max(0, excess), 0, False, unit=""),
    ]


def main(repeats: int = typer.Option(5)) -> None:
    """Print the rows."""
    show(run(repeats))


if __name__ == "__main__":
    typer.run(main)
