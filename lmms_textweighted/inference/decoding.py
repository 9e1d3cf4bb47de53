"""How an answer is generated, where its text ends, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StopStringCriteria

from lmms_textweighted.families.base import Family

DEFAULT_MAX_NEW_TOKENS = Family.max_new_tokens


@dataclass(frozen=True)
class Decoding:
    """How an answer is generated: the part of lmms-eval's generation kwargs that changes it."""

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    num_beams: int = 1
    repetition_penalty: float | None = None
    until: tuple[str, ...] = ()

    def arguments(self, tokenizer: Any) -> dict[str, Any]:
        """Arguments of transformers' `generate`."""
        sampled = self.temperature > 0
        found: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "max_length": None,  # a checkpoint's own would be warned of with every batch
            "do_sample": sampled,
            "num_beams": self.num_beams,
            "temperature": self.temperature if sampled else None,
            "top_p": self.top_p if sampled else None,
            "top_k": self.top_k if sampled else None,
            "pad_token_id": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        }
        if self.repetition_penalty is not None:
            found["repetition_penalty"] = self.repetition_penalty
        if self.until:
            # Not as `stop_strings`: `generate` hands their tokenizer on to the model, which the llava package refuses.
            found["stopping_criteria"] = [StopStringCriteria(tokenizer, list(self.until))]
        return found


@dataclass(frozen=True)
class Timing:
    """Seconds that a batch took. encode: prompts and pictures to inputs. prefill: from there to its first token, vision
    tower included. decode: the rest, in `steps` more tokens of its longest answer. rows: its size."""

    encode: float
    prefill: float
    decode: float
    steps: int
    rows: int


class FirstToken(StoppingCriteria):
    """Notes when the first token is there: `generate` asks its stopping criteria after each."""

    def __init__(self, others: list[StoppingCriteria]) -> None:
        self.criteria = [self, *others]
        self.started = self.first = 0.0
        self.tokens = 0

    def start(self) -> None:
        self.started = time.perf_counter()

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self.tokens += 1
        if self.tokens == 1:
            if input_ids.is_cuda:
                torch.cuda.synchronize(input_ids.device)
            self.first = time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def timing(self, began: float, rows: int) -> Timing:
        """To be asked when `generate` is done; `began` is when encoding did."""
        now = time.perf_counter()
        first = self.first or now
        return Timing(self.started - began, first - self.started, now - first, max(0, self.tokens - 1), rows)


def cut(text: str, stops: Sequence[str]) -> str:
    """The text in front of the first stop string, without white space around it."""
    ends = [text.find(stop) for stop in stops if stop and stop in text]
    return (text[: min(ends)] if ends else text).strip()
