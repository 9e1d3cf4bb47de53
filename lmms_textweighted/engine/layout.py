"""Where the image tokens and the text tokens of a batch are, and which text tokens vote."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lmms_textweighted.engine.grids import Grid
from lmms_textweighted.errors import PlanError

IMAGE = -1  # stands at image tokens in a prompt's ids, whatever the model's own id is


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts as the decoder gets them, on the CPU.

    ids: int64 [B, S], IMAGE at every image token. valid: bool [B, S], False at padding. image_sizes: for each row, the
    number of tokens of each of its images, in order. pictures: for each row, which of the pictures that entered the
    vision tower its images are; None where the rows take them one after the other. grids: of each picture that entered
    the tower, which patch each of its tokens is; None where that is not known.
    """

    ids: torch.Tensor
    valid: torch.Tensor
    image_sizes: tuple[tuple[int, ...], ...]
    pictures: tuple[tuple[int, ...], ...] | None = None
    grids: tuple[Grid, ...] | None = None

    def repeated(self, times: int) -> Prompts:
        """Each row `times` times in a row, as beam search does it."""
        if times == 1:
            return self
        return Prompts(
            self.ids.repeat_interleave(times, 0),
            self.valid.repeat_interleave(times, 0),
            tuple(sizes for sizes in self.image_sizes for _ in range(times)),
            None if self.pictures is None else tuple(row for row in self.pictures for _ in range(times)),
            self.grids,
        )

    def pictures_of_rows(self, count: int) -> tuple[tuple[int, ...], ...] | None:
        """`pictures`, of the `count` that entered the tower; found out where rows take them one after the other and
        beam search repeats each row. None where the pictures do not fit."""
        rows = self.pictures
        if rows is None:
            rows = _in_order([len(sizes) for sizes in self.image_sizes], count)
        return None if rows is None or any(number >= count for row in rows for number in row) else rows

    def grids_of_rows(self, tokens_per_image: int | None = None) -> list[list[Grid]] | None:
        """For each row, the grids of its pictures; None where they are not known or do not fit the rows.

        tokens_per_image: where every picture has this many, all of them patches; a square's are known without grids.
        """
        if self.grids is None:
            square = tokens_per_image is not None and math.isqrt(tokens_per_image) ** 2 == tokens_per_image
            if not square or any(size != tokens_per_image for sizes in self.image_sizes for size in sizes):
                return None
            return [[Grid.whole(size) for size in sizes] for sizes in self.image_sizes]
        rows = self.pictures_of_rows(len(self.grids))
        if rows is None:
            return None
        found = [[self.grids[number] for number in row] for row in rows]
        fit = [tuple(len(grid.numbers) for grid in row) for row in found] == list(self.image_sizes)
        return found if fit else None


def _in_order(counts: Sequence[int], pictures: int) -> tuple[tuple[int, ...], ...] | None:
    """The pictures' numbers of each row, where rows take them in order, and beam search repeats each row; or None."""
    total = sum(counts)
    if not total:
        return ((),) * len(counts)
    times, rest = divmod(total, pictures) if pictures else (0, 1)
    if rest or not times or len(counts) % times:
        return None
    rows: list[tuple[int, ...]] = []
    first = 0
    for start in range(0, len(counts), times):
        if len(set(counts[start : start + times])) > 1:
            return None
        rows += [tuple(range(first, first + counts[start]))] * times
        first += counts[start]
    return tuple(rows)


