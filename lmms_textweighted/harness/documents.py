"""What the sweep runs over: documents with pictures, prompts and scores. Here those of an lmms-eval task."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms_eval.api.task import ConfigurableTask
from lmms_eval.tasks import TaskManager, get_task_dict
from lmms_eval.utils import load_yaml_config
from PIL import Image
from tenacity import RetryError

from lmms_textweighted.errors import InputError, TextweightedError, describe, first_line
from lmms_textweighted.harness.generation import split_generation_kwargs
from lmms_textweighted.harness.names import MODEL_NAME
from lmms_textweighted.harness.visuals import pictures
from lmms_textweighted.hub import asked_once, check_cache_place
from lmms_textweighted.inference import Decoding
from lmms_textweighted.paths import data_folder
from lmms_textweighted.pictures import strict_pillow
from lmms_textweighted.prompts import SINGLE_PREDICTION_PROMPT, Message, user_message


@dataclass(frozen=True)
class Document:
    """One question. id: the source's own, or its number. name: what an error calls it.

    target: the right answer. digest: SHA-256 of prompt, target and pictures. fields: what the score is made from.
    """

    number: int
    id: str
    name: str
    message: Message
    target: str
    digest: str
    fields: dict[str, Any]


@dataclass(kw_only=True)
class Documents(ABC):
    """The first `count` documents of a source, or all when None.

    single_prediction_prompt: append the single-prediction prompt where a document's text does not end with it.
    """

    count: int | None = None
    single_prediction_prompt: bool = False

    @staticmethod
    def of_task(name: str, count: int | None, *, single_prediction_prompt: bool) -> Documents:
        """Load a task by name: ours, or any generate_until task of lmms-eval. Raises InputError when there is none."""
        return TaskDocuments(task=_load_task(name), count=count, single_prediction_prompt=single_prediction_prompt)

    def __len__(self) -> int:
        return self.available if self.count is None else min(self.count, self.available)

    def __iter__(self) -> Iterator[Document]:
        """Each document with its picture, prompt and target, in the source's order."""
        for number in range(len(self)):
            yield self[number]

    def __getitem__(self, number: int) -> Document:
        return self._document(number)

    @property
    @abstractmethod
    def available(self) -> int:
        """How many documents there are."""

    @property
    @abstractmethod
    def decoding(self) -> Decoding:
        """How the answers are generated. Raises InputError where that is not greedy, as the sweep is."""

    @property
    @abstractmethod
    def metric(self) -> str:
        """What accuracy means here."""

    @abstractmethod
    def score(self, document: Document, answer: str) -> float:
        """The score of an answer."""

    def judge(self, document: Document, answer: str) -> tuple[float, bool]:
        """(the score of an answer, whether the whole of it is the target, white space around it aside)"""
        return self.score(document, answer), answer.strip() == document.target.strip()

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """For the result's meta: `task`, `selection` and what else says which documents were used."""

    @abstractmethod
    def _document(self, number: int) -> Document:
        """Read one document."""

    def _make(
        self,
        number: int,
        text: str,
        images: Sequence[Image.Image],
        *,
        id: str,
        name: str,
        target: str,
        fields: dict[str, Any],
    ) -> Document:
        if self.single_prediction_prompt and not text.endswith(SINGLE_PREDICTION_PROMPT):
            text += SINGLE_PREDICTION_PROMPT
        digest = hashlib.sha256(json.dumps([text, target]).encode())
        for image in images:
            digest.update(image.tobytes())
        return Document(number, id, name, user_message(text, images), target, digest.hexdigest(), fields)


@dataclass(kw_only=True)
class TaskDocuments(Documents):
    """A task's documents: lmms-eval's own task object, and what it says of prompts, pictures and scores."""

    task: ConfigurableTask

    @property
    def available(self) -> int:
        return len(self.task.eval_docs)

    @property
    def decoding(self) -> Decoding:
        decoding, _ = split_generation_kwargs(self.task.config.generation_kwargs or {})
        if decoding.temperature > 0 or decoding.num_beams > 1 or decoding.repetition_penalty not in (None, 1.0):
            raise InputError(
                f"task {self.task.config.task!r} samples, searches beams or penalises repetition: the sweep decodes "
                f"greedily, run lmms-eval itself"
            )
        return decoding

    @property
    def metric(self) -> str:
        """The task's first metric."""
        return str(self.task.config.metric_list[0]["metric"])

    def score(self, document: Document, answer: str) -> float:
        """The task's own score of an answer. Raises InputError when it is no number.

        Some of lmms-eval's tasks return a record a metric; its score stands under the task's `score_key`.
        """
        value = self.task.process_results(document.fields, [answer]).get(self.metric)
        if isinstance(value, dict):
            value = value.get(getattr(self.task.config, "score_key", None) or "score")
        if not isinstance(value, int | float):
            raise InputError(f"task {self.task.config.task} scores {self.metric} as {value!r}, not as a number")
        return float(value)

    def describe(self) -> dict[str, Any]:
        return {
            "task": self.task.config.task,
            "selection": f"the first {len(self)} documents of the task, none left out",
        }

    def _document(self, number: int) -> Document:
        name = f"task {self.task.config.task}, document {number}"
        with reading(name):
            fields = self.task.eval_docs[number]
            text, images = self.task.doc_to_text(fields), pictures(self.task.doc_to_visual(fields))
        return self._make(
            number,
            text,
            images,
            id=str(number),
            name=name,
            target=str(self.task.doc_to_target(fields)),
            fields=fields,
        )


@contextmanager
def reading(name: str) -> Iterator[None]:
    """While a document is read: whatever goes wrong becomes an InputError that names it; pictures must be whole."""
    try:
        with strict_pillow():
            yield
    except Exception as error:  # a task's own code, and the pictures' decoders, raise many kinds
        raise InputError(f"{name}: {describe(error)}") from error


def _load_task(name: str) -> ConfigurableTask:
    check_cache_place()
    try:
        return _find_task(name)
    except TextweightedError:
        raise
    except Exception as error:  # the data set libraries raise many kinds, tenacity wraps them
        cause = error
        if isinstance(error, RetryError) and error.last_attempt.exception() is not None:
            cause = error.last_attempt.exception()  # type: ignore[assignment]
        raise InputError(
            f"the data of task {name!r} cannot be loaded ({first_line(cause)}): load it once on a machine "
            f"that reaches the hub, or name another task"
        ) from error


def _find_task(name: str) -> ConfigurableTask:
    own = [path for path in data_folder("tasks").glob("*/*.yaml") if path.stem == name and not name.startswith("_")]
    if own:
        # Straight from its file: indexing all of lmms-eval's tasks takes many seconds.
        config = load_yaml_config(str(own[0]))
        path = str(config.get("dataset_path"))
        local = "/" not in path or Path(path).exists()  # `json` and its like are no names of the hub
        with nullcontext() if local else asked_once():
            return ConfigurableTask(config=config, model_name=MODEL_NAME)
    manager = TaskManager("ERROR", include_path=str(data_folder("tasks")), model_name=MODEL_NAME)
    if name not in manager.all_tasks:
        raise InputError(f"unknown task {name!r}: `lmms-eval --tasks list` names them all")
    with asked_once():
        task = get_task_dict([name], manager, "simple")[name]
    if not isinstance(task, ConfigurableTask) or task.OUTPUT_TYPE != "generate_until":
        raise InputError(f"task {name!r} is no generate_until task: the sweep needs generated answers")
    return task
