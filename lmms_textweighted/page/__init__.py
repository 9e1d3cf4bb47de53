"""A single self-contained HTML file of results and documents, that opens from disk without a network."""

from lmms_textweighted.page.sections import Cell, Chart, Column, Curve, Curves, Documents, Figure, Section, Shown, Table
from lmms_textweighted.page.write import Page, check_page, render, write_page

__all__ = [
    "Cell",
    "Chart",
    "Column",
    "Curve",
    "Curves",
    "Documents",
    "Figure",
    "Page",
    "Section",
    "Shown",
    "Table",
    "check_page",
    "render",
    "write_page",
]
