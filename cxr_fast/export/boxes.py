"""Boxes in a graph, those of ``reference.heatmap_boxes`` and ``mining.mine_regions``.

There is no list of components in it: how many there are is known only when the graph runs, and
TensorRT has no operator for what would list them (NonZero, Unique, scattering a maximum). A component
stands at its first pixel instead, whose number spreads to all of its pixels as ``steps.grow`` spreads
a region; ranking and suppression choose among pixels. Boxes are measured for eight components of a map
at a time, in a loop until none is left.

Means over boxes come from sums in int64 of the heatmap in fixed point: exact, in whatever order a
runtime adds, so that equal means are equal scores and ties fall as the reference lets them.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np

from cxr_fast.config import MiningSettings
from cxr_fast.export.graph import FLOAT, INT32, INT64, Graph, Value
from cxr_fast.export.grid import Grid
from cxr_fast.export.steps import FAR, Steps, first_peak, grow, usable_maps

# Of heatmaps whose size is not known when the graph is written, bits behind the point.
_BITS = 40
_MOST_BITS = 48
# Components of a map that are measured at once.
_AT_A_TIME = 8


class Boxes(NamedTuple):
    """``boxes`` [N, C, K, 4] and ``scores`` [N, C, K] float32, ``counts`` [N, C] int32."""

    boxes: Value
    scores: Value
    counts: Value


class _Candidates(NamedTuple):
    """[N, C, P] each, float32, ``valid`` bool; ``edges`` are x1, y1, x2, y2."""

    valid: Value
    edges: tuple[Value, Value, Value, Value]
    score: Value


def region_boxes(g: Graph, steps: Steps, grid: Grid, image_size: Value) -> Boxes:
    """A box around what each step erased: ``mining.mine_regions``. image_size [N or 1, 2] float32."""
    first_lo, first_hi = steps.extents[0]
    tiny = g.floats(np.finfo(np.float32).tiny)
    first = g.op("Max", g.op("Sub", first_hi, first_lo), tiny)
    boxes, scores, exists = [], [], []
    for region, (_, hi) in zip(steps.regions, steps.extents, strict=True):
        any_pixel = g.any(region, 2, 3)
        share = g.op("Div", g.op("Sub", hi, first_lo), first)
        scores.append(g.op("Where", any_pixel, share, g.floats(0.0)))
        exists.append(any_pixel)
        edges = [g.op("Unsqueeze", e, g.ints([2])) for e in _edges(g, _greatest(g, region, grid), grid)]
        box = g.op("Concat", *_in_pixels(g, edges, grid, image_size), axis=2)
        boxes.append(g.op("Mul", box, _flat(g, g.cast(any_pixel, FLOAT))))
    return _padded(g, boxes, [_flat(g, s) for s in scores], [_flat(g, e) for e in exists])


def heatmap_boxes(
    g: Graph, heatmap: Value, grid: Grid, classes: int, settings: MiningSettings, image_size: Value
) -> Boxes:
    """The best boxes of heatmap [N, C, H, W]: ``reference.heatmap_boxes``."""
    with g.scope("normalise"):
        _, h = usable_maps(g, heatmap)
        lo, hi = g.reduce("ReduceMin", h, 2, 3), g.reduce("ReduceMax", h, 2, 3)
        varies = g.op("Greater", hi, lo)
        spread = g.op("Where", varies, g.op("Sub", hi, lo), g.floats(1.0))
        h = g.op("Where", varies, g.op("Div", g.op("Sub", h, lo), spread), g.floats(0.0))
    with g.scope("upsample"):
        h, grid = _upsampled(g, h, grid, settings.upsample)
    with g.scope("components"):
        valid, edges = _component_edges(g, h, grid, classes, settings)
    with g.scope("score"):
        score = _means(g, h, grid, edges)
    return _best(g, _Candidates(valid, edges, score), grid, settings, image_size)


def _upsampled(g: Graph, h: Value, grid: Grid, factor: int) -> tuple[Value, Grid]:
    """``reference.upsample_bilinear``: along x, then along y, each as a + w * (b - a).

    The centre of output i = q * factor + p lies at q + (p + 0.5) / factor - 0.5. Beyond an edge both
    neighbours are its pixel, where the reference has a weight of 0; the same value.
    """
    if factor == 1:
        return h, grid
    for axis, side in ((3, grid.width), (2, grid.height)):
        offset = (np.arange(factor, dtype=np.float64) + 0.5) / factor - 0.5
        weight = (offset - np.floor(offset)).astype(np.float32)
        output = grid.count(g.op("Mul", side, g.floats(factor)))
        q = g.op("Floor", g.op("Div", g.op("Add", output, g.floats(0.5)), g.floats(factor)))
        p = g.cast(g.op("Sub", output, g.op("Mul", q, g.floats(factor))), INT64)
        a = g.op("Add", q, g.op("Gather", g.floats(np.floor(offset)), p, axis=0))
        last = g.op("Sub", side, g.floats(1.0))
        ends = [
            g.op(
                "Gather", h, g.cast(g.op("Max", g.op("Min", at, last), g.floats(0.0)), INT64), axis=axis
            )
            for at in (a, g.op("Add", a, g.floats(1.0)))
        ]
        w = g.op("Gather", g.floats(weight), p, axis=0)
        w = w if axis == 3 else g.op("Unsqueeze", w, g.ints([1]))
        h = g.op("Add", ends[0], g.op("Mul", w, g.op("Sub", ends[1], ends[0])))
    size = (grid.size[0] * factor, grid.size[1] * factor) if grid.size else None
    return h, Grid(g, h, size)


def _component_edges(
    g: Graph, h: Value, grid: Grid, classes: int, settings: MiningSettings
) -> tuple[Value, tuple[Value, Value, Value, Value]]:
    """Which of P candidates a map are boxes, [N, C, P] bool, and x1, y1, x2, y2 [N, C, P] of each.

    P is a pixel at a threshold (``components``) or a threshold (``peak``).
    """
    count = len(settings.thresholds)
    channels = np.repeat(np.arange(classes), count)  # class by class, its thresholds
    cuts = g.floats(np.tile(settings.thresholds, classes).reshape(1, -1, 1, 1))
    repeated = g.op("Gather", h, g.ints(channels), axis=1)
    mask = g.cast(g.op("GreaterOrEqual", repeated, cuts), FLOAT)
    if settings.select == "peak":
        top = g.reduce("ReduceMax", h, 2, 3)
        peak = g.op("Gather", first_peak(g, g.op("Equal", h, top), grid), g.ints(channels), axis=1)
        mask = grow(g, g.op("Mul", peak, mask), mask, grid, settings.connectivity)
        parts = _edges(g, _greatest(g, mask, grid), grid)
        valid = g.any(mask, 2, 3)
    else:
        first, number = _numbered(g, mask, grid, settings.connectivity)
        parts = _edges(g, _greatest_of_each(g, number, grid), grid)
        valid = g.op("Greater", first, g.floats(0.5))
    to_candidates = g.ints([0, classes, -1])
    x1, y1, x2, y2 = (g.op("Reshape", part, to_candidates) for part in parts)
    return g.op("Reshape", valid, to_candidates), (x1, y1, x2, y2)


def _numbered(g: Graph, mask: Value, grid: Grid, connectivity: int) -> tuple[Value, Value]:
    """Components of mask [N, B, H, W]: 1 at their first pixels, and 1 to n, row-major, at all of them.

    Both float32, 0 elsewhere.
    """
    key = g.op("Mul", g.op("Sub", grid.area, grid.position), mask)  # the first pixel has the greatest
    label = grow(g, key, mask, grid, connectivity)
    first = g.op("Mul", g.cast(g.op("Equal", label, key), FLOAT), mask)
    flat = g.ints([0, 0, -1])
    rank = g.op("CumSum", g.op("Reshape", first, flat), g.ints(2))
    # Of background the label is 0, and its place beyond the end: any other will do.
    place = g.op("Sub", grid.area, g.op("Max", g.op("Reshape", label, flat), g.floats(1.0)))
    number = g.op("GatherElements", rank, g.cast(place, INT64), axis=2)
    return first, g.op("Mul", g.op("Reshape", number, g.op("Shape", mask)), mask)


def _greatest_of_each(g: Graph, number: Value, grid: Grid) -> list[Value]:
    """What ``_greatest`` gives of each pixel's component, by its number [N, B, H, W]: [N, B, 1, HW]."""
    flat = g.ints([0, 0, _AT_A_TIME, -1])
    expanded = g.op("Unsqueeze", number, g.ints([2]))
    most = g.reduce("ReduceMax", number, 0, 1, 2, 3, keepdims=False)
    numbers = g.floats(np.arange(1, _AT_A_TIME + 1).reshape(1, 1, -1, 1, 1))

    def body(done: Value, sums: Value) -> tuple[Value, list[Value]]:
        pixels = g.cast(g.op("Equal", expanded, g.op("Add", numbers, done)), FLOAT)
        greatest = [g.op("Unsqueeze", part, g.ints([2])) for part in _greatest(g, pixels, grid)]
        # [N, B, 4, 8] x [N, B, 8, HW]: one of the eight at each pixel, or none.
        spread = g.op("MatMul", g.op("Concat", *greatest, axis=2), g.op("Reshape", pixels, flat))
        done = g.op("Add", done, g.floats(_AT_A_TIME))
        return g.op("Less", done, most), [done, g.op("Add", sums, spread)]

    pixels = g.op("Reshape", number, g.ints([0, 0, 1, -1]))
    sums = g.op("Mul", g.op("Concat", pixels, pixels, pixels, pixels, axis=2), g.floats(0.0))
    _, sums = g.loop([g.floats(0.0), sums], body)
    return [g.op("Slice", sums, *map(g.ints, ([i], [i + 1], [2]))) for i in range(4)]


