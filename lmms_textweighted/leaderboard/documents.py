"""How many documents a leaderboard's tasks have, and whether lmms-eval knows the tasks."""

from __future__ import annotations

from lmms_textweighted.errors import InputError, unknown
from lmms_textweighted.leaderboard.estimate import limited
from lmms_textweighted.leaderboard.schema import Matrix, Part


def count_documents(matrix: Matrix, limit: int | None) -> dict[str, list[Part]]:
    """Each task's documents by number of pictures: as stated, or counted in the local data (one picture each).

    Raises InputError for a task that lmms-eval does not know, and for one whose documents are neither stated nor here.
    """
    import datasets

    from lmms_textweighted.harness.documents import Documents

    datasets.disable_progress_bars()
    check_tasks([task.name for task in matrix.tasks], matrix.options.include_path)
    parts = {}
    for task in matrix.tasks:
        known = task.parts
        if known is None:
            try:
                known = [Part(count=len(Documents.of_task(task.name, None, single_prediction_prompt=False)))]
            except InputError as error:
                raise InputError(f"documents of task {task.name!r} are not stated and not here: {error}") from error
        parts[task.name] = limited(known, limit)
    return parts


def check_tasks(names: list[str], include_path: str | None) -> None:
    """Raise InputError for a task that lmms-eval's own list, or that of `include_path`, does not have."""
    from lmms_eval.tasks import TaskManager

    known = TaskManager("ERROR", include_path=include_path, model_name="llava_textweighted").all_tasks
    for name in names:
        if name not in known:
            raise InputError(unknown("task", name, known).split(" Known: ")[0] + " `lmms-eval tasks list` names all")
