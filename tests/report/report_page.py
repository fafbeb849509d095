"""What tests do to a page of the report, and what they read from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CARDS = 24


def go(page: Any, report: Path, address: str = "") -> None:
    page.goto(f"file://{report}/index.html{address}")
    page.wait_for_selector("main:not([aria-busy])")


def until(page: Any, expression: str) -> None:
    """Wait; Playwright's own way evaluates text inside the page, which the page forbids."""
    for _ in range(250):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"never came true: {expression}")


def hits(page: Any) -> int:
    return int(page.inner_text("#hits").split(" of ")[0].replace(",", ""))


def shown(page: Any) -> list[int]:
    """The rows of the findings whose cards are there."""
    cards = page.query_selector_all(".card")
    return [int(card.get_attribute("data-finding")) for card in cards]
