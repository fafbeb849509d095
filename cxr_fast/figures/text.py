"""Names, intervals and differences as text: what tables on a terminal, in Markdown and LaTeX share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cxr_fast.model_files import model_digest

_SHORT = {
    "Atelectasis": "AT", "Cardiomegaly": "CM", "Effusion": "PE", "Infiltration": "Infiltr.",
    "Pneumonia": "PNA", "Pneumothorax": "PTx",
}  # fmt: skip
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#",
    "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip
_MARKDOWN = frozenset("\\`*_[]<>|#~$&")


def short_name(finding: str) -> str:
    """A finding as the paper's tables head its column."""
    return _SHORT.get(finding, finding)


def number(value: float) -> str:
    """Two digits, as the paper; a dash for what does not exist."""
    return "-" if math.isnan(value) else f"{value:.2f}"


def signed(value: float) -> str:
    """Two digits, and a sign where they are not zero."""
    return number(value) if math.isnan(value) or abs(value) < 0.005 else f"{value:+.2f}"


def span(low: float, high: float) -> str:
    """An interval."""
    return "-" if math.isnan(low) else f"{low:.2f}..{high:.2f}"


def difference_text(value: float, low: float, high: float) -> str:
    """A difference with its interval, in Markdown, bold where that excludes zero."""
    if math.isnan(value):
        return "-"
    text = f"{value:+.2f} ({low:+.2f}..{high:+.2f})"
    return f"**{text}**" if excludes_zero(low, high) else text


def excludes_zero(low: float, high: float) -> bool:
    """Whether an interval says that two methods differ."""
    return low > 0 or high < 0


def table_line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def markdown_text(text: str) -> str:
    """A name as Markdown shows it literally, in a table's cell as well."""
    return "".join(f"\\{c}" if c in _MARKDOWN else c if c.isprintable() else " " for c in text)


def latex_text(text: str) -> str:
    """A name as LaTeX sets it literally."""
    return "".join(_LATEX.get(c, c) if c.isprintable() else " " for c in text)


def origin_note(models: Sequence[str]) -> str:
    """The corner note of a figure, from the SHA-256 of its models; empty without the bundled one."""
    if model_digest("demo") not in models:
        return ""
    return "Synthetic: made by the demonstration model, which has seen no patients."
