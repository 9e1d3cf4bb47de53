"""CLIP's text tower and both projections, from the checkpoint that a model's vision tower is of.

A LLaVA has only the vision tower. `load_text_tower` reads the rest: the text tower with its projection and tokenizer,
and of the vision side `post_layernorm` and `visual_projection`, which bring a patch's feature where texts are:

    e_k = visual_projection(post_layernorm(v_k)),    u = text_projection(pooled)

pooled: the last layer's output at the end token. All of it runs in float32, whatever the model's type.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import AutoTokenizer, CLIPConfig, CLIPTextModelWithProjection, PreTrainedConfig

from lmms_textweighted.engine.text_tower import TextReads, TextTower
from lmms_textweighted.errors import CheckpointError, PlanError, first_line
from lmms_textweighted.families.fingerprint import weights_fingerprint
from lmms_textweighted.families.liuhaotian.checkpoint import is_derived
from lmms_textweighted.families.loading import check_complete, local_folder, quiet_transformers
from lmms_textweighted.families.weights import LOAD_ERRORS, notice_pickles, read_weights
from lmms_textweighted.paths import expanded

_NORM, _PROJECTION = "vision_model.post_layernorm.", "visual_projection."
_TEXT = ("text_model.", "text_projection.")
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
# Of a vision tower's config: what must be the same in the model's and in the CLIP's.
_SHAPE = ("hidden_size", "patch_size", "image_size")


@dataclass
class ClipTexts(TextTower):
    """A whole CLIP without its vision tower's layers. parts: text, norm and projection. vision: that tower's config."""

    name: str
    parts: nn.ModuleDict
    tokenizer: Any
    context: int
    vision: Any

    @property
    def fingerprint(self) -> str:
        """Of its weights, as `families.fingerprint` has it."""
        return weights_fingerprint(self.parts)

    @torch.no_grad()
    def texts(self, text: str, reads: TextReads) -> torch.Tensor:
        for part in reads.without:
            text = text.replace(part, "")
        limit = {} if reads.segments else {"truncation": True, "max_length": self.context}
        encoded = self.tokenizer(text, return_tensors="pt", verbose=False, **limit)
        device = next(self.parts.parameters()).device
        length = encoded["input_ids"].shape[1]
        width = self.context if reads.segments else length
        # The last segment is filled up with 0, as by CDPruner's authors: the mask hides it, and it is never pooled.
        inputs = {
            name: pad(encoded[name], (0, -length % width)).reshape(-1, width)
            for name in ("input_ids", "attention_mask")
        }
        return self.parts["text"](**{name: value.to(device) for name, value in inputs.items()}).text_embeds

    @torch.no_grad()
    def patches(self, vectors: torch.Tensor) -> torch.Tensor:
        device = next(self.parts.parameters()).device
        found = self.parts["projection"](self.parts["norm"](vectors.to(device, torch.float32)))
        return found.to(vectors.device)


def load_text_tower(name: str, model: Any) -> ClipTexts:
    """The text tower of a CLIP, a folder or hub name, on the model's device.

    Raises CheckpointError where it is missing, out of reach or no whole CLIP, PlanError where the model's vision tower
    is not of its kind.
    """
    folder = _local(name)
    config = _config(name, folder)
    _check_shape(name, config.vision_config, model)
    if not any(all((folder / file).is_file() for file in files) for files in _TOKENIZERS):
        # Without a file transformers would make a tokenizer of three tokens.
        raise CheckpointError(f"text_tower {name!r} has no tokenizer (tokenizer.json): is the download whole?")
    wanted = (*_TEXT, _NORM, _PROJECTION)
    weights = read_weights(folder, lambda key: key.startswith(wanted) and not is_derived(key))
    notice_pickles(folder)
    text_config: Any = config.text_config
    vision: Any = config.vision_config
    text_config.projection_dim = config.projection_dim
    sides = {
        _NORM: nn.LayerNorm(vision.hidden_size, eps=vision.layer_norm_eps),
        _PROJECTION: nn.Linear(vision.hidden_size, int(config.projection_dim or 0), bias=False),
    }
    kind: Any = CLIPTextModelWithProjection
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder)
            text, info = kind.from_pretrained(
                None,
                config=text_config,
                state_dict={key: value for key, value in weights.items() if key.startswith(_TEXT)},
                output_loading_info=True,
                dtype=torch.float32,
            )
        missing = [*info["missing_keys"]]
        for front, module in sides.items():
            own = {key.removeprefix(front): value for key, value in weights.items() if key.startswith(front)}
            missing += [front + key for key in module.state_dict() if key not in own]
            module.load_state_dict(own, strict=False)
    except LOAD_ERRORS as error:
        raise CheckpointError(f"text_tower {name!r} cannot be read ({first_line(error)}): give a whole CLIP") from error
    check_complete(name, missing)
    parts = nn.ModuleDict({"text": text, "norm": sides[_NORM], "projection": sides[_PROJECTION]})
    parts.float().eval().requires_grad_(False).to(model.device)
    return ClipTexts(name, parts, tokenizer, text_config.max_position_embeddings, vision)


def check_text_tower(tower: TextTower, model: Any) -> None:
    """Raise PlanError where a text tower is not of the CLIP that the model's vision tower is of, as far as shapes tell.

    Not by the weights: a LLaVA may have trained its vision tower further.
    """
    if isinstance(tower, ClipTexts):
        _check_shape(tower.name, tower.vision, model)


def _check_shape(name: str, vision: Any, model: Any) -> None:
    package = getattr(model, "get_vision_tower", None)
    config = getattr(package(), "config", None) if package else getattr(model.config, "vision_config", None)
    kind = getattr(config, "model_type", "")
    if kind != "clip_vision_model":
        raise PlanError(
            f"text_tower is {name!r}, but the vision tower of a {type(model).__name__} is no CLIP"
            f"{f' ({kind})' if kind else ''}: use a method that needs none"
        )
    for field in _SHAPE:
        own, needed = getattr(vision, field), getattr(config, field)
        if own != needed:
            raise PlanError(
                f"text_tower {name!r} is of a vision tower whose {field} is {own}, but the model's is {needed}: give "
                f"the CLIP that the model's vision tower is of"
            )


def _local(name: str) -> Path:
    path = expanded(str(name))
    if path.is_dir():
        return path
    if str(name).startswith((".", "/", "~")) or str(name).count("/") != 1 or path.exists():
        raise CheckpointError(f"text_tower is {name!r}, which is no folder: give a folder or hub name of a whole CLIP")
    try:
        return local_folder(str(name), "main")
    except CheckpointError as error:
        raise CheckpointError(
            f"text_tower {name!r} is not on disk and the hub did not give it: give a local folder, or a machine that "
            f"reaches the hub"
        ) from error


def _config(name: str, folder: Path) -> CLIPConfig:
    try:
        found, _ = PreTrainedConfig.get_config_dict(folder)
        kind = found.get("model_type")
        if kind == "clip":
            return CLIPConfig.from_pretrained(folder)
    except LOAD_ERRORS as error:
        raise CheckpointError(f"text_tower {name!r} cannot be read ({first_line(error)}): give a whole CLIP") from error
    raise CheckpointError(
        f"text_tower {name!r} is no whole CLIP, its model_type is {kind!r}: give one with its text tower, as "
        f"openai/clip-vit-large-patch14-336"
    )