def _greatest(g: Graph, pixels: Value, grid: Grid) -> list[Value]:
    """Greatest W - x, H - y, x + 1, y + 1, [...] each, of the pixels that are 1 in maps [..., H, W]."""
    columns, rows = (
        g.reduce("ReduceMax", pixels, -2, keepdims=False),
        g.reduce("ReduceMax", pixels, -1, keepdims=False),
    )
    (right, left), (bottom, top) = grid.column_numbers, grid.row_numbers
    ordered = ((columns, right), (rows, bottom), (columns, left), (rows, top))
    return [
        g.reduce("ReduceMax", g.op("Mul", line, numbers), -1, keepdims=False)
        for line, numbers in ordered
    ]


def _edges(g: Graph, greatest: list[Value], grid: Grid) -> list[Value]:
    """x1, y1, x2, y2 of what ``_greatest`` gives."""
    x1 = g.op("Sub", grid.width, greatest[0])
    y1 = g.op("Sub", grid.height, greatest[1])
    return [x1, y1, greatest[2], greatest[3]]


def _means(g: Graph, h: Value, grid: Grid, edges: tuple[Value, Value, Value, Value]) -> Value:
    """Means of h [N, C, H, W], from 0 to 1, over boxes [N, C, P], rounded to float32 once."""
    bits = _BITS
    if grid.size:
        bits = min(_MOST_BITS, 62 - math.ceil(math.log2(math.prod(grid.size))))
    padded = g.op("Pad", h, g.ints([0, 0, 1, 1, 0, 0, 0, 0]), g.floats(0.0))
    fixed = g.cast(g.op("Mul", padded, g.floats(2.0**bits)), INT64)
    sums = g.op("CumSum", g.op("CumSum", fixed, g.ints(3)), g.ints(2))
    sums = g.op("Reshape", sums, g.ints([0, 0, -1]))
    row = g.op("Add", grid.width, g.floats(1.0))

    def up_to(x: Value, y: Value) -> Value:
        place = g.cast(g.op("Add", g.op("Mul", y, row), x), INT64)
        gathered: Value = g.op("GatherElements", sums, place, axis=2)
        return gathered

    x1, y1, x2, y2 = edges
    below = g.op("Sub", up_to(x2, y2), up_to(x1, y2))
    total = g.op("Sub", below, g.op("Sub", up_to(x2, y1), up_to(x1, y1)))
    mean = g.cast(g.op("Div", total, g.cast(_area(g, edges), INT64)), FLOAT)
    scaled: Value = g.op("Mul", mean, g.floats(2.0**-bits))
    return scaled


