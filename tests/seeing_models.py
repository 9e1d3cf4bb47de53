"""A small random model of every geometry that pictures are prepared in, with its real processor: by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmms_textweighted import load
from lmms_textweighted.families import LoadOptions
from lmms_textweighted.inference import PrunedLlava
from lmms_textweighted.tiny.architecture import build_tokenizer
from tests.checkpoints import GRID, make_tower
from tests.checkpoints import make_checkpoint as make_llava
from tests.conftest import build_anyres
from tests.test_anyres import processor_of
from tests.vlm_checkpoints import make_checkpoint
from tests.vlms import MODELS


def _embedded(folder: Path, ratio: str | None = None) -> PrunedLlava:
    return PrunedLlava(*load("tiny", LoadOptions(image_aspect_ratio=ratio)))


def _anyres(family: str) -> PrunedLlava:
    tokenizer = build_tokenizer()
    ids = tokenizer.convert_tokens_to_ids(["<video>", "<image>"])
    model = build_anyres(family, seed=3, vocabulary=len(tokenizer), image_token=ids[1])
    model.config.video_token_id = ids[0]
    return PrunedLlava(model, processor_of(family, tokenizer))


def _liuhaotian(folder: Path, loader: str, anyres: bool, **changes: Any) -> PrunedLlava:
    tower = make_tower(folder / "clip")
    path = make_llava(folder / "llava", tower=tower, anyres=anyres, shards=1, config_changes=changes)
    return PrunedLlava(*load(str(path), LoadOptions(loader=loader, dtype="float32")))


def _squares(merge: str) -> dict[str, Any]:
    """A grid without newlines: its squares one after the other, or row by row through all of them."""
    return {"mm_patch_merge_type": merge, "image_aspect_ratio": "anyres", "image_grid_pinpoints": GRID}


# The name of a geometry -> a function that builds its model in an empty folder.
SEEING: dict[str, Callable[[Path], PrunedLlava]] = {
    "llava square": _embedded,
    "llava pad": lambda folder: _embedded(folder, "pad"),
    "llava_next": lambda folder: _anyres("llava_next"),
    "llava_onevision": lambda folder: _anyres("llava_onevision"),
    "llava package pad": lambda folder: _liuhaotian(folder, "llava", False),
    "llava package anyres": lambda folder: _liuhaotian(folder, "llava", True),
    "llava package anyres flat": lambda folder: _liuhaotian(folder, "llava", False, **_squares("flat")),
    "llava package anyres spatial": lambda folder: _liuhaotian(folder, "llava", False, **_squares("spatial")),
    "in memory pad": lambda folder: _liuhaotian(folder, "hf", False),
    "in memory anyres": lambda folder: _liuhaotian(folder, "hf", True),
    **{kind: (lambda folder, kind=kind: PrunedLlava(*load(str(make_checkpoint(kind, folder))))) for kind in MODELS},
}
