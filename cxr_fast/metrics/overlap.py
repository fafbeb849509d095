"""How far two boxes agree: intersection over union, and over the detected box."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cxr_fast.metrics.checks import checked_boxes

Overlap = Literal["iou", "iobb"]


def iou(first: npt.ArrayLike, second: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Intersection over union of boxes, leading axes broadcast.

    ``first`` and ``second`` are ``[..., 4]``: x1, y1, x2, y2 in one unit, half-open. Returns
    float64 ``[...]`` in [0, 1]; two boxes without area have IoU 0. For every pair of N and M boxes:
    ``iou(a[:, None], b[None])``, ``[N, M]``.

    Source: Jaccard 1912; the measure of Wang et al. 2017.

    Raises ValueError for another shape, for a NaN or infinite corner, for x2 < x1 or y2 < y1.
    """
    return overlap_of(checked_boxes("first", first), checked_boxes("second", second), "iou")


def iobb(detected: npt.ArrayLike, truth: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Intersection over the area of the *detected* box (Wang et al., 2017), leading axes broadcast.

    ``detected`` and ``truth`` ``[..., 4]``; units, result and errors are those of :func:`iou`. Not
    symmetric. A detected box without area has IoBB 0.
    """
    return overlap_of(checked_boxes("detected", detected), checked_boxes("truth", truth), "iobb")


def overlap_of(
    detected: npt.NDArray[Any], truth: npt.NDArray[Any], overlap: Overlap
) -> npt.NDArray[np.float64]:
    """``iou`` or ``iobb`` of boxes that were checked; an unknown name is the caller's to refuse."""
    one, other = detected.astype(np.float64), truth.astype(np.float64)
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    shared = np.maximum(sides, 0.0).prod(axis=-1)
    whole = np.broadcast_to((one[..., 2:] - one[..., :2]).prod(axis=-1), shared.shape)
    if overlap == "iou":
        whole = whole + (other[..., 2:] - other[..., :2]).prod(axis=-1) - shared
    ratio = np.zeros(shared.shape)
    np.divide(shared, whole, out=ratio, where=whole > 0)
    return ratio
