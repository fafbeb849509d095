"""Bootstrapped intervals of Acc and AFP, and of the difference of two methods.

Without an AFP bound both are ratios of sums over images (see ``resampling``). With a bound the cut
moves with the resample. The list B of a resample is B with every box as often as its image was drawn,
so AFP along it is a weighted cumulative sum over the false positives, and a ground-truth box is found
when its first hit lies before the cut. The copies of an image stand beside each other in the image
order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cxr_fast.metrics.checks import (
    AnyArray,
    FloatArray,
    IntArray,
    checked_bounds,
    checked_clusters,
    checked_thresholds,
)
from cxr_fast.metrics.localization import (
    ImageCounts,
    Images,
    Walk,
    false_positives_of,
    first_hits,
    table_walks,
)
from cxr_fast.metrics.overlap import Overlap
from cxr_fast.metrics.resampling import (
    CHUNK,
    drawn_weights,
    mean_over_classes,
    percentiles,
    ratio,
    resampled_sums,
)


class LocalizationIntervals(NamedTuple):
    """Low and high ends: ``acc`` and ``afp`` ``[C, K, 2]``, ``mean_acc`` and ``mean_afp`` ``[K, 2]``.

    The means are over the classes that have ground truth in the resample.
    """

    acc: FloatArray
    afp: FloatArray
    mean_acc: FloatArray
    mean_afp: FloatArray


class AccDifference(NamedTuple):
    """Acc of the first method minus Acc of the second, and the ends of its interval."""

    difference: float
    low: float
    high: float


class Units(NamedTuple):
    """What is drawn: rows of images (or patients), each ``multiplicity`` times over."""

    images: IntArray  # [I] ascending image numbers that have counts
    unit: IntArray  # [I] row of each
    sizes: FloatArray  # [U] images in each row
    multiplicity: IntArray  # [U]


def localization_intervals(
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
    clusters: npt.ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> LocalizationIntervals:
    """95% intervals of every cell of :func:`cxr_fast.metrics.localization_table`, and of the means.

    Drawn are the images that have ground truth of any of the findings, or with ``images="all"`` all
    images, together for all classes and thresholds. ``clusters`` ``[N]`` numbers the patient of each
    image 0 .. N - 1; whole patients are drawn then (with ``images="all"`` the N images are all there
    are, and the denominator grows and shrinks with the images drawn). ``resamples`` and ``seed`` decide
    the draws. The other arguments and errors are those of the table; ValueError for other clusters or
    less than one resample.
    """
    walks = table_walks(
        detected_images, detected_ranks, detected_classes, detected_boxes,
        truth_images, truth_classes, truth_boxes,
        findings=findings, overlap=overlap, images=images, all_images=all_images,
    )  # fmt: skip
    thresholds = checked_thresholds(overlap_thresholds)
    shape = (len(findings), len(thresholds))
    bounds = checked_bounds(np.full(shape, np.inf) if afp_bounds is None else afp_bounds, shape)
    return walk_intervals(walks, thresholds, bounds, images, clusters, resamples, seed)


def walk_intervals(
    walks: Sequence[Walk],
    thresholds: FloatArray,
    bounds: FloatArray,
    images: Images = "class",
    clusters: npt.ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> LocalizationIntervals:
    """:func:`localization_intervals` from the walks of all classes; ``bounds`` ``[C, K]``."""
    count_c, count_k = bounds.shape
    considered = [considered_images(walk, images) for walk in walks]
    all_images = max((walk.images for walk in walks), default=0) if images == "all" else None
    units = units_drawn(considered, all_images, clusters)
    truths, counted = sums_of_walks(walks, considered, units, all_images)
    # [found or missed, R, C, K], and the truths and images that they are divided by [., R, C, 1].
    parts = np.zeros((2, resamples, count_c, count_k))
    wholes = np.zeros((2, resamples, count_c, 1))
    start = 0
    if np.isinf(bounds).all():
        tables = [
            _unit_counts(walk, thresholds, units, truths[c], counted[c]) for c, walk in enumerate(walks)
        ]
        for sums in resampled_sums(tables, units.multiplicity, resamples, seed):
            part = slice(start, start := start + len(sums))
            by_class = sums.reshape(len(sums), count_c, -1)
            parts[0, part], parts[1, part] = np.split(by_class[..., 2:], 2, axis=2)
            wholes[:, part, :, 0] = by_class[..., 0], by_class[..., 1]
    else:
        for weights in drawn_weights(units.multiplicity, resamples, seed):
            part = slice(start, start := start + len(weights))
            wholes[:, part, :, 0] = weights @ truths.T, weights @ counted.T
            for c, walk in enumerate(walks):
                for k, threshold in enumerate(thresholds):
                    parts[:, part, c, k] = _bounded(
                        walk, float(threshold), bounds[c, k], units, weights, wholes[1, part, c, 0]
                    )
    acc, afp = ratio(parts, wholes)
    there = np.array([walk.truths > 0 for walk in walks], dtype=np.bool_)
    return LocalizationIntervals(
        percentiles(acc),
        percentiles(afp),
        percentiles(mean_over_classes(acc[:, there])),
        percentiles(mean_over_classes(afp[:, there])),
    )


def acc_difference(
    first: ImageCounts | Sequence[ImageCounts],
    second: ImageCounts | Sequence[ImageCounts],
    clusters: npt.ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> AccDifference:
    """Acc of one method minus Acc of another on the same truth, with its 95% interval.

    Both see the same images in every resample, which takes the differences between images out of the
    comparison. A list of counts is one method's runs with several seeds: their Acc is averaged within
    each resample, so the interval speaks of other images, not of other seeds. ``clusters`` ``[I]`` is
    the patient of each row of counts.

    Raises ValueError where the truths differ, for no runs, or for clusters of another length.

    Source: the paired percentile bootstrap (Efron 1979).
    """
    runs = [[side] if isinstance(side, ImageCounts) else list(side) for side in (first, second)]
    if not all(runs):
        raise ValueError("expected counts of at least one run on either side, got none; pass some")
    truths = np.asarray(runs[0][0].truths)
    for counts in (*runs[0], *runs[1]):
        if not np.array_equal(counts.truths, truths):
            raise ValueError(
                "expected counts on the same truth, got other truths for an image; count both with "
                "the same truth boxes and the same considered images"
            )
    table = np.stack([truths, *(np.asarray(c.found) for side in runs for c in side)])
    if clusters is not None:
        cluster = np.asarray(clusters)
        if cluster.shape != truths.shape:
            raise ValueError(
                f"clusters: expected one for each of the {len(truths)} rows of counts, got "
                f"{list(cluster.shape)}; pass the patients of the considered images"
            )
        unit = np.unique(cluster, return_inverse=True)[1]
        table = np.stack([np.bincount(unit, weights=row) for row in table])
    share = np.repeat([1 / len(runs[0]), -1 / len(runs[1])], [len(runs[0]), len(runs[1])])
    once = np.ones(table.shape[1], dtype=np.int64)
    sums = np.concatenate(list(resampled_sums([table], once, resamples, seed)))
    whole = table.sum(axis=1, dtype=np.float64)
    difference = ratio(whole[1:] @ share, whole[0])
    low, high = percentiles(ratio(sums[:, 1:] @ share, sums[:, 0]))
    return AccDifference(float(difference), float(low), float(high))


def considered_images(walk: Walk, images: Images) -> IntArray:
    """The images that count for a class, ascending; those without any box are nobody's business yet."""
    if images == "class":
        return np.unique(walk.truth_image)
    return np.union1d(walk.image, walk.truth_image)


