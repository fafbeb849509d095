"""Columns as the metrics take them, or a sentence that says what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
AnyArray = npt.NDArray[Any]


class Detected(NamedTuple):
    """Boxes that were mined, one row each."""

    images: IntArray  # [M]
    boxes: AnyArray  # [M, 4]
    ranks: IntArray  # [M]


class Truth(NamedTuple):
    """Boxes that were drawn, one row each."""

    images: IntArray  # [G]
    boxes: AnyArray  # [G, 4]


def checked_detected(images: npt.ArrayLike, ranks: npt.ArrayLike, boxes: npt.ArrayLike) -> Detected:
    """Three columns of one table of mined boxes; ValueError says which one is wrong."""
    array = checked_boxes("detected_boxes", boxes, axes=2)
    return Detected(
        checked_integers("detected_images", images, len(array)),
        array,
        checked_integers("detected_ranks", ranks, len(array)),
    )


def checked_truth(images: npt.ArrayLike, boxes: npt.ArrayLike) -> Truth:
    """Two columns of one table of drawn boxes; ValueError says which one is wrong."""
    array = checked_boxes("truth_boxes", boxes, axes=2)
    return Truth(checked_integers("truth_images", images, len(array)), array)


def checked_classes(
    name: str, values: npt.ArrayLike, boxes: Detected | Truth, findings: Sequence[str]
) -> IntArray:
    """Indices into ``findings``, one a box."""
    classes = checked_integers(name, values, len(boxes.boxes))
    if len(classes) and not (classes.min() >= 0 and classes.max() < len(findings)):
        raise ValueError(
            f"{name}: expected indices into the {len(findings)} findings, got {classes.min()} to "
            f"{classes.max()}; pass every name in findings, or drop the other boxes"
        )
    return classes


def checked_boxes(name: str, boxes: npt.ArrayLike, axes: int | None = None) -> AnyArray:
    """Finite corners ``[..., 4]`` with x1 <= x2 and y1 <= y2, of so many axes."""
    array = np.asarray(boxes)
    if array.shape == (0,):
        array = array.reshape(0, 4)
    shaped = array.ndim >= 1 if axes is None else array.ndim == axes
    if not shaped or array.shape[-1] != 4 or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{name}: expected real numbers {'[..., 4]' if axes is None else '[boxes, 4]'} (x1, "
            f"y1, x2, y2), got {array.dtype} {list(array.shape)}; stack the corners on the last "
            "axis and flatten the others"
        )
    good = (array[..., 2:] >= array[..., :2]).all(axis=-1) & np.isfinite(array).all(axis=-1)
    if not good.all():
        where = np.argwhere(~good)[0].tolist()
        raise ValueError(
            f"{name}: expected finite corners with x1 <= x2 and y1 <= y2, got "
            f"{array[tuple(where)].tolist()} at {where}; drop boxes that do not exist, and turn "
            "x, y, width, height into corners"
        )
    return array


def checked_integers(name: str, values: npt.ArrayLike, length: int) -> IntArray:
    """A column of ``length`` integers, as int64."""
    array = np.asarray(values)
    if array.shape != (length,) or (length and array.dtype.kind not in "iu"):
        raise ValueError(
            f"{name}: expected [{length}] integers, one a box, got {array.dtype} "
            f"{list(array.shape)}; number the names (numpy.unique with return_inverse does it) and "
            "pass columns of one table"
        )
    return array.astype(np.int64)


def checked_thresholds(values: Sequence[float]) -> FloatArray:
    """Overlap thresholds in [0, 1)."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not ((array >= 0) & (array < 1)).all():
        raise ValueError(
            "overlap thresholds: expected numbers from 0 up to, but not including, 1, got "
            f"{array.tolist()}; percentages must be divided by 100"
        )
    return array


def checked_bounds(values: npt.ArrayLike, shape: tuple[int, ...]) -> FloatArray:
    """AFP bounds of that shape, none below 0."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape != shape or not (array >= 0).all():
        raise ValueError(
            f"AFP bounds: expected shape {list(shape)} (findings, thresholds) of numbers >= 0, got "
            f"{array.tolist()}; use infinity where there is no bound"
        )
    return array


def checked_clusters(values: npt.ArrayLike | None, largest: int) -> IntArray | None:
    """``[N]`` cluster of each image number 0 .. N - 1, where ``largest`` is the largest in use."""
    if values is None:
        return None
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu" or len(array) <= largest:
        raise ValueError(
            f"clusters: expected [N] integers, one for each image number from 0 to {largest}, got "
            f"{array.dtype} {list(array.shape)}; number the images from 0, and give each its patient"
        )
    return array.astype(np.int64)
