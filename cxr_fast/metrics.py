"""How well mined boxes agree with drawn ones, and scores with labels. NumPy only.

Localisation follows Cai et al. (MICCAI 2018, Sec. 3 and 3.2), who follow Wang et al. (CVPR 2017).
The boxes of one class are walked in the order of the list B: every image's first box in image
order, then every second box, then every third, until the average of false positives per image
(AFP) reaches its bound.

The walk needs no loop. A box is a false positive or it is not, whatever was walked before it, so
AFP along B is a cumulative sum; it never falls, so the bound cuts B at one place; and a
ground-truth box is found when any box in front of the cut hits it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
AnyArray = npt.NDArray[Any]

Overlap = Literal["iou", "iobb"]
Images = Literal["class", "all"]


class Localization(NamedTuple):
    """Acc and AFP of one class at one overlap threshold, and the counts behind them.

    ``acc`` = ``found / truths`` (NaN without truths), ``afp`` = ``false_positives / images`` (NaN
    without images); ``taken`` is the length of the prefix of B that was used.
    """

    acc: float
    afp: float
    found: int
    truths: int
    false_positives: int
    images: int
    taken: int


class LocalizationRow(NamedTuple):
    """One cell of a localisation table: a finding, an overlap threshold, and what was measured."""

    finding: str
    overlap_threshold: float
    result: Localization


def iou(first: npt.ArrayLike, second: npt.ArrayLike) -> FloatArray:
    """Intersection over union of boxes, leading axes broadcast.

    ``first`` and ``second`` are ``[..., 4]``: x1, y1, x2, y2 in one unit, half-open. Returns
    float64 ``[...]`` in [0, 1]; two boxes without area have IoU 0. For every pair of N and M boxes:
    ``iou(a[:, None], b[None])``, ``[N, M]``.

    Raises ValueError for another shape, for a NaN or infinite corner, for x2 < x1 or y2 < y1.
    """
    return _overlap(_checked_boxes("first", first), _checked_boxes("second", second), "iou")


def iobb(detected: npt.ArrayLike, truth: npt.ArrayLike) -> FloatArray:
    """Intersection over the area of the *detected* box (Wang et al., 2017), leading axes broadcast.

    Shapes, units, result and errors are those of :func:`iou`; not symmetric. A detected box without
    area has IoBB 0.
    """
    return _overlap(_checked_boxes("detected", detected), _checked_boxes("truth", truth), "iobb")


def localization(
    detected_images: npt.ArrayLike,
    detected_ranks: npt.ArrayLike,
    detected_boxes: npt.ArrayLike,
    truth_images: npt.ArrayLike,
    truth_boxes: npt.ArrayLike,
    *,
    overlap_threshold: float,
    afp_bound: float | None = None,
    overlap: Overlap = "iou",
    images: Images = "class",
    all_images: int | None = None,
) -> Localization:
    """Acc and AFP of one class (paper, Sec. 3.2, Tables 1 to 3).

    Args:
        detected_images: ``[M]`` integers, whose order is the image order.
        detected_ranks: ``[M]`` integers, the box's rank within its image, the best one lowest.
        detected_boxes: ``[M, 4]`` x1, y1, x2, y2, half-open, in the unit of ``truth_boxes``.
        truth_images: ``[G]`` integers, the image of each ground-truth box of the class.
        truth_boxes: ``[G, 4]``.
        overlap_threshold: T(IoU) or T(IoBB) in [0, 1); a hit overlaps by strictly more.
        afp_bound: walk the longest prefix of B whose AFP is strictly below this (Table 2), so a
            bound of 0 takes nothing; None takes all of B (Tables 1 and 3).
        overlap: ``"iou"``, or ``"iobb"`` for intersection over the detected box.
        images: the denominator of AFP. ``"class"``: the images that have a ground-truth box of the
            class; boxes detected elsewhere are not in B. ``"all"``: ``all_images``, and every
            detected box is in B (Wang et al. divide by 984).
        all_images: that number; only, and always, with ``images="all"``.

    Rules that the paper leaves open: a detected box that hits several ground-truth boxes finds each
    of them, so Acc is the share of ground-truth boxes that at least one box in the prefix hits, and
    does not depend on the order within the prefix. A false positive is a box that hits none; a
    second hit counts neither way. A ground-truth box without area can't be found and stays in the
    denominator.

    Raises ValueError for a wrong shape, dtype, length, range or name, a corner that is not finite,
    an (image, rank) pair that comes twice, or boxes in more images than ``all_images``.
    """
    thresholds = _checked_thresholds([overlap_threshold])
    bounds = _checked_bounds(np.inf if afp_bound is None else afp_bound, ())
    detected = _checked_detected(detected_images, detected_ranks, detected_boxes)
    truth = _checked_truth(truth_images, truth_boxes)
    walk = _walk(detected, truth, overlap, images, all_images)
    return _measure(walk, float(thresholds[0]), float(bounds))


def localization_table(
    detected_images: npt.ArrayLike,
    detected_ranks: npt.ArrayLike,
    detected_classes: npt.ArrayLike,
    detected_boxes: npt.ArrayLike,
    truth_images: npt.ArrayLike,
    truth_classes: npt.ArrayLike,
    truth_boxes: npt.ArrayLike,
    *,
    findings: Sequence[str],
    overlap_thresholds: Sequence[float],
    afp_bounds: npt.ArrayLike | None = None,
    overlap: Overlap = "iou",
    images: Images = "class",
    all_images: int | None = None,
) -> list[LocalizationRow]:
    """:func:`localization` for each finding and, within it, each overlap threshold, in that order.

    ``detected_classes`` ``[M]`` and ``truth_classes`` ``[G]`` index ``findings`` (C names);
    ``afp_bounds`` is ``[C, K]`` for K thresholds, infinity where there is none. The rest, errors
    included, is as in :func:`localization`. Overlaps are computed once for all thresholds.
    """
    thresholds = _checked_thresholds(overlap_thresholds)
    shape = (len(findings), len(thresholds))
    bounds = _checked_bounds(np.full(shape, np.inf) if afp_bounds is None else afp_bounds, shape)
    detected = _checked_detected(detected_images, detected_ranks, detected_boxes)
    truth = _checked_truth(truth_images, truth_boxes)
    detected_class = _checked_classes("detected_classes", detected_classes, detected, findings)
    truth_class = _checked_classes("truth_classes", truth_classes, truth, findings)

    rows = []
    for c, finding in enumerate(findings):
        own, drawn = detected_class == c, truth_class == c
        walk = _walk(
            _Detected(*(column[own] for column in detected)),
            _Truth(*(column[drawn] for column in truth)),
            overlap,
            images,
            all_images,
        )
        for k, threshold in enumerate(thresholds):
            result = _measure(walk, float(threshold), float(bounds[c, k]))
            rows.append(LocalizationRow(finding, float(threshold), result))
    return rows


def auroc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> FloatArray:
    """Area under the ROC curve of each class: the chance that a positive outranks a negative.

    ``scores`` ``[N, C]`` real, higher means present (only their order counts); ``labels``
    ``[N, C]``, 0 or 1. Returns float64 ``[C]``. Equal scores count one half (Mann-Whitney U over
    mid-ranks, summed in integers, so exact up to one division). NaN for a class whose labels are
    all equal.

    Raises ValueError for other shapes, a NaN score, or a label that is neither 0 nor 1.
    """
    score, label = np.asarray(scores), np.asarray(labels)
    numbers = score.dtype.kind in "fiu" and label.dtype.kind in "fiub"
    if score.ndim != 2 or score.shape != label.shape or not numbers:
        raise ValueError(
            f"expected real scores and 0/1 labels of one shape [N, C], got {score.dtype} "
            f"{list(score.shape)} and {label.dtype} {list(label.shape)}; for a single class pass "
            "scores[:, None] and labels[:, None]"
        )
    if np.isnan(score).any():
        row, column = np.argwhere(np.isnan(score))[0]
        raise ValueError(f"expected scores, got NaN in row {row}, class {column}; drop that image")
    positive = label == 1
    if not (positive | (label == 0)).all():
        row, column = np.argwhere(~(positive | (label == 0)))[0]
        raise ValueError(
            f"expected labels 0 or 1, got {label[row, column]} in row {row}, class {column}; "
            "decide what uncertain labels mean before measuring"
        )

    order = np.argsort(score, axis=0)
    ranked = np.take_along_axis(score, order, axis=0)
    hit = np.take_along_axis(positive, order, axis=0)
    count = len(score)
    place = np.arange(count, dtype=np.int64)[:, None]
    opens = np.ones(score.shape, dtype=np.bool_)
    opens[1:] = ranked[1:] != ranked[:-1]
    closes = np.ones(score.shape, dtype=np.bool_)
    closes[:-1] = opens[1:]
    # The first and the last place of each run of ties; their sum + 2 is twice the 1-based mid-rank.
    first = np.maximum.accumulate(np.where(opens, place, 0), axis=0)
    last = np.minimum.accumulate(np.where(closes, place, count)[::-1], axis=0)[::-1]
    positives = positive.sum(axis=0, dtype=np.int64)
    wins = ((first + last + 2) * hit).sum(axis=0) - positives * (positives + 1)
    pairs = positives * (count - positives)
    area = np.full(score.shape[1], np.nan)
    np.divide(wins, 2 * pairs, out=area, where=pairs > 0)
    return area


class _Detected(NamedTuple):
    images: IntArray  # [M]
    boxes: AnyArray  # [M, 4]
    ranks: IntArray  # [M]


class _Truth(NamedTuple):
    images: IntArray  # [G]
    boxes: AnyArray  # [G, 4]


class _Walk(NamedTuple):
    """The list B of one class, and each pair of a box in B and a ground-truth box of its image."""

    length: int
    position: IntArray  # [P] place in B
    truth: IntArray  # [P]
    overlap: FloatArray  # [P]
    truths: int
    images: int


def _walk(
    detected: _Detected, truth: _Truth, overlap: Overlap, images: Images, all_images: int | None
) -> _Walk:
    if overlap not in ("iou", "iobb"):
        raise ValueError(f"overlap: expected 'iou' or 'iobb', got {overlap!r}; pass one of them")
    considered = _considered_images(detected.images, truth.images, images, all_images)
    if images == "class":
        own = np.isin(detected.images, truth.images)
        detected = _Detected(*(column[own] for column in detected))
    order = np.lexsort((detected.images, detected.ranks))
    walked, rank = detected.images[order], detected.ranks[order]
    twice = np.flatnonzero((walked[1:] == walked[:-1]) & (rank[1:] == rank[:-1]))
    if len(twice):
        raise ValueError(
            "expected one box for each image and rank of a class, got two for image "
            f"{walked[twice[0]]}, rank {rank[twice[0]]}; was a table read twice?"
        )

    # Join B with the truths of the same image: a run of equal images in the sorted truths each.
    by_image = np.argsort(truth.images, kind="stable")
    first = np.searchsorted(truth.images[by_image], walked, side="left")
    count = np.searchsorted(truth.images[by_image], walked, side="right") - first
    position = np.repeat(np.arange(len(walked)), count)
    within = np.arange(len(position)) - np.repeat(np.cumsum(count) - count, count)
    partner = by_image[np.repeat(first, count) + within]
    value = _overlap(detected.boxes[order[position]], truth.boxes[partner], overlap)
    return _Walk(len(walked), position, partner, value, len(truth.images), considered)


def _measure(walk: _Walk, overlap_threshold: float, afp_bound: float) -> Localization:
    hit = walk.overlap > overlap_threshold
    false_positive = np.ones(walk.length, dtype=np.bool_)
    false_positive[walk.position[hit]] = False
    # The same division as the reported afp: a bound printed from a run cuts that run exactly.
    afp_along = np.cumsum(false_positive) / walk.images
    taken = walk.length if afp_bound == np.inf else int(np.searchsorted(afp_along, afp_bound))
    found = np.zeros(walk.truths, dtype=np.bool_)
    found[walk.truth[hit & (walk.position < taken)]] = True
    hits, misses = int(found.sum()), int(false_positive[:taken].sum())
    return Localization(
        acc=hits / walk.truths if walk.truths else float("nan"),
        afp=misses / walk.images if walk.images else float("nan"),
        found=hits,
        truths=walk.truths,
        false_positives=misses,
        images=walk.images,
        taken=taken,
    )


def _considered_images(
    detected: IntArray, truth: IntArray, images: Images, all_images: int | None
) -> int:
    if images == "class":
        if all_images is not None:
            raise ValueError(
                f"all_images: expected None with images='class', got {all_images}; pass "
                "images='all' to divide by it"
            )
        return len(np.unique(truth))
    if images != "all":
        raise ValueError(f"images: expected 'class' or 'all', got {images!r}; pass one of them")
    present = len(np.union1d(detected, truth))
    if all_images is None or all_images < max(present, 1):
        raise ValueError(
            f"all_images: expected a number of images, at least 1 and the {present} that have "
            f"boxes here, with images='all', got {all_images}; pass how many images were mined"
        )
    return int(all_images)


def _overlap(detected: AnyArray, truth: AnyArray, overlap: Overlap) -> FloatArray:
    one, other = detected.astype(np.float64), truth.astype(np.float64)
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    shared = np.maximum(sides, 0.0).prod(axis=-1)
    whole = np.broadcast_to((one[..., 2:] - one[..., :2]).prod(axis=-1), shared.shape)
    if overlap == "iou":
        whole = whole + (other[..., 2:] - other[..., :2]).prod(axis=-1) - shared
    ratio = np.zeros(shared.shape)
    np.divide(shared, whole, out=ratio, where=whole > 0)
    return ratio


def _checked_detected(images: npt.ArrayLike, ranks: npt.ArrayLike, boxes: npt.ArrayLike) -> _Detected:
    array = _checked_boxes("detected_boxes", boxes, axes=2)
    return _Detected(
        _checked_integers("detected_images", images, len(array)),
        array,
        _checked_integers("detected_ranks", ranks, len(array)),
    )


def _checked_truth(images: npt.ArrayLike, boxes: npt.ArrayLike) -> _Truth:
    array = _checked_boxes("truth_boxes", boxes, axes=2)
    return _Truth(_checked_integers("truth_images", images, len(array)), array)


def _checked_classes(
    name: str, values: npt.ArrayLike, boxes: _Detected | _Truth, findings: Sequence[str]
) -> IntArray:
    classes = _checked_integers(name, values, len(boxes.boxes))
    if len(classes) and not (classes.min() >= 0 and classes.max() < len(findings)):
        raise ValueError(
            f"{name}: expected indices into the {len(findings)} findings, got {classes.min()} to "
            f"{classes.max()}; pass every name in findings, or drop the other boxes"
        )
    return classes


def _checked_boxes(name: str, boxes: npt.ArrayLike, axes: int | None = None) -> AnyArray:
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


def _checked_integers(name: str, values: npt.ArrayLike, length: int) -> IntArray:
    array = np.asarray(values)
    if array.shape != (length,) or (length and array.dtype.kind not in "iu"):
        raise ValueError(
            f"{name}: expected [{length}] integers, one a box, got {array.dtype} "
            f"{list(array.shape)}; number the names (numpy.unique with return_inverse does it) and "
            "pass columns of one table"
        )
    return array.astype(np.int64)


def _checked_thresholds(values: Sequence[float]) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not ((array >= 0) & (array < 1)).all():
        raise ValueError(
            "overlap thresholds: expected numbers from 0 up to, but not including, 1, got "
            f"{array.tolist()}; percentages must be divided by 100"
        )
    return array


def _checked_bounds(values: npt.ArrayLike, shape: tuple[int, ...]) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != shape or not (array >= 0).all():
        raise ValueError(
            f"AFP bounds: expected shape {list(shape)} (findings, thresholds) of numbers >= 0, got "
            f"{array.tolist()}; use infinity where there is no bound"
        )
    return array
