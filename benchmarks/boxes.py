"""Boxes out of heatmaps by other libraries: a map at a time with numpy, or all at once with torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from cxr_fast import reference
from cxr_fast.benchmarks.labelling import EIGHT
from cxr_fast.benchmarks.place import peer_module

MOST_BOXES = 3
MOST_OVERLAP = 0.5
Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in cells
Found = tuple[np.ndarray, np.ndarray, np.ndarray]
Components = Callable[[np.ndarray], Iterator[Box]]


def component_finders() -> dict[str, Components]:
    """What is installed to find the tight boxes of a mask's components."""

    def scipy(ndimage: ModuleType) -> Components:
        def components(mask: np.ndarray) -> Iterator[Box]:
            for rows, columns in ndimage.find_objects(ndimage.label(mask, EIGHT)[0]):
                yield columns.start, rows.start, columns.stop, rows.stop

        return components

    def cv2(cv2: ModuleType) -> Components:
        def components(mask: np.ndarray) -> Iterator[Box]:
            stats = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)[2]
            for x, y, width, height, _ in stats[1:].tolist():
                yield x, y, x + width, y + height

        return components

    made = {"cv2": ("cv2", cv2), "scipy": ("scipy.ndimage", scipy)}
    loaded = ((name, peer_module(module), make) for name, (module, make) in made.items())
    return {name: make(module) for name, module, make in loaded if module}


def boxes_each(
    components: Components,
    heatmap: np.ndarray,
    thresholds: Sequence[float],
    upsample: int,
    size: int,
) -> Found:
    """heatmap [M, H, W]: boxes [M, 3, 4], scores [M, 3] and counts [M], a map at a time."""
    boxes = np.zeros((len(heatmap), MOST_BOXES, 4), np.float32)
    scores = np.zeros((len(heatmap), MOST_BOXES), np.float32)
    counts = np.zeros(len(heatmap), np.int32)
    lo, hi = heatmap.min((1, 2), keepdims=True), heatmap.max((1, 2), keepdims=True)
    normalized = (heatmap - lo) / (hi - lo)
    if upsample > 1:  # the stated order of operations, for the same bits
        from_numpy = torch.from_numpy(normalized)
        normalized = reference.upsample_bilinear(from_numpy, upsample).numpy()
    height, width = normalized.shape[1:]
    cell = np.array([size / width, size / height] * 2)
    for m, h in enumerate(normalized):
        candidates = [box for cut in thresholds for box in components(h >= np.float32(cut))]
        kept = _suppress([(_score(h, box), box) for box in candidates])
        counts[m] = len(kept)
        for k, (value, box) in enumerate(kept):
            boxes[m, k], scores[m, k] = box * cell, value
    return boxes, scores, counts


def _score(h: np.ndarray, box: Box) -> np.float32:
    x1, y1, x2, y2 = box
    return np.float32(h[y1:y2, x1:x2].mean(dtype=np.float64))


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _suppress(candidates: Sequence[tuple[np.float32, Box]]) -> list[tuple[np.float32, Box]]:
    kept: list[tuple[np.float32, Box]] = []
    for value, box in sorted(candidates, key=lambda it: (-it[0], -_area(it[1]), it[1][1], it[1][0])):
        if len(kept) == MOST_BOXES:
            break
        if not any(_overlap(box, other) > MOST_OVERLAP for _, other in kept):
            kept.append((value, box))
    return kept


def _overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (_area(a) + _area(b) - width * height)


def boxes_at_once(
    label: Callable[[Tensor], Tensor],
    heatmap: Tensor,
    thresholds: Sequence[float],
    upsample: int,
    size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """heatmap [M, H, W] on any device: the same, with every torch call on all maps.

    ``label`` numbers the components of masks [B, H, W] from 1 on, each mask on its own.
    """
    lo, hi = heatmap.amin((1, 2), keepdim=True), heatmap.amax((1, 2), keepdim=True)
    h = reference.upsample_bilinear((heatmap - lo) / (hi - lo), upsample)
    maps, height, width = h.shape
    cuts = torch.tensor(thresholds, dtype=h.dtype, device=h.device)
    labels = label((h[:, None] >= cuts[:, None, None]).flatten(0, 1))
    limits, there = _limits(labels)
    x1, y1, x2, y2 = limits = limits.reshape(4, maps, -1)
    score = _means(h, limits).masked_fill(~there.reshape(maps, -1), -1)
    # Stable, least important key first: by score, then area, then y1 and x1.
    order = x1.argsort(stable=True)
    for key in (y1, -(x2 - x1) * (y2 - y1), -score):
        order = order.gather(1, key.gather(1, order).argsort(stable=True))
    limits, score = limits.gather(2, order.expand(4, -1, -1)), score.gather(1, order)
    boxes = limits.new_zeros((maps, MOST_BOXES, 4), dtype=torch.float64)
    scores = score.new_zeros((maps, MOST_BOXES))
    free = score >= 0
    for k in range(MOST_BOXES):
        best = free.to(torch.uint8).argmax(1, keepdim=True)
        found = free.gather(1, best)
        chosen = limits.gather(2, best.expand(4, -1, -1))
        boxes[:, k] = chosen[..., 0].t() * found
        scores[:, k] = (score.gather(1, best) * found)[:, 0]
        free &= found & (_overlaps(limits, chosen) <= MOST_OVERLAP)
    cell = torch.tensor([size / width, size / height] * 2, dtype=torch.float64, device=h.device)
    counts = (boxes[..., 2] > 0).sum(1, dtype=torch.int32)
    return (boxes * cell).float(), scores, counts


def _limits(labels: Tensor) -> tuple[Tensor, Tensor]:
    """labels [B, H, W]: x1, y1, x2, y2 of every label [4, B, K], and which of them exist [B, K]."""
    count, height, width = labels.shape
    most = int(labels.max())
    index = labels.flatten(1).to(torch.int64)
    y, x = (
        axis.flatten().expand(count, -1)
        for axis in torch.meshgrid(
            torch.arange(height, device=labels.device),
            torch.arange(width, device=labels.device),
            indexing="ij",
        )
    )
    limits = labels.new_zeros((4, count, most + 1), dtype=torch.int64)
    for into, values, reduce in (
        (limits[0], x, "amin"),
        (limits[1], y, "amin"),
        (limits[2], x + 1, "amax"),
        (limits[3], y + 1, "amax"),
    ):
        into.scatter_reduce_(1, index, values, reduce, include_self=False)
    limits = limits[..., 1:]
    return limits, limits[2] > 0


def _means(h: Tensor, limits: Tensor) -> Tensor:
    """The mean of h [M, H, W] over boxes [4, M, K], by sums from the corner."""
    sums = torch.nn.functional.pad(h.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
    width = sums.shape[2]
    x1, y1, x2, y2 = limits

    def at(y: Tensor, x: Tensor) -> Tensor:
        return sums.flatten(1).gather(1, y * width + x)

    total = at(y2, x2) - at(y1, x2) - at(y2, x1) + at(y1, x1)
    return (total / ((x2 - x1) * (y2 - y1)).clamp(min=1)).float()


def _overlaps(limits: Tensor, chosen: Tensor) -> Tensor:
    """IoU of boxes [4, M, K] with one a map [4, M, 1]."""
    x1, y1 = (torch.maximum(limits[i], chosen[i]) for i in (0, 1))
    x2, y2 = (torch.minimum(limits[i], chosen[i]) for i in (2, 3))
    shared = (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (limits, chosen)]
    return shared / (areas[0] + areas[1] - shared)
