"""How long a prompt may be: one limit for every loader and family, image tokens counted."""

from __future__ import annotations

from typing import Any

import torch

from lmms_textweighted.errors import PromptError
from lmms_textweighted.families.base import Family

_STRETCHING = ("linear", "dynamic", "yarn", "longrope")


def context_limit(config: Any) -> int | None:
    """Tokens of a whole sequence that a model was made for; None where its config does not say.

    The least of the decoder's `max_position_embeddings`, stretched where its rotary phases are (rope type linear,
    dynamic or yarn with a factor), and of liuhaotian's `tokenizer_model_max_length`, at which the `llava` package cuts.
    """
    text = config.get_text_config()
    limits = [getattr(config, "tokenizer_model_max_length", None)]
    positions = getattr(text, "max_position_embeddings", None)
    if positions:
        rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
        stretched = 0.0
        if rope.get("rope_type", rope.get("type")) in _STRETCHING:
            base = rope.get("original_max_position_embeddings") or positions
            stretched = base * (rope.get("factor") or 1)
        limits.append(max(positions, int(stretched)))
    return min((limit for limit in limits if limit), default=None)


def check_context(family: Family, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
    """Raise PromptError for a prompt longer than the model's context. Both tensors: [B, S].

    Where only the model itself knows how many tokens a picture becomes (the `llava` package with a grid), a picture
    counts as one here, and the package's own cut is found where it splices.
    """
    limit = context_limit(family.model.config)
    if limit is None:
        return
    for row, (ids, valid) in enumerate(zip(input_ids, attention_mask.bool(), strict=True)):
        image = family.image_mask(ids[valid])
        if len(image) > limit:
            raise PromptError(
                f"the prompt has {len(image)} tokens, {int(image.sum())} of them the pictures', but the model was made "
                f"for {limit}: shorten it",
                row,
            )
