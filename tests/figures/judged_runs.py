"""Runs with boxes near true ones, and the paper's measures by a literal walk over them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from written_run import Box, MinedImage, write_run

CLASSES = ("Mass", "Nodule", "Hernia")
HEADER = "Image Index,Finding Label,Bbox [x,y,w,h]\n"


@dataclass
class Judged:
    """A run's folder, the box table, and what stands in both: (image, class) to boxes xyxy."""

    run: Path
    table: Path
    labels: Path  # two images a patient
    mined: dict[tuple[str, str], list[list[float]]]
    truth: dict[tuple[str, str], list[list[float]]]
    order: list[str]  # images as the table names them first


def judged_run(folder: Path, name: str = "run", noise: float = 25.0, seed: int = 0) -> Judged:
    """Ten images; the same truth for every ``noise`` and ``seed``, which move the mined boxes."""
    at, near = np.random.default_rng(5), np.random.default_rng(seed)
    images = [f"{i:02d}.png" for i in range(10)]
    truth: dict[tuple[str, str], list[list[float]]] = {}
    mined: dict[tuple[str, str], list[list[float]]] = {}
    written = []
    for image in images:
        boxes: dict[str, tuple[float, list[Box]]] = {}
        for c in CLASSES[:2]:
            x, y, w, h = (*at.integers(50, 600, 2), *at.integers(90, 200, 2))
            if at.random() < 0.85:
                truth.setdefault((image, c), []).append([x, y, x + w, y + h])
            if at.random() < 0.2:
                truth.setdefault((image, c), []).append([x + 150, y, x + w + 150, y + h])
            own: list[Box] = []
            for rank in range(int(near.integers(1, 4))):
                move = near.normal(0, noise * (rank + 1), 4)
                box = (np.array([x, y, x + w, y + h]) + move).astype(np.float32)
                box[2:] = np.maximum(box[2:], box[:2] + 20)
                own.append((*map(float, box), 1.0 - 0.1 * rank))
            mined[image, c] = [list(box[:4]) for box in own]
            boxes[c] = (0.9, own)
        written.append(MinedImage(image, mined=boxes))
    run = write_run(folder / name, written, CLASSES)
    pairs = [(key, box) for key, of in truth.items() for box in of]
    pairs = [pairs[i] for i in np.random.default_rng(1).permutation(len(pairs))]
    lines = [f"{image},{c},{x1},{y1},{x2 - x1},{y2 - y1}\n" for (image, c), (x1, y1, x2, y2) in pairs]
    table = folder / "boxes.csv"
    table.write_text(HEADER + "".join(lines))
    labels = folder / "labels.csv"
    rows = [f"{image},Mass,{i // 2}\n" for i, image in enumerate(images)]
    labels.write_text("Image Index,Finding Labels,Patient ID\n" + "".join(rows))
    return Judged(
        run, table, labels, mined, truth, list(dict.fromkeys(image for (image, _), _ in pairs))
    )


def overlap(a: list[float], b: list[float]) -> float:
    """IoU of two boxes."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    both = max(wide, 0) * max(high, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return both / (sum(areas) - both)


def literal_walk(judged: Judged, finding: str, threshold: float) -> list[tuple[float, float]]:
    """AFP and Acc before the first box of the list B and after each, one box at a time."""
    images = [name for name in judged.order if (name, finding) in judged.truth]
    whole = sum(len(judged.truth[name, finding]) for name in images)
    found: set[tuple[str, int]] = set()
    misses, along = 0, [(0.0, 0.0)]
    for rank in range(3):
        for name in images:
            boxes = judged.mined.get((name, finding), [])
            if rank >= len(boxes):
                continue
            hits = {
                (name, g)
                for g, true in enumerate(judged.truth[name, finding])
                if overlap(boxes[rank], true) > threshold
            }
            misses += not hits
            found |= hits
            along.append((misses / len(images), len(found) / whole))
    return along


def staircase(along: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The best Acc at each AFP."""
    return [(afp, max(a for f, a in along if f == afp)) for afp in sorted({f for f, _ in along})]


def texts_of(svg: Path) -> list[str]:
    """What an SVG holds as text."""
    elements = ET.parse(svg).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(element.itertext()) for element in elements]
