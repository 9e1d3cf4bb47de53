"""A loaded model with a plan and a prompt template: it encodes, answers and scores conversations."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import BatchFeature

from lmms_textweighted.engine.caches import CACHE_NAME
from lmms_textweighted.engine.decoder import end_tokens
from lmms_textweighted.engine.finite import ADVICE, FiniteLogits, check_finite
from lmms_textweighted.engine.plan import NONE, Plan
from lmms_textweighted.engine.text_tower import TextTower, no_text_tower
from lmms_textweighted.engine.trace import DocumentTrace, Trace
from lmms_textweighted.errors import InputError, PromptError
from lmms_textweighted.families.attach import prune
from lmms_textweighted.families.known import family_of
from lmms_textweighted.families.text_tower import load_text_tower
from lmms_textweighted.inference.context import check_context
from lmms_textweighted.inference.decoding import Decoding, FirstToken, Timing, cut
from lmms_textweighted.inference.question import question_tokens, users_text
from lmms_textweighted.inference.stated import StatedLengths, check_stated_lengths
from lmms_textweighted.prompts import IMAGE_TAG, Message, check_template, render, stop_string, untagged


@dataclass(frozen=True)
class Answer:
    """One answer: its text without stop strings, how many tokens went in and came out, the prefill's trace, how the
    pictures were prepared (see `PrunedLlava.image_aspect_ratio`), and how long its batch took."""

    text: str
    input_tokens: int
    output_tokens: int
    trace: DocumentTrace
    image_aspect_ratio: str
    timing: Timing


@dataclass(frozen=True)
class Encoded:
    """A batch of prompts as the model takes them. question: for each row, which of its text tokens are the question's;
    None for a row without images, and where nobody asked. image_sizes: for each row, the number of tokens of each of
    its pictures; None where the processor does not say so. texts: for each row, what its last user turn says."""

    inputs: BatchFeature
    question: list[torch.Tensor | None]
    image_sizes: list[tuple[int, ...]] | None = None
    texts: list[str] | None = None


@dataclass
class PrunedLlava:
    """A loaded model with a plan and a prompt template. template None: the one that suits the checkpoint.

    system_prompt: stands in front of a conversation without a system message; None is the family's own, "" is none.
    text_tower: for plans that compare patches with the question as CLIP does, see `with_text_tower`.
    """

    model: Any
    processor: Any
    plan: Plan = NONE
    template: str | None = None
    seed: int = 0
    stated: StatedLengths = field(default_factory=StatedLengths)
    system_prompt: str | None = None
    text_tower: TextTower | None = None

    def __post_init__(self) -> None:
        self.family = family_of(self.model, self.processor)
        self.template = check_template(self.template or self.family.default_template())
        self.family.check_template(self.template)

    @property
    def loader(self) -> str:
        """What loaded the model: `transformers`, the `llava` package, or the conversion `in memory`."""
        return self.family.loader

    @property
    def image_aspect_ratio(self) -> str:
        """How pictures are prepared: a name of LLaVA's, or `processor` for a checkpoint's own processor as it is."""
        return self.family.image_aspect_ratio

    def takes(self, image_aspect_ratio: str) -> bool:
        """Whether the checkpoint was made for pictures that are prepared in this way."""
        return self.family.takes(image_aspect_ratio)

    @property
    def tokens_per_image(self) -> int | None:
        """The number of tokens of every image, where the checkpoint fixes it."""
        return self.family.tokens_per_image

    def check_pictures(self, plan: Plan) -> None:
        """Raise InputError where the model cannot take pictures of the size that a plan has."""
        if plan.picture is not None:
            self.family.smaller_processor(self.processor, plan.picture.tokens)

    @property
    def acting_system_prompt(self) -> str | None:
        """What stands in front of a conversation without a system message of its own."""
        return self.family.default_system_prompt if self.system_prompt is None else self.system_prompt

    def with_aspect_ratio(self, image_aspect_ratio: str) -> PrunedLlava:
        """The same model with pictures prepared in another way. Raises InputError where it cannot take them."""
        return replace(self, processor=self.family.processor_for(image_aspect_ratio))

    def processor_for(self, image_aspect_ratio: str | None = None) -> Any:
        """What prepares a batch: pictures have the plan's size. Raises InputError where the model cannot take them."""
        processor = self.family.processor_for(image_aspect_ratio)
        if self.plan.picture is not None:
            processor = self.family.smaller_processor(processor, self.plan.picture.tokens)
        return processor

    def with_text_tower(self, name: str | None, plans: Iterable[Plan]) -> PrunedLlava:
        """The same model with the text tower of a CLIP, a folder or hub name, where one of the plans needs it.

        Raises as `families.text_tower.load_text_tower` does, and PlanError where one is needed and none is named.
        """
        needing = next((plan for plan in plans if plan.reads_text), None)
        if needing is None:
            return self
        if name is None:
            raise no_text_tower(needing.name)
        return replace(self, text_tower=load_text_tower(name, self.model))

    def encode(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        question: bool = False,
        image_aspect_ratio: str | None = None,
    ) -> Encoded:
        """Prompts and pictures -> the model's inputs on its device, padded on the left. Pictures have the plan's size.

        question: also find each prompt's question. image_aspect_ratio: for this batch, instead of `processor`'s.
        Raises PromptError for a prompt that cannot be used: longer than the model's context, or tags and pictures that
        disagree; InputError when a stated length is not the input's.
        """
        processor = self.processor_for(image_aspect_ratio)
        conversations = [self._whole(messages) for messages in conversations]
        prompts, images = [], []
        for row, messages in enumerate(conversations):
            try:
                prompt = self._prompt(messages)
                pictures = [image for message in messages for image in message.images]
                tags = prompt.count(self.family.placeholder)
                if tags != len(pictures):
                    raise InputError(
                        f"the prompt has {tags} {self.family.placeholder} tags but {len(pictures)} pictures: "
                        f"give one for each"
                    )
            except InputError as error:
                raise PromptError(str(error), row) from error
            prompts.append(prompt)
            images.append(pictures)
        inputs, written = self.family.encode_written(processor, prompts, images, self._template)
        voters: list[torch.Tensor | None] = [None] * len(prompts)
        for row, (prompt, messages) in enumerate(zip(prompts, conversations, strict=True)):
            if question and images[row]:
                given = None if written is None else written[row]
                try:
                    voters[row] = question_tokens(self.family, prompt, messages, self._template, given)
                except InputError as error:
                    raise PromptError(str(error), row) from error
        sizes = None if written is None else [self.family.picture_sizes(row) for row in written]
        check_context(self.family, inputs["input_ids"], inputs["attention_mask"])
        check_stated_lengths(self.family, inputs["input_ids"], inputs["attention_mask"], self.stated)
        return Encoded(_placed(inputs, self.model), voters, sizes, [users_text(turns) for turns in conversations])

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        decoding: Decoding,
        *,
        ranks: bool = False,
        image_aspect_ratio: str | None = None,
    ) -> list[Answer]:
        """Answer a batch of conversations. Each answer is the one it would get alone."""
        began = time.perf_counter()
        encoded = self.encode(
            conversations, question=self.plan.text_scope == "question", image_aspect_ratio=image_aspect_ratio
        )
        decoding = self.stopping(decoding)
        inputs = dict(encoded.inputs)
        ids = inputs.pop("input_ids")
        arguments = decoding.arguments(self.processor.tokenizer)
        clock, finite = FirstToken(arguments.pop("stopping_criteria", [])), FiniteLogits()
        with torch.inference_mode(), self._pruning(encoded, ranks=ranks) as trace:
            clock.start()
            output = self.model.generate(
                ids, **inputs, **arguments, stopping_criteria=clock.criteria, logits_processor=[finite]
            )
        timing = clock.timing(began, rows=len(ids))
        _check_finite(trace, finite, decoding.num_beams)
        answers = []
        for row, new in enumerate(self.family.new_tokens(output, ids.shape[1])):
            count = self._generated(new)
            text = self.processor.tokenizer.decode(new[:count], skip_special_tokens=True)
            document = trace.documents[row * decoding.num_beams]
            prepared = image_aspect_ratio or self.image_aspect_ratio
            answers.append(Answer(cut(text, decoding.until), document.input_length, count, document, prepared, timing))
        return answers

    def loss(self, messages: Sequence[Message], continuation: str) -> tuple[float, bool, DocumentTrace]:
        """Mean negative log-likelihood in nats of an assistant's turn, and whether greedy decoding would give it.

        The prompt is scored and pruned as for `generate`; the continuation, with its end-of-turn token, then runs on
        top of the shortened cache, so it has no say in what is kept.
        """
        encoded = self.encode([messages], question=self.plan.text_scope == "question")
        messages = self._whole(messages)
        before, _ = self.family.pieces(self._prompt(messages), self._template)
        whole = [*messages, Message("assistant", (("text", continuation),))]
        after, _ = self.family.pieces(self._prompt(whole), self._template)
        if after[: len(before)] != before:
            raise InputError("the prompt's tokens change when the answer follows: use another conv_template")
        target = torch.tensor([after[len(before) :]], device=self.model.device)
        if not target.shape[1]:
            raise InputError("the continuation has no tokens")
        takes_count = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        with torch.inference_mode(), self._pruning(encoded) as trace:
            first = self.model(**encoded.inputs, use_cache=True, **({"logits_to_keep": 1} if takes_count else {}))
            logits = first.logits[:, -1:]
            if target.shape[1] > 1:
                # Without a mask: nothing is padding, and a model with M-RoPE would count its positions by the mask.
                rest = self.model(
                    input_ids=target[:, :-1],
                    **{CACHE_NAME: getattr(first, CACHE_NAME)},
                    use_cache=True,
                )
                logits = torch.cat([logits, rest.logits], dim=1)
        logits = logits.float()[..., : self.family.vocabulary]
        check_finite(logits, "the model's logits")
        _check_finite(trace, FiniteLogits(), 1)
        loss = torch.nn.functional.cross_entropy(logits[0], target[0]).item()
        return loss, bool((logits.argmax(-1) == target).all()), trace.documents[0]

    def stopping(self, decoding: Decoding) -> Decoding:
        """The same decoding that also stops where the template ends an answer, if that is no end token anyway."""
        stop = stop_string(self._template)
        ends = {self.processor.tokenizer.convert_ids_to_tokens(token) for token in end_tokens(self.model)}
        if stop is None or stop in ends or stop in decoding.until:
            return decoding
        return replace(decoding, until=(*decoding.until, stop))

    def _whole(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation with its system prompt, and with its pictures where `<image>` tags of the text say so."""
        system = self.acting_system_prompt
        whole = list(messages)
        if system and not (whole and whole[0].role == "system"):
            whole.insert(0, Message("system", (("text", system),)))
        return whole if self.family.placeholder == IMAGE_TAG else [untagged(message) for message in whole]

    def _prompt(self, messages: Sequence[Message]) -> str:
        return render(self._template, messages, self.processor)

    @property
    def _template(self) -> str:
        return check_template(self.template or self.family.default_template())

    @contextmanager
    def _pruning(self, encoded: Encoded, *, ranks: bool = False) -> Iterator[Trace]:
        with ExitStack() as stack:
            if self.plan.picture is not None:
                stack.enter_context(self.family.smaller_pictures(self.plan.picture.tokens))
            yield stack.enter_context(
                prune(
                    self.model,
                    self.plan,
                    ranks=ranks,
                    seed=self.seed,
                    question=encoded.question,
                    image_sizes=encoded.image_sizes,
                    text_tower=self.text_tower,
                    texts=encoded.texts,
                )
            )

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


def _check_finite(trace: Trace, logits: FiniteLogits, beams: int) -> None:
    """Raise PromptError for the first row whose scores or logits were not finite."""
    for place, document in enumerate(trace.documents):
        for stage in document.stages:
            if not torch.isfinite(stage.scores).all():
                raise PromptError(
                    f"the image tokens' scores after layer {stage.layer} are not finite {ADVICE}", place // beams
                )
    for place in logits.rows():
        raise PromptError(f"the model's logits are not finite {ADVICE}", place // beams)


def _placed(inputs: BatchFeature, model: Any) -> BatchFeature:
    """The inputs on the model's device, pixels in its type."""

    def place(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        return [place(part) for part in value] if isinstance(value, list) else value

    return BatchFeature({name: place(value) for name, value in inputs.items()})
