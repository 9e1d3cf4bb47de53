"""The second embedded model's shape: Qwen3-VL around a thin decoder, and what it takes over from the first one.

Patches of 14 px, one image token for 2 x 2 of them, pictures of any size, M-RoPE, DeepStack: everything a Qwen3-VL
has, at about 2.9 million parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from lmms_textweighted.tiny import scenes
from lmms_textweighted.tiny.architecture import DECODER_LAYERS, WIDTH, set_sentences, train_bpe

TOWER_WIDTH = 96
TOWER_LAYERS = 4
DEEPSTACK_LAYERS = (1, 2)
MERGE = 2
SYSTEM = "You are a helpful assistant."
TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Where a token of the chat template has the part that another one has in the vicuna prompt.
_SAME_PART = {"<|im_end|>": "</s>", "<|endoftext|>": "<pad>", "<|image_pad|>": "<image>", "assistant": "ĠASSISTANT"}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the set's own sentences and the chat template, with Qwen's special tokens."""
    tokenizer = train_bpe([f"system\n{SYSTEM}", "user\n", "assistant\n", *set_sentences()], [TOKENS[0]])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    """Qwen3-VL's processor, with patches of 14 px."""
    side = MERGE * scenes.PATCH_SIZE
    half = [0.5, 0.5, 0.5]
    image_processor = Qwen2VLImageProcessor(
        patch_size=scenes.PATCH_SIZE,
        merge_size=MERGE,
        temporal_patch_size=2,
        image_mean=half,
        image_std=half,
        size={"shortest_edge": 4 * side**2, "longest_edge": 1024 * side**2},
    )
    video_processor = Qwen3VLVideoProcessor(patch_size=scenes.PATCH_SIZE, merge_size=MERGE, temporal_patch_size=2)
    return Qwen3VLProcessor(image_processor, tokenizer, video_processor, chat_template=CHAT_TEMPLATE)


def build_model(tokenizer: PreTrainedTokenizerFast) -> Any:
    """A Qwen3-VL with fresh weights, from torch's global random state. DeepStack's features start at zero."""
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    vision = {
        "depth": TOWER_LAYERS,
        "hidden_size": TOWER_WIDTH,
        "intermediate_size": 2 * TOWER_WIDTH,
        "num_heads": 3,
        "patch_size": scenes.PATCH_SIZE,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": (scenes.GRID // MERGE) ** 2,
        "deepstack_visual_indexes": list(DEEPSTACK_LAYERS),
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": DECODER_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": WIDTH // 4,
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    ids: dict[str, Any] = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    model: Any = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    visual = model.model.visual
    _place_embeddings(visual.pos_embed)
    torch.nn.init.normal_(visual.merger.linear_fc2.weight, std=0.1)
    with torch.no_grad():
        for merger in visual.deepstack_merger_list:
            merger.linear_fc2.weight.zero_()
            merger.linear_fc2.bias.zero_()
    return model


def _place_embeddings(table: torch.nn.Embedding) -> None:
    """Start the position embeddings as a 2-D sine table at the patches' own scale, as the first model's."""
    side, quarter = scenes.GRID // MERGE, TOWER_WIDTH // 4
    place = torch.linspace(0, 1, side)
    frequencies = torch.pi * torch.arange(1, quarter + 1) / 4
    waves = torch.cat([torch.sin(place[:, None] * frequencies), torch.cos(place[:, None] * frequencies)], dim=1)
    rows_columns = torch.cat([waves.repeat_interleave(side, dim=0), waves.repeat(side, 1)], dim=1)
    with torch.no_grad():
        table.weight.copy_(0.3 * rows_columns)


def take_over(
    model: Any, tokenizer: PreTrainedTokenizerFast, teacher: Any, teacher_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Start the decoder from a LLaVA's of the same width and depth: every matrix of equal name, and each token's rows.

    A Qwen3 decoder normalises queries and keys; its norms' gains start at the root mean square that the LLaVA's have
    after an average input, so that attention is about as sharp.
    """
    source, target = teacher.model.language_model, model.model.language_model
    missing = target.load_state_dict(
        {key: value for key, value in source.state_dict().items() if not key.startswith("embed_tokens")}, strict=False
    )
    unknown = [key for key in missing.missing_keys if "_norm." not in key and key != "embed_tokens.weight"]
    if unknown or missing.unexpected_keys:
        raise ValueError(f"the decoders differ: {unknown + missing.unexpected_keys}")
    ours, theirs = tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    with torch.no_grad():
        for new, old in (
            (model.get_input_embeddings().weight, teacher.get_input_embeddings().weight),
            (model.lm_head.weight, teacher.lm_head.weight),
        ):
            new.normal_(std=float(old.std()))
            for token, row in ours.items():
                same = _SAME_PART.get(token, token)
                if same in theirs:
                    new[row] = old[theirs[same]]
        for layer, old_layer in zip(target.layers, source.layers, strict=True):
            gain = old_layer.input_layernorm.weight  # a normalised input of independent entries
            for norm, projection in (
                (layer.self_attn.q_norm, old_layer.self_attn.q_proj),
                (layer.self_attn.k_norm, old_layer.self_attn.k_proj),
            ):
                norm.weight.fill_(float(((projection.weight * gain) ** 2).sum(1).mean().sqrt()))
