"""liuhaotian's checkpoint format, the original `llava` package's: what is in it, and how transformers says the same.

A folder holds `config.json` (a Llama's or Mistral's, with `mm_…` fields), the decoder's and projector's weights and a
tokenizer. The vision tower is a CLIP folder or hub name that the config names; its weights may also be inside.
"""

from __future__ import annotations

import ast
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from lmms_textweighted.engine.decoder import find_decoder
from lmms_textweighted.errors import CheckpointError, first_line
from lmms_textweighted.families.liuhaotian.processing import PlaceholderProcessor
from lmms_textweighted.families.loading import Loaded, LoadOptions, check_complete, local_folder, quiet_transformers
from lmms_textweighted.families.weights import LOAD_ERRORS, notice_pickles, read_weights
from lmms_textweighted.hub import asked_once
from lmms_textweighted.paths import expanded
from lmms_textweighted.prompts import DEFAULT_TEMPLATE, IMAGE_TAG, stop_string

# Architecture -> the decoder's model_type in transformers.
DECODERS = {"LlavaLlamaForCausalLM": "llama", "LlavaMistralForCausalLM": "mistral"}
_QWEN = "LlavaQwenForCausalLM"  # LLaVA-NeXT's package has it
# Written into a converted config: how many rows of the embedding the original had, without a row for the image token.
VOCABULARY_KEY = "liuhaotian_vocab_size"
# The config's own key, kept through every conversion: what a prompt with its image tokens may be long.
CONTEXT_KEY = "tokenizer_model_max_length"
TOWER_PREFIX = "model.vision_tower.vision_tower."
SELECT_FEATURE = {"patch": "default", "cls_patch": "full"}
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


def is_liuhaotian(config: dict[str, Any]) -> bool:
    """Told by the architecture or the vision tower's field: released checkpoints have `model_type: llava`, too."""
    names = config.get("architectures") or []
    return "mm_vision_tower" in config or any(
        name.startswith("Llava") and name.endswith("ForCausalLM") for name in names
    )