def _area(g: Graph, edges: tuple[Value, Value, Value, Value]) -> Value:
    x1, y1, x2, y2 = edges
    area: Value = g.op("Mul", g.op("Sub", x2, x1), g.op("Sub", y2, y1))
    return area


def _best(
    g: Graph, found: _Candidates, grid: Grid, settings: MiningSettings, image_size: Value
) -> Boxes:
    """Greedy: the best of what is left, ``max_boxes`` times, each without what overlaps it too much.

    Ranked by (score, area) downwards, then by (y1, x1) and (y2, x2) upwards.
    """
    x1, y1, x2, y2 = found.edges
    area = _area(g, found.edges)
    row = g.op("Add", grid.width, g.floats(1.0))
    first = g.op("Add", g.op("Mul", y1, row), x1)
    last = g.op("Add", g.op("Mul", y2, row), x2)
    valid = found.valid
    keys = [(found.score, 1), (area, 1), (first, -1), (last, -1)]
    if settings.max_overlap >= 1:  # equal boxes are all kept, one at a time
        keys.append((g.op("CumSum", g.cast(valid, FLOAT), g.ints(2)), -1))
    boxes, scores, exists = [], [], []
    for rank in range(1, settings.max_boxes + 1):
        with g.scope(f"rank{rank}"):
            best, chosen = valid, {}
            for key, direction in keys:
                worst = g.floats(-1.0 if direction == 1 else FAR)
                kind = "ReduceMax" if direction == 1 else "ReduceMin"
                chosen[key] = g.reduce(kind, g.op("Where", best, key, worst), 2)
                best = g.op("And", best, g.op("Equal", key, chosen[key]))
            score = chosen[found.score]
            any_left = g.op("GreaterOrEqual", score, g.floats(0.0))
            box = [
                g.reduce("ReduceMax", g.op("Where", best, edge, g.floats(0.0)), 2)
                for edge in found.edges
            ]
            boxes.append(g.op("Concat", *_in_pixels(g, box, grid, image_size), axis=2))
            scores.append(g.op("Where", any_left, score, g.floats(0.0)))
            exists.append(any_left)
            if rank < settings.max_boxes:
                valid = g.op("And", valid, g.op("Not", best))
                shared = g.op(
                    "Mul", _shared(g, x1, x2, box[0], box[2]), _shared(g, y1, y2, box[1], box[3])
                )
                joint = g.op("Sub", g.op("Add", area, chosen[area]), shared)
                most = most_shared(g, settings.max_overlap, joint, grid.size)
                overlaps = g.op("Greater", shared, most)
                valid = g.op("And", valid, g.op("Not", overlaps))
    return _padded(g, boxes, scores, exists)


