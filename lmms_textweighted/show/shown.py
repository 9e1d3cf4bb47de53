"""A document with its pictures, that shows itself: as files, and in a notebook."""

from __future__ import annotations

import base64
import html
import io
import re
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from lmms_textweighted.show.captions import described, title_of, verdict_of
from lmms_textweighted.show.figure import draw_strategy
from lmms_textweighted.show.overview import draw_overview
from lmms_textweighted.show.words import missing_letters
from lmms_textweighted.view.record import DocumentView, StrategyView

Canvases = tuple[tuple[Image.Image, ...], ...]


@dataclass(frozen=True)
class Shown:
    """view: the document. images: its canvases, of each picture. smaller: those of strategies that make the pictures
    smaller, by `StrategyView.key`."""

    view: DocumentView
    images: Canvases
    smaller: dict[tuple, Canvases] = field(default_factory=dict)

    def figure(self, strategy: StrategyView) -> Figure:
        """The picture of one of its strategies."""
        return draw_strategy(self.view, strategy, self.smaller.get(strategy.key, self.images))

    def overview(self) -> Figure:
        """All strategies side by side."""
        images = [self.smaller.get(strategy.key, self.images) for strategy in self.view.strategies]
        return draw_overview(self.view, images)

    def png(self, strategy: StrategyView) -> bytes:
        """The same as a file's content."""
        return _png(self.figure(strategy))

    def save(self, folder: Path) -> list[Path]:
        """Write a PNG a strategy and their overview into a folder, which is made. Returns the paths; raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for name, strategy in zip(names_of(self.view), self.view.strategies, strict=True):
            path = folder / f"{name}.png"
            path.write_bytes(self.png(strategy))
            written.append(path)
        if len(self.view.strategies) > 1:
            written.append(folder / "overview.png")
            written[-1].write_bytes(_png(self.overview()))
        return written

    def _repr_html_(self) -> str:
        """Every strategy's picture, in a page or a notebook: nothing is fetched, and every text is escaped.

        The overview stands in front where there are several.
        """
        view = self.view
        parts = [f'<div class="lmms-textweighted"><p><strong>{html.escape(view.question)}</strong></p>']
        if len(view.strategies) > 1:
            said = " ".join(f"{title_of(view, one)}. {verdict_of(view, one)}." for one in view.strategies)
            parts.append(_figure(_png(self.overview()), said, "all of them side by side"))
        parts += [_figure(self.png(one), described(view, one), title_of(view, one)) for one in view.strategies]
        return "".join([*parts, "</div>"])


def _figure(png: bytes, alt: str, caption: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure style="margin:0 0 1.5em"><img style="max-width:100%" src="data:image/png;base64,{data}" '
        f'alt="{html.escape(alt)}"><figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with missing_letters():
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def names_of(view: DocumentView) -> list[str]:
    """A name for each strategy's file, without its ending, no two alike."""
    names: list[str] = []
    taken = {"overview"}
    for strategy in view.strategies:
        name = re.sub(r"[^\w.+-]+", "_", strategy.strategy).strip("._") or "strategy"
        name += "" if strategy.budget is None else f"_{strategy.budget:g}"
        unique, number = name, 2
        while unique in taken:
            unique, number = f"{name}-{number}", number + 1
        names.append(unique)
        taken.add(unique)
    return names
