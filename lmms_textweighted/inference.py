"""Answer questions with a pruned LLaVA: conversations in, texts with their traces out.

The engine's one user inside this package: the lmms-eval model and the command line both ask here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import BatchFeature

from lmms_textweighted.errors import InputError
from lmms_textweighted.fanout import end_tokens
from lmms_textweighted.plan import NONE, Plan
from lmms_textweighted.prompts import IMAGE_TAG, Message, render
from lmms_textweighted.pruner import prune
from lmms_textweighted.trace import DocumentTrace

DEFAULT_MAX_NEW_TOKENS = 1024


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
            found.update(stop_strings=list(self.until), tokenizer=tokenizer)
        return found


@dataclass(frozen=True)
class StatedLengths:
    """What a user states about the prompt: tokens in front of the image, and the image's own. None: not stated."""

    system: int | None = None
    image: int | None = None


@dataclass(frozen=True)
class Answer:
    """One answer: its text without stop strings, how many tokens went in and came out, and the prefill's trace."""

    text: str
    input_tokens: int
    output_tokens: int
    trace: DocumentTrace


@dataclass
class PrunedLlava:
    """A loaded LLaVA with a plan and a prompt template."""

    model: Any
    processor: Any
    plan: Plan = NONE
    template: str = "vicuna_v1"
    seed: int = 0
    stated: StatedLengths = field(default_factory=StatedLengths)

    def encode(self, conversations: Sequence[Sequence[Message]]) -> BatchFeature:
        """Prompts and pictures -> the model's inputs on its device, padded on the left.

        Raises InputError when a prompt's tags and pictures disagree, or a stated length is not the input's.
        """
        prompts, images = [], []
        for messages in conversations:
            prompt = render(self.template, messages, self.processor)
            pictures = [image for message in messages for image in message.images]
            if prompt.count(IMAGE_TAG) != len(pictures):
                raise InputError(f"the prompt has {prompt.count(IMAGE_TAG)} <image> tags but {len(pictures)} pictures")
            prompts.append(prompt)
            images += pictures
        inputs = self.processor(
            images=images or None, text=prompts, padding=True, return_tensors="pt", **self._no_double_bos(prompts)
        )
        check_stated_lengths(
            inputs["input_ids"], inputs["attention_mask"], self.model.config.image_token_id, self.stated
        )
        return inputs.to(self.model.device, self.model.dtype)

    def generate(
        self, conversations: Sequence[Sequence[Message]], decoding: Decoding, *, ranks: bool = False
    ) -> list[Answer]:
        """Answer a batch of conversations. Each answer is the one it would get alone."""
        inputs = self.encode(conversations)
        with torch.inference_mode(), prune(self.model, self.plan, ranks=ranks, seed=self.seed) as trace:
            output = self.model.generate(**inputs, **decoding.arguments(self.processor.tokenizer))
        tokens = output[:, inputs["input_ids"].shape[1] :]
        answers = []
        for row, ids in enumerate(tokens):
            count = self._generated(ids)
            text = self.processor.tokenizer.decode(ids[:count], skip_special_tokens=True)
            document = trace.documents[row * decoding.num_beams]
            answers.append(Answer(cut(text, decoding.until), document.full_length, count, document))
        return answers

    def loss(self, messages: Sequence[Message], continuation: str) -> tuple[float, bool, DocumentTrace]:
        """Mean negative log-likelihood in nats of an assistant's turn, and whether greedy decoding would give it.

        The prompt is scored and pruned as for `generate`; the continuation, with its end-of-turn token, then runs on
        top of the shortened cache, so it has no say in what is kept.
        """
        inputs = self.encode([messages])
        prompt_length = inputs["input_ids"].shape[1]
        whole = [*messages, Message("assistant", (("text", continuation),))]
        images = [image for message in whole for image in message.images]
        prompt = render(self.template, whole, self.processor)
        ids = self.processor(
            images=images or None, text=[prompt], return_tensors="pt", **self._no_double_bos([prompt])
        )["input_ids"].to(self.model.device)
        if not torch.equal(ids[:, :prompt_length], inputs["input_ids"]):
            raise InputError("the prompt's tokens change when the answer follows: use another conv_template")
        target = ids[:, prompt_length:]
        if not target.shape[1]:
            raise InputError("the continuation has no tokens")
        with torch.inference_mode(), prune(self.model, self.plan, seed=self.seed) as trace:
            first = self.model(**inputs, use_cache=True, logits_to_keep=1)
            logits = first.logits[:, -1:]
            if target.shape[1] > 1:
                mask = torch.ones_like(ids[:, :-1])
                rest = self.model(
                    input_ids=target[:, :-1],
                    attention_mask=mask,
                    past_key_values=first.past_key_values,
                    use_cache=True,
                )
                logits = torch.cat([logits, rest.logits], dim=1)
        logits = logits.float()
        loss = torch.nn.functional.cross_entropy(logits[0], target[0]).item()
        return loss, bool((logits.argmax(-1) == target).all()), trace.documents[0]

    def _generated(self, ids: torch.Tensor) -> int:
        """Number of generated tokens, the end token included and the padding behind a stopped row not."""
        ends = end_tokens(self.model)
        pad = self.processor.tokenizer.pad_token_id
        for place, token in enumerate(ids.tolist()):
            if token in ends:
                return place + 1
            if token == pad:
                return place
        return len(ids)

    def _no_double_bos(self, prompts: Sequence[str]) -> dict[str, Any]:
        """A chat template may write the begin token itself; then the tokenizer must not add another."""
        begin = self.processor.tokenizer.bos_token
        return {"add_special_tokens": False} if begin and prompts[0].startswith(begin) else {}


def check_stated_lengths(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, image_token_id: int, stated: StatedLengths
) -> None:
    """Raise InputError when a stated length is not that of every row with an image. Both tensors: [B, S]."""
    if stated.system is None and stated.image is None:
        return
    for ids, valid in zip(input_ids, attention_mask.bool(), strict=True):
        places = (ids[valid] == image_token_id).nonzero().flatten().tolist()
        if not places:
            continue
        gaps = [place for place, (a, b) in enumerate(itertools.pairwise(places), start=1) if b != a + 1]
        found = {"system": places[0], "image": gaps[0] if gaps else len(places)}
        for name, what in (("system", "tokens in front of the image"), ("image", "tokens of the image")):
            claim = getattr(stated, name)
            if claim is not None and claim != found[name]:
                raise InputError(
                    f"{name} length is stated as {claim}, but the input has {found[name]} {what}: "
                    f"leave it out, or state {found[name]}"
                )


def cut(text: str, stops: Sequence[str]) -> str:
    """The text in front of the first stop string, without white space around it."""
    ends = [text.find(stop) for stop in stops if stop and stop in text]
    return (text[: min(ends)] if ends else text).strip()
