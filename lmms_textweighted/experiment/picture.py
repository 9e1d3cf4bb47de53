"""The experiment's picture: the published view, and beside it accuracy with intervals on real axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from lmms_textweighted.methods import label_of

# Okabe and Ito's colours, which colour-blind readers can tell apart; markers say the same again.
STYLES = {
    "text_weighted": ("#0072B2", "o"),
    "text_weighted_debiased": ("#56B4E9", "v"),
    "fastv": ("#D55E00", "s"),
    "fastv_k2": ("#E69F00", "D"),
    "random": ("#777777", "^"),
}


def draw(path: Path, data: dict[str, Any]) -> None:
    """Draw `experiment_data` as a PNG with two panels."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.8), dpi=120, layout="constrained")
    _published_view(left, data)
    _accuracy(right, data)
    meta = data["meta"]
    figure.suptitle(
        f"{meta['checkpoint']} · {meta['task']} · {meta['num_samples']} questions · pruned after layer "
        f"{meta['pruning_layer']}",
        fontsize=11,
    )
    figure.savefig(path, format="png")
    plt.close(figure)


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
        values = block[key]
        if any(value is None for value in values):
            continue
        low, high = min(values), max(values)
        normalised = [(value - low) / (high - low) if high > low else 1.0 for value in values]
        axes.plot(
            block["tokens"],
            normalised,
            color=color,
            marker=marker,
            markersize=4,
            label=f"{label} ({low:.3g} to {high:.3g})",
        )
    axes.invert_xaxis()
    axes.set(
        xlabel="image tokens kept",
        ylabel="min-max normalised",
        title=f"{label_of(name)}, each curve over its own range",
        ylim=(-0.05, 1.05),
    )
    axes.legend(fontsize=8, loc="lower left")
    axes.grid(alpha=0.25)


def _accuracy(axes: Axes, data: dict[str, Any]) -> None:
    """Accuracy of every strategy with 95 % intervals."""
    for name, block in data["strategies"].items():
        if name == "none":
            accuracy, low, high = (block[key][0] for key in ("accuracies", "accuracy_low", "accuracy_high"))
            axes.axhspan(low, high, color="black", alpha=0.07, linewidth=0)
            axes.axhline(accuracy, color="black", linestyle="--", linewidth=1, label=f"no pruning ({accuracy:.1%})")
            continue
        color, marker = STYLES.get(name, ("#000000", "x"))
        axes.plot(block["tokens"], block["accuracies"], color=color, marker=marker, markersize=4, label=label_of(name))
        axes.fill_between(
            block["tokens"], block["accuracy_low"], block["accuracy_high"], color=color, alpha=0.15, linewidth=0
        )
    chance = data["meta"].get("chance")
    if chance is not None:
        axes.axhline(chance, color="black", linestyle=":", linewidth=1, label=f"chance ({chance:.1%})")
    axes.set(
        xlabel="image tokens kept",
        ylabel="accuracy",
        title="accuracy of the pruned model, 95 % intervals",
        ylim=(0, 1.02),
    )
    axes.invert_xaxis()
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    axes.legend(fontsize=8, loc="lower left")
    axes.grid(alpha=0.25)
