"""The pages as data: their code blocks, headings and links. Markdown is read by markdown-it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted(ROOT.glob("docs/**/*.md")),
)
_MARKDOWN = MarkdownIt("commonmark").enable("table")


class Block(NamedTuple):
    """A block of code: where it stands, the word behind its fence, and its text."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Fenced and indented code, in order; what Sphinx reads as directives left out."""
    found = []
    for token in _MARKDOWN.parse(page.read_text()):
        if token.type in ("fence", "code_block") and not token.info.startswith("{"):
            line = (token.map or [0])[0] + 1
            found.append(Block(page, line, token.info.strip(), token.content))
    return found


def commands(block: Block) -> list[list[str]]:
    """The words of each ``cxr-fast`` command of a block in a shell's language."""
    text = re.sub(r"\\\n\s*", " ", block.text)
    found = []
    for line in text.splitlines():
        bare = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line.strip())
        if bare.startswith("cxr-fast "):
            found.append(shlex.split(bare, comments=True)[1:])
    return found


def links(page: Path) -> Iterator[tuple[int, str]]:
    """Line and target of each link and picture; those of Sphinx's includes as well."""
    for token in _MARKDOWN.parse(page.read_text()):
        line = (token.map or [0])[0] + 1
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target:
                yield line, str(target)
        if token.type == "fence" and token.info.startswith(("{include}", "{literalinclude}")):
            yield line, token.info.partition("}")[2].strip()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and myst name them."""
    tokens = _MARKDOWN.parse(page.read_text())
    found: set[str] = set()
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            text = "".join(child.content for child in inline.children or ())
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            number = 0
            unique = slug
            while unique in found:
                number += 1
                unique = f"{slug}-{number}"
            found.add(unique)
    return found
