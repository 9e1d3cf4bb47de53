"""Train the embedded model: `python -m lmms_textweighted.tiny.train --output DIR`.

Five stages, each a pure function of the seed, resumable at any saved step:

1. `tower`: the vision tower and the projector learn to say what each patch shows (shape, colour, place). All later
   stages keep the tower as it is then.
2. `lookup`: the decoder learns to name what the picture shows, on the objects' patches and some background, a dozen
   conversations to a picture. In the first layers the text does not see the picture yet, so that the lookup is learned
   where a pruned model still needs it: after the pruning layer.
3. `letters`: with larger token embeddings, every choice learns which letter it has.
4. `answers`: the last layers, started anew, learn to find the choice that repeats the word, and so the letter.
5. `full`: all 576 image tokens, seen from every layer.

Runs on two cores in bfloat16 autocast, or on a GPU with `--device cuda`.
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
from torch import nn

from lmms_textweighted.tiny import questions, scenes
from lmms_textweighted.tiny.architecture import WIDTH, build_model, build_processor, build_tokenizer
from lmms_textweighted.tiny.batches import NUM_PATCHES, Batch, make_batch

EMBEDDING_GAIN = 12.0
WORD_LAYER = 5  # after this many layers the answer word must be readable where the answer begins
LETTER_LAYER = 3  # after this many layers a choice must know its letter
BLIND_LAYERS = 3  # layers 0, 1, 2: the ones up to the default pruning layer


@dataclass(frozen=True)
class StageSettings:
    """One stage: how long, how large, how fast."""

    steps: int
    pictures: int
    image_tokens: int
    kinds: dict[str, int]
    muon: float
    adamw: float
    blind: float = 0.0  # share of pictures that the text cannot see in the first layers
    word_weight: float = 0.0
    letter_weight: float = 0.0
    fresh_layers: bool = False  # start the layers from WORD_LAYER on anew, and train only those
    warmup: int = 50
    horizon: int | None = None  # steps until the learning rate has decayed; the stage's own when None


STAGES = {
    "tower": StageSettings(700, 16, NUM_PATCHES, {"word": 1}, muon=6e-3, adamw=1.2e-3),
    "lookup": StageSettings(
        1000,
        8,
        96,
        {"letter": 6, "word": 3, "match": 2, "caption": 1},
        muon=8e-3,
        adamw=1.2e-3,
        blind=1.0,
        word_weight=0.5,
        horizon=4000,
    ),
    "letters": StageSettings(
        400,
        8,
        96,
        {"letter": 6, "word": 2, "match": 1, "list": 3, "caption": 1},
        muon=8e-3,
        adamw=1.2e-3,
        blind=1.0,
        word_weight=0.5,
        letter_weight=0.2,
        horizon=900,
    ),
    "answers": StageSettings(
        900,
        8,
        96,
        {"letter": 6, "word": 2, "match": 2, "list": 4, "caption": 1},
        muon=8e-3,
        adamw=1.2e-3,
        blind=1.0,
        word_weight=0.5,
        fresh_layers=True,
    ),
    "full": StageSettings(
        500,
        4,
        NUM_PATCHES,
        {"letter": 8, "word": 2, "match": 1, "list": 1, "caption": 1},
        muon=2e-3,
        adamw=3e-4,
        word_weight=0.2,
    ),
}


TIED_STAGES = ("tower", "lookup")


def tie_embeddings(model: Any) -> None:
    """One table for input and output, as small as usual: then what attention brings fills a token's state quickly."""
    nn.init.normal_(model.get_input_embeddings().weight, std=0.02)
    model.lm_head.weight = model.get_input_embeddings().weight


def enlarge_embeddings(model: Any) -> None:
    """Give the output its own table and make the input's EMBEDDING_GAIN times larger.

    After the lookup stage a word's embedding is a fortieth of what the first layer adds to it, and no later layer finds
    the choice that repeats a word. The first layer itself does not notice the gain: it normalises its input.
    """
    table = model.get_input_embeddings().weight
    model.lm_head.weight = nn.Parameter(table.detach().clone())
    with torch.no_grad():
        table.mul_(EMBEDDING_GAIN)


def renew_layers(model: Any) -> None:
    """Start the layers from WORD_LAYER on anew.

    After a thousand steps their attention is sharp and learns no new pattern; fresh layers find the repeated word in a
    few hundred steps.
    """
    for layer in model.model.language_model.layers[WORD_LAYER:]:
        for parameter in layer.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.ones_(parameter)


class Readers(nn.Module):
    """Linear readers of a patch's shape, colour and place and of a choice's letter, used only in training."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (len(scenes.SHAPES) + 1, len(scenes.COLORS) + 1, len(scenes.PLACES))
        self.heads = nn.ModuleList(nn.Linear(WIDTH, size) for size in sizes)
        self.letters = nn.Linear(WIDTH, len(questions.LETTERS))

    def patch_loss(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy over features [P, 576, WIDTH]; a background patch weighs a tenth of an object's."""
        weight = torch.where(labels[..., 0] >= 0, 1.0, 0.1)
        total = features.new_zeros((), dtype=torch.float32)
        for index, head in enumerate(self.heads):
            target = labels[..., index]
            if index < 2:
                target = target + 1  # 0 is "nothing"
            losses = F.cross_entropy(head(features).float().transpose(1, 2), target, reduction="none")
            total = total + (losses * weight).sum() / weight.sum()
        return total


