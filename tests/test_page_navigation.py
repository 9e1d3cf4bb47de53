"""Many tables of one kind in a page."""

from __future__ import annotations

from lmms_textweighted.page import Cell, Column, Page, Table, render


def test_sections_of_one_kind_have_one_place_in_the_navigation():
    tables = [Table(f"Bias: {name}", [Column("method", number=False)], [[Cell("fastv")]]) for name in ("one", "two")]
    text = render(Page("P", tables))
    assert text.partition("</nav>")[0].count("<a href") == 1
    assert text.count("<section") == 2
