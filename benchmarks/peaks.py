"""What this machine can do at most: the rates that a roofline needs, measured in the same run."""

from __future__ import annotations

import torch

from benchmarks.timing import take_turns


def peak_flops(dtype: torch.dtype, device: str, size: int = 2048, repeats: int = 5) -> float:
    """FLOP/s of a large matrix product."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = take_turns({"product": lambda: left @ right}, repeats, warm_up=2)["product"]
    return 2 * size**3 / min(times.seconds)


def peak_bytes(device: str, mebibytes: int = 512, repeats: int = 5) -> float:
    """Bytes/s read from memory, by a sum over more than any cache holds."""
    data = torch.zeros(mebibytes * 2**20 // 4, device=device)
    times = take_turns({"sum": lambda: data.sum()}, repeats, warm_up=2)["sum"]
    return data.numel() * 4 / min(times.seconds)
