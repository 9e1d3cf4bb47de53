"""Train the second embedded model: `python -m lmms_textweighted.tiny.train_qwen --output DIR`.

It learns from the first one (`train.py`), which stays as it is. Three stages, each a pure function of the seed:

1. `tower`: vision tower and merger learn to say what each image token shows, on pictures of several sizes, and, on
   pictures of 336 px, to give what the first model's projector gives on average for the same four patches.
2. `decoder`: the decoder, started from the first one's, gets used to normalised queries and keys, M-RoPE and the chat
   template, with the first model's features in place of pictures.
3. `joint`: everything together on pictures of several sizes; DeepStack's features, zero until here, join.

The first two do not need each other and can run at the same time (`--only`).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lmms_textweighted.families import load
from lmms_textweighted.tiny import questions, scenes
from lmms_textweighted.tiny.batches import Wording, conversations, normalised_pixels, shown
from lmms_textweighted.tiny.qwen_architecture import (
    MERGE,
    SYSTEM,
    build_model,
    build_processor,
    build_tokenizer,
    take_over,
)
from lmms_textweighted.tiny.train import (
    BLIND_LAYERS,
    LETTER_LAYER,
    WORD_LAYER,
    Readers,
    StageSettings,
    answer_loss,
    image_features,
    make_optimizers,
    packed_masks,
    update,
)

CHATML = Wording("<|vision_end|>", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>")
PREFIX = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<|vision_start|>"
FEATURE_SCALE = 6.4  # root mean square of the first model's image features
SIDES = (18, 24, 30)  # a canvas's possible sides in patches; all multiples of 3 cells of 2 x 2 patches

STAGES = {
    "tower": StageSettings(600, 10, 144, {"word": 1}, muon=1.2e-2, adamw=1.5e-3, warmup=20),
    "decoder": StageSettings(
        300,
        8,
        64,
        {"letter": 6, "word": 2, "match": 1, "list": 1, "caption": 1},
        muon=4e-3,
        adamw=6e-4,
        blind=0.5,
        word_weight=0.3,
        letter_weight=0.1,
        warmup=20,
        horizon=500,
    ),
    "joint": StageSettings(
        300,
        8,
        225,
        {"letter": 6, "word": 2, "match": 1, "list": 1, "caption": 1},
        muon=3e-3,
        adamw=5e-4,
        blind=0.3,
        word_weight=0.2,
        letter_weight=0.05,
        warmup=20,
    ),
}


@dataclass
class Pictures:
    """`P` training scenes on one canvas of `rows` x `columns` image tokens.

    scenes, labels [P, rows * columns, 3] of the image tokens, and what the model takes: pixel_values, grid.
    """

    scenes: list[scenes.Scene]
    images: list[np.ndarray]
    rows: int
    columns: int
    labels: torch.Tensor
    pixel_values: torch.Tensor
    grid: torch.Tensor


def draw_pictures(processor: Any, rng: np.random.Generator, count: int, *, several_sizes: bool) -> Pictures:
    """Training scenes on one canvas: 24 x 24 patches half of the time or always, else of any two `SIDES`."""
    rows = columns = scenes.GRID
    if several_sizes and rng.random() < 0.5:
        rows, columns = (int(side) for side in rng.choice(SIDES, size=2))
    drawn = [scenes.random_scene(rng, held_out=False) for _ in range(count)]
    if (rows, columns) != (scenes.GRID, scenes.GRID):
        drawn = [scenes.on_canvas(scene, rows, columns, rng) for scene in drawn]
    images = [scenes.render(scene, rows, columns) for scene in drawn]
    inputs = processor.image_processor(images=images, do_resize=False, return_tensors="pt")
    labels = np.stack([merged(scenes.patch_labels(scene, rows, columns), columns).max(1) for scene in drawn])
    return Pictures(
        drawn,
        images,
        rows // MERGE,
        columns // MERGE,
        torch.from_numpy(labels),
        inputs["pixel_values"],
        inputs["image_grid_thw"],
    )


def merged(patches: Any, columns: int) -> Any:
    """[rows * columns, K] of patches -> [image tokens, 4, K]: the patches of each token. Also with a leading [P]."""
    *front, count, width = patches.shape
    blocks = patches.reshape(*front, count // columns // MERGE, MERGE, columns // MERGE, MERGE, width)
    axes = len(front)
    order = (*range(axes), axes, axes + 2, axes + 1, axes + 3, axes + 4)
    blocks = blocks.permute(order) if isinstance(blocks, torch.Tensor) else blocks.transpose(order)
    return blocks.reshape(*front, count // MERGE**2, MERGE**2, width)


def teacher_features(teacher: Any, pictures: Pictures) -> torch.Tensor:
    """What the first model's projector says of each image token's patches [P, 144, WIDTH]: the mean over the patches
    that show an object, over all four where none does."""
    with torch.no_grad():
        features = merged(image_features(teacher, normalised_pixels(pictures.images), tower_learns=False), scenes.GRID)
        labels = torch.from_numpy(np.stack([scenes.patch_labels(scene) for scene in pictures.scenes]))
        weight = (merged(labels, scenes.GRID)[..., :1] >= 0).to(features.dtype)
        weight = torch.where(weight.sum(2, keepdim=True) > 0, weight, 1.0)
        return (features * weight).sum(2) / weight.sum(2)


def tower_features(model: Any, pictures: Pictures) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The merger's output [P, image tokens, WIDTH], and DeepStack's features, as many and as large."""
    out = model.model.visual(pictures.pixel_values, grid_thw=pictures.grid, return_dict=True)
    count = len(pictures.scenes)
    return out.pooler_output.view(count, -1, out.pooler_output.shape[-1]), [
        feature.view(count, -1, feature.shape[-1]) for feature in out.deepstack_features
    ]


