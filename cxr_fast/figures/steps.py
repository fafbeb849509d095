"""The paper's Fig. 2: a row an image and class, with what attention saw at each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cxr_fast.archive.overlays import MinedClass, Truth, coloured, eight_bit, ramp
from cxr_fast.figures import canvas
from cxr_fast.figures.canvas import MINED, TRUE, WIDTHS, Axes, Columns, Figure, Line2D, Rectangle

# Inches, and pixels of a panel's longer side: more than its width prints at 600 dots an inch.
_GAP, _EDGE, _HEAD, _CAPTION, _FOOT, _LINE = 0.05, 0.03, 0.17, 0.17, 0.3, 0.14
_PIXELS = 720
_DASHED = (0, (3, 1.6))


class StepsRow(NamedTuple):
    """A row of the figure: a caption, the image [H, W], what was mined of it, the true boxes."""

    caption: str
    image: NDArray[np.uint8] | NDArray[np.uint16]
    mined: MinedClass
    truth: Sequence[Truth]


@canvas.styled
def draw_steps(rows: Sequence[StepsRow], columns: Columns = "two", note: str = "") -> Figure:
    """The image with true and mined boxes, the normalised CAM of each step, the aggregated heatmap.

    Pixels that earlier steps erased are not coloured. ``note`` stands in the lower right corner.
    ValueError without rows.
    """
    if not rows:
        raise ValueError("expected a row or more to draw, got none; name an image and a class")
    steps = max(len(row.mined.steps) for row in rows)
    heads = ["boxes", *(f"$t$ = {t}" for t in range(1, steps + 1)), "aggregated"]
    width = WIDTHS[columns]
    side = (width - 2 * _EDGE - (len(heads) - 1) * _GAP) / len(heads)
    # As wide as the panels where no taller than twice that.
    heights = [side * min(2.0, row.image.shape[0] / row.image.shape[1]) for row in rows]
    narrow = columns == "one"
    foot = _FOOT + (1.2 * _LINE if narrow else 0) + (_LINE if note else 0)
    figure = canvas.sheet(width, _HEAD + sum(heights) + _CAPTION * len(rows) + foot)
    for column, head in enumerate(heads):
        middle = _EDGE + column * (side + _GAP) + side / 2
        canvas.write(figure, middle, 0.13, head, ha="center", parse_math=head.startswith("$"))
    top = _HEAD
    for row, height in zip(rows, heights, strict=True):
        canvas.write(figure, _EDGE, top + 0.12, row.caption)
        top += _CAPTION
        _draw_row(figure, row, top, side, height, steps, 0.7 if narrow else 1.0)
        top += height
    _draw_foot(figure, top + 0.06, narrow, any(row.truth for row in rows))
    canvas.corner_note(figure, note)
    return figure


def _draw_row(
    figure: Figure,
    row: StepsRow,
    top: float,
    side: float,
    height: float,
    steps: int,
    line: float,
) -> None:
    down, across = row.image.shape
    scale = min(1.0, _PIXELS / max(down, across))
    size = max(1, round(across * scale)), max(1, round(down * scale))
    grey = Image.fromarray(eight_bit(row.image)).resize(size, Image.Resampling.BOX)
    panels = [
        grey.convert("RGB"),
        *(coloured(grey, values) for values in row.mined.steps),
        *[None] * (steps - len(row.mined.steps)),
        coloured(grey, row.mined.heatmap),
    ]
    for column, panel in enumerate(panels):
        if panel is None:
            continue
        axes = canvas.cell(figure, _EDGE + column * (side + _GAP), top, side, height)
        axes.imshow(
            np.asarray(panel), extent=(0, across, down, 0), interpolation="none", aspect="equal"
        )
        axes.set_axis_off()
        if column in (0, len(panels) - 1):
            for box in row.mined.boxes.tolist():
                _draw_box(axes, box, MINED, "solid", line)
        if column == 0:
            for true in row.truth:
                _draw_box(axes, true.box, TRUE, _DASHED, line)


def _draw_box(axes: Axes, box: Sequence[float], colour: str, dashes: Any, line: float) -> None:
    """A box with a dark rim; ``line`` is its width in points."""
    x1, y1, x2, y2 = box
    rim = canvas.rim(1.9 * line)
    # A box at the image's edge keeps its whole line.
    drawn = Rectangle(
        (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linestyle=dashes, linewidth=line,
        path_effects=rim, clip_on=False,
    )  # fmt: skip
    axes.add_patch(drawn)


def _draw_foot(figure: Figure, top: float, narrow: bool, true: bool) -> None:
    """The scale of the colours, and what the lines are."""
    left, long = 0.08, 0.9
    bar = canvas.cell(figure, left, top, long, 0.07)
    levels = np.linspace(0, 1, 256)
    bar.imshow(ramp(levels)[None] / 255, extent=(0, 1, 0, 1), aspect="auto")
    bar.set_yticks([])
    bar.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    bar.tick_params(pad=1.5, labelsize=6)
    canvas.write(figure, left + long + 0.1, top + 0.07, "attention, in its step's range", fontsize=6.5)
    told = "uncoloured: erased by earlier steps"
    canvas.write(figure, left + long + 0.1, top + 0.18, told, fontsize=6.5)
    lines = [Line2D([], [], color=MINED, linewidth=1.3, path_effects=canvas.rim(2.3))]
    names = ["mined box"]
    if true:
        dashed = Line2D([], [], color=TRUE, linewidth=1.3, linestyle=_DASHED)
        dashed.set_path_effects(canvas.rim(2.3))
        lines.append(dashed)
        names.append("true box")
    width, height = figure.get_size_inches()
    across = 0.08 / width if narrow else 1 - _EDGE / width
    at = (across, 1 - (top + (0.24 if narrow else -0.02)) / height)
    figure.legend(
        lines, names, loc="upper left" if narrow else "upper right", bbox_to_anchor=at, ncols=2,
        frameon=False, borderpad=0, borderaxespad=0, handlelength=2.2, columnspacing=1.2,
    )  # fmt: skip
