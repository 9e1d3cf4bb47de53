"""How many documents a leaderboard's tasks have, and whether lmms-eval knows the tasks."""

from __future__ import annotations

import datasets

from lmms_textweighted.errors import InputError, unknown
from lmms_textweighted.harness.names import MODEL_NAME
from lmms_textweighted.hub import offline
from lmms_textweighted.leaderboard.estimate import limited
from lmms_textweighted.leaderboard.schema import Matrix, Part, Task


def count_documents(matrix: Matrix, limit: int | None) -> dict[str, list[Part]]:
    """Each task's documents by number of pictures: as stated, or counted in the local data (one picture each).

    Raises InputError for a task whose documents are neither stated nor here.
    """
    return {task.name: limited(task.parts or [_count(task)], limit) for task in matrix.tasks}


def check_tasks(names: list[str], include_path: str | None) -> None:
    """Raise InputError for a task that lmms-eval's own list, or that of `include_path`, does not have."""
    from lmms_eval.tasks import TaskManager  # takes seconds to import

    known = TaskManager("ERROR", include_path=include_path, model_name=MODEL_NAME).all_tasks
    for name in names:
        if name not in known:
            nearest, _, _ = unknown("task", name, known).partition(" Known: ")
            raise InputError(f"{nearest} `lmms-eval tasks list` names all")


def _count(task: Task) -> Part:
    from lmms_textweighted.harness.documents import Documents  # imports lmms-eval

    datasets.disable_progress_bars()
    try:
        with offline():  # a plan must not download a data set
            return Part(count=len(Documents.of_task(task.name, None, single_prediction_prompt=False)))
    except InputError as error:
        raise InputError(f"documents of task {task.name!r} are not stated and not here: {error}") from error
