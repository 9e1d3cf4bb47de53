"""`lmms-textweighted bias`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmms_textweighted.cli.files import write_text
from lmms_textweighted.upstream.known_bad import check_versions


def bias(
    results: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders or files that sweeps of one model and set wrote; or a bias.json.", show_default=False
        ),
    ] = None,
    num_samples: Annotated[str, typer.Option(help="The first N of their documents, or `all`.")] = "100",
    tokens: Annotated[
        str | None, typer.Option(help="The sweeps' budgets to look at, as 192,64; all of them if left out.")
    ] = None,
    question_file: Annotated[Path | None, typer.Option(help="That of the sweep: a result has its name only.")] = None,
    image_folder: Annotated[Path | None, typer.Option(help="Where the question file's images are.")] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="For bias.json and bias.png; the first result's folder if left out.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished report.")] = False,
    format: Annotated[
        str | None, typer.Option(help="terminal, markdown, csv, latex or json; by the output's ending if left out.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the tables here instead of printing them.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write them as a page, behind the sweep's own.")] = None,
) -> None:
    """Where methods look: where kept tokens lie, sinks, early words, what choices share and follow, beside chance."""
    from rich.console import Console

    from lmms_textweighted.compare.formats import choose_format

    chosen = choose_format(format, output)
    check_versions()  # before the imports that a known-bad version would break
    from lmms_textweighted.bias.formats import render, show
    from lmms_textweighted.bias.run import NAME, Asked, read_report, run_bias
    from lmms_textweighted.experiment.ranges import parse_samples
    from lmms_textweighted.parallel.processes import world

    given = results or []
    made_before = len(given) == 1 and given[0].is_file() and given[0].name == NAME
    if made_before:
        report = read_report(given[0])
    else:
        asked = Asked(
            results=given,
            num_samples=parse_samples(num_samples),
            tokens=None if tokens is None else _numbers(tokens),
            question_file=question_file,
            image_folder=image_folder,
            output_dir=output_dir,
            overwrite=overwrite,
        )
        report = run_bias(asked, Console(stderr=chosen != "terminal" and output is None))
    if world()[0] != 0:  # of several processes the first one tells
        return
    if html is not None:
        from lmms_textweighted.bias.sources import result_files
        from lmms_textweighted.bias.webpage import page_of
        from lmms_textweighted.page import write_page

        swept = [] if made_before else [file for path in given for file in result_files(path)]
        names = report["meta"]["results"] if made_before else []
        write_page(html, page_of(report, swept or [given[0].with_name(name) for name in names]))
    if output is not None:
        write_text(output, render(report, chosen))
    elif chosen == "terminal":
        show(report)
    else:
        print(render(report, chosen), end="")


def _numbers(text: str) -> list[float]:
    from lmms_textweighted.errors import InputError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"tokens is {text!r}: give budgets of the sweeps, as 192,64") from error
