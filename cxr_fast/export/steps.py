"""The mining steps in a graph (Sec. 3.2 and Eq. 8), operation by operation those of ``reference.py``.

Float32, every operation rounded by itself, in the reference's order, so that equal CAM bits erase equal
pixels. Numbers that are not finite are kept out of everything but the last choice: reductions of
different runtimes disagree on what the greatest of a NaN and a number is.

A component is grown from its peak by 3x3 maxima under a mask until a round changes nothing. That takes
as many maxima as its longest way is long: 10 to 80 on real maps of 32 x 32, over 500 on a snake. Large
maps also grow by blocks of 2 x 2 pixels that lie within the mask, which halves their time. Tried
against it: pointer jumping and runs filled by cumulative sums need fewer rounds, but one gather of 14
maps takes 11 us of a core and one cumulative sum 23 us, where a maximum takes 6.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from cxr_fast.config import MiningSettings
from cxr_fast.export.graph import BOOL, FLOAT, Graph, Value
from cxr_fast.export.grid import Grid

# Above every pixel's number, and above every finite value.
FAR = float(2**30)
LARGEST = float(np.finfo(np.float32).max)
# Maxima between two looks at whether anything changed, of pixels and of blocks.
_FINE_ROUNDS, _COARSE_ROUNDS = 8, 16
# Maps of as many pixels are worth a look at blocks of 2 x 2.
_LARGE = 48 * 48
_BLOCK = 2


class Steps(NamedTuple):
    """What the steps gave, all float32.

    ``regions``: T maps [N, C, H, W], 1 where that step erases; ``extents``: T pairs (lo, hi)
    [N, C, 1, 1]; ``heatmap`` [N, C, H, W]; ``minable`` [N, C, 1, 1] bool.
    """

    regions: list[Value]
    extents: list[tuple[Value, Value]]
    heatmap: Value
    minable: Value


def grow(g: Graph, seed: Value, mask: Value, grid: Grid, connectivity: int) -> Value:
    """Spread ``seed`` through ``mask``: each pixel's value becomes the greatest of its component.

    [N, B, H, W] both; seed at least 0, and 0 outside the mask, which is 0 or 1.
    """

    def spread(values: Value, within: Value, rounds: int) -> Value:
        for _ in range(rounds):
            values = g.op("Mul", _greatest_neighbour(g, values, connectivity), within)
        return values

    def body(before: Value) -> tuple[Value, list[Value]]:
        if blocks is None:
            values = spread(before, mask, _FINE_ROUNDS)
        else:
            values = spread(before, mask, _FINE_ROUNDS // 4)
            coarse = g.op("Mul", _greatest_of_blocks(g, values), blocks)
            coarse = spread(coarse, blocks, _COARSE_ROUNDS)
            values = g.op("Max", values, _enlarged(g, coarse, grid))
            values = spread(values, mask, _FINE_ROUNDS // 2)
        change = g.op("Sub", values, before)
        changed = g.reduce("ReduceMax", change, 0, 1, 2, 3, keepdims=False)
        return g.op("Greater", changed, g.floats(0.0)), [values]

    blocks = None
    if grid.size is None or math.prod(grid.size) >= _LARGE:
        # A block within the mask is connected, and so are two that touch.
        holes = g.op("Sub", g.floats(1.0), mask)
        blocks = g.op("Sub", g.floats(1.0), _greatest_of_blocks(g, holes))
    return g.loop([seed], body)[0]


def _greatest_of_blocks(g: Graph, x: Value) -> Value:
    """[N, B, H, W] -> [N, B, ceil(H / 2), ceil(W / 2)]."""
    greatest: Value = g.op("MaxPool", x, kernel_shape=[_BLOCK] * 2, strides=[_BLOCK] * 2, ceil_mode=1)
    return greatest


def _enlarged(g: Graph, coarse: Value, grid: Grid) -> Value:
    """Undo the shrinking of ``_greatest_of_blocks``: each pixel the value of its block."""
    scales = g.floats([1, 1, _BLOCK, _BLOCK])
    fine: Value = g.op(
        "Resize",
        coarse,
        "",
        scales,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    if grid.size and not any(side % _BLOCK for side in grid.size):
        return fine
    cropped: Value = g.op("Slice", fine, g.ints([0, 0]), grid.sides, g.ints([2, 3]))
    return cropped


def _greatest_neighbour(g: Graph, x: Value, connectivity: int) -> Value:
    greatest: Value
    if connectivity == 8:
        greatest = g.op("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    else:
        row = g.op("MaxPool", x, kernel_shape=[1, 3], pads=[0, 1, 0, 1])
        column = g.op("MaxPool", x, kernel_shape=[3, 1], pads=[1, 0, 1, 0])
        greatest = g.op("Max", row, column)
    return greatest


def is_finite(g: Graph, x: Value) -> Value:
    """Neither NaN nor an infinity; bool."""
    finite: Value = g.op("LessOrEqual", g.op("Abs", x), g.floats(LARGEST))
    return finite


def usable_maps(g: Graph, maps: Value) -> tuple[Value, Value]:
    """Which maps [N, C, H, W] are finite, their range too, [N, C, 1, 1]; and maps with 0 for others."""
    finite = g.cast(is_finite(g, maps), FLOAT)
    whole = g.op("Greater", g.reduce("ReduceMin", finite, 2, 3), g.floats(0.5))
    cleaned = g.op("Where", whole, maps, g.floats(0.0))
    spread = g.op("Sub", g.reduce("ReduceMax", cleaned, 2, 3), g.reduce("ReduceMin", cleaned, 2, 3))
    usable = g.op("And", whole, is_finite(g, spread))
    return usable, g.op("Where", usable, cleaned, g.floats(0.0))


def first_peak(g: Graph, is_peak: Value, grid: Grid) -> Value:
    """1 at the first pixel, row-major, of those that ``is_peak`` [N, C, H, W] bool, else 0; float32."""
    place = g.op("Where", is_peak, grid.position, g.floats(FAR))
    first = g.reduce("ReduceMin", place, 2, 3)
    return g.cast(g.op("Equal", place, first), FLOAT)


def mine(g: Graph, cam: Value, grid: Grid, settings: MiningSettings) -> Steps:
    """Erase the component of the peak T times from cam [N, C, H, W], and aggregate the steps."""
    minable, h = usable_maps(g, cam)
    alive = g.cast(g.op("Add", g.op("Mul", h, g.floats(0.0)), g.floats(1.0)), BOOL)
    regions, extents = [], []
    held = total = None
    for t in range(1, settings.steps + 1):
        with g.scope(f"step{t}"):
            lo = g.reduce("ReduceMin", g.op("Where", alive, h, g.floats(LARGEST)), 2, 3)
            hi = g.reduce("ReduceMax", g.op("Where", alive, h, g.floats(-LARGEST)), 2, 3)
            any_alive = g.op("GreaterOrEqual", hi, lo)
            lo = g.op("Where", any_alive, lo, g.floats(0.0))
            hi = g.op("Where", any_alive, hi, g.floats(0.0))
            varies = g.op("Greater", hi, lo)
            spread = g.op("Sub", hi, lo)
            cut = g.op("Add", lo, g.op("Mul", g.floats(settings.cam_threshold), spread))
            candidates = g.op("And", alive, varies)
            foreground = g.op("And", candidates, g.op("GreaterOrEqual", h, cut))
            mask = g.cast(foreground, FLOAT)
            seed = first_peak(g, g.op("And", candidates, g.op("Equal", h, hi)), grid)
            region = grow(g, g.op("Mul", seed, mask), mask, grid, settings.connectivity)
            value = h if settings.mode == "raw" else _normalised(g, h, lo, spread, varies)
            held = value if held is None else g.op("Where", alive, value, held)
            total = held if total is None else g.op("Add", total, held)
            alive = g.op("And", alive, g.op("Less", region, g.floats(0.5)))
            regions.append(region)
            extents.append((lo, hi))
    assert total is not None
    mean = g.op("Div", total, g.floats(settings.steps))
    heatmap = g.op("Where", minable, mean, g.floats(np.nan))
    return Steps(regions, extents, heatmap, minable)


def _normalised(g: Graph, h: Value, lo: Value, spread: Value, varies: Value) -> Value:
    """(h - lo) / (hi - lo), 0 where these are equal."""
    divisor = g.op("Where", varies, spread, g.floats(1.0))
    fraction = g.op("Div", g.op("Sub", h, lo), divisor)
    normalised: Value = g.op("Where", varies, fraction, g.floats(0.0))
    return normalised


def erased_at(g: Graph, regions: list[Value]) -> Value:
    """The step that erases each pixel, from 1, or 0; float32 [N, C, H, W]."""
    erased = regions[0]
    for t, region in enumerate(regions[1:], 2):
        erased = g.op("Add", erased, g.op("Mul", region, g.floats(float(t))))
    return erased
