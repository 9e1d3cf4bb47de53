"""Out of memory in the middle of a run: a batch is answered in halves, and one row that does not fit is named."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from loguru import logger

from lmms_textweighted.errors import PromptError, first_line

Row = TypeVar("Row")
Found = TypeVar("Found")

# What a RuntimeError says where memory is short: torch's allocators of CPUs (Linux, Windows), then those of devices.
_SAYS = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory is short: only CUDA's has a type of its own in torch."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAYS)


def in_halves(rows: Sequence[Row], work: Callable[[Sequence[Row]], list[Found]], what: str = "rows") -> list[Found]:
    """`work(rows)`, or where memory is short that of both halves, in the rows' order; each halving is logged.

    what: how the log calls the rows. Raises PromptError for a row that does not fit alone. A PromptError of a half has
    its row counted in all rows.
    """
    try:
        return work(rows)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = first_line(error)
        if len(rows) == 1:
            raise PromptError(
                f"out of memory with a batch of 1 ({reason}): use a device with more memory, dtype=bfloat16 or "
                f"float16, device_map=auto, or fewer image tokens",
                0,
            ) from error
    # Here and not above: the error's traceback holds the tensors of the batch that did not fit.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = (len(rows) + 1) // 2
    logger.warning(f"out of memory with {len(rows)} {what} ({reason}): answered in halves, {half} at a time")
    found = in_halves(rows[:half], work, what)
    try:
        return found + in_halves(rows[half:], work, what)
    except PromptError as error:
        raise PromptError(str(error), error.row + half) from error


def alone(work: Callable[[], Found]) -> Found:
    """`work()` of one row. Raises PromptError as `in_halves` does."""
    (found,) = in_halves([None], lambda _: [work()])
    return found
