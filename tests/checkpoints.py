"""Small random checkpoints in liuhaotian format, written tensor by tensor: neither loader has a hand in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from huggingface_hub import save_torch_state_dict, split_torch_state_dict_into_shards
from transformers import AutoConfig, AutoModelForCausalLM, CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from lmms_textweighted.tiny.architecture import build_tokenizer

SIDE, PATCH = 56, 14
HIDDEN, VISION_HIDDEN = 32, 16
GRID = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
_WORDS = "What is the colour of this picture ? red green blue circle square A. B. C. USER: ASSISTANT: Answer"


def make_tower(folder: Path, seed: int = 1) -> Path:
    """A CLIP vision folder as the hub has it."""
    config = CLIPVisionConfig(
        hidden_size=VISION_HIDDEN,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    )
    model = CLIPVisionModel(config)
    _fill(model.state_dict(), seed, 0.3)
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def make_checkpoint(
    folder: Path,
    *,
    tower: Path | str,
    anyres: bool = False,
    pickled: bool = False,
    shards: int = 2,
    sentence_piece: bool = False,
    tower_inside: bool = False,
    architecture: str = "LlavaLlamaForCausalLM",
    config_changes: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> Path:
    """A liuhaotian-format folder: config, weights in several files, tokenizer; the tower by its path."""
    folder.mkdir(parents=True)
    rows = _write_tokenizer(folder, sentence_piece)
    kind = "mistral" if "Mistral" in architecture else "llama"
    text = AutoConfig.for_model(
        kind,
        vocab_size=rows,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2 if kind == "mistral" else 4,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **({"sliding_window": None} if kind == "mistral" else {}),
    )
    state = {name: value.to(dtype) for name, value in AutoModelForCausalLM.from_config(text).state_dict().items()}
    for place, width in ((0, VISION_HIDDEN), (2, HIDDEN)):
        state[f"model.mm_projector.{place}.weight"] = torch.empty(HIDDEN, width, dtype=dtype)
        state[f"model.mm_projector.{place}.bias"] = torch.empty(HIDDEN, dtype=dtype)
    if anyres:
        state["model.image_newline"] = torch.empty(HIDDEN, dtype=dtype)
    _fill(state, seed, 0.25)
    if tower_inside:
        inside = CLIPVisionModel.from_pretrained(tower).state_dict()
        _fill(inside, seed + 7, 0.3)
        prefix = "model.vision_tower.vision_tower.vision_model."
        state.update({prefix + name: value.to(dtype) for name, value in inside.items()})
    _write_weights(folder, state, pickled=pickled, shards=shards)
    config = {
        **{name: value for name, value in text.to_dict().items() if name != "rope_parameters"},
        "rope_theta": 10000.0,
        "architectures": [architecture],
        "model_type": "llava",  # as the released files have it, which transformers takes for its own
        "mm_vision_tower": str(tower),
        "mm_hidden_size": VISION_HIDDEN,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "image_aspect_ratio": "anyres" if anyres else "pad",
        "torch_dtype": str(dtype).removeprefix("torch."),
        **({"mm_patch_merge_type": "spatial_unpad", "image_grid_pinpoints": GRID} if anyres else {}),
        **({"unfreeze_mm_vision_tower": True} if tower_inside else {}),
        **(config_changes or {}),
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    )
    return folder


def _fill(state: dict[str, torch.Tensor], seed: int, width: float) -> None:
    """Random numbers, wide enough that attention is far from uniform; norms stay near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in sorted(state):
            value = state[name]
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator) * width
                value.copy_(1 + noise / 5 if "norm" in name and name.endswith("weight") else noise)


def _write_tokenizer(folder: Path, sentence_piece: bool) -> int:
    """Returns the number of embedding rows: `<image>` has none, as in the released checkpoints."""
    if not sentence_piece:
        tokenizer = build_tokenizer()
        tokenizer.save_pretrained(folder)
        return tokenizer.convert_tokens_to_ids("<image>")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_WORDS.split() * 20 + [_WORDS]),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",  # as Llama's own: line breaks and double spaces count
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "model_max_length": 2048,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).vocab_size()


def _write_weights(folder: Path, state: dict[str, torch.Tensor], *, pickled: bool, shards: int) -> None:
    state = {name: value.contiguous() for name, value in state.items()}
    size = sum(value.numel() * value.element_size() for value in state.values())
    limit = size if shards == 1 else size // shards
    if not pickled:
        save_torch_state_dict(state, folder, max_shard_size=limit)
        return
    split = split_torch_state_dict_into_shards(
        state, filename_pattern="pytorch_model{suffix}.bin", max_shard_size=limit
    )
    for name, tensors in split.filename_to_tensors.items():
        torch.save({tensor: state[tensor] for tensor in tensors}, folder / name)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def files_of(folder: Path) -> Sequence[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
