"""A drawn chest: the attenuation of a frontal view, and where its lungs and heart are.

All geometry is in relative units: x to the right of the picture, y down, both 0..1. A patient's
left is the picture's right. A ``side`` is -1 (picture left, the patient's right) or +1.

Outlines are drawn in a raster at least as fine as the working grid and then brought to it, so that
a picture is the same at every resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Map = npt.NDArray[np.floating[Any]]
F64 = npt.NDArray[np.float64]
Draw = Callable[[ImageDraw.ImageDraw, int], None]

SIDES = (-1, 1)
# Outlines are drawn in a raster at least this fine.
_RASTER = 256
_BILINEAR = Image.Resampling.BILINEAR

# Right lung: distance from the midline, y. From the apex down the mediastinum, over the dome, into
# the costophrenic angle (twice: a corner), and up the chest wall.
# fmt: off
_LUNG = np.array([
    (0.130, 0.100), (0.070, 0.140), (0.048, 0.230), (0.045, 0.360), (0.048, 0.500), (0.055, 0.610),
    (0.075, 0.668), (0.150, 0.652), (0.225, 0.650), (0.295, 0.680), (0.348, 0.748),
    (0.362, 0.775), (0.362, 0.775),
    (0.378, 0.690), (0.380, 0.570), (0.366, 0.430), (0.334, 0.300), (0.280, 0.195), (0.205, 0.122),
])
# fmt: on
_DOME = slice(6, 10)
_WALL = slice(12, 19)

# Heart in its own box, from the top of the left border round the apex and up the right atrium.
# fmt: off
_HEART = np.array([
    (0.34, 0.00), (0.52, 0.03), (0.66, 0.15), (0.80, 0.34), (0.92, 0.56), (0.99, 0.77),
    (0.97, 0.92), (0.85, 0.99), (0.52, 1.00), (0.20, 0.99), (0.06, 0.88), (0.00, 0.66),
    (0.04, 0.42), (0.14, 0.18),
])
# fmt: on

_ANGLES = np.linspace(0, 2 * np.pi, 36, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


@dataclass(frozen=True)
class Body:
    """What differs between patients (and, by position, between a patient's images)."""

    female: bool = False
    width: float = 1.0  # of the chest
    inspiration: float = 1.0  # height of the lungs
    dome: float = 0.0  # how much higher the diaphragm stands, relative units
    heart_ratio: float = 0.45  # cardiothoracic ratio
    heart_height: float = 0.28
    fat: float = 0.5  # 0..1
    vessels: float = 1.0  # strength of the lung markings
    bones: float = 1.0
    bubble: float = 0.0  # size of the gastric bubble; 0: none
    shape_seed: int = 0
    scale: float = 1.0
    shift_x: float = 0.0
    shift_y: float = 0.0
    tilt: float = 0.0  # radians


@dataclass(frozen=True)
class Chest:
    """The maps that findings are planted into, each float32 ``[grid, grid]``.

    ``attenuation`` is 0 (air) to about 1. ``lungs`` are the two lung fields (picture left, right),
    ``aerated`` the part of them that is not hidden by heart and mediastinum. ``markings`` is what
    the vessels add to ``attenuation``.
    """

    attenuation: Map
    lungs: tuple[Map, Map]
    aerated: Map
    markings: Map


def draw_body(generator: np.random.Generator, female: bool) -> Body:
    """A patient's anatomy."""
    uniform = generator.uniform
    return Body(
        female=female,
        width=uniform(0.90, 1.06) * (0.97 if female else 1.0),
        inspiration=uniform(0.90, 1.08),
        dome=uniform(-0.015, 0.02),
        heart_ratio=float(np.clip(generator.normal(0.45, 0.022), 0.40, 0.49)),
        heart_height=uniform(0.255, 0.30),
        fat=uniform(0.1, 1.0),
        vessels=uniform(0.75, 1.25),
        bones=uniform(0.75, 1.25),
        bubble=max(0.0, uniform(-0.4, 1.0)),
        shape_seed=int(generator.integers(2**31)),
        scale=uniform(0.95, 1.07),
        shift_x=generator.normal(0, 0.012),
        shift_y=generator.normal(0.02, 0.015),
        tilt=generator.normal(0, 0.018),
    )


def reposition(body: Body, generator: np.random.Generator) -> Body:
    """The same patient on another day: placed a little differently, another breath."""
    return replace(
        body,
        inspiration=body.inspiration * generator.uniform(0.97, 1.02),
        scale=body.scale * generator.uniform(0.98, 1.02),
        shift_x=body.shift_x + generator.normal(0, 0.01),
        shift_y=body.shift_y + generator.normal(0, 0.01),
        tilt=body.tilt + generator.normal(0, 0.01),
    )


def place(points: F64, body: Body) -> F64:
    """Patient coordinates ``[n, 2]`` to picture coordinates."""
    cos, sin = np.cos(body.tilt), np.sin(body.tilt)
    turn = np.array([[cos, sin], [-sin, cos]]) * body.scale
    moved: F64 = (points - 0.5) @ turn + 0.5 + (body.shift_x, body.shift_y)
    return moved


def smooth_outline(points: F64, per_span: int = 8) -> F64:
    """A closed Catmull-Rom curve through ``points [n, 2]``; a point given twice is a corner."""
    t = (np.arange(per_span) / per_span)[:, None, None]
    a, b, c, d = (np.roll(points, shift, axis=0)[None] for shift in (1, 0, -1, -2))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2)
    curve = curve + 0.5 * (3 * b - a - 3 * c + d) * t**3
    flat: F64 = curve.transpose(1, 0, 2).reshape(-1, 2)
    return flat


