"""What the pages say of the repository: their links lead somewhere, and the two READMEs have the same parts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("lmms_textweighted/**/*.md")])
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    return CODE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them: the heading's words in lower case, without signs, joined by hyphens."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_within_the_repository_lead_somewhere(page):
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        file, _, anchor = link.partition("#")
        target = page if not file else page.parent / file
        if "://" in link or link.startswith("mailto:"):
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def test_both_readmes_have_the_same_parts_pictures_and_commands():
    english, chinese = (ROOT / name for name in ("README.md", "README.zh-CN.md"))
    for part in (r"^#+ ", r"^!\[[^\]]*\]\(([^)]+)\)", r"^\| `([a-z_+0-9]+)` \|"):
        found = [re.findall(part, prose(page), re.MULTILINE) for page in (english, chinese)]
        assert found[0] == found[1]
    blocks = [CODE.findall(page.read_text(encoding="utf-8")) for page in (english, chinese)]
    # Comments are translated, and what a question asks.
    commands = [[re.sub(r'#.*|"[^"$]*[?？]"', "", block).split() for block in page] for page in blocks]
    assert commands[0] == commands[1]
