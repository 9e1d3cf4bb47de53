"""What is said of a strategy's choice: beside its picture, and instead of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lmms_textweighted.show.overlays import merged_into
from lmms_textweighted.view.record import DocumentView, StrategyView


def title_of(view: DocumentView, strategy: StrategyView) -> str:
    """`text-weighted: 64 of 576 image tokens stay after layer 2`."""
    total = len(view.places)
    if strategy.pictures is not None:
        return (
            f"{strategy.label}: {len(view.places_for(strategy))} image tokens of smaller pictures, instead of {total}"
        )
    if not strategy.stages:
        return f"{strategy.label}: all {total} image tokens stay"
    where = where_of([stage.layer for stage in strategy.stages])
    return f"{strategy.label}: {len(view.kept(strategy))} of {total} image tokens stay {where}"


def where_of(layers: Sequence[int]) -> str:
    """`before the first layer and after layers 2, 4`."""
    later = [str(layer) for layer in layers if layer >= 0]
    parts = ["before the first layer"] if len(later) < len(layers) else []
    parts += [f"after layer{'s' if len(later) > 1 else ''} {', '.join(later)}"] if later else []
    return " and ".join(parts)


def verdict_of(view: DocumentView, strategy: StrategyView) -> str:
    """The answer, and whether it is right, in words."""
    if not strategy.answer and strategy.right is None:
        return ""
    said = f"answer: {strategy.answer or '(nothing)'}"
    if strategy.right is None:
        return said
    return f"{said}  ✓ right" if strategy.right else f"{said}  ✗ wrong, {view.target} is right"


def figures_of(strategy: StrategyView) -> str:
    """The costs, as far as they are known."""
    figures, said = strategy.figures, []
    if "equivalent_tokens" in figures:
        said.append(f"{figures['equivalent_tokens']:.0f} equivalent tokens (mean over the layers)")
    for name, what in (("flops_ratio", "of the prefill's FLOPs"), ("kv_ratio", "of the KV cache")):
        if name in figures:
            said.append(f"{figures[name]:.0%} {what}")
    if "prefill_seconds" in figures:
        said.append(f"prefill {figures['prefill_seconds'] * 1000:.0f} ms")
    return ", ".join(said)


def caption_of(view: DocumentView, strategy: StrategyView) -> list[str]:
    """What cannot be seen in the picture."""
    places, kept = view.places_for(strategy), set(view.kept(strategy))
    notes = []
    nowhere = [token for token, place in enumerate(places) if place.box is None]
    if nowhere:
        notes.append(
            f"{len(nowhere)} of the image tokens stand for no part of a picture (ends of rows, class tokens): "
            f"{len(kept.intersection(nowhere))} of them stay."
        )
    if strategy.stages and len({(place.picture, place.crop > 0) for place in places if place.box}) > 1:
        notes.append(f"Of what stays: {_shares(view, strategy)}.")
    padding = [token for token, place in enumerate(places) if place.padding > 0.5]
    if padding:
        stays = len(kept.intersection(padding))
        notes.append(
            f"{len(padding)} image tokens are mostly padding (outside of the dotted line): {stays} of them stay."
        )
    if any(stage.sources for stage in strategy.stages):
        several = Counter(
            token for to, of in merged_into([stage.sources for stage in strategy.stages]).items() for token in of - {to}
        )
        mixed = " What went into several has the mean of their colours." if max(several.values(), default=1) > 1 else ""
        notes.append(f"Tinted patches were merged into the framed patch of the same colour.{mixed}")
    return notes


def _shares(view: DocumentView, strategy: StrategyView) -> str:
    places = view.places_for(strategy)
    several = len(view.pictures) > 1
    counts: dict[str, list[int]] = {}
    kept = set(view.kept(strategy))
    for token, place in enumerate(places):
        if place.box is None:
            continue
        where = "in its crops" if place.crop else "in the whole view"
        if several:
            where = f"in picture {place.picture + 1}" + (
                f", {where}" if len(view.pictures[place.picture].canvases) > 1 else ""
            )
        found = counts.setdefault(where, [0, 0])
        found[0] += token in kept
        found[1] += 1
    return "; ".join(f"{stays} of {total} {where}" for where, (stays, total) in counts.items())


def described(view: DocumentView, strategy: StrategyView) -> str:
    """The picture in words, for who cannot see it."""
    said = [title_of(view, strategy), verdict_of(view, strategy), *caption_of(view, strategy)]
    for stage in strategy.stages:
        if stage.weights:
            best = sorted(zip(stage.weights, stage.text, strict=True), reverse=True)[:5]
            words = ", ".join(repr(view.pieces[place].strip() or view.pieces[place]) for _, place in best)
            said.append(f"The heaviest words after layer {stage.layer}: {words}")
    rows = _where(view, strategy)
    return ". ".join(text.rstrip(".") for text in [*said, rows] if text) + "."


def _where(view: DocumentView, strategy: StrategyView) -> str:
    """Which ninths of the first picture what stays lies in."""
    places = view.places_for(strategy)
    names = (
        "upper left",
        "upper middle",
        "upper right",
        "left",
        "middle",
        "right",
        "lower left",
        "lower middle",
        "lower right",
    )
    counts = [0] * 9
    pictures = strategy.pictures or view.pictures
    for token in view.kept(strategy):
        place = places[token]
        if place.box is None or place.canvas is None:
            continue
        wide, tall = pictures[place.picture].canvases[place.canvas].size
        column = min(2, int((place.box[0] + place.box[2]) / 2 / wide * 3))
        counts[min(2, int((place.box[1] + place.box[3]) / 2 / tall * 3)) * 3 + column] += 1
    if not strategy.stages or not sum(counts):
        return ""
    return "Of what stays lie " + ", ".join(
        f"{count} {name}" for name, count in zip(names, counts, strict=True) if count
    )
