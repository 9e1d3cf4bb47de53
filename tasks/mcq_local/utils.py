"""Functions of the local tasks; the work is done in the installed package."""

from lmms_eval.tasks.scienceqa.utils import sqa_doc_to_target as doc_to_target
from lmms_eval.tasks.scienceqa.utils import sqa_process_results as score

from lmms_textweighted.harness.local import LocalQuestions, doc_to_text, doc_to_visual
from lmms_textweighted.harness.tasks import count_missing, mean_of_known, score_with_trace

__all__ = [
    "count_missing",
    "doc_to_target",
    "doc_to_text",
    "doc_to_visual",
    "mean_of_known",
    "questions",
    "questions_with_trace",
    "score",
    "score_with_trace",
]

# lmms-eval runs this file anew for every function that a task names, so each task has objects of its own.
questions = LocalQuestions()
questions_with_trace = LocalQuestions(with_trace=True)