def _shared(g: Graph, begin: Value, end: Value, other_begin: Value, other_end: Value) -> Value:
    """How much of an axis two intervals share."""
    length = g.op("Sub", g.op("Min", end, other_end), g.op("Max", begin, other_begin))
    shared: Value = g.op("Max", length, g.floats(0.0))
    return shared


def most_shared(g: Graph, max_overlap: float, joint: Value, size: tuple[int, int] | None) -> Value:
    """How many pixels boxes may share whose union is ``joint`` pixels, [...] float32.

    shared > max_overlap * joint is a question of the product's floor, and whether 0.7 * 90 in float64
    reaches 63 is no question for float32: where the products differ for any union on maps of ``size``,
    a table answers. On maps of any size there is none, and boxes that overlap by exactly
    ``max_overlap`` may fall either way, unless it is a short binary fraction such as 0.5.
    """
    unions = np.arange(math.prod(size) + 1 if size else 2**20)
    floors = np.floor(max_overlap * unions.astype(np.float64)).astype(np.float32)
    factor = np.float32(max_overlap)
    most: Value
    if size is None or np.array_equal(np.floor(factor * unions.astype(np.float32)), floors):
        most = g.op("Mul", g.floats(factor), joint)
    else:
        # Unions with what is no candidate may have any size.
        row = g.op("Min", g.op("Max", joint, g.floats(0.0)), g.floats(unions[-1]))
        most = g.op("Gather", g.floats(floors), g.cast(row, INT64), axis=0)
    return most


def _in_pixels(g: Graph, edges: list[Value], grid: Grid, image_size: Value) -> list[Value]:
    """x1, y1, x2, y2 [N, C, 1] of cells -> [N, C, 1] of the image's pixels."""
    scaled = []
    for edge, (axis, side) in zip(
        edges, itertools.cycle([(1, grid.width), (0, grid.height)]), strict=False
    ):
        image_side = g.op("Slice", image_size, *map(g.ints, ([axis], [axis + 1], [1])))
        image_side = g.op("Unsqueeze", image_side, g.ints([2]))
        scaled.append(g.op("Div", g.op("Mul", edge, image_side), side))
    return scaled


def _flat(g: Graph, x: Value) -> Value:
    """[N, C, 1, 1] -> [N, C, 1]."""
    flat: Value = g.op("Squeeze", x, g.ints([3]))
    return flat


def _padded(g: Graph, boxes: list[Value], scores: list[Value], exists: list[Value]) -> Boxes:
    """Of K boxes [N, C, 4], scores [N, C, 1] and whether each is one, [N, C, 1] bool."""
    stacked = g.op("Concat", *(g.op("Unsqueeze", box, g.ints([2])) for box in boxes), axis=2)
    number = [g.cast(e, FLOAT) for e in exists]
    count = g.reduce("ReduceSum", g.op("Concat", *number, axis=2), 2, keepdims=False)
    return Boxes(stacked, g.op("Concat", *scores, axis=2), g.cast(count, INT32))