@dataclass(frozen=True)
class Tower:
    """A CLIP vision tower: where it is, and its config."""

    path: str
    config: Any
    image_processor: Any

    @property
    def image_tokens(self) -> int:
        return (self.config.image_size // self.config.patch_size) ** 2

    def weights(self) -> dict[str, torch.Tensor]:
        """Its tensors under transformers' present names, in the types they are stored in."""
        found = {
            name.removeprefix("vision_model."): value
            for name, value in read_weights(local_folder(self.path, "main")).items()
            if not is_derived(name)
        }
        # A whole CLIP has a text tower and projections, too.
        own = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
        return {name: value for name, value in found.items() if name.startswith(own)}


def find_tower(folder: Path, config: dict[str, Any], stated: str | None) -> Tower:
    """The vision tower: what the user states, else what the config names, as a folder inside the checkpoint, any other
    folder, or a hub name. Raises CheckpointError when it is not there or no CLIP."""
    named = config.get("mm_vision_tower")
    path = str(expanded(stated)) if stated else str(named)
    if stated and not Path(path).is_dir():
        raise CheckpointError(f"vision_tower is {stated!r}, which is no folder: give a local CLIP folder")
    if not stated and named and (folder / str(named)).is_dir():
        path = str((folder / str(named)).resolve())
    if path == "None":
        raise CheckpointError(f"checkpoint {str(folder)!r} names no mm_vision_tower: give vision_tower=FOLDER")
    try:
        with nullcontext() if Path(path).is_dir() else asked_once():
            tower = Tower(path, CLIPVisionConfig.from_pretrained(path), CLIPImageProcessor.from_pretrained(path))
    except LOAD_ERRORS as error:
        raise CheckpointError(
            f"vision tower {path!r} cannot be read ({first_line(error)}): give vision_tower=FOLDER, a local CLIP folder"
        ) from error
    width = config.get("mm_hidden_size", tower.config.hidden_size)
    if tower.config.hidden_size != width:
        raise CheckpointError(
            f"vision tower {path!r} is {tower.config.hidden_size} wide, but the checkpoint's mm_hidden_size is "
            f"{width}: give vision_tower=FOLDER, the CLIP that it was trained with"
        )
    return tower


def load_tokenizer(folder: Path) -> Any:
    """The checkpoint's tokenizer, padding on the left. Raises CheckpointError when there is none."""
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        # Without a file transformers would make a tokenizer of three tokens.
        raise CheckpointError(
            f"checkpoint {str(folder)!r} has no tokenizer ({', '.join(_TOKENIZERS)}): is the download whole?"
        )
    # By its file: the config's model_type misleads AutoTokenizer, which then drops line breaks without a word.
    kind = AutoTokenizer if (folder / "tokenizer.json").is_file() else LlamaTokenizer
    try:
        with quiet_transformers():  # the config's model_type is none of transformers' own
            tokenizer = kind.from_pretrained(folder)
    except LOAD_ERRORS as error:
        raise CheckpointError(f"the tokenizer in {str(folder)!r} cannot be loaded: {first_line(error)}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def tokenizer_with_image_token(folder: Path) -> tuple[Any, int]:
    """The tokenizer, and the id of `<image>` in it: transformers' models need one, and it is added where it lacks."""
    tokenizer = load_tokenizer(folder)
    if IMAGE_TAG not in tokenizer.get_vocab():
        tokenizer.add_tokens([IMAGE_TAG], special_tokens=True)
    return tokenizer, tokenizer.convert_tokens_to_ids(IMAGE_TAG)


def is_anyres(config: dict[str, Any]) -> bool:
    """LLaVA-1.6: grids of tiles with newline features."""
    return "unpad" in config.get("mm_patch_merge_type", "flat") and "anyres" in str(config.get("image_aspect_ratio"))


def aspect_ratio(config: dict[str, Any], stated: str | None) -> str:
    """How pictures are prepared: as stated, else as the checkpoint's config says, else `square`."""
    return stated or config.get("image_aspect_ratio") or "square"


def grid_pinpoints(config: dict[str, Any]) -> Any:
    """The grid's resolutions as [width, height] pairs, whether the config has a list or its text; LLaVA-NeXT's ranges
    stay text; None without a grid. Raises CheckpointError for a text that is neither."""
    given = config.get("image_grid_pinpoints")
    if not isinstance(given, str) or "x" in given:
        return given
    try:
        return ast.literal_eval(given)
    except (ValueError, SyntaxError) as error:
        raise CheckpointError(
            f"the checkpoint has image_grid_pinpoints={given[:80]!r}: needed are [width, height] pairs"
        ) from error


def trained_template(model: Any, processor: Any) -> str:
    """The template that a checkpoint in this format was trained with, as its decoder and its end token tell."""
    decoder = type(find_decoder(model)).__name__  # the config may say `llava` of any decoder
    if "Mistral" in decoder:
        return "mistral_instruct"
    if "Qwen" in decoder and getattr(processor, "chat_template", None):
        return "hf"
    return "chatml_direct" if processor.tokenizer.eos_token == stop_string("chatml_direct") else DEFAULT_TEMPLATE


def load(pretrained: str, folder: Path, config: dict[str, Any], options: LoadOptions) -> Loaded:
    """Load without the `llava` package: the checkpoint becomes a LLaVA of transformers in memory."""
    model, tokenizer, tower = convert_in_memory(pretrained, folder, config, options)
    ratio = aspect_ratio(config, options.image_aspect_ratio)
    processor = PlaceholderProcessor(tokenizer, tower.image_processor, ratio, grid_pinpoints(config), model.config)
    return Loaded(options.place(model), processor)


def convert_in_memory(
    pretrained: str, folder: Path, config: dict[str, Any], options: LoadOptions
) -> tuple[Any, Any, Tower]:
    """(transformers' model, tokenizer, tower) of a checkpoint in liuhaotian format."""
    tower = find_tower(folder, config, options.vision_tower)
    notice_pickles(folder)
    weights = read_weights(folder)
    tokenizer, image_token = tokenizer_with_image_token(folder)
    hf_config = to_hf_config(pretrained, config, tower, weights, image_token)
    state = to_hf_weights(weights, tower, hf_config)
    kind: Any = LlavaNextForConditionalGeneration if is_anyres(config) else LlavaForConditionalGeneration
    try:
        model, info = kind.from_pretrained(
            None, config=hf_config, state_dict=state, output_loading_info=True, **options.model_arguments()
        )
    except LOAD_ERRORS as error:
        raise CheckpointError(f"checkpoint {pretrained!r} cannot be converted: {first_line(error)}") from error
    check_complete(pretrained, info["missing_keys"])
    if info["unexpected_keys"]:
        raise CheckpointError(
            f"checkpoint {pretrained!r} has weights that transformers' LLaVA has no place for: "
            f"{sorted(info['unexpected_keys'])[0]!r}: load it with the llava package (loader=llava)"
        )
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, tokenizer, tower


def to_hf_config(
    pretrained: str, config: dict[str, Any], tower: Tower, weights: dict[str, torch.Tensor], image_token: int
) -> Any:
    """The config of transformers. Raises CheckpointError for what transformers' LLaVA cannot express."""
    architecture = (config.get("architectures") or ["LlavaLlamaForCausalLM"])[0]
    wrong = {
        "architectures": None if architecture in DECODERS else architecture,
        "mm_projector_type": _unless(config.get("mm_projector_type"), "mlp2x_gelu"),
        "mm_vision_select_feature": None
        if config.get("mm_vision_select_feature", "patch") in SELECT_FEATURE
        else config["mm_vision_select_feature"],
        "mm_use_im_start_end": config.get("mm_use_im_start_end") or None,
        "mm_patch_merge_type": None
        if config.get("mm_patch_merge_type", "flat") == "flat" or is_anyres(config)
        else config["mm_patch_merge_type"],
    }
    for name, value in wrong.items():
        if value is not None:
            unsupported = name == "mm_use_im_start_end" or (name == "architectures" and value != _QWEN)
            advice = "not supported" if unsupported else "load it with the llava package (loader=llava)"
            raise CheckpointError(
                f"checkpoint {pretrained!r} has {name}={value!r}, which transformers' LLaVA does not know: {advice}"
            )
    decoder = DECODERS[architecture]
    known = set(AutoConfig.for_model(decoder).to_dict()) | {"rope_theta", "rope_scaling"}
    dropped = {"model_type", "architectures", "transformers_version", "torch_dtype", "dtype", "vocab_size"}
    # A window of None says that there is none: left out, transformers would give a Mistral one of 4096.
    stated = {name for name, value in config.items() if value is not None or name == "sliding_window"}
    text = {name: config[name] for name in (known - dropped) & stated}
    rows = weights["model.embed_tokens.weight"].shape[0] if "model.embed_tokens.weight" in weights else 0
    stored = next(iter(weights.values())).dtype  # what dtype=auto means: configs may say another
    text_config = AutoConfig.for_model(decoder, **text, vocab_size=max(rows, image_token + 1), dtype=stored)
    shared = {
        "vision_config": tower.config,
        "text_config": text_config,
        "image_token_index": image_token,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": config.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": SELECT_FEATURE[config.get("mm_vision_select_feature", "patch")],
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "dtype": stored,
        "image_aspect_ratio": aspect_ratio(config, None),
        VOCABULARY_KEY: rows,
    }
    if config.get(CONTEXT_KEY):
        shared[CONTEXT_KEY] = config[CONTEXT_KEY]
    if not is_anyres(config):
        return LlavaConfig(**shared, image_seq_length=tower.image_tokens)
    pinpoints = grid_pinpoints(config)
    if not isinstance(pinpoints, list):
        raise CheckpointError(f"checkpoint {pretrained!r} has image_grid_pinpoints={pinpoints!r}: needed is a list")
    # LLaVA writes [width, height], transformers (height, width).
    return LlavaNextConfig(**shared, image_grid_pinpoints=[[height, width] for width, height in pinpoints])


def to_hf_weights(weights: dict[str, torch.Tensor], tower: Tower, config: Any) -> dict[str, torch.Tensor]:
    """The tensors under transformers' names, with a row of the embedding and of the head for the image token.

    The new row is the mean of all others, so that the image token is never the likeliest answer.
    """
    inside = {name: value for name, value in weights.items() if name.startswith(TOWER_PREFIX)}
    state = {f"model.vision_tower.{name}": value for name, value in tower_weights(inside, tower).items()}
    for name, value in weights.items():
        if name not in inside and not is_derived(name):
            rows = config.get_text_config().vocab_size
            state[_hf_name(name)] = _with_rows(value, rows) if name in EMBEDDINGS else value
    return state


def tower_weights(inside: dict[str, torch.Tensor], tower: Tower) -> dict[str, torch.Tensor]:
    """The vision tower's tensors under transformers' names. Those inside the checkpoint go before the folder's."""
    own = {
        name.removeprefix(TOWER_PREFIX).removeprefix("vision_model."): value
        for name, value in inside.items()
        if not is_derived(name)
    }
    return own or tower.weights()


def is_derived(name: str) -> bool:
    """Buffers that old checkpoints hold and that every model makes for itself."""
    return name.endswith(("position_ids", "rotary_emb.inv_freq"))


def _hf_name(name: str) -> str:
    if name.startswith("model.mm_projector."):
        place, kind = name.removeprefix("model.mm_projector.").split(".")
        return f"model.multi_modal_projector.linear_{1 + int(place) // 2}.{kind}"
    if name in ("lm_head.weight", "model.image_newline"):
        return name
    return "model.language_model." + name.removeprefix("model.")


def liuhaotian_name(name: str) -> str | None:
    """The other way round; None for the vision tower's tensors, which go into a folder of their own."""
    if name.startswith("model.vision_tower."):
        return None
    if name.startswith("model.multi_modal_projector.linear_"):
        place, kind = name.removeprefix("model.multi_modal_projector.linear_").split(".")
        return f"model.mm_projector.{2 * (int(place) - 1)}.{kind}"
    return name.replace("model.language_model.", "model.")


def _with_rows(weight: torch.Tensor, rows: int) -> torch.Tensor:
    missing = rows - len(weight)
    if missing <= 0:
        return weight
    mean = weight.float().mean(dim=0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(missing, -1)])


def _unless(value: Any, expected: str) -> Any:
    return None if value == expected else value or "linear"
