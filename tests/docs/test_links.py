"""No dead relative link or anchor in the pages, and every page is in the table of contents."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_pages import PAGES, ROOT, anchors, links


def dead_links(page: Path) -> list[str]:
    found = []
    for line, target in links(page):
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / unquote(name)).resolve() if name else page
        where = f"{page.name}:{line}: {target}"
        if not path.exists():
            found.append(f"{where}: no such file")
        elif anchor and path.suffix == ".md" and anchor not in anchors(path):
            found.append(f"{where}: no such heading")
    return found


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links(page: Path) -> None:
    assert dead_links(page) == []


def test_there_are_links_to_check() -> None:
    assert sum(len(list(links(page))) for page in PAGES) > 80


def test_dead_ones_are_seen(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A map in a *warp*\n\n## Twice\n\n## Twice\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md) [b](other.md#a-map-in-a-warp) [c](other.md#twice-1) <https://x.org>\n\n"
        "[d](gone.md) ![e](gone.png) [f](other.md#gone) [g](#here)\n\n| [h](gone.csv) |\n| --- |\n\n"
        "```{literalinclude} gone.py\n```\n"
    )
    found = [text.split(": ")[1] for text in dead_links(page)]
    assert found == ["gone.md", "gone.png", "other.md#gone", "#here", "gone.csv", "gone.py"]


def test_every_page_is_in_the_contents() -> None:
    """Or is reached by a pattern there, or is the index itself."""
    listed: set[str] = {"index"}
    for page in (ROOT / "docs").glob("*.md"):
        for contents in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(), re.M | re.S):
            for entry in contents.splitlines():
                if entry and not entry.startswith(":"):
                    listed |= {
                        str(path.relative_to(ROOT / "docs").with_suffix(""))
                        for path in (ROOT / "docs").glob(f"{entry}.md")
                    }
    pages = {str(p.relative_to(ROOT / "docs").with_suffix("")) for p in (ROOT / "docs").rglob("*.md")}
    assert pages == listed
