"""`lmms-textweighted methods`: what there is to choose from, and what one of them does at a budget."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmms_textweighted.cli.files import write_text
from lmms_textweighted.errors import InputError

if TYPE_CHECKING:
    from lmms_textweighted.methods.listing import Details, Entry, PresetEntry

_METHOD_HEADINGS = ("method", "paper", "year", "after", "text", "positions")
_PRESET_HEADINGS = ("preset", "layer:tokens", "mean", "FLOPs", "as its authors call it")


def methods(
    name: Annotated[
        str | None, typer.Argument(help="A method, a preset, plan.yaml or FILE.py:NAME; all without it.")
    ] = None,
    keep_tokens: Annotated[int | None, typer.Option(help="Budget: tokens that stay at the end; 192 if none.")] = None,
    keep_ratio: Annotated[float | None, typer.Option(help="Budget: their share.")] = None,
    equivalent_tokens: Annotated[float | None, typer.Option(help="Budget: the mean over the layers.")] = None,
    flops_ratio: Annotated[float | None, typer.Option(help="Budget: prefill FLOPs over unpruned.")] = None,
    pruning_layer: Annotated[int | None, typer.Option(help="Tokens leave after this layer, counted from 0.")] = None,
    layers: Annotated[int, typer.Option(help="Decoder layers, of LLaVA-1.5-7B's sizes.")] = 32,
    image_tokens: Annotated[int | None, typer.Option(help="Tokens of one image; 576, or a preset's own.")] = None,
    text_tokens: Annotated[int, typer.Option(help="Tokens of the rest of the prompt.")] = 64,
    output: Annotated[Path | None, typer.Option(help="Write the plan here, for strategy=PLAN.yaml.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the lists as docs/methods.md has them.")] = False,
) -> None:
    """List the methods and the papers' settings, or show one: its formula, its plan at a budget, what that costs."""
    from lmms_textweighted.methods import GRID_PRESETS, PRESETS, find_method, method_names
    from lmms_textweighted.methods.listing import entry_of, preset_entry

    given = {
        "keep_tokens": keep_tokens,
        "keep_ratio": keep_ratio,
        "equivalent_tokens": equivalent_tokens,
        "flops_ratio": flops_ratio,
        "pruning_layer": pruning_layer,
    }
    if name is not None:
        _show(name, {key: value for key, value in given.items() if value is not None}, locals())
        return
    beside = next((key for key, value in {**given, "output": output}.items() if value is not None), None)
    if beside is not None:
        raise InputError(f"{beside} is given, but no method: name one, as `methods text_weighted`")
    entries = [entry_of(find_method(known), (*PRESETS, *GRID_PRESETS)) for known in method_names()]
    presets, grids = ([preset_entry(preset) for preset in some] for some in (PRESETS, GRID_PRESETS))
    if as_json:
        listed = {"methods": [asdict(one) for one in entries], "presets": [asdict(one) for one in (*presets, *grids)]}
        print(json.dumps(listed, indent=2, ensure_ascii=False))
    elif markdown:
        tables = [_markdown(_METHOD_HEADINGS, _rows(entries))]
        tables += [_markdown(_PRESET_HEADINGS, _set(some)) for some in (presets, grids)]
        print("\n\n".join("\n".join(table) for table in tables))
    else:
        print("\n".join(_columns(_METHOD_HEADINGS, _rows(entries))))
        print("\nPresets, which are plans of 32 layers and 576 image tokens:\n")
        print("\n".join(_columns(_PRESET_HEADINGS, _set(presets))))
        print("\nAnd of 32 layers and 2,880 image tokens, LLaVA-1.6's five views of 576:\n")
        print("\n".join(_columns(_PRESET_HEADINGS, _set(grids))))
        print("\nafter: tokens leave after this layer, of 32. text: what stays depends on it.")
        print("One of them: lmms-textweighted methods NAME --keep-tokens 64")


