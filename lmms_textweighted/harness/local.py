"""A user's own question file and pictures: as the sweep's documents, and as the data of the task `mcq_local`.

The task's data set on disk is one row that names the files, `{"question_file": …, "image_folder": …, "skip_missing":
…}`; what it leaves out, the environment says. `LocalQuestions`, the task's `process_docs`, puts the questions in its
place. lmms-eval keys cached answers by the task's config, in which a callable stands as its `str`, so that holds the
data's digest: after a change of a question or a picture no cached answer is used.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import datasets
from lmms_eval.tasks.scienceqa.utils import sqa_process_results
from loguru import logger
from PIL import Image

from lmms_textweighted.errors import InputError
from lmms_textweighted.harness.command_line import asked_runs
from lmms_textweighted.harness.documents import Document, Documents, reading
from lmms_textweighted.harness.stops import ending_the_run
from lmms_textweighted.harness.traces import current_key
from lmms_textweighted.inference import Decoding
from lmms_textweighted.pictures import open_picture
from lmms_textweighted.questions import Question, QuestionSet, read_questions

LOCAL_TASKS = ("mcq_local", "mcq_local_rank")
QUESTION_FILE = "LMMS_TEXTWEIGHTED_QUESTION_FILE"
IMAGE_FOLDER = "LMMS_TEXTWEIGHTED_IMAGE_FOLDER"
SKIP_MISSING = "LMMS_TEXTWEIGHTED_SKIP_MISSING"

# Those of the task: `until` is what lmms-eval adds to every task that says nothing of it.
_DECODING = Decoding(max_new_tokens=16, until=("\n\n",))


@dataclass(kw_only=True)
class QuestionDocuments(Documents):
    """A question file's documents for the sweep, scored as ScienceQA is."""

    question_file: Path
    image_folder: Path | None
    questions: QuestionSet

    @classmethod
    def read(
        cls,
        question_file: Path,
        image_folder: Path | None,
        count: int | None,
        *,
        skip_missing: bool,
        single_prediction_prompt: bool,
    ) -> QuestionDocuments:
        """Read and check the files. Raises InputError as `read_questions` does."""
        return cls(
            count=count,
            single_prediction_prompt=single_prediction_prompt,
            question_file=question_file,
            image_folder=image_folder,
            questions=_read(question_file, image_folder, skip_missing=skip_missing),
        )

    @property
    def available(self) -> int:
        return len(self.questions.questions)

    @property
    def decoding(self) -> Decoding:
        return _DECODING

    @property
    def metric(self) -> str:
        return "exact_match"

    def score(self, document: Document, answer: str) -> float:
        return float(sqa_process_results(document.fields, [answer])["exact_match"])

    def describe(self) -> dict[str, Any]:
        """Names, not paths: a result may be published."""
        skipped = [key for key, _ in self.questions.skipped]
        left_out = "none left out"
        if skipped:
            total = self.available + len(skipped)
            left_out = f"{len(skipped)} of its {total} left out beforehand: their pictures are missing or broken"
        name = self.question_file.name
        return {
            "task": name,
            "selection": f"the first {len(self)} questions of {name}, {left_out}",
            "question_file": name,
            "question_file_sha256": self.questions.sha256,
            "image_folder": None if self.image_folder is None else self.image_folder.resolve().name,
            "skipped": len(skipped),
            "skipped_ids": skipped,
        }

    def _document(self, number: int) -> Document:
        question = self.questions.questions[number]
        name = f"question file {self.question_file.name}, id {question.id!r}"
        with reading(name):  # a picture that could be read when the data were checked, and no longer can
            images = [open_picture(question.image)] if question.image else []
        return self._make(
            number,
            question.prompt,
            images,
            id=question.id,
            name=name,
            target=question.label,
            fields=_row(question),
        )


