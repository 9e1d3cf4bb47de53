"""`lmms-textweighted regress`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lmms_textweighted.upstream.known_bad import check_versions


def regress(
    context: typer.Context,
    baseline: Annotated[Path, typer.Option(help="The JSON file that says what to run and what came out.")],
    update: Annotated[
        bool, typer.Option("--update", help="Measure, show what changed, and write the baseline.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Every change fails, within tolerance or not.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write what was measured here, as a baseline.")] = None,
    model_path: Annotated[
        str | None, typer.Option(help="With --update: `tiny`, `tiny-qwen`, a folder, a hub name.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="With --update: a task of ours or of lmms-eval.")] = None,
    num_samples: Annotated[int | None, typer.Option(help="With --update: the first N documents.")] = None,
    strategies: Annotated[str | None, typer.Option(help="With --update: comma-separated.")] = None,
    keep_tokens: Annotated[
        str | None, typer.Option(help="With --update: budgets, as in 192,64; or one of the next three.")
    ] = None,
    keep_ratio: Annotated[str | None, typer.Option(help="With --update: shares of the tokens, as in 0.5,0.1.")] = None,
    equivalent_tokens: Annotated[
        str | None, typer.Option(help="With --update: means over the layers, as in 192,128.")
    ] = None,
    flops_ratio: Annotated[str | None, typer.Option(help="With --update: shares of the FLOPs, as in 0.5,0.4.")] = None,
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
    text_tower: Annotated[
        str | None, typer.Option(help="With --update: a CLIP, for strategies that need its text tower.")
    ] = None,
    system_prompt: Annotated[str | None, typer.Option(help="With --update: in front of the question.")] = None,
    min_pixels: Annotated[int | None, typer.Option(help="With --update: of a picture (Qwen-VL).")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="With --update: likewise.")] = None,
    min_patches: Annotated[int | None, typer.Option(help="With --update: tiles of a picture (InternVL).")] = None,
    max_patches: Annotated[int | None, typer.Option(help="With --update: likewise.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Documents at once; the baseline's if left out.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, …; a GPU where there is one.")] = None,
    attn_implementation: Annotated[str | None, typer.Option(help="sdpa, eager or flash_attention_2.")] = None,
) -> None:
    """Run a small fixed subset and compare it with a committed baseline.

    Exit codes: 0 no regression, 1 regression, 2 cannot be compared (other documents or weights, wrong usage).
    """
    ours = ("baseline", "update", "strict", "output")
    options: dict[str, Any] = {k: v for k, v in context.params.items() if k not in ours and v is not None}
    check_versions()  # before the imports that a known-bad version would break
    from lmms_textweighted.regress.command import regress as run

    raise typer.Exit(run(baseline, options, update=update, strict=strict, output=output))
