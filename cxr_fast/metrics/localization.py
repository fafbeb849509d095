"""Acc and AFP: how many drawn boxes were found, and how many boxes found nothing.

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
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cxr_fast.metrics.checks import (
    Detected,
    FloatArray,
    IntArray,
    Truth,
    checked_bounds,
    checked_classes,
    checked_detected,
    checked_integers,
    checked_thresholds,
    checked_truth,
)
from cxr_fast.metrics.overlap import Overlap, overlap_of

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
    thresholds = checked_thresholds([overlap_threshold])
    bounds = checked_bounds(np.inf if afp_bound is None else afp_bound, ())
    detected = checked_detected(detected_images, detected_ranks, detected_boxes)
    truth = checked_truth(truth_images, truth_boxes)
    walk = walk_of(detected, truth, overlap, images, all_images)
    return measured(walk, float(thresholds[0]), float(bounds))


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
    thresholds = checked_thresholds(overlap_thresholds)
    shape = (len(findings), len(thresholds))
    bounds = checked_bounds(np.full(shape, np.inf) if afp_bounds is None else afp_bounds, shape)
    walks = table_walks(
        detected_images, detected_ranks, detected_classes, detected_boxes,
        truth_images, truth_classes, truth_boxes,
        findings=findings, overlap=overlap, images=images, all_images=all_images,
    )  # fmt: skip
    return measured_table(walks, findings, thresholds, bounds)


class ImageCounts(NamedTuple):
    """What each of I images contributes to Acc and AFP of one class; int64.

    ``truths`` ``[I]`` ground-truth boxes, of which ``found`` ``[I]`` were hit, and
    ``false_positives`` ``[I]`` that hit none.
    Acc is ``found.sum() / truths.sum()``, AFP is ``false_positives.sum()`` over the images.
    """

    truths: IntArray
    found: IntArray
    false_positives: IntArray


def image_counts(
    detected_images: npt.ArrayLike,
    detected_ranks: npt.ArrayLike,
    detected_boxes: npt.ArrayLike,
    truth_images: npt.ArrayLike,
    truth_boxes: npt.ArrayLike,
    *,
    overlap_threshold: float,
    overlap: Overlap = "iou",
    considered: npt.ArrayLike | None = None,
) -> ImageCounts:
    """The counts behind :func:`localization` without AFP bound, image by image.

    ``considered`` ``[I]`` are the image numbers whose counts are returned, in that order; boxes
    elsewhere are not counted. None: the images with a ground-truth box, ascending, which are the
    images of the class. The other arguments, and errors, are those of :func:`localization`; an image
    that is considered twice is a ValueError, too.
    """
    threshold = checked_thresholds([overlap_threshold])[0]
    detected = checked_detected(detected_images, detected_ranks, detected_boxes)
    truth = checked_truth(truth_images, truth_boxes)
    if considered is None:
        images = np.unique(truth.images)
    else:
        images = checked_integers("considered", considered, np.size(considered))
    order = np.argsort(images, kind="stable")
    ascending = images[order]
    if (ascending[1:] == ascending[:-1]).any():
        raise ValueError("considered: expected each image once, got one twice; pass distinct numbers")
    detected = Detected(*(column[np.isin(detected.images, images)] for column in detected))
    truth = Truth(*(column[np.isin(truth.images, images)] for column in truth))
    walk = walk_of(detected, truth, overlap, "all", max(len(images), 1))
    found, false_positives = walk_counts(walk, float(threshold), ascending)
    back = np.argsort(order, kind="stable")
    truths = np.bincount(np.searchsorted(ascending, walk.truth_image), minlength=len(images))
    return ImageCounts(truths[back], found[back], false_positives[back])


def table_walks(
    detected_images: npt.ArrayLike,
    detected_ranks: npt.ArrayLike,
    detected_classes: npt.ArrayLike,
    detected_boxes: npt.ArrayLike,
    truth_images: npt.ArrayLike,
    truth_classes: npt.ArrayLike,
    truth_boxes: npt.ArrayLike,
    *,
    findings: Sequence[str],
    overlap: Overlap = "iou",
    images: Images = "class",
    all_images: int | None = None,
) -> list[Walk]:
    """The walk of each finding, from the arguments of :func:`localization_table`.

    For whoever wants figures and their intervals: overlaps are computed once for both.
    """
    detected = checked_detected(detected_images, detected_ranks, detected_boxes)
    truth = checked_truth(truth_images, truth_boxes)
    detected_class = checked_classes("detected_classes", detected_classes, detected, findings)
    truth_class = checked_classes("truth_classes", truth_classes, truth, findings)
    if images == "class":  # most boxes of an archive are in images that nobody drew on
        drawn_on = _members(detected.images, truth.images)
        detected = Detected(*(column[drawn_on] for column in detected))
        detected_class = detected_class[drawn_on]
    own, drawn = (_by_class(c, len(findings)) for c in (detected_class, truth_class))
    return [
        walk_of(
            Detected(*(column[own[c]] for column in detected)),
            Truth(*(column[drawn[c]] for column in truth)),
            overlap,
            images,
            all_images,
        )
        for c in range(len(findings))
    ]


def measured_table(
    walks: Sequence[Walk], findings: Sequence[str], thresholds: FloatArray, bounds: FloatArray
) -> list[LocalizationRow]:
    """:func:`localization_table` from walks; ``bounds`` ``[C, K]``, infinity where there is none."""
    return [
        LocalizationRow(finding, float(t), measured(walk, float(t), float(bounds[c, k])))
        for c, (finding, walk) in enumerate(zip(findings, walks, strict=True))
        for k, t in enumerate(thresholds)
    ]


class Walk(NamedTuple):
    """The list B of one class, and each pair of a box in B and a ground-truth box of its image."""

    image: IntArray  # [L] of each box in B
    truth_image: IntArray  # [G] of each ground-truth box
    position: IntArray  # [P] place in B
    truth: IntArray  # [P]
    overlap: FloatArray  # [P]
    images: int  # the denominator of AFP

    @property
    def length(self) -> int:
        """How many boxes are in B."""
        return len(self.image)

    @property
    def truths(self) -> int:
        """How many ground-truth boxes there are."""
        return len(self.truth_image)


def walk_of(
    detected: Detected, truth: Truth, overlap: Overlap, images: Images, all_images: int | None
) -> Walk:
    """Order the boxes of one class into B, and pair them with the truths of their images."""
    if overlap not in ("iou", "iobb"):
        raise ValueError(f"overlap: expected 'iou' or 'iobb', got {overlap!r}; pass one of them")
    considered = _considered_images(detected.images, truth.images, images, all_images)
    if images == "class":
        own = _members(detected.images, truth.images)
        detected = Detected(*(column[own] for column in detected))
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
    value = overlap_of(detected.boxes[order[position]], truth.boxes[partner], overlap)
    return Walk(walked, truth.images, position, partner, value, considered)


def measured(walk: Walk, overlap_threshold: float, afp_bound: float) -> Localization:
    """Acc and AFP of a walk at one threshold, up to a bound that may be infinite."""
    hit = walk.overlap > overlap_threshold
    false_positive = false_positives_of(walk, overlap_threshold)
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


def false_positives_of(walk: Walk, overlap_threshold: float) -> npt.NDArray[np.bool_]:
    """``[L]``: which boxes of B hit no ground-truth box."""
    missing = np.ones(walk.length, dtype=np.bool_)
    missing[walk.position[walk.overlap > overlap_threshold]] = False
    return missing


def first_hits(walk: Walk, overlap_threshold: float) -> IntArray:
    """``[G]``: the place in B of the first box that hits each ground-truth box; ``length`` if none."""
    first = np.full(walk.truths, walk.length, dtype=np.int64)
    hit = walk.overlap > overlap_threshold
    np.minimum.at(first, walk.truth[hit], walk.position[hit])
    return first


def walk_counts(walk: Walk, overlap_threshold: float, images: IntArray) -> tuple[IntArray, IntArray]:
    """Boxes found and false positives in each of ``images`` ``[I]``, ascending; all of the walk's."""
    found = first_hits(walk, overlap_threshold) < walk.length
    missing = false_positives_of(walk, overlap_threshold)
    found_in = np.searchsorted(images, walk.truth_image[found])
    missing_in = np.searchsorted(images, walk.image[missing])
    return np.bincount(found_in, minlength=len(images)), np.bincount(missing_in, minlength=len(images))


def _members(values: IntArray, of: IntArray) -> npt.NDArray[np.bool_]:
    """``numpy.isin`` by a search in the few: it does not sort the many."""
    known = np.unique(of)
    if len(known) == 0:
        return np.zeros(len(values), dtype=np.bool_)
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.asarray(known[at] == values)


def _by_class(classes: IntArray, count: int) -> list[IntArray]:
    """The rows of each class, in their order, from one sort."""
    order = np.argsort(classes, kind="stable")
    ends = np.searchsorted(classes[order], np.arange(count + 1))
    return [order[ends[c] : ends[c + 1]] for c in range(count)]


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
