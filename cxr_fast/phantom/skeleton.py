"""Bones, vessels and airways of the drawn chest, and the chest put together from its parts."""

from __future__ import annotations

import numpy as np
from PIL import ImageDraw

from cxr_fast.phantom.anatomy import (
    F64,
    SIDES,
    Body,
    Chest,
    Map,
    cloud,
    ellipse,
    fill_outlines,
    hidden_by,
    layer,
    lung_fields,
    lung_outline,
    mirrored,
    place,
    polygons,
)


def _normals(path: F64) -> F64:
    along = path[1:] - path[:-1]
    along = np.concatenate([along[:1], along[1:] + along[:-1], along[-1:]])
    length = np.sqrt((along * along).sum(1, keepdims=True)) + 1e-9
    normals: F64 = along[:, ::-1] * (-1, 1) / length
    return normals


def ribbon(path: F64, width: F64) -> F64:
    """The outline of a band along a path ``[n, 2]``; ``width`` is one number or ``[n, 1]``."""
    aside = _normals(path) * (width / 2)
    return np.concatenate([path + aside, (path - aside)[::-1]])


def _bone(path: F64, width: F64) -> list[tuple[F64, int]]:
    # A bone's cortex is denser than its marrow: a bright rim round a less bright core.
    aside = _normals(path) * (width / 2)
    back, back_aside = path[::-1], aside[::-1]
    rim = np.concatenate([path + aside, back - back_aside])
    core = np.concatenate([path + 0.68 * aside, back - 0.68 * back_aside])
    return [(rim, 255), (core, 165)]


def ribs(body: Body, grid: int) -> tuple[Map, Map]:
    """Posterior and anterior arcs of ten pairs of ribs, each float32 ``[grid, grid]`` in 0..1."""
    jitter = np.random.default_rng(body.shape_seed)
    wall = lung_outline(body, -1)
    wall = wall[np.argsort(wall[:, 1])]
    lowest = wall[:, 1]
    slope = jitter.uniform(0.045, 0.070)
    angle = np.linspace(0.06, 0.86, 22) * np.pi
    sweep, swing, tip = np.sin(angle) ** 0.75, np.sin(angle) ** 2, np.cos(angle)
    width = np.linspace(0.017, 0.026, 22)[:, None]
    posterior: list[tuple[F64, int]] = []
    anterior: list[tuple[F64, int]] = []
    for number in range(10):
        top = 0.100 + 0.056 * number * body.inspiration + jitter.normal(0, 0.002)
        # Half the height between the rib's two ends; the side hangs lower than the back by slope.
        reach = 0.060 + 0.012 * min(number, 5)
        near = np.abs(lowest - min(top + reach + slope, lowest[-1] - 0.04)) < 0.03
        out = 0.03 + (0.476 - wall[near, 0].min()) * sweep
        down = top + reach * (1 - tip) + slope * swing
        for side in SIDES:
            path = np.stack([0.5 + side * out, down], axis=1)
            posterior += _bone(path[:13], width[:13])
            anterior += _bone(path[11:], width[11:])

    def arcs(outlines: list[tuple[F64, int]]) -> Map:
        def draw(canvas: ImageDraw.ImageDraw, raster: int) -> None:
            fill_outlines(canvas, raster, body, outlines)

        return layer(grid, draw, blur=0.0014, finer=2)

    return arcs(posterior), arcs(anterior)


def shoulders(body: Body, grid: int) -> Map:
    """Clavicles, scapulae and humeral heads, float32 ``[grid, grid]`` in 0..1."""
    along = np.linspace(0, 1, 16)

    outlines: list[tuple[F64, int]] = []
    # fmt: off
    blade = np.array([
        (0.34, 0.16), (0.44, 0.13), (0.50, 0.18), (0.44, 0.27),
        (0.405, 0.40), (0.385, 0.43), (0.372, 0.36), (0.362, 0.26),
    ])
    # fmt: on
    for side in SIDES:
        outward = np.array([side * body.width, 1])
        outlines.append((blade * outward + (0.5, 0), 70))
        outlines.append((ribbon(blade[4:] * outward + (0.5, 0), np.array(0.006)), 130))
        outlines.append((ellipse(0.5 + side * 0.475 * body.width, 0.175, 0.05, 0.055), 100))
    for side in SIDES:
        out = (0.030 + 0.335 * along) * body.width
        down = 0.190 - 0.080 * along - 0.018 * np.sin(2 * np.pi * along)
        path = np.stack([0.5 + side * out, down], axis=1)
        outlines += _bone(path, 0.024 + 0.010 * np.abs(1 - 2 * along[:, None]))

    def draw(canvas: ImageDraw.ImageDraw, raster: int) -> None:
        fill_outlines(canvas, raster, body, outlines)

    return layer(grid, draw, blur=0.0016, finer=2)


