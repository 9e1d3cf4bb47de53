"""The command line: `lmms-textweighted sweep | leaderboard | compare | regress | verify | …`, a file a command.

Nothing heavy is imported here: `--help` must answer at once.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from lmms_textweighted.cli.bias import bias
from lmms_textweighted.cli.compare import compare
from lmms_textweighted.cli.demo import demo
from lmms_textweighted.cli.doctor import doctor
from lmms_textweighted.cli.files import config, convert, export_scienceqa, tasks_path
from lmms_textweighted.cli.leaderboard import leaderboard
from lmms_textweighted.cli.methods import methods
from lmms_textweighted.cli.regress import regress
from lmms_textweighted.cli.show import show
from lmms_textweighted.cli.sweep import sweep
from lmms_textweighted.cli.verify import verify
from lmms_textweighted.errors import TextweightedError
from lmms_textweighted.parallel.processes import named
from lmms_textweighted.parallel.watch import tell_others

app = typer.Typer(
    name="lmms-textweighted",
    help="Prune a LLaVA's image tokens by text-weighted attention, and measure what that costs and saves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("sweep")(sweep)
app.command("leaderboard")(leaderboard)
app.command("compare")(compare)
app.command("bias")(bias)
app.command("regress")(regress)
app.command("verify")(verify)
app.command("show")(show)
app.command("demo")(demo)
app.command("methods")(methods)
app.command("doctor")(doctor)
app.command("convert")(convert)
app.command("config")(config)
app.command("tasks-path")(tasks_path)
app.command("export-scienceqa")(export_scienceqa)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        from lmms_textweighted import __version__

        print(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: our own errors are one line on standard error and their exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without a character shows another, and loses no result
            stream.reconfigure(errors="replace")
    try:
        app()
    except TextweightedError as error:
        tell_others(str(error))
        print(f"lmms-textweighted: {named(str(error))}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
