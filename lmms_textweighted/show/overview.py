"""Several strategies of one document side by side: the picture, what each keeps of it, and what it then answers."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure

from lmms_textweighted.show.captions import verdict_of
from lmms_textweighted.show.figure import (
    GAP,
    LINE,
    MARGIN,
    SMALL,
    SMALL_LINE,
    WEIGHT,
    WORD_LINE,
    WORDS,
    Images,
    Page,
    canvases_of,
    draw_kept,
    verdict_color,
    words_of,
)
from lmms_textweighted.show.overlays import boxes_on, merged_into
from lmms_textweighted.show.words import draw_words, lines_of, wrapped
from lmms_textweighted.view.record import DocumentView, StrategyView

CELL, ACROSS = 2.7, 4  # inches of a strategy's cell, and how many stand in a row


def draw_overview(view: DocumentView, images: Sequence[Images], *, dpi: int = 130) -> Figure:
    """A figure of all strategies of a document. images: for each of them, of the pictures as it had them.

    Below stand the words as the first strategy that reads words weighs them; or beside the last row of pictures, where
    that has room.
    """
    cells = [_cell(view, strategy, shown) for strategy, shown in zip(view.strategies, images, strict=True)]
    across = min(ACROSS, len(cells)) or 1
    width = max(2 * MARGIN + across * CELL + (across - 1) * GAP, 6.0)
    bands = [cells[start : start + across] for start in range(0, len(cells), across)]
    guided = next((strategy for strategy in view.strategies if any(stage.weights for stage in strategy.stages)), None)
    stage = next((stage for stage in guided.stages if stage.weights), None) if guided else None
    beside = len(bands) > 1 and len(bands[-1]) <= across - 2
    start = MARGIN + len(bands[-1]) * (CELL + GAP) if beside else MARGIN
    inside = width - MARGIN - start
    words = words_of(view, stage, inside)
    head = wrapped(f"the words by their weight in {guided.label}" if guided else "the text", inside, SMALL)
    heights = [max(cell.height for cell in band) + GAP for band in bands]
    text = (len(head) + lines_of(words)) * WORD_LINE
    pictures = sum(heights[:-1]) + max(heights[-1], text) if beside else sum(heights) + text
    height = 2 * MARGIN + pictures

    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    page = Page(figure, width, height)
    for band, tall in zip(bands, heights, strict=True):
        top = page.top
        for place, cell in enumerate(band):
            page.top = top
            cell.draw(page, MARGIN + place * (CELL + GAP))
        page.top = top if beside and band is bands[-1] else top + tall
    page.text_lines(head, SMALL, WORD_LINE, left=start, color="#444444")
    if words:
        weights = stage.weights if stage else ()
        axes = page.axes(start, inside, lines_of(words) * WORD_LINE)
        axes.set_axis_off()
        axes.set_xlim(0, inside)
        axes.set_ylim(lines_of(words) * WORD_LINE, 0)
        norm = PowerNorm(0.5, 0, max(weights)) if weights and max(weights) > 0 else Normalize(0, 1)
        draw_words(axes, words, WORDS, WORD_LINE, matplotlib.colormaps[WEIGHT], norm)
    return figure


class _cell:
    """One strategy's part: its name, its canvases below each other, its answer."""

    def __init__(self, view: DocumentView, strategy: StrategyView, images: Images) -> None:
        self.view, self.strategy = view, strategy
        self.canvases = canvases_of(strategy.pictures or view.pictures, images, CELL, CELL)
        self.names = wrapped(strategy.label, CELL, SMALL + 2, bold=True)
        count = f"{len(view.kept(strategy))} of {len(view.places)} image tokens"
        self.counts = wrapped(count, CELL, SMALL)
        self.verdict = wrapped(verdict_of(view, strategy), CELL, SMALL) if verdict_of(view, strategy) else []
        self.height = len(self.names) * LINE + (len(self.counts) + len(self.verdict)) * SMALL_LINE
        self.height += sum(canvas.height + GAP / 2 for canvas in self.canvases)

    def draw(self, page: Page, left: float) -> None:
        page.text_lines(self.names, SMALL + 2, LINE, left=left, bold=True)
        page.text_lines(self.counts, SMALL, SMALL_LINE, left=left)
        page.down(GAP / 4)
        places, kept = self.view.places_for(self.strategy), self.view.kept(self.strategy)
        groups = merged_into([stage.sources for stage in self.strategy.stages])
        for canvas in self.canvases:
            axes = page.axes(left, canvas.width, canvas.height)
            boxes = boxes_on(places, canvas.picture, canvas.number)
            draw_kept(axes, canvas, boxes, kept, groups, everything=not self.strategy.stages)
            page.down(canvas.height + GAP / 4)
        page.text_lines(self.verdict, SMALL, SMALL_LINE, left=left, color=verdict_color(self.strategy))
