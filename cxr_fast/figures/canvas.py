"""The one place that imports matplotlib: widths of journals, one style, files that are always the same.

Text stays text in SVG, PDF embeds its fonts, and neither holds a date, so the same figure is the same
bytes. Names are drawn as they are written: a dollar sign begins no formula. Colours are told apart by
the colour-blind and differ in lightness, and nothing is said by colour alone.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import Normal, Stroke

from cxr_fast.files import write_whole

__all__ = ["Axes", "Figure", "Line2D", "Patch", "Rectangle"]

Columns = Literal["one", "two"]
# Inches: one column and the whole page of IEEE's journals, which MICCAI's page holds as well.
WIDTHS: dict[Columns, float] = {"one": 3.5, "two": 7.16}
SUFFIXES = (".pdf", ".png", ".svg")

INK, PALE = "#1a1a1a", "#6b6b6b"
# Of Okabe and Ito: sky blue and orange, each with a dark rim where it lies on a picture.
MINED, TRUE = "#56b4e9", "#f0b020"
_STYLE: dict[str, Any] = {
    "axes.edgecolor": INK,
    "axes.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.titlesize": 7,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so it is there on every machine
    "font.size": 7,
    "hatch.linewidth": 0.4,
    "legend.fontsize": 6.5,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "cxr_fast",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.labelsize": 6.5,
    "xtick.major.size": 2,
    "xtick.major.width": 0.6,
    "ytick.labelsize": 6.5,
    "ytick.major.size": 2,
    "ytick.major.width": 0.6,
}

_Function = TypeVar("_Function", bound=Callable[..., Any])


def styled(function: _Function) -> _Function:
    """Run a function under the style, whatever the process has set."""

    @functools.wraps(function)
    def under_the_style(*arguments: Any, **named: Any) -> Any:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_STYLE)  # type: ignore[arg-type]  # names are literals in the stubs
            return function(*arguments, **named)

    return under_the_style  # type: ignore[return-value]


def sheet(width: float, height: float) -> Figure:
    """A white sheet of so many inches."""
    return Figure(figsize=(width, height), facecolor="white")


def cell(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes in a rectangle that is given in inches from the sheet's upper left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def write(figure: Figure, left: float, top: float, text: str, **style: Any) -> Any:
    """Text whose baseline (or ``va``) is at a place in inches from the upper left corner."""
    across, down = figure.get_size_inches()
    return figure.text(left / across, 1 - top / down, plain(text), **style)


def rule(figure: Figure, left: float, right: float, top: float, width: float) -> None:
    """A horizontal line, ``width`` points wide."""
    across, down = figure.get_size_inches()
    line = Line2D(
        [left / across, right / across], [1 - top / down] * 2, color=INK, linewidth=width
    )  # fmt: skip
    figure.add_artist(line)


def widest(texts: Sequence[str], **style: Any) -> float:
    """The width in inches of the widest of some texts."""
    figure = sheet(1, 1)
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    boxes = [figure.text(0, 0, plain(text), **style).get_window_extent(renderer) for text in texts]
    return max((float(box.width) for box in boxes), default=0.0) / figure.dpi


def rim(width: float) -> list[Any]:
    """A dark rim of ``width`` points around a line or a text that lies on a picture."""
    return [Stroke(linewidth=width, foreground="black"), Normal()]


def corner_note(figure: Figure, note: str) -> None:
    """What a reader must know before he believes the figure, in its lower right corner."""
    if note:
        across, _ = figure.get_size_inches()
        write(figure, across - 0.04, figure.get_size_inches()[1] - 0.04, note, ha="right",
              va="bottom", fontsize=6.5, style="italic")  # fmt: skip


def plain(text: str) -> str:
    """The text without characters that no font has and no XML may hold."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def lightness(count: int) -> list[tuple[float, float, float]]:
    """So many colours from dark to light, of viridis without its pale end."""
    return [
        matplotlib.colormaps["viridis"](x)[:3] for x in np.linspace(0.05, 0.74, max(count, 2))[:count]
    ]


@styled
def save(figure: Figure, path: str | Path, dpi: int = 300) -> None:
    """Write a figure as the name ends, whole or not at all; ``dpi`` is for PNG.

    ValueError for another ending, OSError where it cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise ValueError(f"expected a file ending in {', '.join(SUFFIXES)}, got {target}; rename it")
    kind = target.suffix.lower()[1:]
    undated: dict[str, Any] = {
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
    }[kind]
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=dpi, metadata=undated)
    write_whole(target, content.getvalue())
