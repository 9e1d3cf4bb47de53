"""Answer questions with a pruned LLaVA: conversations in, texts with their traces out.

The engine's one user inside this package: the lmms-eval model and the command line both ask here.
"""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import BatchFeature, StoppingCriteria, StopStringCriteria

from lmms_textweighted.engine.caches import CACHE_NAME
from lmms_textweighted.engine.decoder import end_tokens, find_decoder
from lmms_textweighted.engine.plan import NONE, Plan
from lmms_textweighted.engine.trace import DocumentTrace
from lmms_textweighted.errors import InputError
from lmms_textweighted.families.attach import prune
from lmms_textweighted.families.liuhaotian.checkpoint import VOCABULARY_KEY
from lmms_textweighted.families.liuhaotian.splice import IMAGE_TAG_ID
from lmms_textweighted.families.llava import with_aspect_ratio
from lmms_textweighted.families.processing import (
    LiuhaotianProcessor,
    PlaceholderProcessor,
    TagProcessor,
    encode_prompts,
    prompt_pieces,
)
from lmms_textweighted.families.splice import splice_of
from lmms_textweighted.prompts import (
    DEFAULT_TEMPLATE,
    IMAGE_TAG,
    Message,
    check_template,
    question_span,
    render,
    stop_string,
)

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
class StatedLengths:
    """What a user states about the prompt: tokens in front of the image, and the image's own. None: not stated."""

    system: int | None = None
    image: int | None = None


