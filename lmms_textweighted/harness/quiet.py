"""Silence the libraries around a progress bar of our own."""

from __future__ import annotations

import sys

import datasets
import transformers
from loguru import logger


def quiet_libraries() -> None:
    """One progress bar is enough: silence those of the libraries, and lmms-eval's debug lines."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