def tower_loss(model: Any, reader: Readers, teacher: Any, pictures: Pictures) -> tuple[torch.Tensor, dict[str, float]]:
    """The readers' loss, plus, on 336 px, the squared distance from the teacher's features relative to their size."""
    features, _ = tower_features(model, pictures)
    read = reader.patch_loss(features, pictures.labels)
    report = {"read": read.item()}
    if pictures.rows == pictures.columns == scenes.GRID // MERGE:
        wanted = teacher_features(teacher, pictures).float() / FEATURE_SCALE
        weight = torch.where(pictures.labels[..., 0] >= 0, 1.0, 0.1)
        distance = ((features.float() - wanted) ** 2).mean(-1) / (wanted**2).mean()
        distance = (distance * weight).sum() / weight.sum()
        report["distance"] = distance.item()
        read = read + 4 * distance
    inside = pictures.labels[..., 0] >= 0
    for name, index in (("shape", 0), ("color", 1)):
        guess = reader.heads[index](features[inside]).argmax(-1) - 1
        report[name] = float((guess == pictures.labels[inside][:, index]).float().mean())
    return read, report


def language_loss(
    model: Any,
    tokenizer: Any,
    pictures: Pictures,
    features: torch.Tensor,
    deepstack: list[torch.Tensor],
    settings: StageSettings,
    rng: np.random.Generator,
    reader: Readers,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Next-token loss of the answers, plus the word and the letters readable in between."""
    language, embed = model.model.language_model, model.get_input_embeddings()
    count, tokens = len(pictures.scenes), pictures.rows * pictures.columns
    text_ids, block, offset, labels, words, letters = conversations(
        tokenizer, pictures.scenes, rng, settings.kinds, CHATML
    )
    places = torch.arange(tokens).expand(count, -1)
    if settings.image_tokens < tokens:
        chosen = [shown(row, settings.image_tokens, rng) for row in pictures.labels.numpy()]
        places = torch.from_numpy(np.stack(chosen))
        index = places[..., None].expand(-1, -1, features.shape[-1])
        features, deepstack = features.gather(1, index), [feature.gather(1, index) for feature in deepstack]
    prefix_ids = torch.tensor(tokenizer(PREFIX).input_ids)
    prefix = len(prefix_ids)
    hidden = torch.cat(
        [embed(prefix_ids).expand(count, -1, -1), features.to(embed.weight.dtype), embed(text_ids)], dim=1
    )
    start = prefix + features.shape[1]
    rows, columns = places // pictures.columns, places % pictures.columns
    image = prefix + torch.stack([torch.zeros_like(places), rows, columns])
    front = torch.arange(prefix).expand(3, count, -1)
    after = (prefix + max(pictures.rows, pictures.columns) + offset).expand(3, -1, -1)
    positions = torch.cat([front, image, after], dim=2)
    blind = torch.from_numpy(rng.random(count) < settings.blind)
    mask, blind_mask = packed_masks(block, prefix, start, blind)
    rotary = language.rotary_emb(hidden, positions)
    at_word = at_letters = hidden
    for number, layer in enumerate(language.layers):
        if number == WORD_LAYER:
            at_word = hidden
        if number == LETTER_LAYER:
            at_letters = hidden
        hidden = layer(
            hidden,
            attention_mask=blind_mask if number < BLIND_LAYERS else mask,
            position_embeddings=rotary,
        )
        if number < len(deepstack):
            seen = hidden[:, prefix:start] + deepstack[number].to(hidden.dtype)
            hidden = torch.cat([hidden[:, :prefix], seen, hidden[:, start:]], dim=1)
    read = hidden[:, start:], at_word[:, start:], at_letters[:, start:]
    loss, report, right, answered = answer_loss(model, reader, read, labels, words, letters, settings)
    spoken = torch.tensor(tokenizer.convert_tokens_to_ids([f"Ġ{letter}" for letter in questions.LETTERS]))
    asked = torch.isin(answered, spoken)
    shares = {"letters_right": float(right[asked].mean()), "words_right": float(right[~asked].mean())}
    return loss, {**report, **shares}


def train(output: Path, *, seed: int, only: str | None = None, stages: dict[str, StageSettings] = STAGES) -> None:
    """Run the stages that are not done yet; the finished model, processor and log go to `output`."""
    torch.manual_seed(seed)
    teacher, teacher_processor = load("tiny")
    tokenizer = build_tokenizer()
    processor = build_processor(tokenizer)
    model, reader = build_model(tokenizer), Readers()
    take_over(model, tokenizer, teacher, teacher_processor.tokenizer)
    _embed_patches_by_product(model.model.visual.patch_embed)
    output.mkdir(parents=True, exist_ok=True)
    for number, (name, settings) in enumerate(stages.items()):
        done = output / f"{name}.done.pt"
        if done.exists():
            _load(done, model, reader)
        elif only in (None, name):
            _run_stage(model, reader, teacher, processor, name, settings, output, [seed, number])
            if name == "tower":
                _enlarge_features(model.model.visual.merger, reader)
            torch.save(_learned(model, reader, name), done)
    if all((output / f"{name}.done.pt").exists() for name in stages):
        save(model, processor, output / "checkpoint")


def save(model: Any, processor: Any, folder: Path) -> None:
    """Write the model, in float16, and its processor as a checkpoint folder."""
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)


def _embed_patches_by_product(embedding: Any) -> None:
    """Each patch is one window of the convolution, so it is a matrix product: on a CPU the gradient of a Conv3d takes
    nearly half of a step."""
    projection = embedding.proj
    embedding.forward = lambda patches: F.linear(patches, projection.weight.flatten(1), projection.bias)


def _enlarge_features(merger: Any, reader: Readers) -> None:
    """Give the features, learned at size 1, the size of the first model's, and let the readers undo it."""
    with torch.no_grad():
        for parameter in merger.linear_fc2.parameters():
            parameter.mul_(FEATURE_SCALE)
        for head in reader.heads:
            head.get_parameter("weight").div_(FEATURE_SCALE)


def _learned(model: Any, reader: Readers, stage: str) -> dict[str, dict[str, torch.Tensor]]:
    """The weights that a stage trains: the tower's and the decoder's stage can so run in any order."""
    state = {
        key: value
        for key, value in model.state_dict().items()
        if stage == "joint" or (stage == "tower") == key.startswith("model.visual.")
    }
    heads = {key: value for key, value in reader.state_dict().items() if (stage == "tower") == key.startswith("heads")}
    return {"model": state, "reader": reader.state_dict() if stage == "joint" else heads}


def _load(path: Path, model: Any, reader: Readers) -> None:
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"], strict=False)
    reader.load_state_dict(state["reader"], strict=False)


def _run_stage(
    model: Any,
    reader: Readers,
    teacher: Any,
    processor: Any,
    name: str,
    settings: StageSettings,
    output: Path,
    seed: list[int],
) -> None:
    parts = {
        "tower": [model.model.visual, reader.heads],
        "decoder": [model.model.language_model, model.lm_head, reader.letters],
        "joint": [model, reader],
    }[name]
    parameters = [(key, value) for part in parts for key, value in part.named_parameters()]
    optimizers, schedules = make_optimizers(parameters, ("_proj.", ".qkv.", ".proj.", "linear_fc"), settings)
    began, sums, counted = time.perf_counter(), dict[str, float](), dict[str, int]()
    for step in range(settings.steps):
        rng = np.random.default_rng([*seed, step])
        pictures = draw_pictures(processor, rng, settings.pictures, several_sizes=name != "decoder")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if name == "tower":
                loss, report = tower_loss(model, reader, teacher, pictures)
            else:
                features, deepstack = (
                    (teacher_features(teacher, pictures), []) if name == "decoder" else tower_features(model, pictures)
                )
                loss, report = language_loss(
                    model, processor.tokenizer, pictures, features, deepstack, settings, rng, reader
                )
                if name == "joint":
                    loss = loss + 0.1 * reader.patch_loss(features, pictures.labels)
        update(loss, parameters, optimizers, schedules)
        for key, value in report.items():
            sums[key], counted[key] = sums.get(key, 0.0) + value, counted.get(key, 0) + 1
        if (step + 1) % 20 == 0:
            line: dict[str, Any] = {"stage": name, "step": step + 1}
            line |= {key: round(value / counted[key], 4) for key, value in sums.items()}
            line["seconds_per_step"] = round((time.perf_counter() - began) / (step + 1), 3)
            print(json.dumps(line), flush=True)
            with (output / f"{name}.log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            sums, counted = {}, {}
        if (step + 1) % 100 == 0:
            torch.save(_learned(model, reader, name), output / f"{name}.part.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(STAGES))
    arguments = parser.parse_args()
    train(arguments.output, seed=arguments.seed, only=arguments.only)


if __name__ == "__main__":
    main()
