"""Which model answers: its weights, and everything about it that an answer depends on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from lmms_textweighted.families.fingerprint import weights_fingerprint
from lmms_textweighted.inference import PrunedLlava
from lmms_textweighted.prompts import Message, render, user_message


def model_state(llava: PrunedLlava) -> dict[str, Any]:
    """For a result: kind, weights' fingerprint, loader, type, attention kernel, device and its name, template and its
    digest, system prompt, preparation of pictures; where there is a text tower, its weights' fingerprint."""
    model = llava.model
    return {
        "model_type": model.config.model_type,
        "weights": weights_fingerprint(model),
        "loader": llava.loader,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn_implementation": model.config.get_text_config()._attn_implementation,
        "device": model.device.type,
        "device_name": device_name(model.device),
        "conv_template": llava.template,
        "conv_template_digest": template_digest(llava),
        "system_prompt": llava.acting_system_prompt,
        "image_aspect_ratio": llava.image_aspect_ratio,
        **({} if llava.text_tower is None else {"text_tower": llava.text_tower.fingerprint}),
    }


def device_name(device: torch.device) -> str:
    """The card's name; of a CPU, only that it is one."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def template_digest(llava: PrunedLlava) -> str:
    """The first 16 digits of a SHA-256 of two conversations as the template writes them: one with a picture, open, and
    one of several turns with an answer.

    Of `conv_template=hf` that is the checkpoint's own chat template, which its name does not tell.
    """
    question = user_message("question", ["picture"])
    answered = [Message("user", (("text", "first"),)), Message("assistant", (("text", "answer"),)), question]
    written = [render(str(llava.template), turns, llava.processor) for turns in ([question], answered)]
    return hashlib.sha256(json.dumps(written).encode()).hexdigest()[:16]