def spine(body: Body, grid: int) -> Map:
    """The column of vertebrae, float32 ``[grid, grid]`` in 0..1."""
    outlines: list[tuple[F64, int]] = []
    top = -0.08
    while top < 1.05:
        # Vertebrae grow from the neck to the loins.
        tall = 0.034 + 0.030 * min(max(top, 0.0), 1.0)
        half = 0.026 + 0.016 * min(max(top, 0.0), 1.0)
        end = top + 0.84 * tall
        outlines += [
            (mirrored([(half * 0.93, top), (half, top + tall)], 1.0), 150),
            (mirrored([(half * 0.95, top), (half, end)], 1.0), 225),
            (mirrored([(half * 0.78, top + 0.006), (half * 0.8, end - 0.006)], 1.0), 190),
            (ellipse(0.5, top + 0.75 * tall, 0.004, 0.010), 250),
        ]
        for side in SIDES:
            outlines.append((ellipse(0.5 + side * 0.6 * half, top + 0.3 * tall, 0.005, 0.007), 255))
        top += tall

    def draw(canvas: ImageDraw.ImageDraw, raster: int) -> None:
        fill_outlines(canvas, raster, body, outlines)

    return layer(grid, draw, blur=0.003)


def vessels(body: Body, grid: int) -> Map:
    """Pulmonary vessels that branch from the two hila, float32 ``[grid, grid]`` in 0..1."""
    generator = np.random.default_rng(body.shape_seed + 1)
    # One row a branch: x, y, direction, width; both lungs are grown at once, level by level.
    start = []
    hila: list[tuple[F64, int]] = []
    for side in SIDES:
        hilum_y = 0.11 + (0.305 if side < 0 else 0.28) * body.inspiration
        for heading in np.linspace(-1.35, 1.45, 8) + generator.normal(0, 0.16, 8):
            x = 0.5 + side * generator.uniform(0.055, 0.085) * body.width
            y = hilum_y + 0.03 * heading
            angle = heading if side > 0 else np.pi - heading
            start.append((x, y, angle, generator.uniform(0.007, 0.012)))
        for _ in range(5):
            x = 0.5 + side * generator.uniform(0.050, 0.092) * body.width
            y = hilum_y + generator.normal(0.008, 0.026)
            radius = generator.uniform(0.009, 0.017)
            hila.append((ellipse(x, y, radius, 1.5 * radius), 190))
    branches = np.array(start)
    strokes: list[tuple[F64, F64]] = []
    for level in range(6):
        bend = branches[:, 2] + generator.normal(0, 0.24, len(branches))
        length = (0.052 - 0.005 * level) * generator.uniform(0.6, 1.3, len(branches))
        ends = branches[:, :2] + length[:, None] * np.stack([np.cos(bend), np.sin(bend)], 1)
        strokes.append((np.concatenate([branches[:, :2], ends]), branches[:, 3]))
        fork = generator.uniform(0.12, 0.55, (2, len(branches))) * np.array([[1], [-1]])
        thinner = branches[:, 3] * generator.uniform(0.50, 0.80, (2, len(branches)))
        branches = np.concatenate(
            [np.column_stack([ends, bend + fork[k], thinner[k]]) for k in range(2)]
        )
        if level >= 1:
            # Most branches soon leave the plane of the picture.
            branches = branches[generator.random(len(branches)) < 0.80]

    def draw(canvas: ImageDraw.ImageDraw, raster: int) -> None:
        for level in range(len(strokes) - 1, -1, -1):
            ends, width = strokes[level]
            first, last = np.split(place(ends, body) * raster, 2)
            fill = (200, 195, 185, 165, 140, 115)[level]
            pixels = np.maximum(1, np.rint(width * raster)).astype(int)
            rows = np.concatenate([first, last], axis=1).tolist()
            for stroke, pixel in zip(rows, pixels.tolist(), strict=True):
                canvas.line(stroke, fill=fill, width=pixel)
        fill_outlines(canvas, raster, body, hila)

    # Lines have whole pixels for widths: a raster of about a thousand, whatever the grid.
    return layer(grid, draw, blur=0.0026, finer=max(1, 1024 // max(grid, 256)))


def airway(body: Body, grid: int) -> Map:
    """Trachea and main bronchi, float32 ``[grid, grid]`` in 0..1."""
    fork = 0.11 + 0.235 * body.inspiration
    trachea = np.array([(0.5, -0.08), (0.498, 0.1), (0.494, 0.22), (0.497, fork)])
    right = np.array([(0.497, fork - 0.01), (0.475, fork + 0.035), (0.455, fork + 0.06)])
    left = np.array([(0.497, fork - 0.01), (0.525, fork + 0.03), (0.56, fork + 0.05)])
    bands = (
        ribbon(trachea, np.array(0.033)),
        ribbon(right, np.array(0.024)),
        ribbon(left, np.array(0.020)),
    )
    return layer(grid, polygons(body, *bands), blur=0.006)


def draw_chest(body: Body, heart: tuple[float, float, float, float], grid: int) -> Chest:
    """The chest of ``body`` with its heart in the box ``heart`` (patient coordinates)."""
    # fmt: off
    trunk = mirrored([
        (0.105, -0.1), (0.110, 0.02), (0.20, 0.075), (0.36, 0.105), (0.46, 0.15), (0.56, 0.30),
        (0.60, 0.5), (0.60, 1.1),
    ], 0.94 + 0.12 * body.fat)
    # fmt: on
    armpit = 0.425 + 0.05 * body.fat
    gap = np.array([(armpit, 0.44), (armpit + 0.06, 0.56), (armpit + 0.10, 1.1), (armpit, 1.1)])
    gaps = [(gap * (side, 1) + (0.5, 0), 35) for side in SIDES]

    def skin(canvas: ImageDraw.ImageDraw, raster: int) -> None:
        fill_outlines(canvas, raster, body, [(trunk, 255), *gaps])

    flesh = layer(grid, skin, blur=0.012)
    block = np.array([(0.5, 0.56), (0.80, 0.62), (0.93, 1.1), (0.07, 1.1), (0.20, 0.62)])
    low = layer(grid, polygons(body, block), blur=0.03)
    outlines = [lung_outline(body, side) for side in SIDES]
    chest_wall = layer(grid, polygons(body, *outlines), blur=0.028)
    lungs = lung_fields(body, grid)
    heart_shadow, core = hidden_by(body, heart, grid)
    either = np.maximum(*lungs)
    shadow = np.maximum(0.90 * heart_shadow, 0.95 * core)
    aerated = either * (1 - shadow)

    generator = np.random.default_rng(body.shape_seed + 2)
    mottle = cloud(generator, 9, (grid, grid)) * 0.016
    grain = cloud(generator, 70, (grid, grid)) * 0.010
    down = (np.arange(grid, dtype=np.float32) / grid)[:, None]

    # What is denser than the chest wall alone: heart, great vessels, and all below the domes. They
    # lie behind each other, so the densest counts and the sum does not.
    dense = np.maximum(0.80 * heart_shadow, np.maximum(0.86 * core, low * (1 - either)))
    # Air is dark where the lung is deep (its middle) and lighter along the chest wall.
    depth = aerated * (0.22 + 0.78 * chest_wall)
    attenuation = 0.02 + flesh * (0.48 + 0.10 * body.fat + mottle)
    attenuation += 0.24 * dense - depth * (0.37 + 0.07 * body.fat - 0.10 * down)
    if body.female:
        breasts = [ellipse(0.5 + s * 0.205 * body.width, 0.60, 0.165, 0.135) for s in SIDES]
        fold = layer(grid, polygons(body, *breasts), blur=0.014)
        attenuation += fold * (0.03 + 0.055 * body.fat)
    if body.bubble > 0:
        size = 0.02 + 0.05 * body.bubble
        dome = 0.11 + (0.675 - body.dome - 0.11) * body.inspiration
        gas = ellipse(0.665, dome + 0.03 + 0.6 * size, 1.3 * size, 0.6 * size)
        attenuation -= layer(grid, polygons(body, gas), blur=0.007) * 0.15 * (1 - either)

    posterior, anterior = ribs(body, grid)
    # Ribs show through air, a little through the flesh beside the lungs, hardly through the belly.
    wall = (1 - either) * (1 - low)
    bones = (0.105 * posterior + 0.065 * anterior) * (0.08 + 0.92 * aerated + 0.22 * wall)
    bones *= 1 - 0.75 * shadow
    bones += 0.12 * shoulders(body, grid)
    bones += spine(body, grid) * (0.055 + 0.065 * (1 - down))
    attenuation += bones * (body.bones * np.minimum(flesh * 1.5, 1))
    attenuation -= airway(body, grid) * (0.095 * (1 - 0.5 * heart_shadow))
    markings = (vessels(body, grid) * (0.16 * body.vessels) + grain) * aerated
    attenuation += markings
    return Chest(attenuation, lungs, aerated, markings)
