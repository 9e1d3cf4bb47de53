"""Tiny random checkpoints of every listed kind with the real processor classes: nothing is fetched.

The chat templates are short ones of our own in the models' shape, the tokenizer is trained on a few sentences.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lmms_textweighted.families.known import family_of_type
from tests.vlms import MODELS, filled

_CORPUS = [
    "What is the colour of the object in this picture? The circle is red, the square is blue, the star is green.",
    "Which of these is true? A. red B. blue C. green D. yellow. Answer with the option's letter from the given choices "
    "directly. Answer the question using a single word or phrase.",
    "You are a helpful assistant. system user assistant How many shapes are there? Hint: look at the whole picture.",
]
_MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_GLM = ["<|begin_of_image|>", "<|end_of_image|>", "<|image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|video|>"]
_INTERN = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
_IDEFICS = [
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
]


@cache
def _backend() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=_MARKS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer.to_str()


def _tokenizer(extra: list[str], **more: Any) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        **more,
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in extra], special_tokens=True)
    return tokenizer


def _qwen(kind: str) -> tuple[Any, dict[str, Any]]:
    patch = 16 if kind.startswith("qwen3") else 14
    tokenizer = _tokenizer(_QWEN)
    processors = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL", "qwen3_vl_moe": "Qwen3VL"}
    video = transformers.Qwen3VLVideoProcessor() if patch == 16 else transformers.Qwen2VLVideoProcessor()
    processor = getattr(transformers, f"{processors[kind]}Processor")(
        transformers.Qwen2VLImageProcessor(
            patch_size=patch, size={"shortest_edge": 4 * (2 * patch) ** 2, "longest_edge": 16384 * (2 * patch) ** 2}
        ),
        tokenizer,
        video,
        chat_template=_TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return processor, {**names, "patch_size": patch, **({"window_size": 112} if kind == "qwen2_5_vl" else {})}


def _glm(kind: str) -> tuple[Any, dict[str, Any]]:
    name = {"glm4v": "Glm4v", "glm46v": "Glm46V"}[kind]
    image = getattr(transformers, f"{name}ImageProcessor")(
        patch_size=14, size={"shortest_edge": 4 * 28 * 28, "longest_edge": 300 * 28 * 28}
    )
    processor = getattr(transformers, f"{name}Processor")(
        image,
        _tokenizer(_GLM),
        getattr(transformers, f"{name}VideoProcessor")(),
        chat_template=_TEMPLATE.replace("IMAGE", "<|begin_of_image|><|image|><|end_of_image|>"),
    )
    names = {
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
    }
    return processor, {**names, "patch_size": 14, "image_size": 336}


def _internvl(kind: str) -> tuple[Any, dict[str, Any]]:
    tokenizer = _tokenizer(list(_INTERN.values()), extra_special_tokens=_INTERN)
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True),
        tokenizer,
        transformers.InternVLVideoProcessor(size={"height": 56, "width": 56}),
        image_seq_length=4,
        chat_template=_TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )
    return processor, {"image_token_id": "<IMG_CONTEXT>", "patch_size": [14, 14], "image_size": [56, 56]}


def _idefics(kind: str) -> tuple[Any, dict[str, Any]]:
    tokenizer, template = _tokenizer(_IDEFICS), _TEMPLATE.replace("IMAGE", "<image>")
    sizes = {"size": {"longest_edge": 224}, "max_image_size": {"longest_edge": 56}}
    if kind == "idefics3":
        image = transformers.Idefics3ImageProcessor(**sizes)
        processor: Any = transformers.Idefics3Processor(image, tokenizer, image_seq_len=4, chat_template=template)
    else:
        image = transformers.SmolVLMImageProcessor(**sizes)
        video = transformers.SmolVLMVideoProcessor(**sizes)
        processor = transformers.SmolVLMProcessor(image, tokenizer, video, image_seq_len=4, chat_template=template)
    return processor, {"image_token_id": "<image>", "patch_size": 14, "image_size": 56}


def _mistral3(kind: str) -> tuple[Any, dict[str, Any]]:
    processor = transformers.PixtralProcessor(
        transformers.PixtralImageProcessor(patch_size=14, size={"longest_edge": 224}),
        _tokenizer(["[IMG]", "[IMG_BREAK]", "[IMG_END]"]),
        patch_size=14,
        spatial_merge_size=2,
        chat_template=_TEMPLATE.replace("IMAGE", "[IMG]"),
    )
    return processor, {"image_token_id": "[IMG]", "patch_size": 14, "image_size": 224}


_PROCESSORS: dict[str, Callable[[str], tuple[Any, dict[str, Any]]]] = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"), _qwen),
    **dict.fromkeys(("glm4v", "glm46v"), _glm),
    **dict.fromkeys(("idefics3", "smolvlm"), _idefics),
    "internvl": _internvl,
    "mistral3": _mistral3,
}


def make_checkpoint(kind: str, folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """A folder as the hub has it: config, weights, processor, generation config.

    SmolVLM's processor needs `num2words`: see `without_num2words`.
    """
    processor, differences = _PROCESSORS[kind](kind)
    tokenizer = processor.tokenizer
    config = copy.deepcopy(MODELS[kind].build().config)
    for name, value in differences.items():
        if name.endswith("_token_id"):
            setattr(config, name, tokenizer.convert_tokens_to_ids(value))
        else:
            setattr(config.vision_config, name, value)
    config.text_config.vocab_size = len(tokenizer)
    config.text_config.max_position_embeddings = 8192
    if kind == "internvl":
        config.image_seq_length = 4
    marks = [tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens]
    name = family_of_type(kind, kind).models[kind]  # type: ignore[attr-defined]
    torch.manual_seed(seed)
    model = filled(config, name, seed, never=[mark for mark in marks if mark != tokenizer.eos_token_id])
    model.generation_config.update(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    model.to(dtype).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def without_num2words(monkeypatch: Any) -> None:
    """SmolVLM's processor wants a package that spells the frames of videos; pictures never need it."""
    from transformers.models.smolvlm import processing_smolvlm

    if processing_smolvlm.num2words is None:
        monkeypatch.setattr(processing_smolvlm, "num2words", str)
