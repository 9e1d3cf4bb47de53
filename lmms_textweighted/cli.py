"""The command line: `lmms-textweighted sweep | leaderboard | compare | regress | convert | …`.

Nothing heavy is imported here: `--help` must answer at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from lmms_textweighted.errors import InputError, TextweightedError
from lmms_textweighted.paths import config_names, config_text, data_folder
from lmms_textweighted.processes import named
from lmms_textweighted.watch import tell_others

app = typer.Typer(
    name="lmms-textweighted",
    help="Prune a LLaVA's image tokens by text-weighted attention, and measure what that costs and saves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        from lmms_textweighted import __version__

        print(__version__)
        raise typer.Exit


@app.command("tasks-path")
def tasks_path() -> None:
    """Print the folder of our tasks, for lmms-eval's --include_path."""
    print(data_folder("tasks"))


@app.command("config")
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
    _write(output, text)


@app.command("export-scienceqa")
def export_scienceqa(
    folder: Annotated[Path, typer.Argument(help="Where to put lmms-lab-encoder/ScienceQA.")] = Path("."),
) -> None:
    """Write the embedded set as the folder that lmms-eval's stock scienceqa_img loads when run beside it."""
    from lmms_textweighted.harness.output import check_writable
    from lmms_textweighted.tiny.testset import export_scienceqa as export

    check_writable(folder)
    print(export(folder))


@app.command("convert")
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

    from lmms_textweighted.convert import convert as run

    disable_progress_bar()
    done = run(source, target, vision_tower=vision_tower, revision=revision)
    print(f"wrote {done.folder} in {done.format} format: {done.tensors} tensors, led back and equal bit for bit")


@app.command("sweep")
def sweep(
    context: typer.Context,
    model_path: Annotated[str, typer.Option(help="`tiny`, a folder or a hub name.")] = "tiny",
    model_base: Annotated[
        str | None, typer.Option(help="Base weights of a LoRA checkpoint; not supported yet.")
    ] = None,
    conv_mode: Annotated[
        str | None, typer.Option(help="Prompt template: vicuna_v1, hf, …; chosen by the checkpoint if left out.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="A task of ours or of lmms-eval; shapes_mcq if there is no question file.")
    ] = None,
    question_file: Annotated[
        Path | None, typer.Option(help="A JSON list of questions in LLaVA's format, instead of a task.")
    ] = None,
    image_folder: Annotated[Path | None, typer.Option(help="Where the question file's images are.")] = None,
    skip_missing: Annotated[
        bool,
        typer.Option(
            "--skip-missing", help="Leave out questions whose picture is missing or broken, instead of ending."
        ),
    ] = False,
    num_samples: Annotated[str, typer.Option(help="The first N documents, or `all`.")] = "50",
    pruning_layer: Annotated[int, typer.Option(help="Image tokens leave after this layer, counted from 0.")] = 2,
    tokens: Annotated[str, typer.Option(help="Budgets: 576:16:-10, or 576,192,64.")] = "576:16:-10",
    strategies: Annotated[str, typer.Option(help="Comma-separated.")] = "text_weighted,fastv,random,none",
    text_scope: Annotated[
        str, typer.Option(help="The text that weighs: after (the image), all, or the question alone.")
    ] = "after",
    keep_scope: Annotated[
        str, typer.Option(help="What tokens are kept of: each image, or the whole prompt.")
    ] = "image",
    single_pred_prompt: Annotated[
        bool,
        typer.Option("--single-pred-prompt", help="Append the single-prediction prompt where the task's lacks it."),
    ] = False,
    fast_v_sys_length: Annotated[
        int | None, typer.Option(help="Tokens before the image; checked, never assumed.")
    ] = None,
    fast_v_image_token_length: Annotated[int | None, typer.Option(help="Image tokens; checked, never assumed.")] = None,
    ranks: Annotated[bool, typer.Option(help="Measure the last layer's ranks.")] = True,
    seed: Annotated[int, typer.Option(help="Of the random strategy.")] = 0,
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cuda, cpu, …; a GPU where there is one.")] = None,
    device_map: Annotated[str | None, typer.Option(help="auto spreads a large model over devices.")] = None,
    attn_implementation: Annotated[str | None, typer.Option(help="sdpa, eager or flash_attention_2.")] = None,
    loader: Annotated[
        str, typer.Option(help="auto, hf (transformers) or llava (the package); auto goes by the checkpoint's format.")
    ] = "auto",
    vision_tower: Annotated[
        str | None, typer.Option(help="A local CLIP folder, for checkpoints that only name theirs.")
    ] = None,
    image_aspect_ratio: Annotated[
        str | None,
        typer.Option(help="pad, square or anyres. If left out: square for a question file, else the checkpoint's own."),
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="For the JSON, the PNG and the answers.")] = Path("runs/sweep"),
    config: Annotated[Path | None, typer.Option(help="YAML with these options; the command line wins.")] = None,
) -> None:
    """Accuracy and ranks of every strategy from many image tokens to few, as JSON and as a picture."""
    options: dict[str, Any] = {name: value for name, value in context.params.items() if name != "config"}
    if config is not None:
        options.update(_from_file(config, context, set(options)))
    from lmms_textweighted.experiment import Experiment, run_experiment

    run_experiment(Experiment.parse(options))


