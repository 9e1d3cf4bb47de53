"""The model that lmms-eval runs as `--model llava_textweighted` or `--model vlm_textweighted`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger
from tqdm import tqdm

from lmms_textweighted.errors import InputError, PromptError
from lmms_textweighted.families import load
from lmms_textweighted.harness.batches import batches
from lmms_textweighted.harness.cache_key import add_to_cache_key, restore_cache_key
from lmms_textweighted.harness.command_line import CHAT_TEMPLATE, asked_decoding, asked_runs, check_supported
from lmms_textweighted.harness.generation import asked_aspect_ratio, check_acts, split_generation_kwargs, warn_once
from lmms_textweighted.harness.lazy import Lazy
from lmms_textweighted.harness.local import check_local_questions
from lmms_textweighted.harness.output import check_output_paths
from lmms_textweighted.harness.scored import Scored, check_scored
from lmms_textweighted.harness.settings import Settings
from lmms_textweighted.harness.stops import ending_the_run
from lmms_textweighted.harness.summary import Summary
from lmms_textweighted.harness.traces import TraceStore, leave_current, make_current
from lmms_textweighted.harness.visuals import asked_in_front, chat_message, check_examples, pictures
from lmms_textweighted.hub import check_cache_place
from lmms_textweighted.inference import Answer, PrunedLlava, geometry_of
from lmms_textweighted.inference.memory import alone, in_halves
from lmms_textweighted.parallel.processes import check_joined, placed
from lmms_textweighted.parallel.watch import watch_others
from lmms_textweighted.pictures import strict_pillow
from lmms_textweighted.prompts import Message, user_message
from lmms_textweighted.provenance.model import model_state
from lmms_textweighted.provenance.record import provenance
from lmms_textweighted.upstream.known_bad import check_versions


@dataclass
class PrunedTokenCounts(TokenCounts):
    """lmms-eval's token counts, with the pruning figures that then stand beside them in every logged sample."""

    pruning: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), **self.pruning}


