"""Idefics3 and SmolVLM: a picture is its tiles, each behind a tag of its own, and then the whole of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import BatchFeature

from lmms_textweighted.families.image_tokens import TiledSplice, runs
from lmms_textweighted.families.pictured import Pictured, tiled
from lmms_textweighted.families.processor_family import ProcessorFamily

_CELL = re.compile(r"<row_(\d+)_col_(\d+)>")
_TAG = 4  # tokens in front of a tile that its tag may be among


class Idefics3Family(ProcessorFamily):
    """Features come a prompt; a picture ends with its whole view. Row and column tags are text, and stay.

    SmolVLM's processor needs the package `num2words`.
    """

    models: ClassVar[dict[str, str]] = {
        "idefics3": "Idefics3ForConditionalGeneration",
        "smolvlm": "SmolVLMForConditionalGeneration",
    }
    max_new_tokens = 4096  # lmms-eval's `huggingface`

    @classmethod
    def splice(cls, model: Any) -> TiledSplice:
        return TiledSplice(model)

    def pictured(self, processor: Any, inputs: BatchFeature, sizes: Sequence[tuple[int, int]]) -> list[Pictured]:
        config = self.model.config
        vision = config.vision_config
        side = vision.image_size // vision.patch_size // config.scale_factor
        left, made = list(sizes), []
        for row, ids in enumerate(inputs["input_ids"]):
            # What stands in front of a tile's tokens says where it was cut out; nothing of that kind for a whole view.
            cells: list[tuple[int, int]] = []
            end = 0
            image = (ids == config.image_token_id) & inputs["attention_mask"][row].bool()
            for tile, (start, length) in enumerate(runs(image), start=1):
                tag = _CELL.findall(processor.tokenizer.decode(ids[max(end, start - _TAG) : start]))
                end = start + length
                if tag:
                    cells.append((int(tag[-1][0]), int(tag[-1][1])))
                    continue
                views = inputs["pixel_values"][row, tile - len(cells) - 1 : tile]
                seen = inputs["pixel_attention_mask"][row, tile - 1]
                shown = (0, 0, int(seen.any(dim=0).sum()), int(seen.any(dim=1).sum()))
                made.append(tiled(left.pop(0), views, *max(cells, default=(1, 1)), side, content=shown))
                cells = []
        return made

    def options(self, processor: Any) -> dict[str, Any]:
        return {"return_tensors": None}  # Idefics3's would make tensors of what it wrote, too, and fail

    @property
    def shows_image_lengths(self) -> bool:
        return False  # tags stand between a picture's tokens
