"""`lmms-textweighted convert SRC DST`: a checkpoint in liuhaotian format -> transformers', or the other way round.

Tensors are copied, never computed: afterwards the target is read again, led back, and compared bit for bit.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from transformers import (
    AutoConfig,
    AutoProcessor,
    GenerationConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
)

from lmms_textweighted.errors import CheckpointError, InputError, first_line
from lmms_textweighted.families import llava
from lmms_textweighted.families.images import plain_image_processor
from lmms_textweighted.families.liuhaotian import checkpoint
from lmms_textweighted.families.liuhaotian.processing import takes_pictures
from lmms_textweighted.families.loading import local_folder, read_config, resolve
from lmms_textweighted.families.weights import LOAD_ERRORS, notice_pickles, read_weights
from lmms_textweighted.prompts import MISTRAL_CHAT_TEMPLATE, VICUNA_CHAT_TEMPLATE

TOWER_FOLDER = "vision_tower"
_VISION = "model.vision_tower."
_ARCHITECTURES = {decoder: architecture for architecture, decoder in checkpoint.DECODERS.items()}

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Converted:
    """What was written. tensors: how many were led back and found equal, bit for bit."""

    folder: Path
    format: str
    tensors: int


def convert(source: str, target: Path, *, vision_tower: str | None = None, revision: str = "main") -> Converted:
    """Write `source` (a folder, a hub name or `tiny`) to the folder `target` in the other format.

    vision_tower: as for loading. Raises InputError when the target is there already, CheckpointError for a checkpoint
    that the other format cannot express, and when the copy is not equal to the original; then nothing is left behind.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"target {str(target)!r} exists already: name a new folder")
    folder = local_folder(resolve(source), revision)
    config = read_config(source, str(folder), revision)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        notice_pickles(folder)
        if checkpoint.is_liuhaotian(config):
            kind, tensors = "transformers", _to_transformers(source, folder, config, draft, vision_tower)
        else:
            kind, tensors = "liuhaotian", _to_liuhaotian(source, folder, draft)
        if target.is_dir():
            target.rmdir()
        draft.chmod(0o755)  # a temporary folder is its owner's alone, and so are safetensors' files
        for path in draft.rglob("*.safetensors"):
            path.chmod(0o644)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Converted(target, kind, tensors)


def _to_transformers(source: str, folder: Path, config: dict[str, Any], draft: Path, stated_tower: str | None) -> int:
    tower = checkpoint.find_tower(folder, config, stated_tower)
    weights = read_weights(folder)
    tokenizer, image_token = checkpoint.tokenizer_with_image_token(folder)
    hf_config = checkpoint.to_hf_config(source, config, tower, weights, image_token)
    state = checkpoint.to_hf_weights(weights, tower, hf_config)
    _check_fit(source, hf_config, state)
    hf_config.architectures = [llava.MODELS[hf_config.model_type].__name__]
    hf_config.save_pretrained(draft)
    save_torch_state_dict(state, draft)
    _processor(tokenizer, tower, hf_config).save_pretrained(draft)
    _generation(folder, hf_config).save_pretrained(draft)
    written = _hf_weights(draft)
    back = _led_back(written, hf_config)
    whole = {name: value for name, value in weights.items() if not checkpoint.is_derived(name)}
    inside = {name: value for name, value in whole.items() if name.startswith(checkpoint.TOWER_PREFIX)}
    outside = {name: value for name, value in whole.items() if name not in inside}
    tower_back = {name.removeprefix(_VISION): value for name, value in written.items() if name.startswith(_VISION)}
    return _compare(outside, back) + _compare(checkpoint.tower_weights(inside, tower), tower_back)


