"""heatmap_boxes: thresholds, components, scores and non-maximum suppression."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import cv2
import inputs
import numpy as np
import pytest
import torch
from conftest import Race
from labelling import EIGHT
from racing import Peer, Work
from scipy import ndimage
from torch import Tensor

from cxr_fast import ops, reference
from cxr_fast.reference import HeatmapBoxes

THRESHOLDS = (60 / 255, 180 / 255)
SIZE = 1024  # pixels of the square image
Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in cells
Found = tuple[np.ndarray, np.ndarray, np.ndarray]
Components = Callable[[np.ndarray], Iterator[Box]]


def scipy_components(mask: np.ndarray) -> Iterator[Box]:
    for rows, columns in ndimage.find_objects(ndimage.label(mask, EIGHT)[0]):
        yield columns.start, rows.start, columns.stop, rows.stop


def cv2_components(mask: np.ndarray) -> Iterator[Box]:
    stats = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)[2]
    for x, y, width, height, _ in stats[1:].tolist():
        yield x, y, x + width, y + height


def boxes_by(components: Components, heatmap: np.ndarray, upsample: int) -> Found:
    """heatmap [M, H, W]: boxes [M, 3, 4], scores [M, 3] and counts [M], a map at a time."""
    boxes = np.zeros((len(heatmap), 3, 4), np.float32)
    scores = np.zeros((len(heatmap), 3), np.float32)
    counts = np.zeros(len(heatmap), np.int32)
    lo, hi = heatmap.min((1, 2), keepdims=True), heatmap.max((1, 2), keepdims=True)
    normalized = (heatmap - lo) / (hi - lo)
    if upsample > 1:  # the stated order of operations, for the same bits
        from_numpy = torch.from_numpy(normalized)
        normalized = reference.upsample_bilinear(from_numpy, upsample).numpy()
    height, width = normalized.shape[1:]
    cell = np.array([SIZE / width, SIZE / height] * 2)
    for m, h in enumerate(normalized):
        candidates = [box for cut in THRESHOLDS for box in components(h >= np.float32(cut))]
        kept = suppress([(score(h, box), box) for box in candidates])
        counts[m] = len(kept)
        for k, (value, box) in enumerate(kept):
            boxes[m, k], scores[m, k] = box * cell, value
    return boxes, scores, counts


def score(h: np.ndarray, box: Box) -> np.float32:
    x1, y1, x2, y2 = box
    return np.float32(h[y1:y2, x1:x2].mean(dtype=np.float64))


def area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def suppress(candidates: Sequence[tuple[np.float32, Box]]) -> list[tuple[np.float32, Box]]:
    kept: list[tuple[np.float32, Box]] = []
    for value, box in sorted(candidates, key=lambda it: (-it[0], -area(it[1]), it[1][1], it[1][0])):
        if len(kept) == 3:
            break
        if not any(overlap(box, other) > 0.5 for _, other in kept):
            kept.append((value, box))
    return kept


def overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (area(a) + area(b) - width * height)


def same_as_torch(ours: HeatmapBoxes, theirs: HeatmapBoxes) -> None:
    same(ours, tuple(values.flatten(0, 1).numpy() for values in theirs))


def same(ours: HeatmapBoxes, theirs: Found) -> None:
    boxes, scores, counts = (values.flatten(0, 1).numpy() for values in ours)
    np.testing.assert_array_equal(counts, theirs[2])
    np.testing.assert_array_equal(boxes, theirs[0])
    np.testing.assert_allclose(scores, theirs[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "upsample"),
    [((8, 14, 32, 32), 1), ((8, 14, 32, 32), 4), ((1, 14, 512, 512), 1)],
    ids=inputs.sides,
)
def test_heatmap_boxes(shape: tuple[int, int, int, int], upsample: int, race: Race) -> None:
    cam = inputs.maps(*shape)
    heatmap: Tensor = ops.aggregate_heatmap(cam, ops.mine_attention(cam))
    flat = heatmap.flatten(0, 1).numpy()
    arguments = {
        "image_size": (SIZE, SIZE),
        "thresholds": THRESHOLDS,
        "select": "components",
        "upsample": upsample,
    }
    peers = [
        Peer("cv2, each map", partial(boxes_by, cv2_components, flat, upsample), same),
        Peer("scipy, each map", partial(boxes_by, scipy_components, flat, upsample), same),
    ]
    if shape[-1] == 32 and upsample == 1:  # a readable loop; minutes on more
        by_reference = partial(reference.heatmap_boxes, heatmap, **arguments)
        peers.append(Peer("reference", by_reference, same_as_torch))
    work = Work(heatmap.numel() * 4)
    case = f"heatmap_boxes {inputs.sides(shape)} upsample {upsample}"
    race(case, lambda: ops.heatmap_boxes(heatmap, **arguments), peers, work)