def unknown_text(hidden: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Prompts:
    """A batch without images of which only the embeddings [B, S, …] and the mask [B, S] are known."""
    valid = torch.ones(hidden.shape[:2], dtype=torch.bool)
    if attention_mask is not None and attention_mask.ndim == 2:
        valid = attention_mask.cpu().bool()
    return Prompts(torch.zeros(valid.shape, dtype=torch.int64), valid, ((),) * len(valid))


@dataclass(frozen=True)
class Layout:
    """Positions in a batch of sequences [B, S], on the model's device.

    valid: bool, False at padding.
    image: int, the image's number (0, 1, …) at image tokens, -1 elsewhere.
    text: bool, the text tokens that vote: `T` in the formulas. All False in a row without images.
    image_sizes: for each row, the number of tokens of each of its images (host data: asking costs no device sync).
    lengths: for each row, its number of valid tokens (host data).
    starts: for each row, its first valid position (host data).
    text_lengths: for each row, the number of its tokens in `text` (host data).
    """

    valid: torch.Tensor
    image: torch.Tensor
    text: torch.Tensor
    image_sizes: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    text_lengths: tuple[int, ...]

    def last(self, row: int) -> int:
        """Position of a row's last token."""
        return self.starts[row] + self.lengths[row] - 1

    def select(self, index: torch.Tensor, present: torch.Tensor, image_sizes: tuple[tuple[int, ...], ...]) -> Layout:
        """The layout of the shorter sequences `index` [B, L], of which only `present` positions are real."""
        removed = [sum(old) - sum(new) for old, new in zip(self.image_sizes, image_sizes, strict=True)]
        lengths = tuple(length - gone for length, gone in zip(self.lengths, removed, strict=True))
        return Layout(
            valid=present,
            image=self.image.gather(1, index).masked_fill(~present, -1),
            text=self.text.gather(1, index) & present,
            image_sizes=image_sizes,
            lengths=lengths,
            starts=tuple(present.shape[1] - length for length in lengths),
            text_lengths=self.text_lengths,
        )


def find_layout(
    prompts: Prompts,
    device: torch.device,
    text_scope: str = "after",
    question: Sequence[torch.Tensor | None] | None = None,
) -> Layout:
    """Positions of a batch, with the text tokens of `text_scope` (see `plan.TEXT_SCOPES`).

    question: for the scope `question`, for each row a bool tensor over its text tokens in order (image tokens and
    padding not counted), True for the question's. Raises PlanError when no voting token stands after the last image
    (then nothing can say which of its tokens matter), and when a question is missing or has the wrong length.
    """
    ids, valid = prompts.ids, prompts.valid
    image = torch.full_like(ids, -1)
    text = torch.zeros_like(valid)
    for row, sizes in enumerate(prompts.image_sizes):
        if not sizes:
            continue
        places = torch.nonzero((ids[row] == IMAGE) & valid[row]).flatten()
        image[row, places] = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        text[row] = _voters(ids[row], valid[row], text_scope, None if question is None else question[row])
        if not text[row, int(places[-1]) + 1 :].any():
            raise PlanError(
                "the prompt ends with its image: put the question after it, text tokens are what scores the image"
                if text_scope != "question"
                else "text_scope=question: no token of the question stands after the last image, so none can score it"
            )
    return Layout(
        valid=valid.to(device),
        image=image.to(device),
        text=text.to(device),
        image_sizes=prompts.image_sizes,
        lengths=tuple(valid.sum(dim=1).tolist()),
        starts=tuple(valid.int().argmax(dim=1).tolist()),
        text_lengths=tuple(text.sum(dim=1).tolist()),
    )


def _voters(ids: torch.Tensor, valid: torch.Tensor, text_scope: str, question: torch.Tensor | None) -> torch.Tensor:
    """One row's voting tokens, bool [S]."""
    voters = valid & (ids != IMAGE)
    if text_scope == "after":
        voters[: int(torch.nonzero(ids == IMAGE)[-1]) + 1] = False
    elif text_scope == "question":
        if question is None:
            raise PlanError("text_scope=question needs to know where the question is: give prune(…, question=…)")
        count = int(voters.sum())
        if len(question) != count:
            raise PlanError(
                f"question has {len(question)} entries, but the prompt has {count} text tokens: give one each"
            )
        voters[voters.clone()] = question.cpu()
    return voters
