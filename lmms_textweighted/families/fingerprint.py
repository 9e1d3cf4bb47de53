"""Tell models apart by their weights, whatever the format that they were read from."""

from __future__ import annotations

import hashlib

from torch import nn

from lmms_textweighted.families.liuhaotian.checkpoint import EMBEDDINGS, VOCABULARY_KEY, is_derived, liuhaotian_name

_VALUES = 64  # of each tensor


def weights_fingerprint(model: nn.Module) -> str:
    """A short hash of the weights: every tensor's name, shape, and 64 values spread over it; equal in all formats.

    So names are those of liuhaotian's format, and left out is what formats do not share: buffers that a model makes for
    itself, and the last rows of the embedding and of the head. Conversions add some, for the image token or to round
    the number up; hashed are the first 2^k rows, the most that the vocabulary has.
    """
    digest = hashlib.sha256()
    vocabulary = getattr(getattr(model, "config", None), VOCABULARY_KEY, None)
    tensors = {_name(name): value for name, value in model.state_dict().items() if not is_derived(name)}
    for name, value in sorted(tensors.items()):
        if name in EMBEDDINGS:
            rows = vocabulary or value.shape[0]
            value = value[: 1 << (rows.bit_length() - 1)]
        digest.update(f"{name}{tuple(value.shape)}".encode())
        if value.is_meta:  # offloaded: its name and shape must do
            continue
        flat = value.reshape(-1)
        picked = flat[:: max(1, flat.numel() // _VALUES)][:_VALUES].float().cpu()
        digest.update(picked.numpy().tobytes())
    return digest.hexdigest()[:16]


def _name(name: str) -> str:
    known = liuhaotian_name(name)
    if known is not None:
        return known
    inner = name.removeprefix("model.vision_tower.").removeprefix("vision_tower.").removeprefix("vision_model.")
    return f"model.vision_tower.{inner}"