def units_drawn(
    considered: Sequence[IntArray], all_images: int | None, clusters: npt.ArrayLike | None
) -> Units:
    """What the bootstrap draws, from the images that count for each class."""
    images = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *considered]))
    cluster = checked_clusters(clusters, int(images.max(initial=-1)))
    if cluster is not None:
        drawn = cluster[images] if all_images is None else cluster
        names, unit = np.unique(drawn, return_inverse=True)
        sizes = np.bincount(unit, minlength=len(names)).astype(np.float64)
        unit = unit if all_images is None else unit[images]
        return Units(images, unit, sizes, np.ones(len(names), dtype=np.int64))
    unit = np.arange(len(images))
    multiplicity = np.ones(len(images), dtype=np.int64)
    if all_images is not None and all_images > len(images):
        multiplicity = np.append(multiplicity, all_images - len(images))  # images without a box
    return Units(images, unit, np.ones(len(multiplicity)), multiplicity)


def sums_of_walks(
    walks: Sequence[Walk], considered: Sequence[IntArray], units: Units, all_images: int | None
) -> tuple[FloatArray, FloatArray]:
    """Ground-truth boxes of each class in each row, and the images that AFP is divided by: [C, U]."""
    rows = len(units.sizes)
    truths, counted = np.zeros((2, len(walks), rows))
    for c, walk in enumerate(walks):
        truths[c] = np.bincount(rows_of(units, walk.truth_image), minlength=rows)
        if all_images is None:
            counted[c] = np.bincount(rows_of(units, considered[c]), minlength=rows)
        else:
            counted[c] = units.sizes * (all_images / float(units.sizes @ units.multiplicity))
    return truths, counted


