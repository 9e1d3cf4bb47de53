"""One strategy's picture: what stays of each canvas, its scores as colours, the question's words by their weights.

Everything is placed in inches, and the figure is as large as what is in it: nothing is cut, and nothing overlaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from lmms_textweighted.show.captions import caption_of, figures_of, title_of, verdict_of, where_of
from lmms_textweighted.show.overlays import borders, boxes_on, dimmed, grey, heat, merged_into
from lmms_textweighted.show.words import Word, draw_words, font, lay_out, lines_of, wrapped
from lmms_textweighted.view.record import Canvas, DocumentView, PictureGeometry, StageView, StrategyView

Images = Sequence[Sequence[Image.Image]]  # of each picture, of each of its canvases

PANEL, TALLEST = 3.6, 4.6  # inches: a panel's width, and how tall it may become
MARGIN, GAP, BAR, BAR_ROOM = 0.25, 0.2, 0.12, 0.75
TITLE, SMALL, WORDS = 13.0, 9.0, 10.0  # points
LINE, WORD_LINE, SMALL_LINE = 0.26, 0.24, 0.19  # inches
HEAT, WEIGHT = "viridis", "YlOrBr"
KEPT, CROPS = "#d62728", "white"
_CLIP = 98  # per cent of the scores that the colours are for, where few are far above all others
GROUPS = ("#e41a1c", "#377eb8", "#4daf4a", "#984ea3", "#ff7f00", "#a65628", "#17becf")


@dataclass(frozen=True)
class Drawn:
    """A canvas and how large it is drawn."""

    picture: int
    number: int
    canvas: Canvas
    image: np.ndarray
    width: float
    height: float
    label: str


def draw_strategy(view: DocumentView, strategy: StrategyView, images: Images, *, dpi: int = 130) -> Figure:
    """A figure of one strategy. images: of the pictures as it had them (`pictures` of its own, or the document's)."""
    rows = canvases_of(strategy.pictures or view.pictures, images, PANEL, TALLEST)
    scored = [stage for stage in strategy.stages if is_told_apart(stage)]
    columns = 1 + len(scored)
    width = max(2 * MARGIN + columns * PANEL + (columns - 1) * GAP + len(scored) * BAR_ROOM, 7.0)
    inside = width - 2 * MARGIN
    verdict, figures = (
        wrapped(text, inside, SMALL + 1) if text else [] for text in (verdict_of(view, strategy), figures_of(strategy))
    )
    titles = wrapped(title_of(view, strategy), inside, TITLE, bold=True)
    notes = [line for text in caption_of(view, strategy) for line in wrapped(text, inside, SMALL)]
    texts = [(layers, stage, words_of(view, stage, inside)) for layers, stage in scored_text(strategy)]
    panel_heads = [_panel_head(column, scored, strategy, view) for column in range(columns)]
    head_lines = max(len(wrapped(head, PANEL, SMALL)) for head in panel_heads)
    height = 2 * MARGIN + len(titles) * LINE + len(verdict + figures) * SMALL_LINE * 1.15 + GAP
    height += sum(row.height + SMALL_LINE * (1.3 if row.label else 0) + GAP for row in rows)
    height += head_lines * SMALL_LINE if rows else 0
    height += sum((lines_of(words) + 1.3) * WORD_LINE + GAP for *_, words in texts) + len(notes) * SMALL_LINE

    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    page = Page(figure, width, height)
    page.text_lines(titles, TITLE, LINE, bold=True)
    page.text_lines(verdict, SMALL + 1, SMALL_LINE * 1.15, color=verdict_color(strategy))
    page.text_lines(figures, SMALL + 1, SMALL_LINE * 1.15)
    page.down(GAP / 2)
    if rows:
        for column, head in enumerate(panel_heads):
            page.text_lines(wrapped(head, PANEL, SMALL), SMALL, SMALL_LINE, left=_left(column), keep=True)
        page.down(head_lines * SMALL_LINE + GAP / 2)
    norms = [_norm(stage.scores or ()) for stage in scored]
    places = view.places_for(strategy)
    kept = view.kept(strategy)
    groups = merged_into([stage.sources for stage in strategy.stages])
    for row in rows:
        if row.label:
            page.text_lines([row.label], SMALL, SMALL_LINE * 1.3, color="#444444")
        boxes = boxes_on(places, row.picture, row.number)
        axes = page.axes(_left(0), row.width, row.height)
        draw_kept(axes, row, boxes, kept, groups, everything=not strategy.stages)
        for column, (stage, norm) in enumerate(zip(scored, norms, strict=True), start=1):
            axes = page.axes(_left(column), row.width, row.height)
            _draw_scores(axes, row, boxes, stage, norm)
            bar = page.axes(_left(column) + row.width + 0.1, BAR, row.height)
            _draw_bar(figure, bar, norm, stage.scores or ())
        page.down(row.height + GAP)
    for layers, read, words in texts:
        _draw_text(page, layers, read, words, strategy, inside)
    page.text_lines(notes, SMALL, SMALL_LINE, color="#444444")
    return figure


def is_told_apart(stage: StageView) -> bool:
    """Whether a stage has scores that are not all the same."""
    return bool(stage.scores) and max(stage.scores or ()) > min(stage.scores or ())


def scored_text(strategy: StrategyView) -> list[tuple[list[int], StageView | None]]:
    """The stages that read words, those of equal weights together: (their layers, the first of them); or none."""
    found: list[tuple[list[int], StageView | None]] = []
    for stage in strategy.stages:
        if not stage.weights:
            continue
        for layers, other in found:
            if other is not None and (other.text, other.weights) == (stage.text, stage.weights):
                layers.append(stage.layer)
                break
        else:
            found.append(([stage.layer], stage))
    return found or [([], None)]


class Page:
    """A figure that is filled from the top. Lengths are inches."""

    def __init__(self, figure: Figure, width: float, height: float) -> None:
        self.figure, self.width, self.height, self.top = figure, width, height, MARGIN

    def down(self, by: float) -> None:
        self.top += by

    def axes(self, left: float, width: float, height: float) -> Axes:
        """Axes without ticks, their upper edge where the page is filled to."""
        bottom = self.height - self.top - height
        axes = self.figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))
        axes.set_xticks([])
        axes.set_yticks([])
        return axes

    def text_lines(
        self,
        lines: Sequence[str],
        points: float,
        height: float,
        *,
        left: float = MARGIN,
        bold: bool = False,
        color: str = "black",
        keep: bool = False,
    ) -> None:
        """Lines of text, one below the other. keep: the page is filled no further."""
        before = self.top
        for line in lines:
            self.figure.text(
                left / self.width,
                1 - (self.top + height * 0.7) / self.height,
                line,
                fontproperties=font(points, bold=bold),
                color=color,
                va="baseline",
                parse_math=False,
            )
            self.down(height)
        if keep:
            self.top = before


