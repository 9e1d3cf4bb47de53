"""`lmms-textweighted show`: which image tokens each strategy keeps of a picture, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmms_textweighted.upstream.known_bad import check_versions


def show(
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="[IMAGE]... QUESTION", help="One picture or several, then a question.")
    ] = None,
    choices: Annotated[str | None, typer.Option(help="Options, red,blue,…: asked for by letter.")] = None,
    target: Annotated[str | None, typer.Option(help="The right answer, to say which answers are right.")] = None,
    task: Annotated[
        str | None, typer.Option(help="A document of a task of ours or of lmms-eval, instead of pictures.")
    ] = None,
    doc: Annotated[int | None, typer.Option(help="Its number, from 0; the first if left out.")] = None,
    strategies: Annotated[
        str, typer.Option(help="Comma-separated; the unpruned model answers, too.")
    ] = "text_weighted,fastv,random",
    keep: Annotated[float, typer.Option(help="The budget: image tokens that stay, of each picture.")] = 64,
    budget: Annotated[
        str, typer.Option(help="What --keep says: keep_tokens, keep_ratio, equivalent_tokens or flops_ratio.")
    ] = "keep_tokens",
    pruning_layer: Annotated[
        int | None, typer.Option(help="Image tokens leave after this layer; 2, or the method's, if left out.")
    ] = None,
    text_scope: Annotated[
        str, typer.Option(help="The text that weighs: after (the image), all, or the question alone.")
    ] = "after",
    model_path: Annotated[str, typer.Option(help="`tiny`, `tiny-qwen`, a folder or a hub name.")] = "tiny",
    conv_mode: Annotated[
        str | None, typer.Option(help="Prompt template: vicuna_v1, hf, …; chosen by the checkpoint if left out.")
    ] = None,
    image_aspect_ratio: Annotated[
        str | None, typer.Option(help="pad, square or anyres; the checkpoint's own if left out.")
    ] = None,
    loader: Annotated[
        str, typer.Option(help="auto, hf (transformers) or llava (the package); auto goes by the checkpoint's format.")
    ] = "auto",
    vision_tower: Annotated[
        str | None, typer.Option(help="A local CLIP folder, for checkpoints that only name theirs.")
    ] = None,
    text_tower: Annotated[
        str | None, typer.Option(help="A CLIP, folder or hub name, for strategies that need its text tower.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Of an answer; a task says its own.")] = 16,
    seed: Annotated[int, typer.Option(help="Of strategies that draw.")] = 0,
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cuda, cpu, …; a GPU where there is one.")] = None,
    output: Annotated[
        Path, typer.Option(help="A folder for the pictures; those of the same name are replaced.")
    ] = Path("runs/show"),
    html: Annotated[
        bool, typer.Option("--html", help="Also one page, show.html, that opens without a network.")
    ] = False,
) -> None:
    """The answer under each strategy, and a picture of what it keeps: patches, scores, the words that chose them."""
    check_versions()  # before the imports that a known-bad version would break
    from lmms_textweighted.families import LoadOptions
    from lmms_textweighted.families.images import check_aspect_ratio
    from lmms_textweighted.show.run import Asking, run_show

    run_show(
        Asking(
            inputs=tuple(inputs or ()),
            choices=choices,
            target=target,
            task=task,
            doc=doc,
            strategies=strategies,
            keep=keep,
            budget=budget,
            pruning_layer=pruning_layer,
            text_scope=text_scope,
            model_path=model_path,
            conv_mode=conv_mode,
            text_tower=text_tower,
            seed=seed,
            max_new_tokens=max_new_tokens,
            load_options=LoadOptions(
                device=device,
                dtype=dtype,
                loader=loader,
                vision_tower=vision_tower,
                image_aspect_ratio=image_aspect_ratio and check_aspect_ratio(image_aspect_ratio),
            ),
            output=output,
            html=html,
        )
    )
