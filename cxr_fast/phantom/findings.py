"""The appearance of the findings: what each adds to the attenuation of a chest.

A finding is drawn in coordinates of its own box: ``across`` runs from -1 (towards the midline) to
+1 (towards the chest wall), ``down`` from -1 to +1. It is then cut to the lung and measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cxr_fast.phantom.anatomy import Chest, Map, cloud
from cxr_fast.phantom.planning import Box, Planned

# Attenuation of soft tissue and fluid, which an opacity cannot exceed by much.
_TISSUE = 0.80
# A finding fades out. What changes less than this share of its greatest change is taken away, so
# that it ends somewhere; its box is then where it changes more than anyone can see (3 grey levels).
_FADE = 0.08
_VISIBLE = 3 / 255
# What a finding changes at least where it is strongest, or it would not be a finding.
_FAINTEST = 12 / 255


class _View(NamedTuple):
    """A finding's window into the chest; all maps float32 ``[rows, columns]``."""

    across: Map
    down: Map
    attenuation: Map
    lung: Map
    aerated: Map
    markings: Map
    width: float
    height: float
    strength: float
    generator: np.random.Generator


def plant(chest: Chest, planned: Planned) -> tuple[Chest, Box]:
    """``chest`` with a lung finding added, and the tight box around the change.

    The box is x, y, w, h in relative picture coordinates. Not for Cardiomegaly, which is drawn
    with the anatomy.
    """
    grid = chest.attenuation.shape[0]
    x, y, w, h = planned.box
    # A little more than the box: soft edges reach out before they are measured.
    x0, x1 = _span(x - 0.1 * w, x + 1.1 * w, grid)
    y0, y1 = _span(y - 0.1 * h, y + 1.1 * h, grid)
    window = (slice(y0, y1), slice(x0, x1))
    columns = (np.arange(x0, x1, dtype=np.float32) + 0.5) / grid
    rows = (np.arange(y0, y1, dtype=np.float32) + 0.5) / grid
    across, down = np.meshgrid(
        planned.side * (2 * (columns - x) / w - 1), 2 * (rows - y) / h - 1, indexing="xy"
    )
    view = _View(
        across.astype(np.float32),
        down.astype(np.float32),
        chest.attenuation[window],
        chest.lungs[(planned.side + 1) // 2][window],
        chest.aerated[window],
        chest.markings[window],
        w,
        h,
        planned.strength,
        np.random.Generator(np.random.PCG64(planned.seed)),
    )
    change = APPEARANCE[planned.finding](view)
    size = np.abs(change)
    most = float(size.max())
    if most < 1e-3:
        # The box has missed the lung. A labelled finding can be seen all the same.
        change = np.maximum(1 - across**2, 0) * np.maximum(1 - down**2, 0)
        change *= _FAINTEST / change.max()
        size, most = change, _FAINTEST
    fade = np.float32(_FADE * most)
    change = np.sign(change) * np.maximum(size - fade, 0) / (1 - _FADE)
    change *= max(1.0, _FAINTEST / most)
    attenuation = chest.attenuation.copy()
    attenuation[window] += change
    box = tight_box(np.abs(change) >= _VISIBLE, (x0, y0), grid)
    return replace(chest, attenuation=attenuation), box


def _span(first: float, last: float, grid: int) -> tuple[int, int]:
    start = min(max(int(np.floor(first * grid)), 0), grid - 2)
    return start, min(max(int(np.ceil(last * grid)), start + 2), grid)


def tight_box(seen: npt.NDArray[np.bool_], corner: tuple[int, int], grid: int) -> Box:
    """The box around what is true in ``seen``, whose first pixel is ``corner`` of a ``grid``."""
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    x, y = corner[0] + int(columns[0]), corner[1] + int(rows[0])
    w, h = int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1
    return x / grid, y / grid, w / grid, h / grid


def _step(values: Map, soft: float) -> Map:
    """0 below 0, 1 above ``soft``, smooth between."""
    t = np.clip(values / np.float32(soft), 0, 1)
    smooth: Map = t * t * (3 - 2 * t)
    return smooth


def _opacity(view: _View, profile: Map, amount: float) -> Map:
    """Tissue where air was: brighter, the more so the darker it is."""
    room = np.maximum(_TISSUE - view.attenuation, 0.06)
    # Up to the very border of the lung, or a dark seam would be left along it.
    within = np.minimum(3 * view.lung, 1) * (0.2 + 0.8 * np.minimum(2.5 * view.aerated, 1))
    change: Map = profile * room * within * np.float32(amount)
    return change


def _wobble(view: _View, amount: float, waves: int = 5) -> Map:
    """A closed outline's radius by direction, at most 1."""
    angle = np.arctan2(view.down, view.across)
    radius = np.zeros_like(angle)
    for wave in range(2, 2 + waves):
        phase = view.generator.uniform(0, 2 * np.pi)
        radius += np.cos(wave * angle + np.float32(phase)) * np.float32(
            view.generator.normal(0, amount / wave)
        )
    outline: Map = 1 + radius - radius.max()
    return outline


def _round(view: _View, wobble: float, soft: float, amount: float) -> Map:
    radius = np.hypot(view.across, view.down) / _wobble(view, wobble)
    # A ball's thickness, a little flattened: its middle is hardly denser than halfway out.
    thickness = np.sqrt(np.maximum(1 - radius * radius, 0))
    return _opacity(view, _step(1.04 - radius, soft) * (0.55 + 0.45 * thickness), amount)


def _nodule(view: _View) -> Map:
    return _round(view, 0.04, 0.45, 0.28 + 0.30 * view.strength)


def _mass(view: _View) -> Map:
    return _round(view, 0.10, 0.28, 0.40 + 0.34 * view.strength)


def _atelectasis(view: _View) -> Map:
    generator = view.generator
    lean = generator.choice((-1.0, 1.0)) * generator.uniform(0.55, 0.90)
    bow = generator.uniform(-0.25, 0.25)
    axis = lean * view.across + bow * (1 - view.across**2)
    if generator.random() < 0.5:
        # Plates: one to three thin bands side by side.
        profile = np.zeros_like(axis)
        plates = int(generator.integers(1, 4 if view.height > 0.08 else 3))
        thick = np.float32(generator.uniform(0.14, 0.24))
        for place in np.linspace(-0.45, 0.45, plates) if plates > 1 else (0.0,):
            length = generator.uniform(0.8, 1.0)
            ends = _step(np.float32(1.0) - np.abs(view.across) / np.float32(length), 0.15)
            off = np.abs(view.down - axis * 0.75 - np.float32(place))
            profile = np.maximum(profile, _step(1.0 - off / thick, 0.9) * ends)
    else:
        # A collapsed segment: a wedge from the hilum, its sides drawn in.
        spread = 0.18 + 0.66 * (0.5 + 0.5 * np.clip(view.across, -1, 1)) ** 1.6
        off = np.abs(view.down - 0.6 * axis) / spread.astype(np.float32)
        profile = _step(1.0 - off, 0.55) * _step(1.0 - np.abs(view.across), 0.60)
    opacity = _opacity(view, profile, 0.34 + 0.32 * view.strength)
    # Lost volume: the lung beside it is drawn towards the axis, and its markings crowd there.
    inside = np.maximum(1 - view.across**2, 0) * np.maximum(1 - view.down**2, 0)
    rows = view.down.shape[0]
    pull = inside * np.tanh(3 * (view.down - axis)) * np.float32(0.07 * rows)
    source = np.clip(np.arange(rows)[:, None] + pull, 0, rows - 1)
    above = np.minimum(source.astype(np.intp), rows - 2)
    part = (source - above).astype(np.float32)
    columns = np.arange(view.down.shape[1])[None]
    moved = view.markings[above, columns] * (1 - part) + view.markings[above + 1, columns] * part
    change: Map = opacity + (moved - view.markings)
    return change


def _effusion(view: _View) -> Map:
    generator = view.generator
    inward = (1 - view.across) / 2
    # The meniscus: the surface climbs the chest wall. Across a whole lung it lies almost flat; a
    # narrow effusion is a layer along the wall that thins out upwards.
    flat = np.interp(view.width, (0.18, 0.30), (0.0, 1.0))
    level = 0.75 - 0.85 * flat + generator.uniform(-0.1, 0.1)
    climb = np.exp(-np.maximum(inward, 0) / (0.45 - 0.22 * flat))
    surface = level - (1 + level) * climb
    depth = view.down - surface.astype(np.float32)
    fluid = _step(depth, 0.10 * 0.3 / max(view.height, 0.1)) * _step(1.06 - inward, 0.20)
    denser = 0.80 + 0.20 * np.clip(depth, 0, 1)
    return _opacity(view, fluid * denser, 0.66 + 0.28 * view.strength)


def _patches(view: _View, cells: int, low: float, soft: float) -> Map:
    shape = view.down.shape
    return _step(cloud(view.generator, cells, (shape[0], shape[1])) - np.float32(low), soft)


def _envelope(view: _View, power: float, soft: float) -> Map:
    a, d = np.abs(view.across), np.abs(view.down)
    return _step(1.05 - (a**power + d**power) ** np.float32(1 / power), soft)


def _infiltration(view: _View) -> Map:
    # Ill-defined patches of unequal size and density.
    patches = _patches(view, 6, -0.5, 2.2) + 0.6 * _patches(view, 15, -0.8, 2.4)
    profile = _envelope(view, 2.6, 0.55) * (0.12 + 0.60 * patches)
    return _opacity(view, profile, 0.26 + 0.28 * view.strength)


def _pneumonia(view: _View) -> Map:
    # A lobe filled almost evenly; airways stay open and show as dark branches.
    generator = view.generator
    ragged = 0.13 * cloud(generator, 6, (view.down.shape[0], view.down.shape[1]))
    a, d = np.abs(view.across), np.abs(view.down)
    profile = _step(1.10 - (a**2.6 + d**2.6) ** np.float32(1 / 2.6) + ragged, 0.80)
    if generator.random() < 0.5:
        # The fissure stops it on one side: above for a lower lobe, below for an upper one.
        end = generator.choice((-1.0, 1.0))
        slant = np.float32(generator.uniform(-0.18, 0.18))
        profile = profile * _step(0.94 - end * view.down - slant * (view.across + 1), 0.12)
        profile = np.maximum(profile, 0)
    branches = _patches(view, 6, -1.5, 3.0)
    bronchi = np.exp(-((branches - 0.5) ** 2) / np.float32(0.0016))
    texture = 0.88 + 0.12 * _patches(view, 5, -1.0, 2.0) - 0.22 * bronchi * (1 - a) * (1 - d)
    return _opacity(view, np.clip(profile * texture, 0, 1), 0.46 + 0.34 * view.strength)


def _pneumothorax(view: _View) -> Map:
    generator = view.generator
    inner: Map = np.clip((1 + view.across) / 2, 1e-3, 2)
    if view.lung[0].max() < 0.5:
        # At the apex: the collapsed lung bulges from the inner lower corner, air lies over it.
        power = np.float32(generator.uniform(0.95, 1.3))
        low: Map = np.clip((1 - view.down) / 2, 1e-3, 2)
        outside: Map = inner**power + low**power - 1
        across: Map = power * inner ** (power - 1)
        along: Map = power * low ** (power - 1)
    else:
        # Along the wall: a lens of air.
        outside = inner - view.down**2
        across, along = np.ones_like(inner), view.down
    # To relative units of the picture, so that the pleural line is as wide everywhere.
    steep = np.hypot(across / view.width, along / view.height)
    distance = outside / np.maximum(steep, 1e-3).astype(np.float32)
    box = _step(1.03 - np.abs(view.across), 0.05) * _step(1.03 - np.abs(view.down), 0.05)
    air = _step(distance, 0.004) * view.lung * box
    # No lung markings, and a little less of everything else that is not bone.
    rest = np.maximum(view.attenuation - view.markings - 0.06, 0.05)
    darker = (0.26 + 0.26 * view.strength) * rest
    line = np.exp(-((distance / np.float32(0.0028)) ** 2)) * view.lung * box
    change: Map = -air * (view.markings + darker.astype(np.float32))
    change += line * np.float32(0.10 + 0.06 * view.strength) * (0.3 + 0.7 * view.aerated)
    return change


APPEARANCE: dict[str, Callable[[_View], Map]] = {
    "Atelectasis": _atelectasis,
    "Effusion": _effusion,
    "Infiltration": _infiltration,
    "Mass": _mass,
    "Nodule": _nodule,
    "Pneumonia": _pneumonia,
    "Pneumothorax": _pneumothorax,
}