def _show(name: str, given: dict[str, Any], options: dict[str, Any]) -> None:
    from dataclasses import replace

    from lmms_textweighted.methods import (
        GRID_PRESETS,
        PRESETS,
        SCORERS,
        find_method,
        grid_preset_names,
        method_names,
        preset_names,
    )
    from lmms_textweighted.methods.budget import LLAVA_15_7B
    from lmms_textweighted.methods.files import plan_text
    from lmms_textweighted.methods.listing import details_of

    method = find_method(name)
    if options["image_tokens"] is None:
        options["image_tokens"] = getattr(method, "image_tokens", None) or LLAVA_15_7B.image_tokens
    for sizes in ("layers", "image_tokens", "text_tokens"):
        if options[sizes] < (2 if sizes == "layers" else 1):
            raise InputError(f"{sizes} is {options[sizes]}: give at least {2 if sizes == 'layers' else 1}")
    geometry = replace(
        LLAVA_15_7B,
        decoder=replace(LLAVA_15_7B.decoder, layers=options["layers"]),
        image_tokens=options["image_tokens"],
        text_tokens=options["text_tokens"],
    )
    plan = method.plan(**given, geometry=geometry)
    plan.check(geometry.layers, geometry.image_tokens)
    output = options["output"]
    if output is not None:
        taken = (*method_names(), *preset_names(), *grid_preset_names())
        called = output.stem if output.stem not in taken else f"{output.stem}-file"
        write_text(output, plan_text(plan, SCORERS, name=called, source=method.source))
    details = details_of(method, plan, geometry, (*PRESETS, *GRID_PRESETS))
    if options["as_json"]:
        print(json.dumps(details.to_dict(), indent=2, ensure_ascii=False))
        return
    print("\n".join(_lines(details, geometry.layers)))
    if output is not None:
        print(f"\nwrote {output}: strategy={output}")


def _lines(details: Details, depth: int) -> list[str]:
    entry, cost = details.entry, details.cost
    width = shutil.get_terminal_size().columns
    lines = [f"{entry.name}: {entry.source}", "", *_wrapped(details.formula, width), ""]
    lines.append(f"Plan on {depth} layers, {details.unpruned} image tokens, positions {entry.positions or 'kept'}:")
    picture = details.plan.get("picture")
    if picture:
        lines.append(f"  the picture itself is smaller: {picture['tokens']} tokens in place of {picture['of']}")
    elif not details.plan["stages"]:
        lines.append("  nothing leaves")
    for stage in details.plan["stages"]:
        after, at = stage["leave_after"], stage["scored_at"]
        left = cost.image_lengths[after + 1] if cost else "?"
        place = "before layer 0" if after < 0 else f"after layer {after}"
        scored = "" if after < 0 else f", scored at layer {at}"
        lines.append(f"  {place}: {left} stay, by {stage['scorer']}{scored}")
    if cost:
        lines += ["", "Cost of a prompt with one image:"]
        lines += [
            f"  {cost.keep_tokens} tokens kept at the end, {cost.keep_ratio:.1%}",
            f"  {cost.equivalent_tokens:.1f} equivalent tokens (mean over the layers' inputs)",
            f"  {cost.flops_ratio:.1%} of the prefill's FLOPs, the selection itself not counted",
        ]
    if entry.presets:
        lines += ["", f"Presets: {', '.join(entry.presets)}"]
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    """Paragraphs filled to the width; formulas and lists, which are indented or begin with a dash, as they are."""
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        plain = not any(line.startswith((" ", "-")) for line in paragraph.splitlines())
        lines += [*(textwrap.wrap(paragraph, width) if plain else paragraph.splitlines()), ""]
    return lines[:-1]


def _rows(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    from lmms_textweighted.methods.listing import where

    return [
        (e.name, e.paper, e.year, where(e.leaves_after), "yes" if e.text_guided else "no", e.positions) for e in entries
    ]


def _set(presets: Sequence[PresetEntry]) -> list[tuple[str, ...]]:
    return [
        (
            p.name,
            " ".join(f"{layer}:{left}" for layer, left in p.stages),
            f"{p.cost.equivalent_tokens:.1f}",
            f"{p.cost.flops_ratio:.0%}",
            p.note,
        )
        for p in presets
    ]


def _columns(headings: Sequence[str], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Aligned, without frames, so that a row stays a line."""
    widths = [max(len(row[place]) for row in (headings, *rows)) for place in range(len(headings))]
    lines = []
    for row in (headings, tuple("-" * width for width in widths), *rows):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return lines


def _markdown(headings: Sequence[str], rows: Sequence[tuple[str, ...]]) -> list[str]:
    named = [(f"`{row[0]}`", *row[1:]) for row in rows]
    return [f"| {' | '.join(row)} |" for row in (headings, ("---",) * len(headings), *named)]
