"""What prints or writes files: `config`, `tasks-path`, `export-scienceqa`, `convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmms_textweighted.errors import InputError
from lmms_textweighted.paths import config_names, config_text, data_folder


def tasks_path() -> None:
    """Print the folder of our tasks, for lmms-eval's --include_path."""
    print(data_folder("tasks"))


def config(
    name: Annotated[str | None, typer.Argument(help="A config's name; all names without it.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write it here instead of printing it.")] = None,
) -> None:
    """Print a ready config file, with this installation's absolute paths filled in.

    Those under leaderboard/ are for `lmms-textweighted leaderboard`, experiment is for `sweep --config`, the others are
    for `lmms-eval --config`.
    """
    known = [known for known in config_names() if not known.startswith("published/")]  # tables, for `compare`
    if name is None:
        print("\n".join(known))
        return
    if name not in known:
        raise InputError(f"unknown config {name!r}: known are {', '.join(known)}")
    text = config_text(name)
    if output is None:
        print(text, end="")
        return
    write_text(output, text)


def export_scienceqa(
    folder: Annotated[Path, typer.Argument(help="Where to put lmms-lab-encoder/ScienceQA.")] = Path("."),
) -> None:
    """Write the embedded set as the folder that lmms-eval's stock scienceqa_img loads when run beside it."""
    from lmms_textweighted.harness.output import check_writable
    from lmms_textweighted.tiny.testset import export_scienceqa as export

    check_writable(folder)
    print(export(folder))


def convert(
    source: Annotated[str, typer.Argument(help="A folder, a hub name or `tiny`, in either format.")],
    target: Annotated[Path, typer.Argument(help="A new folder for the other format.")],
    vision_tower: Annotated[
        str | None, typer.Option(help="A local CLIP folder, for checkpoints that only name theirs.")
    ] = None,
    revision: Annotated[str, typer.Option(help="Of a hub checkpoint.")] = "main",
) -> None:
    """Write a checkpoint in liuhaotian format as transformers has it, or the other way round, bit for bit."""
    from transformers.utils.logging import disable_progress_bar

    from lmms_textweighted.families.liuhaotian.convert import convert as run

    disable_progress_bar()
    done = run(source, target, vision_tower=vision_tower, revision=revision)
    print(f"wrote {done.folder} in {done.format} format: {done.tensors} tensors, led back and equal bit for bit")


def write_text(path: Path, text: str) -> None:
    """Raises InputError when it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"output {str(path)!r} cannot be written ({error.strerror}): name another file") from error