@app.command("regress")
def regress(
    context: typer.Context,
    baseline: Annotated[Path, typer.Option(help="The JSON file that says what to run and what came out.")],
    update: Annotated[
        bool, typer.Option("--update", help="Measure, show what changed, and write the baseline.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Every change fails, within tolerance or not.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write what was measured here, as a baseline.")] = None,
    model_path: Annotated[str | None, typer.Option(help="With --update: `tiny`, a folder or a hub name.")] = None,
    task: Annotated[str | None, typer.Option(help="With --update: a task of ours or of lmms-eval.")] = None,
    num_samples: Annotated[int | None, typer.Option(help="With --update: the first N documents.")] = None,
    strategies: Annotated[str | None, typer.Option(help="With --update: comma-separated.")] = None,
    keep_tokens: Annotated[str | None, typer.Option(help="With --update: budgets, as in 192,64.")] = None,
    pruning_layer: Annotated[int | None, typer.Option(help="With --update: tokens leave after this layer.")] = None,
    text_scope: Annotated[str | None, typer.Option(help="With --update: after, all or question.")] = None,
    keep_scope: Annotated[str | None, typer.Option(help="With --update: image or prompt.")] = None,
    single_pred_prompt: Annotated[
        bool | None, typer.Option("--single-pred-prompt/--task-prompt", help="With --update: as in `sweep`.")
    ] = None,
    conv_mode: Annotated[str | None, typer.Option(help="With --update: the prompt template.")] = None,
    image_aspect_ratio: Annotated[str | None, typer.Option(help="With --update: pad, square or anyres.")] = None,
    seed: Annotated[int | None, typer.Option(help="With --update: of the random strategy.")] = None,
    dtype: Annotated[str | None, typer.Option(help="With --update: auto, float32, float16 or bfloat16.")] = None,
    loader: Annotated[str | None, typer.Option(help="With --update: auto, hf or llava.")] = None,
    vision_tower: Annotated[str | None, typer.Option(help="With --update: a local CLIP folder.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Documents at once; the baseline's if left out.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, …; a GPU where there is one.")] = None,
    attn_implementation: Annotated[str | None, typer.Option(help="sdpa, eager or flash_attention_2.")] = None,
) -> None:
    """Run a small fixed subset and compare it with a committed baseline.

    Exit codes: 0 no regression, 1 regression, 2 cannot be compared (other documents or weights, wrong usage).
    """
    ours = ("baseline", "update", "strict", "output")
    options: dict[str, Any] = {k: v for k, v in context.params.items() if k not in ours and v is not None}
    from lmms_textweighted.regress.command import regress as run

    raise typer.Exit(run(baseline, options, update=update, strict=strict, output=output))


@app.command("leaderboard")
def leaderboard(
    config: Annotated[str, typer.Argument(help="A YAML file, or a ready one: tiny, llava15-7b.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print plan, cost estimate and commands; run nothing.")
    ] = False,
    write: Annotated[
        Path | None, typer.Option(help="Write the runs to a file for `lmms-eval --config`; run nothing.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="The first N documents of each task, to try it out; in a folder of its own.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="Some of the runs: 'none,fastv-*'.")] = None,
    launcher: Annotated[
        str | None,
        typer.Option(help="Starts lmms-eval: 'accelerate launch --num_processes 8 -m lmms_eval'; else this Python."),
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Go on after a failed run, instead of ending at the first one.")
    ] = False,
    output_dir: Annotated[Path | None, typer.Option(help="Instead of the config's.")] = None,
    flops_per_second: Annotated[
        float | None,
        typer.Option(help="The estimate's rate, all devices together; else the config's (1e14, a third of an A100)."),
    ] = None,
    bytes_per_second: Annotated[
        float | None,
        typer.Option(help="The estimate's memory rate while decoding; else the config's (1e12, half of an A100)."),
    ] = None,
) -> None:
    """Tasks x budgets x methods: run what is missing, go on where it stopped, and end in one table."""
    from lmms_textweighted.leaderboard.main import Request, run_leaderboard

    request = Request(
        config, output_dir, limit, only, launcher, keep_going, dry_run, write, flops_per_second, bytes_per_second
    )
    raise typer.Exit(run_leaderboard(request))


@app.command("compare")
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
) -> None:
    """One table of finished runs: methods at budgets, tasks, 95 % intervals, and paired tests against a reference."""
    from lmms_textweighted.compare import compare_runs
    from lmms_textweighted.report.tables import choose_format, render, show

    chosen = choose_format(format, output)
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
        _write(output, render(comparison, chosen))
    elif chosen == "terminal":
        show(comparison)
    else:
        print(render(comparison, chosen), end="")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"output {str(path)!r} cannot be written: {error.strerror}") from error


def _from_file(path: Path, context: typer.Context, known: set[str]) -> dict[str, Any]:
    """The options of a YAML file that the command line did not give."""
    try:
        loaded = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"config {str(path)!r} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise InputError(f"config {str(path)!r} is no YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(loaded, dict):
        raise InputError(f"config {str(path)!r} holds no options: write `name: value` lines")
    named = {str(key).replace("-", "_"): value for key, value in loaded.items()}
    unknown = sorted(set(named) - known)
    if unknown:
        raise InputError(
            f"config {str(path)!r} has the unknown option {unknown[0]!r}: known are {', '.join(sorted(known))}"
        )
    given = {name for name in known if str(context.get_parameter_source(name)).endswith("COMMANDLINE")}
    return {name: value for name, value in named.items() if name not in given}


def main() -> None:
    """Entry point: our own errors are one line on standard error and their exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except TextweightedError as error:
        tell_others(str(error))
        print(f"lmms-textweighted: {named(str(error))}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
