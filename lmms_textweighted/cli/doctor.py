"""`lmms-textweighted doctor`: its options."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON, for a bug report.")] = False,
) -> None:
    """What a run needs, and what is wrong: versions, machine, hub, lmms-eval, and one answered question.

    Takes about half a minute. Exit codes: 0 nothing is bad, 1 something is.
    """
    from rich.console import Console

    from lmms_textweighted.doctor.examine import examine, is_well, show

    console = Console(stderr=as_json)
    with console.status("looking at this installation …"):
        rows = list(examine())
    if as_json:
        print(json.dumps({"well": is_well(rows), "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        show(rows, console)
    raise typer.Exit(0 if is_well(rows) else 1)