def lung_outline(body: Body, side: int) -> F64:
    """Outline of a lung ``[n, 2]`` in patient coordinates."""
    points = _LUNG.copy()
    points[:, 0] *= body.width
    points[_DOME, 1] -= body.dome
    if side > 0:
        # The left dome stands lower, and the heart lies on it.
        points[_DOME, 1] += 0.018
        points[:, 0] *= 0.985
    points[:, 1] = 0.11 + (points[:, 1] - 0.11) * body.inspiration
    points[:, 0] = 0.5 + side * points[:, 0]
    return smooth_outline(points)


def normal_heart(body: Body) -> tuple[float, float, float, float]:
    """The box (x, y, w, h) of a heart of normal size, in patient coordinates."""
    width = body.heart_ratio * 2 * 0.375 * body.width
    bottom = 0.11 + (0.702 - body.dome - 0.11) * body.inspiration
    return 0.5 - 0.315 * width, bottom - body.heart_height, width, body.heart_height


def heart_outline(box: tuple[float, float, float, float]) -> F64:
    """Outline of the heart ``[n, 2]`` that fills ``box`` (x, y, w, h)."""
    curve = smooth_outline(_HEART)
    low, high = curve.min(0), curve.max(0)
    outline: F64 = (curve - low) / (high - low) * box[2:] + box[:2]
    return outline


