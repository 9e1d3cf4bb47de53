"""`lmms-textweighted compare`: its options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lmms_textweighted.cli.files import write_text
from lmms_textweighted.errors import InputError


def compare(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Folders or files that lmms-eval or a sweep wrote.", show_default=False)
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The row to test against, by name or path; the unpruned run if there is one.")
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(help="task=metric, not the task's first; repeatable.")] = None,
    published: Annotated[
        list[str] | None, typer.Option(help="A table of published numbers to put beside; repeatable.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compare what cannot be compared; the table says so.")] = False,
    format: Annotated[
        str | None, typer.Option(help="terminal, markdown, csv, latex or json; by the output's ending if left out.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write it here instead of printing it.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page here, too: curves, table and documents in one file.")
    ] = None,
) -> None:
    """One table of finished runs: methods at budgets, tasks, 95 % intervals, and paired tests against a reference."""
    from lmms_textweighted.compare import compare_runs
    from lmms_textweighted.compare.formats import choose_format, render, show

    chosen = choose_format(format, output)
    if html is not None:
        from lmms_textweighted.page import check_page, write_page  # a table alone waits for no torch

        check_page(html)
    pairs = [pair.partition("=") for pair in metric or []]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise InputError(f"metric is {name + equals + value!r}: give task=metric, as in pope=pope_f1_score")
    comparison = compare_runs(
        runs or [],
        reference=reference,
        force=force,
        published=published or [],
        metrics={name: value for name, _, value in pairs},
    )
    if output is not None:
        write_text(output, render(comparison, chosen))
    elif chosen == "terminal":
        show(comparison)
    else:
        print(render(comparison, chosen), end="")
    if html is not None:
        from lmms_textweighted.bias.run import NAME, read_report
        from lmms_textweighted.bias.webpage import sections_of
        from lmms_textweighted.compare.webpage import page_of, sweeps_of

        folders = dict.fromkeys(path.parent for path in sweeps_of(comparison))
        reports = [path for folder in folders if (path := folder / NAME).is_file()]
        more = [section for path in reports for section in sections_of(read_report(path))]
        write_page(html, page_of(comparison, more=more))
        print(f"page: {html.resolve()}", file=sys.stderr if output is None and chosen != "terminal" else sys.stdout)
