"""Which kind of result it is."""

from __future__ import annotations

from pathlib import Path

from lmms_textweighted.errors import InputError
from lmms_textweighted.harness.result_files import RESULTS, is_results
from lmms_textweighted.verify.runs import verify_run
from lmms_textweighted.verify.sweeps import verify_sweep
from lmms_textweighted.verify.verdict import Verdict


def verify_result(
    path: Path, *, share: float, seed: int, question_file: Path | None = None, image_folder: Path | None = None
) -> Verdict:
    """`verify_run` for a results file of lmms-eval, `verify_sweep` for all others.

    Raises InputError as they do, and for a folder.
    """
    if path.is_dir():
        found = sorted(filter(is_results, path.rglob(f"*{RESULTS}")))
        known = f", as {str(found[0])!r}" if found else ""
        raise InputError(f"result {str(path)!r} is a folder: give one file{known}")
    if not is_results(path):
        return verify_sweep(path, share=share, seed=seed, question_file=question_file, image_folder=image_folder)
    if question_file or image_folder:
        raise InputError(
            f"result {str(path)!r} is lmms-eval's: --question-file and --image-folder are a sweep's, leave them out"
        )
    return verify_run(path, share=share, seed=seed)
