"""A prompt cut at its `<image>` tags, each piece tokenized by itself, as LLaVA was trained; rows padded on the left."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers.pre_tokenizers import Metaspace

from lmms_textweighted.errors import InputError
from lmms_textweighted.families.base import IMAGE_TAG_ID, Pieces
from lmms_textweighted.prompts import IMAGE_TAG


def llava_pieces(tokenizer: Any, prompt: str, *, offsets: bool = False) -> Pieces:
    """A prompt's ids with IMAGE_TAG_ID at its tags, and each id's range of characters (where asked for).

    Every piece between tags is a text of its own to the tokenizer; only the first keeps the begin token.
    """
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    start = 0
    for number, piece in enumerate(prompt.split(IMAGE_TAG)):
        found, ranges = _encoded(tokenizer, piece, offsets)
        if number:
            ids.append(IMAGE_TAG_ID)
            spans.append((start - len(IMAGE_TAG), start))
            if found[:1] == [tokenizer.bos_token_id]:
                found, ranges = found[1:], ranges[1:]
        ids += found
        spans += [(start + first, start + last) for first, last in ranges]
        start += len(piece) + len(IMAGE_TAG)
    return ids, spans


def _encoded(tokenizer: Any, text: str, offsets: bool) -> Pieces:
    """A text's ids and their ranges of characters.

    sentencepiece puts its `▁` in front of every text. The backend that transformers makes of a `tokenizer.model` leaves
    it out where the text begins with a space, so there a second space is given.
    """
    before = getattr(getattr(tokenizer, "backend_tokenizer", None), "pre_tokenizer", None)
    extra = int(text.startswith(" ") and isinstance(before, Metaspace) and before.prepend_scheme != "never")
    encoded = tokenizer(" " * extra + text, return_offsets_mapping=offsets)
    ids = encoded["input_ids"]
    if not offsets:
        return ids, [(0, 0)] * len(ids)
    return ids, [(max(0, first - extra), max(0, last - extra)) for first, last in encoded["offset_mapping"]]


def check_offsets(tokenizer: Any) -> None:
    """Raise InputError for a tokenizer that does not know where in the text a token stands."""
    if not tokenizer.is_fast:
        raise InputError("text_scope=question needs a fast tokenizer, which knows where in the text a token stands")


def padded(rows: list[list[int]], tokenizer: Any) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask [B, S] of rows of ids."""
    longest = max(map(len, rows))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return {
        "input_ids": torch.tensor([[pad] * (longest - len(ids)) + ids for ids in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows]),
    }