def image_features(model: Any, pixels: torch.Tensor, *, tower_learns: bool) -> torch.Tensor:
    """The projector's output [P, 576, WIDTH]."""
    with torch.set_grad_enabled(tower_learns):
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        selected = states[model.config.vision_feature_layer][:, 1:]
    return model.model.multi_modal_projector(selected)


def language_loss(
    model: Any, reader: Readers, batch: Batch, settings: StageSettings, blind: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """Next-token loss of the answers, plus the word and the letters readable in between. `blind`: bool [P]."""
    language = model.model.language_model
    features = image_features(model, batch.pixels, tower_learns=False)
    features = features.gather(1, batch.patches[..., None].expand(-1, -1, features.shape[-1]))
    count, prefix = len(batch.pixels), len(batch.prefix_ids)
    embed = model.get_input_embeddings()
    hidden = torch.cat(
        [embed(batch.prefix_ids).expand(count, -1, -1), features.to(embed.weight.dtype), embed(batch.text_ids)], dim=1
    )
    start = prefix + features.shape[1]
    positions = torch.cat(
        [
            torch.arange(prefix, device=hidden.device).expand(count, -1),
            prefix + batch.patches,
            prefix + NUM_PATCHES + batch.offset,
        ],
        dim=1,
    )
    mask, blind_mask = packed_masks(batch.block, prefix, start, blind)
    rotary = language.rotary_emb(hidden, positions)
    words = letters = hidden
    for index, layer in enumerate(language.layers):
        if index == WORD_LAYER:
            words = hidden
        if index == LETTER_LAYER:
            letters = hidden
        with torch.set_grad_enabled(torch.is_grad_enabled() and not (settings.fresh_layers and index < WORD_LAYER)):
            hidden = layer(
                hidden,
                attention_mask=blind_mask if index < BLIND_LAYERS else mask,
                position_ids=positions,
                position_embeddings=rotary,
            )
    read = hidden[:, start:], words[:, start:], letters[:, start:]
    loss, report, right, _ = answer_loss(model, reader, read, batch.labels, batch.words, batch.letters, settings)
    return loss, {**report, "first_token": float(right.mean())}


def answer_loss(
    model: Any,
    reader: Readers,
    states: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    labels: torch.Tensor,
    words: torch.Tensor,
    letters: torch.Tensor,
    settings: StageSettings,
) -> tuple[torch.Tensor, dict[str, float], torch.Tensor, torch.Tensor]:
    """states: the text's after the last layer, WORD_LAYER and LETTER_LAYER -> (loss, its parts, which of the answers'
    first tokens are right as 0 or 1, those tokens)."""
    last, at_word, at_letters = states
    logits, target = read_tokens(model, last, labels)
    loss = F.cross_entropy(logits, target)
    word_loss = F.cross_entropy(*read_tokens(model, at_word, words))
    chosen = letters >= 0
    letter_logits = reader.letters(model.model.language_model.norm(at_letters[chosen])).float()
    letter_loss = F.cross_entropy(letter_logits, letters[chosen])
    first = words[labels >= 0] >= 0  # the answers' first tokens
    report = {"loss": loss.item(), "word_loss": word_loss.item(), "letter_loss": letter_loss.item()}
    total = loss + settings.word_weight * word_loss + settings.letter_weight * letter_loss
    return total, report, (logits.argmax(-1) == target)[first].float(), target[first]


def read_tokens(model: Any, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = labels >= 0
    return model.lm_head(model.model.language_model.norm(hidden[chosen])).float(), labels[chosen]


def packed_masks(
    block: torch.Tensor, prefix: int, start: int, blind: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boolean [P, 1, S, S]: causal, each conversation alone with the prefix; and the same with the picture hidden from
    the text where `blind`."""
    count, text = block.shape
    numbers = torch.cat([block.new_zeros(count, start), block], dim=1)
    size = start + text
    causal = torch.ones(size, size, dtype=torch.bool, device=block.device).tril()
    same = numbers[:, :, None] == numbers[:, None, :]
    front = torch.arange(size, device=block.device) < start
    mask = causal & (same | front)
    image = front & (torch.arange(size, device=block.device) >= prefix)
    hidden = blind[:, None, None] & ~front[None, :, None] & image[None, None, :]
    return mask[:, None], (mask & ~hidden)[:, None]


def train(
    output: Path,
    *,
    seed: int,
    device: str,
    stop_after: str | None = None,
    stages: dict[str, StageSettings] = STAGES,
    save_every: int = 200,
) -> None:
    """Run or resume all stages; the finished model, processor and log go to `output`.

    A run that was interrupted and resumed ends in the same weights as one that was not.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer).to(device)
    tie_embeddings(model)
    reader = Readers().to(device)
    output.mkdir(parents=True, exist_ok=True)
    for number, (name, settings) in enumerate(stages.items()):
        done = output / f"{name}.done.pt"
        if name == "letters":
            enlarge_embeddings(model)
        if done.exists():
            _load(done, model, reader)
            continue
        run_stage(model, reader, tokenizer, name, settings, output, [seed, number], device, save_every)
        torch.save({"model": model.state_dict(), "reader": reader.state_dict()}, done)
        if name == stop_after:
            return
    model.half().save_pretrained(output / "checkpoint")
    build_processor(tokenizer).save_pretrained(output / "checkpoint")


def run_stage(
    model: Any,
    reader: Readers,
    tokenizer: Any,
    name: str,
    settings: StageSettings,
    output: Path,
    seed: list[int],
    device: str,
    save_every: int,
) -> None:
    """One stage, from its last saved step if there is one."""
    tower_stage = name == "tower"
    partial, first = output / f"{name}.part.pt", 0
    language = model.model.language_model
    if settings.fresh_layers:
        torch.manual_seed(seed[0] * len(STAGES) + seed[1])
        renew_layers(model)
        modules = [*language.layers[WORD_LAYER:], language.norm, model.lm_head]
    else:
        modules = [model.model.multi_modal_projector, reader, model.model.vision_tower if tower_stage else language]
        if name not in TIED_STAGES:
            modules.append(model.lm_head)
    parameters = [(key, value) for module in modules for key, value in module.named_parameters()]
    optimizers, schedules = make_optimizers(parameters, ("_proj.", ".fc"), settings)
    if partial.exists():
        state = _load(partial, model, reader)
        first = state["step"]
        for item, saved in zip([*optimizers, *schedules], state["optim"], strict=True):
            item.load_state_dict(saved)
    began = time.perf_counter()
    for step in range(first, settings.steps):
        rng = np.random.default_rng([*seed, step])
        batch = make_batch(
            tokenizer, rng, pictures=settings.pictures, image_tokens=settings.image_tokens, kinds=settings.kinds
        )
        batch = Batch(**{key: value.to(device) for key, value in vars(batch).items()})
        with torch.autocast(device.split(":")[0], dtype=torch.bfloat16):
            if tower_stage:
                loss = reader.patch_loss(image_features(model, batch.pixels, tower_learns=True), batch.patch_labels)
                report = {"loss": loss.item()}
            else:
                blind = torch.from_numpy(rng.random(settings.pictures) < settings.blind).to(device)
                loss, report = language_loss(model, reader, batch, settings, blind)
        update(loss, parameters, optimizers, schedules)
        if (step + 1) % 20 == 0:
            line_data: dict[str, Any] = {"stage": name, "step": step + 1, **{k: round(v, 4) for k, v in report.items()}}
            line_data["seconds_per_step"] = round((time.perf_counter() - began) / (step + 1 - first), 3)
            line = json.dumps(line_data)
            print(line, flush=True)
            with (output / "log.jsonl").open("a") as log:
                log.write(line + "\n")
        if (step + 1) % save_every == 0:
            torch.save(
                {
                    "model": model.state_dict(),
                    "reader": reader.state_dict(),
                    "step": step + 1,
                    "optim": [item.state_dict() for item in [*optimizers, *schedules]],
                },
                partial,
            )


def make_optimizers(
    parameters: list[tuple[str, nn.Parameter]], hidden: tuple[str, ...], settings: StageSettings
) -> tuple[list[Any], list[Any]]:
    """(optimizers, their schedules): Muon for matrices whose name has a part of `hidden`, AdamW for all else."""
    matrices = [value for key, value in parameters if value.ndim == 2 and any(part in key for part in hidden)]
    chosen = {id(value) for value in matrices}
    others = [value for _, value in parameters if id(value) not in chosen]
    optimizers: list[Any] = [
        torch.optim.Muon(matrices, lr=settings.muon, weight_decay=0.01),
        torch.optim.AdamW(others, lr=settings.adamw, weight_decay=0.0, betas=(0.9, 0.95)),
    ]
    return optimizers, [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: learning_rate(step, settings)) for o in optimizers
    ]


def update(
    loss: torch.Tensor, parameters: list[tuple[str, nn.Parameter]], optimizers: list[Any], schedules: list[Any]
) -> None:
    """One step down the loss, with its gradient's norm at most 1."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_([value for _, value in parameters], 1.0)
    for optimizer, schedule in zip(optimizers, schedules, strict=True):
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)


def learning_rate(step: int, settings: StageSettings) -> float:
    """Linear warm-up, then linear decay to 2 % of the peak."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    return max(0.02, 1 - (step - settings.warmup) / max(1, (settings.horizon or settings.steps) - settings.warmup))


def _load(path: Path, model: nn.Module, reader: nn.Module) -> dict:
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    reader.load_state_dict(state["reader"])
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--stop-after", choices=list(STAGES))
    arguments = parser.parse_args()
    train(arguments.output, seed=arguments.seed, device=arguments.device, stop_after=arguments.stop_after)


if __name__ == "__main__":
    main()
