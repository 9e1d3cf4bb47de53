"""The experiment's picture. One layer: the published view, accuracy on real axes, and where costs differ accuracy over
FLOPs. Several layers: maps of accuracy over layer and budget, and accuracy over FLOPs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase

from lmms_textweighted.experiment.files import blocks_of
from lmms_textweighted.experiment.maps import draw_maps, map_heights
from lmms_textweighted.experiment.names import axis
from lmms_textweighted.experiment.pareto import draw_flops
from lmms_textweighted.experiment.styles import styles
from lmms_textweighted.methods import label_of

_LEGEND_ROWS = 8  # of a legend beside its axes; longer ones go on in a second column


def draw(path: Path, data: dict[str, Any]) -> None:
    """Draw `experiment_data` as a PNG."""
    meta = data["meta"]
    several = isinstance(meta["pruning_layer"], list)
    figure = _of_layers(data) if several else _of_one_layer(data)
    where = "layers" if several else "layer"
    layers = ", ".join(map(str, meta["pruning_layer"])) if several else meta["pruning_layer"]
    figure.suptitle(
        f"{meta['checkpoint']} ({meta['model_type']})\n"
        f"{meta['task']} · {meta['num_samples']} questions · pruned after {where} {layers}",
        fontsize=11,
    )
    figure.savefig(path, format="png")
    plt.close(figure)


def _of_one_layer(data: dict[str, Any]) -> Any:
    pruned = [block for name, block in blocks_of(data) if name != "none"]
    costs = {(t, round(f, 6)) for b in pruned for t, f in zip(b["tokens"], b["flops_ratio"], strict=True)}
    if len(costs) == len({tokens for tokens, _ in costs}):  # then FLOPs are the same axis once more
        figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.4), dpi=120, layout="constrained")
    else:
        figure = plt.figure(figsize=(13, 11), dpi=120, layout="constrained")
        top, bottom = figure.subfigures(2, 1, squeeze=False)[:, 0]
        left, right = top.subplots(1, 2)
        _flops_with_key(bottom, data)
    _published_view(left, data)
    _accuracy(right, data)
    return figure


def _of_layers(data: dict[str, Any]) -> Any:
    tall = sum(map_heights(data))
    figure = plt.figure(figsize=(13, tall + 6.2), dpi=120, layout="constrained")
    if not tall:
        _flops_with_key(figure, data)
        return figure
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=[tall, 5.6])[:, 0]
    draw_maps(top, data)
    top.suptitle(f"accuracy in % by pruning layer and {axis(data['meta'])}", fontsize=10)
    _flops_with_key(bottom, data)
    return figure


def _flops_with_key(figure: FigureBase, data: dict[str, Any]) -> None:
    """The panel, and right of it its legend above the list of the front's points."""
    axes, key = figure.subplots(1, 2, width_ratios=[2.1, 1])
    front = draw_flops(axes, data)
    key.axis("off")
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 if len(labels) <= _LEGEND_ROWS else 2
    key.legend(handles, labels, loc="upper left", fontsize=8, ncols=columns, frameon=False, borderaxespad=0)
    key.text(
        0,
        0,
        "\n".join(["Pareto front (FLOPs: point: accuracy)", *front]),
        transform=key.transAxes,
        fontsize=8,
        va="bottom",
        linespacing=1.35,
    )


def _published_view(axes: Axes, data: dict[str, Any]) -> None:
    """Accuracy and both ranks of the main strategy, each min-max normalised over its own range."""
    name = "text_weighted" if "text_weighted" in data["strategies"] else next(iter(data["strategies"]))
    block = data["strategies"][name]
    last = data["meta"]["decoder_layers"] - 1
    curves = (
        ("accuracies", "accuracy", "#0072B2", "o"),
        ("numeric_ranks", f"layer {last} numeric rank", "#009E73", "s"),
        ("effective_ranks", f"layer {last} effective rank", "#CC79A7", "^"),
    )
    for key, label, color, marker in curves:
        known = [(t, value) for t, value in zip(block["tokens"], block[key], strict=True) if value is not None]
        if not known:
            continue
        tokens, values = zip(*known, strict=True)
        low, high = min(values), max(values)
        axes.plot(
            tokens,
            [(value - low) / (high - low) if high > low else 1.0 for value in values],
            color=color,
            marker=marker,
            markersize=4,
            label=f"{label} ({low:.3g} to {high:.3g})",
        )
    axes.invert_xaxis()
    axes.set(
        xlabel=axis(data["meta"]),
        ylabel="min-max normalised",
        title=f"{label_of(name)}, each curve over its own range",
        ylim=(-0.05, 1.05),
    )
    _legend_below(axes)
    axes.grid(alpha=0.25)


def _accuracy(axes: Axes, data: dict[str, Any]) -> None:
    """Accuracy of every strategy with 95 % intervals."""
    look = styles(list(data["strategies"]))
    for name, block in data["strategies"].items():
        if name == "none":
            accuracy, low, high = (block[key][0] for key in ("accuracies", "accuracy_low", "accuracy_high"))
            axes.axhspan(low, high, color="black", alpha=0.07, linewidth=0)
            axes.axhline(accuracy, color="black", linestyle="--", linewidth=1, label=f"no pruning ({accuracy:.1%})")
            continue
        color, marker = look[name]
        seeds = f", mean of {len(block['seeds'])} seeds" if "seeds" in block else ""
        axes.plot(
            block["tokens"],
            block["accuracies"],
            color=color,
            marker=marker,
            markersize=4,
            label=f"{label_of(name)}{seeds}",
        )
        axes.fill_between(
            block["tokens"], block["accuracy_low"], block["accuracy_high"], color=color, alpha=0.12, linewidth=0
        )
    chance = data["meta"].get("chance")
    if chance is not None:
        axes.axhline(chance, color="black", linestyle=":", linewidth=1, label=f"chance ({chance:.1%})")
    axes.set(
        xlabel=axis(data["meta"]),
        ylabel="accuracy",
        title="accuracy of the pruned model, 95 % intervals",
        ylim=(0, 1.02),
    )
    axes.invert_xaxis()
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    _legend_below(axes)
    axes.grid(alpha=0.25)


def _legend_below(axes: Axes) -> None:
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False)