def _to_liuhaotian(source: str, folder: Path, draft: Path) -> int:
    try:
        hf_config = AutoConfig.from_pretrained(folder)
        processor = AutoProcessor.from_pretrained(folder)
    except LOAD_ERRORS as error:
        raise CheckpointError(f"checkpoint {source!r} cannot be read: {first_line(error)}") from error
    config = _liuhaotian_config(source, hf_config)
    state = _hf_weights(folder)
    _check_fit(source, hf_config, state)
    weights = _led_back(state, hf_config)
    stored = str(next(iter(weights.values())).dtype).removeprefix("torch.")  # the configs may say another
    config.update(torch_dtype=stored, dtype=stored)
    tower = {name.removeprefix(_VISION): value for name, value in state.items() if name.startswith(_VISION)}
    save_torch_state_dict(weights, draft)
    (draft / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    processor.tokenizer.save_pretrained(draft)
    _generation(folder, hf_config).save_pretrained(draft)
    inner = draft / TOWER_FOLDER
    save_torch_state_dict({f"vision_model.{name}": value for name, value in tower.items()}, _made(inner))
    hf_config.vision_config.save_pretrained(inner)
    plain_image_processor(processor.image_processor).save_pretrained(inner)
    found = checkpoint.find_tower(draft, config, None)
    again = checkpoint.to_hf_weights(read_weights(draft), found, hf_config)
    return _compare(state, again)


def _liuhaotian_config(source: str, config: Any) -> dict[str, Any]:
    """The config of the `llava` package. Raises CheckpointError for what it cannot express."""
    decoder = config.get_text_config().model_type
    wrong = {
        "model_type": config.model_type not in ("llava", "llava_next"),
        "text_config.model_type": decoder not in _ARCHITECTURES,
        "projector_hidden_act": config.model_type in ("llava", "llava_next") and config.projector_hidden_act != "gelu",
        "vision_feature_layer": not isinstance(getattr(config, "vision_feature_layer", None), int),
        "multimodal_projector_bias": not getattr(config, "multimodal_projector_bias", True),
    }
    for name, is_wrong in wrong.items():
        if is_wrong:
            value = decoder if name.startswith("text") else getattr(config, name, None)
            raise CheckpointError(f"checkpoint {source!r} has {name}={value!r}, which liuhaotian format cannot express")
    features = {hf_name: name for name, hf_name in checkpoint.SELECT_FEATURE.items()}
    text = config.get_text_config().to_dict()
    rope = text.get("rope_parameters") or {}
    anyres = config.model_type == "llava_next"
    found = {
        **text,
        "rope_theta": rope.get("rope_theta", 10000.0),
        "architectures": [_ARCHITECTURES[decoder]],
        "model_type": f"llava_{decoder}",
        "vocab_size": getattr(config, checkpoint.VOCABULARY_KEY, text["vocab_size"]),
        "mm_vision_tower": TOWER_FOLDER,
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": features[config.vision_feature_select_strategy],
        "mm_patch_merge_type": "spatial_unpad" if anyres else "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "image_aspect_ratio": getattr(config, "image_aspect_ratio", None) or ("anyres" if anyres else "square"),
        "tie_word_embeddings": bool(config.tie_word_embeddings),
    }
    if getattr(config, checkpoint.CONTEXT_KEY, None):
        found[checkpoint.CONTEXT_KEY] = getattr(config, checkpoint.CONTEXT_KEY)
    if anyres:
        found["image_grid_pinpoints"] = [[width, height] for height, width in config.image_grid_pinpoints]
    return found


def _hf_weights(folder: Path) -> Weights:
    """A checkpoint's tensors under transformers' present names, whichever version wrote them."""
    found = {}
    for name, value in read_weights(folder).items():
        if checkpoint.is_derived(name):
            continue
        for old, new in (
            ("language_model.model.", "model.language_model."),
            ("language_model.lm_head.", "lm_head."),
            ("vision_tower.", _VISION),
            ("multi_modal_projector.", "model.multi_modal_projector."),
            ("image_newline", "model.image_newline"),
        ):
            if name.startswith(old):
                name = new + name.removeprefix(old)
        found[name.replace(f"{_VISION}vision_model.", _VISION)] = value
    return found


def _led_back(state: Weights, config: Any) -> Weights:
    """transformers' tensors under the `llava` package's names, without rows that the image token was given."""
    rows = getattr(config, checkpoint.VOCABULARY_KEY, None)
    found = {}
    for name, value in state.items():
        own = checkpoint.liuhaotian_name(name)
        if own is not None:
            found[own] = value[:rows].clone() if rows and own in checkpoint.EMBEDDINGS else value
    return found


def _check_fit(source: str, config: Any, state: Weights) -> None:
    """Raise CheckpointError when the tensors are not exactly those of the model that the config describes."""
    with torch.device("meta"):
        model = llava.MODELS[config.model_type](config)
    expected = {name: value.shape for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        expected = {name: shape for name, shape in expected.items() if name != "lm_head.weight" or name in state}
    for name in sorted(set(expected) ^ set(state)):
        raise CheckpointError(
            f"checkpoint {source!r} {'lacks' if name in expected else 'has the unknown'} weight {name!r}"
        )
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise CheckpointError(
                f"checkpoint {source!r}: weight {name!r} has shape {tuple(state[name].shape)}, but its config says "
                f"{tuple(shape)}"
            )


def _processor(tokenizer: Any, tower: checkpoint.Tower, config: Any) -> Any:
    template = MISTRAL_CHAT_TEMPLATE if config.text_config.model_type == "mistral" else VICUNA_CHAT_TEMPLATE
    if takes_pictures(tokenizer):
        template = tokenizer.chat_template
    shared = {
        "patch_size": tower.config.patch_size,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "chat_template": template,
    }
    plain = tower.image_processor
    if config.model_type == "llava":
        return LlavaProcessor(image_processor=plain, tokenizer=tokenizer, **shared)
    names = ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor")
    grid = LlavaNextImageProcessor(
        **{name: getattr(plain, name) for name in names}, image_grid_pinpoints=config.image_grid_pinpoints
    )
    return LlavaNextProcessor(image_processor=grid, tokenizer=tokenizer, **shared)


def _generation(folder: Path, config: Any) -> GenerationConfig:
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_model_config(config.get_text_config())


def _compare(expected: Weights, found: Weights) -> int:
    """How many tensors there are. Raises CheckpointError when one is not there, or not the same in every bit."""
    for name in sorted(set(expected) ^ set(found)):
        raise CheckpointError(f"the conversion lost or invented weight {name!r}: please report it")
    for name, value in expected.items():
        if value.dtype != found[name].dtype or not torch.equal(_bits(value), _bits(found[name])):
            raise CheckpointError(f"the conversion changed weight {name!r}: please report it")
    return len(expected)


def _bits(value: torch.Tensor) -> torch.Tensor:
    """As bytes: NaN equals itself, and 0 is not -0."""
    return value.contiguous().view(torch.uint8) if value.ndim else value.reshape(1).view(torch.uint8)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
