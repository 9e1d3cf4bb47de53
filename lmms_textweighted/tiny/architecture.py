"""The embedded model's shape: LLaVA-1.5's geometry around a thin Llama, and its small tokenizer.

336 px, patch 14, 576 image tokens from the tower's last layer but one, a two-layer projector, a Llama decoder, the
vicuna prompt: everything a LLaVA-1.5 has, at about 2.5 million parameters.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from lmms_textweighted.prompts import (
    SHORT_ANSWER_PROMPT,
    SINGLE_PREDICTION_PROMPT,
    VICUNA_CHAT_TEMPLATE,
    VICUNA_SYSTEM,
)
from lmms_textweighted.tiny import questions, scenes

WIDTH = 128
DECODER_LAYERS = 8
CAPTION_PROMPT = "Describe the picture."
MATCH_PROMPT = "Which choice is {}?"
LIST_PROMPT = "Describe the choices."


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the set's own sentences: each of their words is one token, any text is lossless."""
    tokenizer = train_bpe([VICUNA_SYSTEM, " USER:", " ASSISTANT:", *set_sentences()], ["<unk>", "<s>", "</s>", "<pad>"])
    tokenizer.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def train_bpe(lines: list[str], special: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer in which each word of `lines` is one token."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        min_frequency=1,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """LLaVA-1.5's processor: CLIP's pixels at 336 px and the vicuna chat template."""
    size = scenes.IMAGE_SIZE
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=scenes.PATCH_SIZE,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=VICUNA_CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Any:
    """A LLaVA with fresh weights, from torch's global random state."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=scenes.IMAGE_SIZE,
        patch_size=scenes.PATCH_SIZE,
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=DECODER_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.get_vocab()["<image>"],
        image_seq_length=scenes.GRID**2,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    model: Any = LlavaForConditionalGeneration(config)
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    _place_embeddings(model.model.vision_tower)
    return model


def _place_embeddings(tower: Any) -> None:
    """Start the tower's position embeddings as a 2-D sine table at the patches' own scale.

    CLIP's initial 0.02 is lost beside the pixels, and features without a place cannot answer "where".
    """
    embedding = tower.embeddings.position_embedding
    quarter = WIDTH // 4
    frequencies = torch.pi / scenes.GRID * torch.arange(1, quarter + 1) / 2
    place = torch.arange(scenes.GRID) + 0.5
    waves = torch.cat([torch.sin(place[:, None] * frequencies), torch.cos(place[:, None] * frequencies)], dim=1)
    table = torch.cat(
        [waves.repeat_interleave(scenes.GRID, dim=0), waves.repeat(scenes.GRID, 1)], dim=1
    )  # row, then column
    with torch.no_grad():
        embedding.weight[1:] = 0.3 * table


def set_sentences() -> list[str]:
    """Every word of the set, in the places where it can stand."""
    lines = [SINGLE_PREDICTION_PROMPT, SHORT_ANSWER_PROMPT, CAPTION_PROMPT]
    lines += [f"Context: {questions.HINT}\n"]
    for (asked, _), named in itertools.product(questions.KINDS, scenes.ATTRIBUTES):
        if asked == named:
            continue
        for value in scenes.ATTRIBUTES[named]:
            lines.append(questions.question_text(asked, named, value))
    words = [word for values in scenes.ATTRIBUTES.values() for word in values]
    lines += [MATCH_PROMPT.format(word) for word in words]
    lines += [f"\n{letter}. {word}" for letter in questions.LETTERS for word in words]
    lines += [f" {letter}" for letter in questions.LETTERS]
    lines += [
        f" {color} {shape} in the {place},"
        for color in scenes.COLORS
        for shape in scenes.SHAPES
        for place in scenes.PLACES
    ]
    return lines