def _left(column: int) -> float:
    return MARGIN + column * (PANEL + GAP) + max(0, column - 1) * BAR_ROOM


def canvases_of(pictures: Sequence[PictureGeometry], images: Images, widest: float, tallest: float) -> list[Drawn]:
    """All canvases, as large as they fit into widest x tallest inches."""
    rows = []
    for number, (picture, shown) in enumerate(zip(pictures, images, strict=True)):
        for place, (canvas, image) in enumerate(zip(picture.canvases, shown, strict=True)):
            wide, tall = canvas.size
            height = min(tallest, widest * tall / wide)
            labels = [f"picture {number + 1} of {len(pictures)}"] if len(pictures) > 1 else []
            if len(picture.canvases) > 1:
                crops = canvas.crops
                labels.append("the whole picture" if crops is None else f"its {crops[0]} × {crops[1]} crops")
            width = height * wide / tall
            # So narrow that nothing could be seen: a strip is drawn wider than it is.
            rows.append(
                Drawn(number, place, canvas, np.asarray(image), max(width, 0.5), max(height, 0.5), ", ".join(labels))
            )
    return rows


def _panel_head(column: int, scored: Sequence[StageView], strategy: StrategyView, view: DocumentView) -> str:
    if not column:
        return "as the model saw it: nothing was removed" if not strategy.stages else "what stays, the rest pale"
    stage = scored[column - 1]
    return f"scores {where_of([stage.layer])}, of which {len(stage.kept)} of {len(stage.candidates)} stay"


def verdict_color(strategy: StrategyView) -> str:
    """Of the line that says right or wrong in words."""
    return {True: "#1a7f37", False: "#b3261e", None: "black"}[strategy.right]


def _show(axes: Axes, row: Drawn, pixels: Any, **more: Any) -> None:
    wide, tall = row.canvas.size
    axes.imshow(pixels, extent=(0, wide, tall, 0), aspect="auto", **{"interpolation": "nearest", **more})
    axes.set_xlim(0, wide)
    axes.set_ylim(tall, 0)


def draw_kept(
    axes: Axes,
    row: Drawn,
    boxes: dict[int, tuple[int, int, int, int]],
    kept: Sequence[int],
    groups: dict[int, set[int]],
    *,
    everything: bool,
) -> None:
    """One canvas with what was removed pale, and merged tokens in colours. kept: image tokens. groups: `merged_into`.

    everything: nothing was removed.
    """
    pixels = row.image if everything else dimmed(row.image, boxes, kept)
    if not everything and groups:
        pixels = _tinted(pixels, boxes, kept, groups)
    _show(axes, row, pixels)
    if not everything and len(set(kept) & set(boxes)) < len(boxes):
        axes.add_collection(LineCollection(borders(boxes, kept), colors=KEPT, linewidths=0.7))
    for place, to in enumerate(sorted(groups)):
        if to in boxes and len(groups[to]) > 1:
            color = GROUPS[place % len(GROUPS)]
            axes.add_collection(LineCollection(borders(boxes, groups[to]), colors="white", linewidths=0.9))
            axes.add_collection(LineCollection(borders(boxes, [to]), colors=color, linewidths=1.6))
    _draw_lines(axes, row)


