"""The paper's Fig. 2: what the second and the third step add, and a case that none of them finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cxr_fast import metrics
from cxr_fast.archive.overlays import MinedClass, step_maps
from cxr_fast.archive.overlays import Truth as DrawnTruth
from cxr_fast.config import MiningSettings
from cxr_fast.figures.steps import StepsRow
from cxr_fast.reproduce.judging import Detections, Heatmaps, Truth, detect, mine_heatmaps

Picture = NDArray[np.uint8] | NDArray[np.uint16]

_CAPTIONS = (
    "(a) found at t = 2",
    "(b) found at t = 3",
    "(c) found at no step",
)


class Case(NamedTuple):
    """An image and a class of which a panel is drawn."""

    caption: str
    image: int
    cls: int
    steps: int


def choose_cases(found: Sequence[NDArray[np.bool_]], truth: Truth) -> list[Case]:
    """For each caption the first true box that fits; ``found`` [G] after 1, 2 and 3 steps."""
    first, second, third = found
    fits = (second & ~first, third & ~second & ~first, ~first & ~second & ~third)
    cases = []
    for caption, fitting, steps in zip(_CAPTIONS, fits, (2, 3, 3), strict=True):
        if fitting.any():
            box = int(np.flatnonzero(fitting)[0])
            cases.append(Case(caption, int(truth.images[box]), int(truth.classes[box]), steps))
    return cases


def found_boxes(detections: Detections, truth: Truth, iou_threshold: float) -> NDArray[np.bool_]:
    """Which true boxes [G] a box of the same image and class hits."""
    hit = np.zeros(len(truth.boxes), np.bool_)
    for g, (image, cls) in enumerate(zip(truth.images, truth.classes, strict=True)):
        own = (detections.images == image) & (detections.classes == cls)
        overlaps = metrics.iou(detections.boxes[own], truth.boxes[g][None])
        hit[g] = bool((overlaps > iou_threshold).any())
    return hit


def figure_rows(
    cams: Tensor,
    labels: NDArray[np.float32],
    truth: Truth,
    rule: MiningSettings,
    findings: Sequence[str],
    names: Sequence[str],
    read: Callable[[str], Picture],
    iou_threshold: float = 0.3,
) -> list[StepsRow]:
    """The rows of Fig. 2 from CAMs [1 or T, N, C, H, W] of images that ``names`` name, ``read`` reads.

    One for each case that a true box fits.
    """
    after = []
    for count in (1, 2, 3):
        heatmaps = mine_heatmaps(cams, replace(rule, steps=count))
        after.append((heatmaps, detect(heatmaps.heatmap, labels, truth.sizes, rule)))
    found = [found_boxes(detections, truth, iou_threshold) for _, detections in after]
    return [
        _row(case, cams, *after[case.steps - 1], truth, findings, read(names[case.image]))
        for case in choose_cases(found, truth)
    ]


def _row(
    case: Case,
    cams: Tensor,
    heatmaps: Heatmaps,
    detections: Detections,
    truth: Truth,
    findings: Sequence[str],
    picture: Picture,
) -> StepsRow:
    n, c = case.image, case.cls
    attention = heatmaps.mined
    cam = cams[:, n, c].numpy() if len(cams) > 1 else cams[0, n, c].numpy()[None]
    steps = [
        step_maps(own, attention.erased_at[n, c].numpy(), attention.extent[n, c].numpy())[t]
        for t, own in enumerate(np.broadcast_to(cam, (attention.extent.shape[2], *cam.shape[1:])))
    ]
    own = (detections.images == n) & (detections.classes == c)
    boxes = detections.boxes[own]
    mined = MinedClass(
        findings[c],
        None,
        np.stack(steps),
        heatmaps.heatmap[n, c].numpy(),
        boxes,
        None,
    )
    drawn = (truth.images == n) & (truth.classes == c)
    true = [DrawnTruth(findings[c], tuple(box)) for box in truth.boxes[drawn].tolist()]
    return StepsRow(f"{case.caption}: {findings[c]}", picture, mined, true)
