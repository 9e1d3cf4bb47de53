"""Functions of scienceqa_img_rank; the work is done in the installed package and in lmms-eval's own scienceqa."""

from lmms_eval.tasks.scienceqa.utils import sqa_doc_to_target as doc_to_target
from lmms_eval.tasks.scienceqa.utils import sqa_doc_to_text as doc_to_text
from lmms_eval.tasks.scienceqa.utils import sqa_doc_to_visual as doc_to_visual

from lmms_textweighted.harness.tasks import add_trace_columns, count_missing, mean_of_known, score_with_trace

__all__ = [
    "add_trace_columns",
    "count_missing",
    "doc_to_target",
    "doc_to_text",
    "doc_to_visual",
    "mean_of_known",
    "score_with_trace",
]
