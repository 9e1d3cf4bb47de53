"""Where the image tokens and the text tokens of a batch are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lmms_textweighted.errors import PlanError


@dataclass(frozen=True)
class Layout:
    """Positions in a batch of sequences [B, S], on the model's device.

    valid: bool, False at padding.
    image: int, the image's number (0, 1, …) at image tokens, -1 elsewhere.
    text: bool, the text tokens after the last image: `T` in the formulas. All False in a row without images.
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
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, image_token_id: int, tokens_per_image: int | None
) -> Layout:
    """Read the layout off the input ids, in which every image token is `image_token_id`.

    input_ids: [B, S]. attention_mask: [B, S], 0 at padding, or None. A run of neighbouring image tokens is one image,
    or several of `tokens_per_image` each where that divides it. Raises PlanError when the last image has no text after
    it: then nothing can say which of its tokens matter.
    """
    device = input_ids.device
    ids = input_ids.cpu()
    valid = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.cpu().bool()
    image = torch.full_like(ids, -1)
    text = torch.zeros_like(valid)
    sizes, text_lengths = [], []
    for row in range(ids.shape[0]):
        places = torch.nonzero((ids[row] == image_token_id) & valid[row]).flatten()
        runs = _runs(places, tokens_per_image)
        for number, run in enumerate(runs):
            image[row, run] = number
        sizes.append(tuple(len(run) for run in runs))
        if runs:
            text[row, int(places[-1]) + 1 :] = True
            text[row] &= valid[row]
            if not text[row].any():
                raise PlanError(
                    "the prompt ends with its image: put the question after it, text tokens are what scores the image"
                )
        text_lengths.append(int(text[row].sum()))
    return Layout(
        valid=valid.to(device),
        image=image.to(device),
        text=text.to(device),
        image_sizes=tuple(sizes),
        lengths=tuple(valid.sum(dim=1).tolist()),
        starts=tuple(valid.int().argmax(dim=1).tolist()),
        text_lengths=tuple(text_lengths),
    )


def _runs(places: torch.Tensor, tokens_per_image: int | None) -> list[torch.Tensor]:
    """Split ascending positions into runs of neighbours, and runs into images of a known size."""
    if not len(places):
        return []
    breaks = torch.nonzero(places.diff() > 1).flatten() + 1
    runs = list(torch.tensor_split(places, breaks))
    if not tokens_per_image:
        return runs
    return [
        piece for run in runs for piece in (run.split(tokens_per_image) if len(run) % tokens_per_image == 0 else (run,))
    ]
