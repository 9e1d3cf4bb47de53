"""`lmms-textweighted demo`: a local page to try a picture and a question."""

from __future__ import annotations

from typing import Annotated

import typer

from lmms_textweighted.upstream.known_bad import check_versions


def demo(
    model_path: Annotated[str, typer.Option(help="`tiny`, `tiny-qwen`, a folder or a hub name.")] = "tiny",
    host: Annotated[
        str, typer.Option(help="The address to listen on. Others than this machine's let everybody in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 7860,
    conv_mode: Annotated[
        str | None, typer.Option(help="Prompt template: vicuna_v1, hf, …; chosen by the checkpoint if left out.")
    ] = None,
    image_aspect_ratio: Annotated[
        str | None, typer.Option(help="pad, square or anyres; the checkpoint's own if left out.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Of an answer.")] = 64,
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cuda, cpu, …; a GPU where there is one.")] = None,
) -> None:
    """A page on this machine: upload a picture, ask, and see what each strategy keeps, with measured times."""
    check_versions()  # before the imports that a known-bad version would break
    from lmms_textweighted.demo.serve import run_demo
    from lmms_textweighted.families import LoadOptions
    from lmms_textweighted.families.images import check_aspect_ratio

    run_demo(
        model_path,
        LoadOptions(
            device=device,
            dtype=dtype,
            image_aspect_ratio=image_aspect_ratio and check_aspect_ratio(image_aspect_ratio),
        ),
        host=host,
        port=port,
        conv_mode=conv_mode,
        max_new_tokens=max_new_tokens,
    )