@dataclass(frozen=True)
class Timing:
    """Seconds that a batch took. encode: prompts and pictures to inputs. prefill: from there to its first token, vision
    tower included. decode: the rest, in `steps` more tokens of its longest answer. rows: its size."""

    encode: float
    prefill: float
    decode: float
    steps: int
    rows: int


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
    None for a row without images, and where nobody asked."""

    inputs: BatchFeature
    question: list[torch.Tensor | None]


@dataclass
class PrunedLlava:
    """A loaded LLaVA with a plan and a prompt template. template None: the one that suits the checkpoint."""

    model: Any
    processor: Any
    plan: Plan = NONE
    template: str | None = None
    seed: int = 0
    stated: StatedLengths = field(default_factory=StatedLengths)

    def __post_init__(self) -> None:
        self.template = check_template(self.template or default_template(self.model, self.processor))
        self._processors: dict[str, Any] = {}

    @property
    def loader(self) -> str:
        """What loaded the model: `transformers`, the `llava` package, or the conversion `in memory`."""
        kinds = {TagProcessor: "llava", PlaceholderProcessor: "in memory"}
        return kinds.get(type(self.processor), "transformers")

    @property
    def image_aspect_ratio(self) -> str:
        """How pictures are prepared: a name of LLaVA's, or `processor` for a checkpoint's own processor as it is."""
        return getattr(self.processor, "image_aspect_ratio", None) or "processor"

    def takes(self, image_aspect_ratio: str) -> bool:
        """Whether the checkpoint was made for pictures that are prepared in this way: a grid's for anyres alone, others
        for everything else. (The llava package's models could be given both.)"""
        try:
            processor = self._processor(image_aspect_ratio)
        except InputError:
            return False
        grids = ["anyres" in str(getattr(p, "image_aspect_ratio", None)) for p in (self.processor, processor)]
        return grids[0] == grids[1] or not isinstance(processor, LiuhaotianProcessor)

    @property
    def tokens_per_image(self) -> int | None:
        """The number of tokens of every image, where the checkpoint fixes it."""
        return splice_of(self.model).tokens_per_image

    def with_aspect_ratio(self, image_aspect_ratio: str) -> PrunedLlava:
        """The same model with pictures prepared in another way. Raises InputError where it cannot take them."""
        return replace(self, processor=self._processor(image_aspect_ratio))

    def encode(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        question: bool = False,
        image_aspect_ratio: str | None = None,
    ) -> Encoded:
        """Prompts and pictures -> the model's inputs on its device, padded on the left.

        question: also find each prompt's question. image_aspect_ratio: for this batch, instead of `processor`'s.
        Raises InputError when a prompt's tags and pictures disagree, or a stated length is not the input's.
        """
        processor = self._processor(image_aspect_ratio)
        prompts, images, voters = [], [], []
        for messages in conversations:
            prompt = self._prompt(messages)
            pictures = [image for message in messages for image in message.images]
            if prompt.count(IMAGE_TAG) != len(pictures):
                raise InputError(f"the prompt has {prompt.count(IMAGE_TAG)} <image> tags but {len(pictures)} pictures")
            prompts.append(prompt)
            images.append(pictures)
            voters.append(
                question_tokens(processor, prompt, messages, self._template) if question and pictures else None
            )
        inputs = encode_prompts(processor, prompts, images, self._template)
        self._check_stated(inputs)
        return Encoded(_placed(inputs, self.model), voters)

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
        clock = _FirstToken(arguments.pop("stopping_criteria", []))
        with torch.inference_mode(), self._pruning(encoded, ranks=ranks) as trace:
            clock.start()
            output = self.model.generate(ids, **inputs, **arguments, stopping_criteria=clock.criteria)
        timing = clock.timing(began, rows=len(ids))
        # The llava package splices before it generates, so that only new tokens come back.
        tokens = output if isinstance(self.processor, TagProcessor) else output[:, ids.shape[1] :]
        answers = []
        for row, new in enumerate(tokens):
            count = self._generated(new)
            text = self.processor.tokenizer.decode(new[:count], skip_special_tokens=True)
            document = trace.documents[row * decoding.num_beams]
            prepared = image_aspect_ratio or self.image_aspect_ratio
            answers.append(Answer(cut(text, decoding.until), document.full_length, count, document, prepared, timing))
        return answers

    def loss(self, messages: Sequence[Message], continuation: str) -> tuple[float, bool, DocumentTrace]:
        """Mean negative log-likelihood in nats of an assistant's turn, and whether greedy decoding would give it.

        The prompt is scored and pruned as for `generate`; the continuation, with its end-of-turn token, then runs on
        top of the shortened cache, so it has no say in what is kept.
        """
        encoded = self.encode([messages], question=self.plan.text_scope == "question")
        before, _ = prompt_pieces(self.processor, self._prompt(messages), self._template)
        whole = [*messages, Message("assistant", (("text", continuation),))]
        after, _ = prompt_pieces(self.processor, self._prompt(whole), self._template)
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
                length = trace.documents[0].full_length + target.shape[1] - 1
                rest = self.model(
                    input_ids=target[:, :-1],
                    attention_mask=torch.ones(1, length, dtype=torch.long, device=target.device),
                    **{CACHE_NAME: getattr(first, CACHE_NAME)},
                    use_cache=True,
                )
                logits = torch.cat([logits, rest.logits], dim=1)
        # Without the row that a conversion gave to the image token.
        logits = logits.float()[..., : getattr(self.model.config, VOCABULARY_KEY, None)]
        loss = torch.nn.functional.cross_entropy(logits[0], target[0]).item()
        return loss, bool((logits.argmax(-1) == target).all()), trace.documents[0]

    def stopping(self, decoding: Decoding) -> Decoding:
        """The same decoding that also stops where the template ends an answer, if that is no end token anyway."""
        stop = stop_string(self._template)
        ends = {self.processor.tokenizer.convert_ids_to_tokens(token) for token in end_tokens(self.model)}
        if stop is None or stop in ends or stop in decoding.until:
            return decoding
        return replace(decoding, until=(*decoding.until, stop))

    def _prompt(self, messages: Sequence[Message]) -> str:
        return render(self._template, messages, self.processor)

    @property
    def _template(self) -> str:
        assert self.template is not None
        return self.template

    def _pruning(self, encoded: Encoded, *, ranks: bool = False) -> Any:
        return prune(self.model, self.plan, ranks=ranks, seed=self.seed, question=encoded.question)

    def _processor(self, aspect_ratio: str | None) -> Any:
        if aspect_ratio is None or aspect_ratio == self.image_aspect_ratio:
            return self.processor
        if aspect_ratio not in self._processors:
            own = isinstance(self.processor, LiuhaotianProcessor)
            self._processors[aspect_ratio] = (
                self.processor.with_aspect_ratio(aspect_ratio)
                if own
                else with_aspect_ratio(self.processor, aspect_ratio)
            )
        return self._processors[aspect_ratio]

    def _check_stated(self, inputs: BatchFeature) -> None:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if not isinstance(self.processor, TagProcessor):
            return check_stated_lengths(ids, mask, self.model.config.image_token_id, self.stated)
        each = self.tokens_per_image
        if self.stated.image is not None and each is None:
            raise InputError("image length is stated, but in this checkpoint it depends on the picture: leave it out")
        for row, valid in zip(ids, mask.bool(), strict=True):
            spliced = [i for i in row[valid].tolist() for _ in range((each or 1) if i == IMAGE_TAG_ID else 1)]
            whole = torch.tensor([spliced])
            check_stated_lengths(whole, torch.ones_like(whole), IMAGE_TAG_ID, self.stated)

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


class _FirstToken(StoppingCriteria):
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


def default_template(model: Any, processor: Any) -> str:
    """The template that a checkpoint was trained with, as far as its kind tells.

    In liuhaotian format, or converted from it: by the decoder and the end token, in all loaders alike. In transformers'
    own: vicuna_v1 for a LLaVA-1.5, the checkpoint's chat template for later ones.
    """
    decoder = type(find_decoder(model)).__name__  # a config in liuhaotian format may say `llava` of any decoder
    has_template = bool(getattr(processor, "chat_template", None))
    if isinstance(processor, LiuhaotianProcessor) or hasattr(model.config, VOCABULARY_KEY):
        if "Mistral" in decoder:
            return "mistral_instruct"
        if "Qwen" in decoder and has_template:
            return "hf"
        return "chatml_direct" if processor.tokenizer.eos_token == stop_string("chatml_direct") else DEFAULT_TEMPLATE
    later = model.config.model_type in ("llava_next", "llava_onevision")
    return "hf" if later and has_template else DEFAULT_TEMPLATE


def question_tokens(processor: Any, prompt: str, messages: Sequence[Message], template: str) -> torch.Tensor:
    """Which of a prompt's text tokens are its question's: bool, one a text token in order (images not counted).

    The question is that of the last user turn, see `prompts.question_span`. Raises InputError when it is not found.
    """
    turns = [message.text for message in messages if message.role == "user"]
    if not turns:
        raise InputError("text_scope=question: the conversation has no user turn")
    first, last = question_span(turns[-1])
    # From the end of the turn: an earlier one or the system prompt may hold the same words, and so may a role's tag
    # behind it. A template may trim the turn.
    behind = _end_of_last_question(processor, messages, template)
    start = prompt.rfind(turns[-1][first:].rstrip(), 0, behind)
    if start < 0:
        start = prompt.rfind(turns[-1][first:last], 0, behind)
    if start < 0:
        raise InputError("text_scope=question: the template changes the question's text, so its tokens are not known")
    end = start + last - first
    ids, spans = prompt_pieces(processor, prompt, template, offsets=True)
    marks = [
        begin < end and finish > start
        for token, (begin, finish) in zip(ids, spans, strict=True)
        if token != IMAGE_TAG_ID
    ]
    return torch.tensor(marks, dtype=torch.bool)


def _end_of_last_question(processor: Any, messages: Sequence[Message], template: str) -> int:
    """Where the last user turn ends in the rendered prompt: where a mark stands that is added to it."""
    mark, place = "\ue000", max(number for number, message in enumerate(messages) if message.role == "user")
    marked = list(messages)
    marked[place] = replace(messages[place], content=(*messages[place].content, ("text", mark)))
    return render(template, marked, processor).rfind(mark)


def _placed(inputs: BatchFeature, model: Any) -> BatchFeature:
    """The inputs on the model's device, pixels in its type."""

    def place(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        return [place(part) for part in value] if isinstance(value, list) else value

    return BatchFeature({name: place(value) for name, value in inputs.items()})


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
