"""`lmms-textweighted verify`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmms_textweighted.upstream.known_bad import check_versions


def verify(
    result: Annotated[
        Path, typer.Argument(help="A sweep's JSON or lmms-eval's *_results.json, with its answers beside it.")
    ],
    share: Annotated[float, typer.Option(help="Share of the documents to answer again; at least one is.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Which ones.")] = 0,
    question_file: Annotated[Path | None, typer.Option(help="That of the sweep: a result has its name only.")] = None,
    image_folder: Annotated[Path | None, typer.Option(help="Where the question file's images are.")] = None,
) -> None:
    """Answer a part of a result's documents again, with the recorded settings, and say whether they hold.

    A leaderboard's runs are lmms-eval's: give one of their *_results.json.

    Exit codes: 0 they hold, 1 something differs (a line each), or the result cannot be read.
    """
    check_versions()  # before the imports that a known-bad version would break
    from lmms_textweighted.harness.quiet import quiet_libraries
    from lmms_textweighted.verify.verify import verify_result

    quiet_libraries()
    verdict = verify_result(result, share=share, seed=seed, question_file=question_file, image_folder=image_folder)
    for line in verdict.differences:
        print(line)
    for line in verdict.unchecked:
        print(f"not checked: {line}")
    answered = f"{verdict.answers} answers to {verdict.documents} of {verdict.total} documents, seed {seed}"
    print(f"{'holds' if verdict.holds else 'does not hold'}: {answered}")
    raise typer.Exit(0 if verdict.holds else 1)
