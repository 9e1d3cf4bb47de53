"""`lmms-textweighted verify`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmms_textweighted.upstream.known_bad import check_versions


def verify(
    result: Annotated[Path, typer.Argument(help="A sweep's JSON, with its answers beside it.")],
    share: Annotated[float, typer.Option(help="Share of the documents to answer again; at least one is.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Which ones.")] = 0,
) -> None:
    """Answer a part of a sweep's documents again, with the recorded settings, and say whether they hold.

    Exit codes: 0 they hold, 1 something differs (a line each), or the result cannot be read.
    """
    check_versions()  # before the imports that a known-bad version would break
    from lmms_textweighted.harness.quiet import quiet_libraries
    from lmms_textweighted.verify.sweeps import verify_sweep

    quiet_libraries()
    verdict = verify_sweep(result, share=share, seed=seed)
    for line in verdict.differences:
        print(line)
    for line in verdict.unchecked:
        print(f"not checked: {line}")
    answered = f"{verdict.answers} answers to {verdict.documents} of {verdict.total} documents, seed {seed}"
    print(f"{'holds' if verdict.holds else 'does not hold'}: {answered}")
    raise typer.Exit(0 if verdict.holds else 1)