def rows_of(units: Units, images: IntArray) -> IntArray:
    """The row of each image number."""
    return units.unit[np.searchsorted(units.images, images)]


def _unit_counts(
    walk: Walk, thresholds: FloatArray, units: Units, truths: FloatArray, counted: FloatArray
) -> AnyArray:
    """Truths, images, boxes found and false positives at each threshold, by row: [2 + 2 * K, U]."""
    rows, count_k = len(units.sizes), len(thresholds)
    counts = np.zeros((2 + 2 * count_k, rows), dtype=np.float32)
    if not (counted == np.rint(counted)).all():  # a denominator other than the number of images
        counts = counts.astype(np.float64)
    counts[0], counts[1] = truths, counted
    box_row, truth_row = rows_of(units, walk.image), rows_of(units, walk.truth_image)
    for k, threshold in enumerate(thresholds):
        found = first_hits(walk, float(threshold)) < walk.length
        missed = false_positives_of(walk, float(threshold))
        counts[2 + k] = np.bincount(truth_row[found], minlength=rows)
        counts[2 + count_k + k] = np.bincount(box_row[missed], minlength=rows)
    return counts


def _bounded(
    walk: Walk,
    threshold: float,
    bound: float,
    units: Units,
    weights: npt.NDArray[np.float32],
    images: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Boxes found and false positives of the longest prefix below the bound, for each resample [r]."""
    places = np.flatnonzero(false_positives_of(walk, threshold))
    first = first_hits(walk, threshold)
    hit = np.flatnonzero(first < walk.length)
    rows, truth_rows = rows_of(units, walk.image[places]), rows_of(units, walk.truth_image[hit])
    found, missed = np.zeros((2, len(weights)))
    if bound == np.inf:
        return weights[:, truth_rows].sum(axis=1), weights[:, rows].sum(axis=1)
    if bound == 0:  # not even the first box leaves AFP below it
        return found, missed
    step = max(1, CHUNK // max(len(places), len(hit), 1))
    for start in range(0, len(weights), step):
        part = slice(start, start + step)
        along = np.cumsum(weights[part][:, rows], axis=1, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            # A resample without images of the class has an empty list.
            reached = along / images[part, None] >= bound
        cut = np.append(places, walk.length)[_first_true(reached)]
        found[part] = ((first[hit] < cut[:, None]) * weights[part][:, truth_rows]).sum(
            axis=1, dtype=np.float64
        )
        total = along[:, -1] if len(places) else np.zeros(len(along))
        missed[part] = np.minimum(total, _largest_below(bound, images[part]))
    return found, missed


def _first_true(mask: npt.NDArray[np.bool_]) -> IntArray:
    """The place of the first True of each row, or the row's length."""
    if mask.shape[1] == 0:
        return np.zeros(len(mask), dtype=np.int64)
    first = mask.argmax(axis=1)
    return np.asarray(np.where(mask[np.arange(len(mask)), first], first, mask.shape[1]))


def _largest_below(bound: float, images: FloatArray) -> FloatArray:
    """The largest whole m with m / images < bound, by the division that AFP is made with."""
    m = np.ceil(bound * images)
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(3):  # the product may round up or down by one
            m = np.where((m > 0) & (m / images >= bound), m - 1, m)
        return np.asarray(np.where((m + 1) / images < bound, m + 1, m))
