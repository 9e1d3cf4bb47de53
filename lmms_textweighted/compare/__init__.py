"""Compare finished runs: one table of methods at budgets and tasks, with intervals and paired tests."""

from lmms_textweighted.compare.comparison import compare_runs
from lmms_textweighted.compare.table import Comparison

__all__ = ["Comparison", "compare_runs"]
