"""Functions of the embedded set's tasks; the work is done in the installed package."""

import datasets
from lmms_eval.tasks.scienceqa.utils import sqa_doc_to_target as doc_to_target
from lmms_eval.tasks.scienceqa.utils import sqa_doc_to_text as doc_to_text
from lmms_eval.tasks.scienceqa.utils import sqa_doc_to_visual as doc_to_visual
from lmms_eval.tasks.scienceqa.utils import sqa_process_results as score

from lmms_textweighted.harness.tasks import add_trace_columns, count_missing, mean_of_known, score_with_trace
from lmms_textweighted.tiny.architecture import CAPTION_PROMPT
from lmms_textweighted.tiny.questions import object_f1
from lmms_textweighted.tiny.testset import draw, draw_to_describe

__all__ = [
    "caption_text",
    "count_missing",
    "doc_to_target",
    "doc_to_text",
    "doc_to_visual",
    "draw",
    "draw_to_describe",
    "draw_with_trace",
    "mean_of_known",
    "score",
    "score_caption",
    "score_with_trace",
]


def draw_with_trace(documents: datasets.Dataset) -> datasets.Dataset:
    return add_trace_columns(draw(documents))


def caption_text(document: dict, lmms_eval_specific_kwargs: dict | None = None) -> str:
    return CAPTION_PROMPT


def score_caption(document: dict, results: list[str]) -> dict[str, float]:
    return {"object_f1": object_f1(results[0], document["caption"])}