class LocalQuestions:
    """`process_docs` of the local tasks: the row that names the files -> their questions, in ScienceQA's columns.

    with_trace adds what the rank task's post-processor needs; see `harness.traces`. An error in the data ends the run.
    """

    def __init__(self, *, with_trace: bool = False) -> None:
        self.with_trace = with_trace
        self.name, self.digest = "", ""

    def __call__(self, named: datasets.Dataset) -> datasets.Dataset:
        with ending_the_run():
            if any(run.get("cache_requests") == "true" for run in asked_runs()):
                raise InputError(
                    "cache_requests is true: lmms-eval keeps requests by the task's name, and would ask those of an "
                    "earlier file: leave it out, or give refresh"
                )
            question_file, questions = read_named_questions(named[0])
        self.name, self.digest = question_file.name, questions.digest
        return make_dataset(questions, with_trace=self.with_trace)

    def __repr__(self) -> str:
        return f"local questions {self.name}, digest {self.digest}"


def read_named_questions(row: dict[str, Any] | None = None) -> tuple[Path, QuestionSet]:
    """(question file, its questions) of what a row or the environment names. Raises InputError."""
    row = row or {}
    question_file = row.get("question_file") or os.environ.get(QUESTION_FILE)
    image_folder = row.get("image_folder") or os.environ.get(IMAGE_FOLDER) or None
    if not question_file:
        raise InputError(f"no question file is named: set {QUESTION_FILE}, and {IMAGE_FOLDER} where it has pictures")
    skip = row.get("skip_missing")
    if skip is None:
        said = os.environ.get(SKIP_MISSING) or "0"
        if said not in ("0", "1"):
            raise InputError(f"{SKIP_MISSING} is {said!r}: give 1 to leave out unusable pictures' questions, or 0")
        skip = said == "1"
    if not isinstance(skip, bool):
        raise InputError(f"skip_missing is {skip!r}: give true or false")
    return Path(question_file), _read(question_file, image_folder, skip_missing=skip)


def check_local_questions(runs: Sequence[Mapping[str, Any]]) -> None:
    """Raise InputError when one of lmms-eval's runs has a local task and the data the environment names are wrong.

    The model calls it before it loads its weights.
    """
    patterns = [name.strip() for run in runs for name in str(run.get("tasks") or "").split(",")]
    if any(fnmatch(task, pattern) for task in LOCAL_TASKS for pattern in patterns):
        read_named_questions()


def make_dataset(questions: QuestionSet, *, with_trace: bool = False) -> datasets.Dataset:
    """The questions as rows. image: the picture's path, because `datasets` would turn the picture by its EXIF data,
    and LLaVA does not."""
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "image": datasets.Value("string"),
            "question": datasets.Value("string"),
            "choices": datasets.List(datasets.Value("string")),
            "answer": datasets.Value("int64"),
            "hint": datasets.Value("string"),
        }
    )
    rows = [{**_row(question), "image": question.image and str(question.image)} for question in questions.questions]
    documents = datasets.Dataset.from_list(rows, features=features)
    if with_trace:
        uids = [_uid(question, questions) for question in questions.questions]
        documents = documents.add_column("uid", uids).add_column("trace_store", [current_key()] * len(uids))
    return documents


def doc_to_visual(document: dict[str, Any]) -> list[Image.Image]:
    return [open_picture(document["image"])] if document["image"] else []


def doc_to_text(document: dict[str, Any], prompts: dict[str, str]) -> str:
    """The text as the file has it, with the task's prompts around it; not twice where the file has them itself."""
    text, after = document["question"], prompts["post_prompt"]
    return prompts["pre_prompt"] + (text if text.endswith(after) else text + after)


def _read(question_file: Path | str, image_folder: Path | str | None, *, skip_missing: bool) -> QuestionSet:
    questions = read_questions(question_file, image_folder, skip_missing=skip_missing)
    if questions.skipped:
        logger.warning(
            f"{len(questions.skipped)} questions of {str(question_file)!r} are left out: their pictures are missing or "
            f"broken"
        )
    return questions


def _row(question: Question) -> dict[str, Any]:
    """ScienceQA's fields. The question is the whole text: its options stand in it."""
    return {
        "id": question.id,
        "question": question.prompt,
        "choices": list(question.options),
        "answer": question.answer,
        "hint": "",
    }


def _uid(question: Question, questions: QuestionSet) -> str:
    parts = [question.prompt, question.options, questions.picture_hashes.get(question.id)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
