"""The words that lmms-eval's own tasks have for one model: it looks them up by the model's exact name.

Our tasks `…_qwen3_vl` offer them to every model, see docs/models.md.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lmms_eval.utils import load_yaml_config

from lmms_textweighted.errors import InputError


@cache
def prompts_of(model: str, task_file: str) -> dict[str, Any]:
    """What `lmms_eval_specific_kwargs` of a task says for `model`.

    task_file: below lmms-eval's own `tasks` folder. Raises InputError where the task says nothing for that model.
    """
    found = find_spec("lmms_eval.tasks")
    if found is None or found.origin is None:
        raise InputError("lmms_eval is not installed: install lmms-textweighted with its requirements")
    # In its simple mode, which imports none of the functions that the file names.
    config = load_yaml_config(str(Path(found.origin).parent / task_file), mode="simple")
    said = config.get("lmms_eval_specific_kwargs") or {}
    if model not in said:
        raise InputError(f"lmms-eval's {task_file} has no prompt for {model!r}: this lmms-eval is not one of 0.7")
    return dict(said[model])
