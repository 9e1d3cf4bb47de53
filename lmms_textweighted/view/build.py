"""From what a model was given and what a trace says, the view of one document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature

from lmms_textweighted.engine.trace import DocumentTrace, StageTrace
from lmms_textweighted.errors import InputError
from lmms_textweighted.families.base import IMAGE_TAG_ID, Family
from lmms_textweighted.families.pictured import Pictured
from lmms_textweighted.inference import Answer, PrunedLlava
from lmms_textweighted.prompts import Message
from lmms_textweighted.view.record import StageView, StrategyView

_FIGURES = ("kept_tokens", "equivalent_tokens", "flops_ratio", "kv_ratio", "selection_flops_ratio", "selection_seconds")


@dataclass(frozen=True)
class Given:
    """What a model is given for one prompt.

    pictures: as its tower gets them. pieces: the text of every text token. after: the first piece behind the last
    picture. image, text: the positions of image and text tokens in the unpadded sequence of the decoder, ascending.
    """

    pictures: tuple[Pictured, ...]
    pieces: tuple[str, ...]
    after: int
    image: tuple[int, ...]
    text: tuple[int, ...]
    processor: Any

    def images(self) -> tuple[tuple[Image.Image, ...], ...]:
        """The canvases of every picture."""
        return tuple(picture.images(self.processor) for picture in self.pictures)

    def stage(self, stage: StageTrace) -> StageView:
        """A stage of a trace of this prompt. Raises InputError where it is another prompt's."""
        candidates, order = stage.candidates.cpu().sort()
        weights, rows = stage.text_weights.tolist(), stage.text.tolist()
        # Some scorers read the rows of image tokens, which are no words.
        known = set(self.text)
        read = [(row, weight) for row, weight in zip(rows, weights, strict=True) if row in known] if weights else []
        return StageView(
            layer=stage.layer,
            kept=tuple(sorted(self._numbers(stage.kept.tolist(), self.image))),
            candidates=self._numbers(candidates.tolist(), self.image),
            scores=tuple(stage.scores.cpu()[order].tolist()) if len(stage.scores) else None,
            text=self._numbers([row for row, _ in read], self.text),
            weights=tuple(weight for _, weight in read),
            sources={
                self._numbers([to], self.image)[0]: self._numbers(of, self.image) for to, of in stage.sources.items()
            },
        )

    def _numbers(self, positions: Sequence[int], among: tuple[int, ...]) -> tuple[int, ...]:
        known = {position: number for number, position in enumerate(among)}
        try:
            return tuple(known[position] for position in positions)
        except KeyError as error:
            raise InputError(
                f"the trace has a token at position {error}, which is not of this prompt: give the inputs and pictures "
                f"that the model was called with"
            ) from error


def given_to(
    family: Family, processor: Any, inputs: BatchFeature, sizes: Sequence[Sequence[tuple[int, int]]]
) -> list[Given]:
    """What a model is given for each prompt of a batch.

    processor, inputs: what prepared the batch and what it made. sizes: for each prompt, (width, height) of its
    pictures. Raises InputError where pictures and prompts do not fit.
    """
    pictures = iter(family.pictured(processor, inputs, [size for row in sizes for size in row]))
    found = []
    mask = inputs.get("attention_mask")
    for row, ids in enumerate(inputs["input_ids"].cpu()):
        mine = tuple(next(pictures) for _ in sizes[row])
        valid = ids if mask is None else ids[mask[row].cpu().bool()]
        expanded, image = _expanded(family, valid, mine)
        text = [position for position, is_image in enumerate(image) if not is_image]
        last = max((position for position, is_image in enumerate(image) if is_image), default=-1)
        found.append(
            Given(
                pictures=mine,
                pieces=pieces_of(processor.tokenizer, [expanded[position] for position in text]),
                after=sum(position < last for position in text),
                image=tuple(position for position, is_image in enumerate(image) if is_image),
                text=tuple(text),
                processor=processor,
            )
        )
    return found


def _expanded(family: Family, ids: torch.Tensor, pictures: Sequence[Pictured]) -> tuple[list[int], list[bool]]:
    """A prompt's ids with a place for every image token, and which are image tokens."""
    counts = iter([picture.geometry.tokens for picture in pictures])
    expanded: list[int] = []
    for token in ids.tolist():
        # The `llava` package's tags become their tokens inside the model.
        expanded += [token] * next(counts) if token == IMAGE_TAG_ID else [token]
    if IMAGE_TAG_ID in expanded:
        image = [token == IMAGE_TAG_ID for token in expanded]
    else:
        image = family.image_mask(ids).tolist()
    total = sum(picture.geometry.tokens for picture in pictures)
    if sum(image) != total:
        raise InputError(
            f"the prompt has {sum(image)} image tokens, but its {len(pictures)} pictures should have {total}: give the "
            f"pictures that its processor was given"
        )
    return expanded, image


def pieces_of(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """The text of each token, so that joined they are the text of all.

    A token that ends inside of a character has no text: the one that completes it has.
    """
    pieces, done = [], ""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and count < len(ids):
            pieces.append("")
            continue
        pieces.append(text[len(done) :])
        done = text
    return tuple(pieces)


def given_for(llava: PrunedLlava, messages: Sequence[Message], *, image_aspect_ratio: str | None = None) -> Given:
    """What a loaded model is given for one conversation, with pictures of its plan's size."""
    processor = llava.processor_for(image_aspect_ratio)
    encoded = llava.encode([messages], image_aspect_ratio=image_aspect_ratio)
    sizes = [image.size for message in messages for image in message.images]
    return given_to(llava.family, processor, encoded.inputs, [sizes])[0]


def strategy_view(
    given: Given, trace: DocumentTrace, strategy: str, label: str, *, smaller: bool = False, **more: Any
) -> StrategyView:
    """A strategy's view of a document. more: the other fields of StrategyView. smaller: `given` is this strategy's own,
    whose pictures are smaller than the document's."""
    return StrategyView(
        strategy=strategy,
        label=label,
        stages=tuple(given.stage(stage) for stage in trace.stages),
        figures={name: float(getattr(trace, name)) for name in _FIGURES},
        pictures=tuple(picture.geometry for picture in given.pictures) if smaller else None,
        **more,
    )


def answer_view(
    llava: PrunedLlava,
    messages: Sequence[Message],
    given: Given,
    answer: Answer,
    strategy: str,
    label: str,
    **more: Any,
) -> StrategyView:
    """The view of an answer that `llava.generate` gave under a plan of this strategy. given: without a plan's smaller
    pictures; more: as for `strategy_view`."""
    picture = answer.trace.plan.picture
    if picture is not None:
        given = given_for(replace(llava, plan=answer.trace.plan), messages)
    made = strategy_view(given, answer.trace, strategy, label, smaller=picture is not None, answer=answer.text, **more)
    timing = answer.timing
    return replace(made, figures={**made.figures, "prefill_seconds": timing.prefill, "decode_seconds": timing.decode})
