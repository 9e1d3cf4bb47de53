"""Losses of continuations in the form that lmms-eval 0.7.3 scores."""

from __future__ import annotations

from typing import Any

from lmms_eval.api.instance import Instance

from lmms_textweighted.errors import InputError


class Scored(tuple):
    """(loss, is greedy), as the text of a GenerationResult.

    lmms-eval makes text of everything else that a model gives for `loglikelihood`, and its tasks then fail on it. Its
    response cache would give back a list, which also becomes text: so it must not keep it, and it keeps no answer that
    `strip` finds empty. With `--use_cache` a continuation is scored again.
    """

    def strip(self) -> str:
        """Nothing: not to be kept."""
        return ""


def check_scored(request: Instance) -> None:
    """Raise InputError for a request whose scores lmms-eval cannot use, as it cannot in any model."""
    task: Any = getattr(request.args[2], "__self__", None)
    config = getattr(task, "config", None)
    if getattr(task, "OUTPUT_TYPE", None) == "loglikelihood" and not callable(getattr(config, "process_results", None)):
        raise InputError(
            "output_type is loglikelihood, whose scores lmms-eval cannot read back: use multiple_choice, or give the "
            "task a process_results function"
        )