class LlavaTextweighted(lmms):
    """The simple interface: a text and a list of pictures a document."""

    is_simple = True

    def __init__(self, batch_size: int | str = 1, max_batch_size: int | None = None, **arguments: Any) -> None:
        super().__init__()
        with ending_the_run():
            check_versions(lmms_eval=True)  # also where the class was imported by itself
            check_cache_place()  # before lmms-eval loads the tasks
            runs = asked_runs()
            check_supported(runs)
            check_output_paths(runs)
            check_local_questions(runs)
            self._asked_decoding = asked_decoding(runs)
            self.batch_size_per_gpu = _batch_size(batch_size)
            if max_batch_size is not None:
                logger.warning(f"max_batch_size={max_batch_size} is not used: --batch_size sets the batch")
            self.settings = Settings.parse(arguments)
            add_to_cache_key(self.settings.digest(), runs)
            self.accelerator = Accelerator()
            check_joined(self.accelerator)
            watch_others()
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
            self.llava = self._load()
            self.geometry = geometry_of(self.llava.model)
            self.settings.check(self.geometry)
            self.llava.plan = self.settings.plan(self.geometry)
            self.llava.check_pictures(self.llava.plan)
            self.llava = self.llava.with_text_tower(self.settings.text_tower, [self.llava.plan])
            if self.llava.template == "vicuna_v1" and self.tokenizer.eos_token != "</s>":
                logger.warning(
                    f"conv_template=vicuna_v1 is LLaVA-1.5's, but this checkpoint ends turns with "
                    f"{self.tokenizer.eos_token!r}: conv_template=hf is probably what it was trained on"
                )
            self._refused: set[str] = set()
            self._answer_settings: dict[str, dict[str, Any]] = {}
            state = model_state(self.llava)
            if "text_tower" in state:  # a folder of the same name may hold another CLIP
                add_to_cache_key(f"{self.settings.digest() or ''}+{state['text_tower']}", runs)
            self.run_settings = self._run_settings(state)
            self.provenance = provenance(state)
            self.store = TraceStore(self.run_settings)
        make_current(self.store)
        if self._rank == 0:
            logger.info(f"llava_textweighted settings: {json.dumps(self.run_settings)}")
            logger.info(f"llava_textweighted provenance: {json.dumps(self.provenance)}")

    def _load(self) -> PrunedLlava:
        options = placed(self.settings.load_options(), self.accelerator)
        model, processor = load(self.settings.pretrained, options)
        return PrunedLlava(
            model,
            processor,
            template=self.settings.conv_template,
            seed=self.settings.seed,
            stated=self.settings.stated(),
            system_prompt=self.settings.system_prompt,
        )

    def _run_settings(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """What the answers depend on, as it acts: it is logged, keys the trace store and stands in logged samples."""
        return {
            **self.settings.resolved(self.geometry),
            **{name: state[name] for name in ("loader", "conv_template", "image_aspect_ratio")},
            **({"system_prompt": self.llava.acting_system_prompt} if self.llava.acting_system_prompt else {}),
            **{name: state[name] for name in ("dtype", "device", "attn_implementation", "weights")},
            **({"text_tower_weights": state["text_tower"]} if "text_tower" in state else {}),
        }

    # What lmms-eval asks of a model.

    @property
    def tokenizer(self) -> Any:
        return self.llava.processor.tokenizer

    @property
    def config(self) -> Any:
        return self.llava.model.config

    @property
    def device(self) -> torch.device:
        return self.llava.model.device if hasattr(self, "llava") else self.accelerator.device

    @property
    def batch_size(self) -> int:
        return self.batch_size_per_gpu

    @property
    def chat_template(self) -> str:
        """Asked for by `--apply_chat_template` alone, and refused: lmms-eval would put a template into ours."""
        with ending_the_run():
            raise InputError(CHAT_TEMPLATE)

    apply_chat_template = chat_template

    def clean(self) -> None:
        """Called by lmms-eval between answering and scoring: let go of the weights and of the trace store."""
        leave_current(self.store)
        restore_cache_key()
        if hasattr(self, "llava"):
            del self.llava
        super().clean()

    def generate_until(self, requests: list[Instance]) -> Any:
        """Answers in request order, one at a time where the caller takes them so.

        lmms-eval's response cache stores each answer as it comes, so a killed run can go on where it stopped.
        """
        self._check_fresh()
        return Lazy(self._answers(requests), len(requests))

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        with ending_the_run(_where(requests[0]) if requests else ""):
            raise InputError("llava_textweighted answers one round only: run a single-round task")

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """(mean loss in nats, is greedy) of each continuation. A loss, not a likelihood: lmms-eval takes the least."""
        self._check_fresh()
        results = []
        # As a context: an error's one line must not be printed behind an open bar.
        with tqdm(requests, desc="Model Responding", disable=self._rank != 0) as progress:
            for request in progress:
                with ending_the_run(_where(request)), strict_pillow():
                    check_scored(request)
                    context, target, doc_to_visual, doc_id, task, split = request.args
                    document = self.task_dict[task][split][doc_id]
                    # In front of it stands lmms-eval's target_delimiter, a space, which templates write themselves.
                    continuation = str(target if isinstance(target, str) else target(document)).lstrip()
                    message = user_message(context, pictures(doc_to_visual(document)))
                    loss, greedy, _ = alone(partial(self.llava.loss, [message], continuation))
                    results.append(GenerationResult(text=Scored((loss, greedy))))
        return results

    # Answering.

    def _check_fresh(self) -> None:
        with ending_the_run():
            if not hasattr(self, "llava"):
                raise InputError(
                    "this model was used up by an earlier run, after which lmms-eval lets go of its weights: make a "
                    "new one for every run"
                )

    def _messages(self, request: Instance) -> tuple[list[Message], dict[str, Any], dict[str, Any]]:
        """The conversation, the generation kwargs and the document of one request."""
        context, kwargs, doc_to_visual, doc_id, task, split = request.args
        document = self.task_dict[task][split][doc_id]
        visuals = doc_to_visual(document) if doc_to_visual is not None else []
        check_examples(doc_to_visual, visuals)
        return [user_message(context, pictures(visuals))], kwargs, document

    def _answers(self, requests: list[Instance]) -> Iterator[GenerationResult]:
        summary, due = Summary(), 0
        done: dict[int, GenerationResult] = {}
        # As a context: an error's one line must not be printed behind an open bar.
        with tqdm(total=len(requests), desc="Model Responding", disable=self._rank != 0) as progress:
            for places in batches(requests, self.batch_size, kind=self._kwargs_of, length=self._length_of):
                answered = self._answer_batch([requests[place] for place in places])
                for place, (request, document, answer, seconds) in zip(places, answered, strict=True):
                    figures = answer.trace.summary()
                    if not request.metadata.get("__padding_only__"):
                        summary.add(answer, seconds)
                        self._keep(request, document, figures)
                    progress.update(1)
                    done[place] = self._result(answer, figures)
                while due in done:
                    due += 1
                    if due == len(requests):  # before the last answer goes out: nobody asks a stream for more
                        progress.close()
                        summary.log(self.llava.plan, self._world_size)
                    yield done.pop(due - 1)

    def _answer_batch(self, batch: list[Instance]) -> Iterator[tuple[Instance, dict[str, Any], Answer, float]]:
        """(request, document, answer, seconds) of each request of one batch."""
        prepared = []
        for request in batch:
            with ending_the_run(_where(request)), strict_pillow():
                prepared.append(self._messages(request))
        with ending_the_run(_where(*batch)):
            decoding, ranks = split_generation_kwargs(prepared[0][1], self.llava.family.max_new_tokens)
            check_acts(prepared[0][1], decoding, self._asked_decoding)
            began = time.perf_counter()
            ranks, ratio = ranks or self.settings.ranks, self._aspect_ratio(prepared[0][1])
            if ranks and self.llava.plan.unranked:
                warn_once(f"ranks are not measured: {self.llava.plan.unranked}")

            answer_all = partial(self.llava.generate, decoding=decoding, ranks=ranks, image_aspect_ratio=ratio)
            try:
                answers = in_halves([messages for messages, _, _ in prepared], answer_all, f"rows ({_where(*batch)})")
            except PromptError as error:
                with ending_the_run(_where(batch[error.row])):
                    raise
            seconds = (time.perf_counter() - began) / len(batch)
        for request, (_, _, document), answer in zip(batch, prepared, answers, strict=True):
            yield request, document, answer, seconds

    def _aspect_ratio(self, kwargs: dict[str, Any]) -> str | None:
        """What the task asks for, unless the user stated it for the model, or the checkpoint cannot take it."""
        name = None if self.settings.image_aspect_ratio else asked_aspect_ratio(kwargs)
        if name is None or self.llava.takes(name):
            return name
        if name not in self._refused:
            self._refused.add(name)
            logger.warning(f"the task asks for image_aspect_ratio={name}, which this checkpoint cannot take: not used")
        return None

    def _kwargs_of(self, request: Instance) -> str:
        """Requests of one batch share their task and their generation kwargs."""
        kwargs = next(argument for argument in request.args if isinstance(argument, dict))
        return json.dumps([request.task_name, kwargs], sort_keys=True, default=str)

    def _length_of(self, request: Instance) -> int:
        """Tokens of a request's text, whose pictures need not be opened for that."""
        return len(self.tokenizer(str(request.args[0]))["input_ids"])

    def _result(self, answer: Answer, figures: dict[str, Any]) -> GenerationResult:
        settings = self._settings_with(answer.image_aspect_ratio)
        took = {
            "prefill_seconds": answer.timing.prefill,
            "selection_seconds": answer.trace.selection_seconds,
            "batch_rows": answer.timing.rows,
        }
        pruning = {**figures, **took, "settings": settings, "provenance": self.provenance}
        counts = PrunedTokenCounts(
            input_tokens=answer.input_tokens, output_tokens=answer.output_tokens, pruning=pruning
        )
        return GenerationResult(text=answer.text, token_counts=counts)

    def _settings_with(self, image_aspect_ratio: str) -> dict[str, Any]:
        """One dict for all answers alike: a run may have many thousands, and lmms-eval keeps them all."""
        if image_aspect_ratio not in self._answer_settings:
            self._answer_settings[image_aspect_ratio] = {**self.run_settings, "image_aspect_ratio": image_aspect_ratio}
        return self._answer_settings[image_aspect_ratio]

    def _keep(self, request: Instance, document: dict[str, Any], figures: dict[str, Any]) -> None:
        if document.get("trace_store") == self.store.key:
            self.store.put(document["uid"], str(request.args[0]), figures)


class LlavaTextweightedChat(LlavaTextweighted):
    """The chat interface: messages whose pictures may stand anywhere in the text.

    `--system_instruction` stands where the simple interface has it, in front of the question. lmms-eval's own models
    drop it here.
    """

    is_simple = False

    def _messages(self, request: Instance) -> tuple[list[Message], dict[str, Any], dict[str, Any]]:
        if not callable(request.args[1]):  # a task given as a file or folder: lmms-eval makes the simple kind of it
            return super()._messages(request)
        context, doc_to_messages, kwargs, doc_id, task, split = request.args
        document = self.task_dict[task][split][doc_id]
        messages = [chat_message(item) for item in doc_to_messages(document)]
        check_examples(doc_to_messages, [image for message in messages for image in message.images])
        return asked_in_front(messages, context, doc_to_messages, document), kwargs, document


def _batch_size(value: int | str) -> int:
    text = str(value)
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"batch_size is {value!r}: give a whole number of at least 1")
    return int(text)


def _where(*requests: Instance) -> str:
    names = ", ".join(str(request.doc_id) for request in requests)
    return f"task {requests[0].task_name}, document{'s' if len(requests) > 1 else ''} {names}"