def layer(grid: int, draw: Draw, blur: float = 0.0, finer: int = 1) -> Map:
    """What ``draw`` puts on a raster, as float32 ``[grid, grid]`` in 0..1.

    ``draw`` is called with the canvas and its side in pixels; ``blur`` is the standard deviation of
    a Gaussian in relative units, ``finer`` how many times finer than the grid the raster is.
    """
    raster = finer * max(grid, _RASTER)
    ink = Image.new("L", (raster, raster))
    draw(ImageDraw.Draw(ink), raster)
    # A wide Gaussian is made on a coarser grid, where it is cheap and loses nothing.
    side = grid
    while blur * side > 2.9 and side % 2 == 0:
        side //= 2
    if raster != side:
        whole = raster % side == 0
        ink = ink.reduce(raster // side) if whole else ink.resize((side, side), _BILINEAR)
    sigma = blur * side
    if sigma > 1.2:
        ink = ink.filter(ImageFilter.GaussianBlur(sigma))
    elif sigma > 0.2:
        # A box of the same deviation: at a pixel's width nobody sees the difference, and it is
        # three times faster.
        ink = ink.filter(ImageFilter.BoxBlur(0.5 * (math.sqrt(12 * sigma**2 + 1) - 1)))
    if side != grid:
        ink = ink.resize((grid, grid), _BILINEAR)
    return np.asarray(ink, dtype=np.float32) * np.float32(1 / 255)


def fill_outlines(
    canvas: ImageDraw.ImageDraw, raster: int, body: Body, outlines: Iterable[tuple[F64, int]]
) -> None:
    """Fill outlines given in patient coordinates, each with its value 0..255, in their order."""
    outlines = list(outlines)
    # Placed all at once: a call for each of a chest's hundreds of outlines costs more than drawing.
    points = place(np.concatenate([outline for outline, _ in outlines]), body) * raster
    ends = np.cumsum([len(outline) for outline, _ in outlines])[:-1]
    for part, (_, fill) in zip(np.split(points, ends), outlines, strict=True):
        canvas.polygon(part.ravel().tolist(), fill=fill)


def polygons(body: Body, *outlines: F64) -> Draw:
    """A drawing of filled outlines given in patient coordinates."""

    def draw(canvas: ImageDraw.ImageDraw, raster: int) -> None:
        fill_outlines(canvas, raster, body, [(outline, 255) for outline in outlines])

    return draw


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> F64:
    """An ellipse as an outline ``[n, 2]``."""
    outline: F64 = _CIRCLE * (radius_x, radius_y) + (x, y)
    return outline


def mirrored(points: Sequence[tuple[float, float]], width: float) -> F64:
    """A closed symmetric outline from its right half, given as distances from the midline."""
    half = np.array(points) * (width, 1.0)
    right, left = half * (1, 1) + (0.5, 0), half[::-1] * (-1, 1) + (0.5, 0)
    return np.concatenate([right, left])


def lung_fields(body: Body, grid: int) -> tuple[Map, Map]:
    """The two lung fields (picture left, picture right), float32 ``[grid, grid]`` in 0..1."""
    left, right = (layer(grid, polygons(body, lung_outline(body, side)), blur=0.0022) for side in SIDES)
    return left, right


def hidden_by(body: Body, heart: tuple[float, float, float, float], grid: int) -> tuple[Map, Map]:
    """Heart and mediastinum, each float32 ``[grid, grid]`` in 0..1."""
    width = body.width
    # An enlarged heart leaves the vessels above it where they were.
    top = normal_heart(body)[1]
    # fmt: off
    pedicle = mirrored([
        (0.062, -0.1), (0.056, 0.10), (0.046, 0.17), (0.050, 0.24), (0.056, 0.32),
        (0.062, top + 0.06), (0.060, top + 0.16), (0.040, 0.8),
    ], width)
    # fmt: on
    aortic_knob = ellipse(0.5 + 0.046 * width, 0.285, 0.034, 0.040)
    pulmonary_trunk = ellipse(0.5 + 0.050 * width, 0.37, 0.034, 0.055)
    outlines = polygons(body, pedicle, aortic_knob, pulmonary_trunk)
    return (
        layer(grid, polygons(body, heart_outline(heart)), blur=0.0045),
        layer(grid, outlines, blur=0.006),
    )


def cloud(generator: np.random.Generator, cells: int, grid: tuple[int, int]) -> Map:
    """Smooth random values about 0 with a grain of 1/``cells``, float32 ``[grid]``."""
    coarse = generator.standard_normal((cells, cells), dtype=np.float32)
    shape = (grid[1], grid[0])
    return np.asarray(Image.fromarray(coarse).resize(shape, Image.Resampling.BICUBIC))


def canonical_chest(attenuation: Map) -> Chest:
    """The layout of an average chest laid over a picture ``[grid, grid]`` of someone's."""
    body = Body()
    grid = attenuation.shape[0]
    lungs = lung_fields(body, grid)
    heart, core = hidden_by(body, normal_heart(body), grid)
    blurred = Image.fromarray((attenuation * 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(0.012 * grid)
    )
    markings = attenuation - np.asarray(blurred, dtype=np.float32) / 255
    aerated = np.maximum(*lungs) * (1 - 0.85 * np.maximum(heart, core))
    return Chest(attenuation, lungs, aerated, markings * aerated)