def _tinted(
    pixels: np.ndarray, boxes: dict[int, tuple[int, int, int, int]], kept: Sequence[int], groups: dict[int, set[int]]
) -> np.ndarray:
    """What was merged, in the colour of the token that it went into; of several, in the mean of their colours."""
    found, stays = pixels.astype(float), set(kept)
    colors: dict[int, list[np.ndarray]] = {}
    for place, to in enumerate(sorted(groups)):
        for token in (groups[to] - stays) & set(boxes):
            colors.setdefault(token, []).append(np.array(to_rgb(GROUPS[place % len(GROUPS)])) * 255)
    for token, mine in colors.items():
        left, top, right, bottom = boxes[token]
        found[top:bottom, left:right] = found[top:bottom, left:right] * 0.62 + np.mean(mine, axis=0) * 0.38
    return found.astype(np.uint8)


def _draw_scores(
    axes: Axes, row: Drawn, boxes: dict[int, tuple[int, int, int, int]], stage: StageView, norm: Normalize
) -> None:
    scores = dict(zip(stage.candidates, stage.scores or (), strict=True))
    _show(axes, row, grey(row.image))
    found = heat(row.image.shape[:2], boxes, scores)
    if found.count():
        _show(axes, row, found, cmap=HEAT, norm=norm, alpha=0.78)
    if len(set(stage.kept) & set(boxes)) < len(boxes):
        axes.add_collection(LineCollection(borders(boxes, stage.kept), colors=KEPT, linewidths=0.7))
    _draw_lines(axes, row)


def _draw_lines(axes: Axes, row: Drawn) -> None:
    """Where crops meet, and where the picture ends and padding begins."""
    canvas = row.canvas
    wide, tall = canvas.size
    rows, columns = canvas.crops or (1, 1)
    at: list[Any] = [[(wide * c / columns, 0), (wide * c / columns, tall)] for c in range(1, columns)]
    at += [[(0, tall * r / rows), (wide, tall * r / rows)] for r in range(1, rows)]
    axes.add_collection(LineCollection(at, colors="black", linewidths=2.0))
    axes.add_collection(LineCollection(at, colors=CROPS, linewidths=0.8))
    left, top, right, bottom = canvas.content
    if (right - left) * (bottom - top) < 0.999 * wide * tall:
        axes.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="#1f77b4", linestyle=":", lw=1.4)
        )


def _norm(scores: Sequence[float]) -> Normalize:
    """From the least to the largest; where few are far above all others, to what all but two per cent stay below."""
    low, high = min(scores), max(scores)
    most = float(np.percentile(scores, _CLIP))
    clipped = most if most > low and high - low > 3 * (most - low) else high
    return Normalize(low, clipped, clip=False)


def _draw_bar(figure: Figure, axes: Axes, norm: Normalize, scores: Sequence[float]) -> None:
    beyond = "max" if max(scores) > (norm.vmax or 0) else "neither"
    bar = figure.colorbar(ScalarMappable(norm=norm, cmap=HEAT), cax=axes, extend=beyond, extendfrac=0.04)
    bar.ax.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
    bar.formatter = matplotlib.ticker.FormatStrFormatter("%.3g")
    bar.update_ticks()
    bar.ax.tick_params(labelsize=7, length=2, pad=2)


def words_of(view: DocumentView, stage: StageView | None, width: float) -> list[Word]:
    """The text behind the picture, and what a stage read in front of it, laid out by the weights of the stage."""
    weights = dict(zip(stage.text, stage.weights, strict=True)) if stage is not None else {}
    first = min([view.after, *weights])
    pieces = [(text, weights.get(place)) for place, text in enumerate(view.pieces) if place >= first]
    return lay_out(pieces, width, WORDS)


def _draw_text(
    page: Page, layers: Sequence[int], stage: StageView | None, words: list[Word], strategy: StrategyView, width: float
) -> None:
    weights = stage.weights if stage is not None else ()
    # By roots: one word often has more than all others together, which then could not be told apart.
    norm = PowerNorm(0.5, 0, max(weights)) if weights and max(weights) > 0 else Normalize(0, 1)
    head = "the text behind the picture; no word has a say in the choice" if strategy.stages else "the text"
    if stage is not None:
        head = (
            f"the words by their weight in the scores {where_of(layers)}, from 0 (pale) to {max(weights):.3g} (brown)"
        )
    heads = wrapped(head, width, SMALL)
    page.text_lines(heads, SMALL, WORD_LINE, color="#444444")
    tall = lines_of(words) * WORD_LINE
    if words:
        axes = page.axes(MARGIN, width, tall)
        axes.set_axis_off()
        axes.set_xlim(0, width)
        axes.set_ylim(tall, 0)
        draw_words(axes, words, WORDS, WORD_LINE, matplotlib.colormaps[WEIGHT], norm)
    page.down(tall + GAP)
