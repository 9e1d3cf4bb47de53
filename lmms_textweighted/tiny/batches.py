"""Training batches for the embedded model: several conversations on one picture, packed into one sequence.

The picture and the system prompt stand once at the front; every conversation sees them and itself, never a neighbour,
and its positions go on from the picture as if it stood there alone. So ten answers cost little more than one.
Everything in a batch follows from (seed, stage, step).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from lmms_textweighted.prompts import SHORT_ANSWER_PROMPT, VICUNA_SYSTEM
from lmms_textweighted.tiny import questions, scenes
from lmms_textweighted.tiny.architecture import CAPTION_PROMPT, LIST_PROMPT, MATCH_PROMPT

NUM_PATCHES = scenes.GRID**2
_FILL = (0, 0, 0, -100, -100, -100)  # of text_ids, block, offset, labels, words, letters


@dataclass(frozen=True)
class Wording:
    """What a model's chat template puts around a question after the picture, and after an answer."""

    before: str
    answer: str
    end: str


VICUNA = Wording("\n", " ASSISTANT:", "</s>")


@dataclass
class Batch:
    """`P` pictures, each with a prefix of `prefix` system tokens and `I` image tokens, then packed conversations.

    pixels [P, 3, 336, 336] · patches [P, I] indices of the image tokens shown · patch_labels [P, 576, 3] ·
    prefix_ids [prefix] · text_ids, block, offset, labels, words, letters [P, T]: token, conversation number
    (0 = padding), place in the conversation, next-token target (-100: none), the answer word's token where the answer
    begins, and the number of its letter where a choice stands.
    """

    pixels: torch.Tensor
    patches: torch.Tensor
    patch_labels: torch.Tensor
    prefix_ids: torch.Tensor
    text_ids: torch.Tensor
    block: torch.Tensor
    offset: torch.Tensor
    labels: torch.Tensor
    words: torch.Tensor
    letters: torch.Tensor


def normalised_pixels(images: list[np.ndarray]) -> torch.Tensor:
    """CLIP's normalisation, float32 [P, 3, 336, 336]: what the image processor makes of 336 px pictures."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.from_numpy(np.stack(images)).float() / 255
    return ((pixels - mean) / std).permute(0, 3, 1, 2).contiguous()


def make_batch(
    tokenizer: PreTrainedTokenizerFast,
    rng: np.random.Generator,
    *,
    pictures: int,
    image_tokens: int,
    kinds: dict[str, int],
) -> Batch:
    """A batch of training scenes. `kinds` says how many conversations of each kind (letter, word,
    match, list, caption)."""
    drawn = [scenes.random_scene(rng, held_out=False) for _ in range(pictures)]
    labels = np.stack([scenes.patch_labels(scene) for scene in drawn])
    text_ids, block, offset, targets, words, letters = conversations(tokenizer, drawn, rng, kinds)
    return Batch(
        pixels=normalised_pixels([scenes.render(scene) for scene in drawn]),
        patches=torch.from_numpy(np.stack([shown(row, image_tokens, rng) for row in labels])),
        patch_labels=torch.from_numpy(labels),
        prefix_ids=torch.tensor(tokenizer(f"{VICUNA_SYSTEM} USER: ").input_ids),
        text_ids=text_ids,
        block=block,
        offset=offset,
        labels=targets,
        words=words,
        letters=letters,
    )


def conversations(
    tokenizer: PreTrainedTokenizerFast,
    drawn: list[scenes.Scene],
    rng: np.random.Generator,
    kinds: dict[str, int],
    wording: Wording = VICUNA,
) -> tuple[torch.Tensor, ...]:
    """Each scene's packed conversations, padded to one length T: the columns of `_FILL`, int64 [P, T] each."""
    rows = [_pack(tokenizer, scene, rng, kinds, wording) for scene in drawn]
    width = max(len(row[0]) for row in rows)
    packed = np.stack(
        [
            np.stack(
                [
                    np.pad(column, (0, width - len(column)), constant_values=fill)
                    for column, fill in zip(row, _FILL, strict=True)
                ]
            )
            for row in rows
        ]
    )
    return torch.from_numpy(packed).unbind(1)


def shown(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """The patches shown: every object's, then background at random, in order."""
    objects = np.flatnonzero(labels[:, 0] >= 0)
    background = np.flatnonzero(labels[:, 0] < 0)
    fill = rng.permutation(background)[: max(0, count - len(objects))]
    return np.sort(np.concatenate([objects, fill])[:count])


def _pack(
    tokenizer: PreTrainedTokenizerFast,
    scene: scenes.Scene,
    rng: np.random.Generator,
    kinds: dict[str, int],
    wording: Wording,
) -> list[np.ndarray]:
    """The conversations about one scene, end to end, in the order of `_FILL`."""
    dialogues = [_dialogue(kind, scene, rng) for kind, count in kinds.items() for _ in range(count)]
    prompts = tokenizer(
        [f"{wording.before}{text}{wording.answer}" for text, _, _ in dialogues], add_special_tokens=False
    ).input_ids
    answers = tokenizer([f" {answer}{wording.end}" for _, answer, _ in dialogues], add_special_tokens=False).input_ids
    hints = tokenizer([word and f" {word}" for _, _, word in dialogues], add_special_tokens=False).input_ids
    columns: list[list[np.ndarray]] = [[] for _ in _FILL]
    choice_starts = tokenizer([f"\n{letter}." for letter in questions.LETTERS], add_special_tokens=False).input_ids
    for number, (prompt, answer, hint) in enumerate(zip(prompts, answers, hints, strict=True), start=1):
        ids = np.array(prompt + answer)
        labels = np.full(len(ids), -100)
        labels[len(prompt) - 1 : -1] = answer
        words = np.full(len(ids), -100)
        if hint:
            words[len(prompt) - 1] = hint[0]
        else:  # a list: its order is random, so only what follows from it is learned
            labels[len(prompt) - 1 : -2 : 3] = -100
        letters = np.full(len(ids), -100)
        for letter, start in enumerate(choice_starts):
            for place in range(len(prompt) - len(start)):
                if prompt[place : place + len(start)] == start:
                    letters[place + len(start)] = letter
        values = (ids, np.full(len(ids), number), np.arange(len(ids)), labels, words, letters)
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    return [np.concatenate(column) for column in columns]


def _dialogue(kind: str, scene: scenes.Scene, rng: np.random.Generator) -> tuple[str, str, str]:
    """One conversation: the question, the answer, and the word it needs ("" for a list)."""
    if kind == "caption":
        text = questions.caption(scene, rng)
        return CAPTION_PROMPT, text, text.split()[0]
    item = questions.make_question(scene, rng)
    if kind == "list":
        letters = dict(zip(item["choices"], questions.LETTERS, strict=False))
        text = ",".join(f" {word} {letters[word]}" for word in rng.permutation(item["choices"]))
        return f"{questions.choices_text(item['choices'])}\n{LIST_PROMPT}", text[1:], ""
    word = item["choices"][item["answer"]]
    if kind == "word":
        return f"{item['question']}{SHORT_ANSWER_PROMPT}", word, word
    text = questions.multiple_choice_text(item, MATCH_PROMPT.format(word) if kind == "match" else None)
    return text, questions.LETTERS[item["answer"]], word
