"""`lmms-textweighted sweep`: its options, from the command line or a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from lmms_textweighted.errors import InputError
from lmms_textweighted.upstream.known_bad import check_versions


def sweep(
    context: typer.Context,
    model_path: Annotated[str, typer.Option(help="`tiny`, `tiny-qwen`, a folder or a hub name.")] = "tiny",
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
    pruning_layer: Annotated[
        str,
        typer.Option(help="Image tokens leave after this layer, counted from 0. Several, 0,1,2,3, or all: a map."),
    ] = "2",
    tokens: Annotated[
        str, typer.Option(help="Budgets: 576:16:-10, or 576,192,64; shares, 0.5,0.25. 0: all image tokens leave.")
    ] = "576:16:-10",
    budget: Annotated[
        str,
        typer.Option(help="What --tokens says: keep_tokens, keep_ratio, equivalent_tokens or flops_ratio."),
    ] = "keep_tokens",
    strategies: Annotated[str, typer.Option(help="Comma-separated.")] = "text_weighted,fastv,random,none",
    against: Annotated[
        str | None,
        typer.Option(help="Strategies that each other one is tested against; text_weighted and random if left out."),
    ] = None,
    time: Annotated[int, typer.Option(help="Time the prefill of this many documents, each beside unpruned.")] = 0,
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
    seed: Annotated[
        str, typer.Option(help="Of strategies that draw. Several, 0,1,2: their mean, with its spread.")
    ] = "0",
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
    text_tower: Annotated[
        str | None, typer.Option(help="A CLIP, folder or hub name, for strategies that need its text tower.")
    ] = None,
    image_aspect_ratio: Annotated[
        str | None,
        typer.Option(help="pad, square or anyres. If left out: square for a question file, else the checkpoint's own."),
    ] = None,
    system_prompt: Annotated[
        str | None, typer.Option(help="In front of the question; the kind's own if left out, an empty one is none.")
    ] = None,
    min_pixels: Annotated[int | None, typer.Option(help="Of a picture (Qwen-VL); as lmms-eval if left out.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Likewise.")] = None,
    min_patches: Annotated[int | None, typer.Option(help="Tiles of a picture (InternVL); likewise.")] = None,
    max_patches: Annotated[int | None, typer.Option(help="Likewise.")] = None,
    views: Annotated[
        int, typer.Option(help="Record kept tokens, scores, words and pictures of this many documents; 0: of none.")
    ] = 500,
    html: Annotated[
        Path | None, typer.Option(help="Write a page of the result here: curves, table and documents in one file.")
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="For the JSON, the PNG and the answers.")] = Path("runs/sweep"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished result.")] = False,
    config: Annotated[Path | None, typer.Option(help="YAML with these options; the command line wins.")] = None,
) -> None:
    """Accuracy and ranks of every strategy from many image tokens to few, as JSON and as a picture."""
    options: dict[str, Any] = {name: value for name, value in context.params.items() if name != "config"}
    if config is not None:
        options.update(_from_file(config, context, set(options)))
    check_versions()  # before the imports that a known-bad version would break
    from lmms_textweighted.experiment.run import Experiment, run_experiment

    run_experiment(Experiment.parse(options))


def _from_file(path: Path, context: typer.Context, known: set[str]) -> dict[str, Any]:
    """The options of a YAML file that the command line did not give."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"config {str(path)!r} cannot be read ({error.strerror}): give a YAML file of options"
        ) from error
    except yaml.YAMLError as error:
        raise InputError(
            f"config {str(path)!r} is no YAML ({str(error).splitlines()[0]}): write `name: value` lines"
        ) from error
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
