"""Which findings an image gets, and where: after the box table of ChestX-ray14."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cxr_fast.config import BOXED_FINDINGS
from cxr_fast.phantom.anatomy import F64, SIDES, Body, Map, lung_fields, normal_heart, place
from cxr_fast.phantom.settings import PhantomSettings

Box = tuple[float, float, float, float]

# Grid that positions are judged on. Fixed, so that a finding lies at the same place at every size.
_GRID = 128
_TRIES = 32


class BoxStatistics(NamedTuple):
    """One mode of a finding's boxes: log of width and height, centre x and y; 1 = the image's side.

    ``corr [6]`` are the correlations (w h), (w x), (w y), (h x), (h y), (x y).
    """

    finding: str
    side: int  # -1 picture left, +1 picture right, 0 both
    boxes: int
    median: F64
    deviation: F64
    corr: F64


# Fitted to the 984 released boxes (BBox_List_2017.csv), split at the middle of the image where a
# finding has a side: medians, standard deviations and correlations of (log w, log h, cx, cy).
_STATISTICS = """
#     side, boxes   median                   deviation            correlation
Atelectasis  -1  90  -1.85 -2.22  0.31  0.55  0.49 0.49 0.07 0.11   0.3  0.2  0.2  0.3  0.0  0.0
Atelectasis   1  90  -1.65 -1.97  0.71  0.58  0.58 0.52 0.09 0.11   0.3 -0.6  0.1 -0.5  0.0  0.0
Cardiomegaly  0 146  -0.76 -0.99  0.57  0.57  0.11 0.15 0.05 0.06   0.5  0.0  0.3  0.0  0.3  0.0
Effusion     -1  78  -1.54 -1.15  0.24  0.52  0.58 0.74 0.07 0.12   0.4  0.4 -0.2  0.0 -0.5 -0.2
Effusion      1  75  -1.67 -1.45  0.79  0.59  0.50 0.68 0.08 0.11   0.1 -0.7 -0.2  0.2 -0.4  0.1
Infiltration -1  54  -1.53 -1.42  0.34  0.52  0.51 0.52 0.08 0.13   0.6  0.7 -0.1  0.4 -0.2 -0.4
Infiltration  1  69  -1.48 -1.30  0.68  0.52  0.48 0.42 0.07 0.10   0.5 -0.6 -0.1 -0.1 -0.2  0.1
Mass         -1  45  -2.09 -1.93  0.33  0.46  0.55 0.64 0.07 0.11   0.9  0.2 -0.1  0.1 -0.2 -0.1
Mass          1  40  -2.21 -2.00  0.71  0.42  0.59 0.54 0.09 0.12   0.8 -0.5  0.1 -0.2  0.0  0.2
Nodule       -1  38  -2.62 -2.70  0.27  0.48  0.28 0.32 0.09 0.15   0.9 -0.2 -0.1  0.0 -0.1 -0.3
Nodule        1  41  -2.68 -2.74  0.76  0.43  0.33 0.33 0.07 0.16   0.9 -0.3  0.0 -0.1  0.0  0.3
Pneumonia    -1  57  -1.54 -1.30  0.31  0.56  0.42 0.51 0.07 0.10   0.6  0.5 -0.2  0.3 -0.4 -0.3
Pneumonia     1  63  -1.45 -1.34  0.69  0.56  0.44 0.40 0.07 0.10   0.6 -0.6  0.1 -0.3 -0.3  0.0
Pneumothorax -1  56  -1.65 -1.57  0.30  0.31  0.58 0.83 0.07 0.18   0.5  0.4 -0.3 -0.2  0.3 -0.5
Pneumothorax  1  42  -1.62 -1.66  0.69  0.23  0.42 0.58 0.06 0.19   0.3  0.1 -0.1  0.3  0.4  0.5
"""


def _parse(row: str) -> BoxStatistics:
    finding, side, boxes, *numbers = row.split()
    median, deviation, corr = np.split(np.array(numbers, dtype=float), (4, 8))
    return BoxStatistics(finding, int(side), int(boxes), median, deviation, corr)


BOX_STATISTICS = tuple(_parse(row) for row in _STATISTICS.strip().splitlines()[1:])

# What a drawn finding fills of the box that was asked for, inverted: clipping to the lung and soft
# edges make what is seen smaller. Set so that the median areas agree with the released boxes.
_GROWTH = {
    "Atelectasis": 1.64,
    "Cardiomegaly": 0.87,
    "Effusion": 1.65,
    "Infiltration": 1.46,
    "Mass": 1.08,
    "Nodule": 1.24,
    "Pneumonia": 1.08,
    "Pneumothorax": 0.97,
}

# How much of the box has to lie in aerated lung.
_IN_LUNG = {
    "Atelectasis": 0.70,
    "Infiltration": 0.75,
    "Mass": 0.90,
    "Nodule": 0.97,
    "Pneumonia": 0.75,
}

_ONCE = ("Cardiomegaly", "Pneumothorax")


class Planned(NamedTuple):
    """A finding to be planted.

    ``box`` is x, y, w, h in relative picture coordinates (patient coordinates for Cardiomegaly),
    ``strength`` 0..1, ``seed`` that of its texture.
    """

    finding: str
    side: int
    box: Box
    strength: float
    seed: int


def plan(
    settings: PhantomSettings,
    body: Body,
    generator: np.random.Generator,
) -> tuple[Planned, ...]:
    """The findings of one image of ``body``, in the order of ``config.BOXED_FINDINGS``."""
    weights = np.array(settings.findings_per_image, dtype=float)
    number = int(generator.choice(len(weights), p=weights / weights.sum()))
    prevalence = np.array(settings.prevalence, dtype=float)
    chosen = generator.choice(
        len(BOXED_FINDINGS), number, replace=False, p=prevalence / prevalence.sum()
    )
    planned: list[Planned] = []
    if not number:
        return ()
    lungs = _beside_mediastinum(body)
    for finding in (BOXED_FINDINGS[k] for k in sorted(chosen)):
        planned.append(_place_one(finding, 0, body, lungs, planned, generator))
        again = generator.random() < settings.second_box
        if again and finding not in _ONCE:
            other = -planned[-1].side
            planned.append(_place_one(finding, other, body, lungs, planned, generator))
    return tuple(planned)


def _beside_mediastinum(body: Body) -> tuple[Map, Map]:
    """The lung fields that positions are judged by, without what the mediastinum hides."""
    lungs = lung_fields(body, _GRID)
    middle = place(np.array([[0.5, 0.4]]), body)[0, 0]
    away = np.abs((np.arange(_GRID, dtype=np.float32) + 0.5) / _GRID - middle)
    beside = np.clip((away - 0.06) / 0.03, 0, 1).astype(np.float32)
    return lungs[0] * beside, lungs[1] * beside


def _draw(row: BoxStatistics, generator: np.random.Generator, n: int) -> F64:
    """``n`` boxes ``[n, 4]`` of one size as log w, log h, cx, cy."""
    corr = np.eye(4)
    corr[np.triu_indices(4, 1)] = row.corr
    spread = np.linalg.cholesky(corr + np.triu(corr, 1).T)
    normal = generator.standard_normal((n, 4))
    # One size and n positions: choosing among sizes would favour the small ones, that fit anywhere.
    normal[:, :2] = normal[0, :2]
    # Tails are cut at two deviations: the released table has a few boxes of whole thoraces.
    deviates = np.clip(normal @ spread.T, -2, 2)
    boxes: F64 = row.median + deviates * row.deviation
    return boxes


def _place_one(
    finding: str,
    side: int,
    body: Body,
    lungs: tuple[Map, Map],
    taken: Sequence[Planned],
    generator: np.random.Generator,
) -> Planned:
    rows = [row for row in BOX_STATISTICS if row.finding == finding and row.side * side >= 0]
    counts = np.array([row.boxes for row in rows], dtype=float)
    row = rows[int(generator.choice(len(rows), p=counts / counts.sum()))]
    draws = _draw(row, generator, _TRIES)
    strength, seed = float(generator.random()), int(generator.integers(2**31))
    size = np.exp(draws[:, :2]) * np.sqrt(_GROWTH[finding])
    boxes = np.concatenate([draws[:, 2:] - size / 2, size], axis=1)
    if finding == "Cardiomegaly":
        return Planned(finding, 0, _in_thorax(boxes[0], body), strength, seed)
    lung = lungs[SIDES.index(row.side)]
    if finding == "Effusion":
        boxes = np.array([_at_base(boxes[0], lung, row.side)])
    elif finding == "Pneumothorax":
        boxes = np.array([_at_wall(box, lung, row.side) for box in boxes])
    fit = np.array([_coverage(lung, box) for box in boxes]) / _IN_LUNG.get(finding, 0.5)
    free = np.array([_free(box, taken) for box in boxes])
    good = (fit >= 1) & (free >= 0.7)
    best = int(np.argmax(good)) if good.any() else int(np.argmax(np.minimum(fit, 1) + free))
    return Planned(finding, row.side, _tuple(boxes[best]), strength, seed)


def _in_thorax(box: F64, body: Body) -> Box:
    """The box of an enlarged heart: on the diaphragm, beside the wall, around the normal heart."""
    x, y, w, h = normal_heart(body)
    right = max(min(float(box[0] + box[2]), 0.5 + 0.350 * body.width), x + w)
    left = min(right - float(box[2]), x)
    bottom = float(np.clip(box[1] + box[3], y + h, y + h + 0.025))
    top = min(bottom - float(box[3]), y)
    return left, top, right - left, bottom - top


def _tuple(box: F64) -> Box:
    x, y, w, h = (float(value) for value in box)
    return x, y, w, h


def _coverage(lung: Map, box: F64) -> float:
    """The share of ``box`` that lies in ``lung``."""
    x0, y0 = np.clip(np.floor(box[:2] * _GRID), 0, _GRID - 1).astype(int)
    x1, y1 = np.clip(np.ceil((box[:2] + box[2:]) * _GRID), 1, _GRID).astype(int)
    inside = float(lung[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)].sum())
    return inside / max(float(box[2] * box[3]) * _GRID**2, 1.0)


def _free(box: F64, taken: Sequence[Planned]) -> float:
    """The share of ``box`` that no lung finding placed before has taken."""
    free = 1.0
    for other in taken:
        if other.finding == "Cardiomegaly":
            continue
        low = np.maximum(box[:2], other.box[:2])
        high = np.minimum(box[:2] + box[2:], np.add(other.box[:2], other.box[2:]))
        shared = float(np.prod(np.maximum(high - low, 0)))
        smaller = min(float(box[2] * box[3]), other.box[2] * other.box[3])
        free -= shared / max(smaller, 1e-9)
    return free


def _wall(lung: Map, side: int, y0: float, y1: float) -> float:
    """The outermost x of a lung between two heights."""
    first = int(np.clip(y0 * _GRID, 0, _GRID - 1))
    rows = lung[first : max(int(np.clip(y1 * _GRID, 1, _GRID)), first + 1)]
    columns = np.flatnonzero(rows.max(0) > 0.5)
    if not len(columns):
        columns = np.flatnonzero(lung.max(0) > 0.5)
    return float((columns[-1] + 1 if side > 0 else columns[0]) / _GRID)


def _at_base(box: F64, lung: Map, side: int) -> F64:
    """Fluid sinks: the box moved into the costophrenic angle, its size kept."""
    base = float(np.flatnonzero(lung.max(1) > 0.5)[-1] + 1) / _GRID
    wall = _wall(lung, side, base - box[3], base)
    return np.array([wall - box[2] if side > 0 else wall, base - box[3], box[2], box[3]])


def _at_wall(box: F64, lung: Map, side: int) -> F64:
    """Free air rises to the wall and the apex: the box moved to both, its size kept."""
    rows = np.flatnonzero(lung.max(1) > 0.5)
    top, base = float(rows[0]) / _GRID, float(rows[-1] + 1) / _GRID
    y = float(np.clip(box[1], top, max(base - box[3], top)))
    if y - top < 0.14:
        y = top
    wall = _wall(lung, side, y, y + box[3])
    return np.array([wall - box[2] if side > 0 else wall, y, box[2], box[3]])
