"""How well heatmaps agree with drawn boxes: pointing game, mean IoU, pixel AUC.

What is judged is each pair of an image and a class that has ground-truth boxes; pairs without are left
out, whatever their maps show. A pair without a map counts as a map that shows nothing.

Boxes are laid over a map by cutting each cell into ``CELLS`` x ``CELLS`` equal parts; a part lies in
the truth when its centre lies in a box of the class, so boxes that overlap are not counted twice, and a
nodule narrower than a cell is not lost. The map itself stays what it is, constant in each cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cxr_fast.metrics.checks import (
    AnyArray,
    FloatArray,
    IntArray,
    checked_boxes,
    checked_clusters,
    checked_integers,
)
from cxr_fast.metrics.resampling import mean_interval, ratio, units_of

CELLS = 4
_CHUNK = 32_000_000  # parts of cells held at a time


class MapScores(NamedTuple):
    """One metric over maps, by class.

    ``value`` float64 ``[C]`` is the mean over ``images`` int64 ``[C]`` pairs, ``low`` and ``high``
    ``[C]`` the ends of its bootstrapped 95% interval; NaN without any. ``mean``, ``mean_low``,
    ``mean_high`` are over the classes that have one.
    """

    value: FloatArray
    low: FloatArray
    high: FloatArray
    images: IntArray
    mean: float
    mean_low: float
    mean_high: float


class _Pairs(NamedTuple):
    """Pairs of an image and a class with ground truth, ascending, and their boxes."""

    image: IntArray  # [P]
    group: IntArray  # [P] class
    boxes: AnyArray  # [G, 4]
    pair: IntArray  # [G] of each box
    row: IntArray  # [P] of its map, -1 without one


def heatmap_peaks(heatmaps: npt.ArrayLike, image_sizes: npt.ArrayLike) -> FloatArray:
    """Where each heatmap peaks: the centre of its first largest cell in row-major order.

    ``heatmaps`` ``[M, H, W]`` real; ``image_sizes`` ``[M, 2]`` height and width in pixels. Returns
    float64 ``[M, 2]``, x and y in pixels; NaN for a constant map, which points nowhere.

    Raises ValueError for other shapes or a map that is not finite.

    Source: what the pointing game asks (Zhang et al. 2016).
    """
    maps = _checked_maps(heatmaps)
    sizes = _checked_sizes(image_sizes, len(maps))
    flat = maps.reshape(len(maps), -1)
    place = flat.argmax(axis=1)
    y, x = np.divmod(place, maps.shape[2])
    peaks = np.stack(
        [(x + 0.5) / maps.shape[2] * sizes[:, 1], (y + 0.5) / maps.shape[1] * sizes[:, 0]], 1
    )
    peaks[flat.min(axis=1) == flat.max(axis=1)] = np.nan
    return np.asarray(peaks)


def pointing_game(
    peaks: npt.ArrayLike,
    map_images: npt.ArrayLike,
    map_classes: npt.ArrayLike,
    truth_images: npt.ArrayLike,
    truth_classes: npt.ArrayLike,
    truth_boxes: npt.ArrayLike,
    *,
    findings: Sequence[str],
    clusters: npt.ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> MapScores:
    """How often the peak lies in a box of the class (Zhang et al., ECCV 2016, without tolerance).

    ``peaks`` ``[M, 2]`` x, y as :func:`heatmap_peaks` gives them, NaN for a map that points nowhere,
    which is a miss; ``map_images`` and ``map_classes`` ``[M]``; the truth as in
    :func:`cxr_fast.metrics.localization_table`. Boxes are half-open. ``clusters``, ``resamples`` and
    ``seed`` as in :func:`cxr_fast.metrics.localization_intervals`.

    Raises ValueError for a wrong shape, dtype or class, or two maps of one image and class.
    """
    points = np.asarray(peaks, dtype=np.float64).reshape(-1, 2)
    pairs = _pairs(
        len(points), map_images, map_classes, truth_images, truth_classes, truth_boxes, findings
    )
    row = pairs.row[pairs.pair]
    x, y = points[row].T if len(points) else np.full((2, len(row)), np.nan)
    x1, y1, x2, y2 = pairs.boxes.T
    inside = (row >= 0) & (x1 <= x) & (x < x2) & (y1 <= y) & (y < y2)
    hit = np.zeros(len(pairs.image))
    hit[pairs.pair[inside]] = 1.0
    return _scores(hit, pairs, findings, clusters, resamples, seed)


def map_iou(
    heatmaps: npt.ArrayLike,
    map_images: npt.ArrayLike,
    map_classes: npt.ArrayLike,
    image_sizes: npt.ArrayLike,
    truth_images: npt.ArrayLike,
    truth_classes: npt.ArrayLike,
    truth_boxes: npt.ArrayLike,
    *,
    findings: Sequence[str],
    heatmap_threshold: float = 0.5,
    clusters: npt.ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> MapScores:
    """Mean IoU of the binarised heatmap with the union of the boxes, after CheXlocalize.

    A cell is marked where its value is at least ``heatmap_threshold``; a map that is all 0 marks
    nothing, and IoU is 0. CheXlocalize (Saporta et al. 2022) draws polygons and tunes one threshold a
    class on its validation set; here the truth is boxes and the threshold is given. ``heatmaps``
    ``[M, H, W]`` and ``image_sizes`` ``[M, 2]`` as for :func:`heatmap_peaks`, the rest as for
    :func:`pointing_game`.

    Raises ValueError as :func:`pointing_game`, and for a map that is not finite.
    """

    def mean_iou(maps: AnyArray, covered: IntArray) -> FloatArray:
        marked = (maps >= heatmap_threshold) & (maps > 0)
        shared = (covered * marked).sum(axis=(1, 2))
        whole = covered.sum(axis=(1, 2)) + CELLS**2 * marked.sum(axis=(1, 2)) - shared
        return np.nan_to_num(ratio(shared, whole))

    maps, sizes = _checked_maps(heatmaps), _checked_sizes(image_sizes, len(np.asarray(heatmaps)))
    pairs = _pairs(
        len(maps), map_images, map_classes, truth_images, truth_classes, truth_boxes, findings
    )
    values = _over_maps(mean_iou, maps, sizes, pairs, without=0.0)
    return _scores(values, pairs, findings, clusters, resamples, seed)


def pixel_auc(
    heatmaps: npt.ArrayLike,
    map_images: npt.ArrayLike,
    map_classes: npt.ArrayLike,
    image_sizes: npt.ArrayLike,
    truth_images: npt.ArrayLike,
    truth_classes: npt.ArrayLike,
    truth_boxes: npt.ArrayLike,
    *,
    findings: Sequence[str],
    clusters: npt.ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> MapScores:
    """The chance that the heatmap is higher at a point in the boxes than at one outside, by image.

    Equal values count one half, so a constant map has 0.5, and so has a pair without a map. A pair
    whose boxes cover no part of a cell, or all of them, is left out. Arguments and errors as for
    :func:`map_iou`.
    """
    maps, sizes = _checked_maps(heatmaps), _checked_sizes(image_sizes, len(np.asarray(heatmaps)))
    pairs = _pairs(
        len(maps), map_images, map_classes, truth_images, truth_classes, truth_boxes, findings
    )
    values = _over_maps(_area_by_map, maps, sizes, pairs, without=0.5)
    return _scores(values, pairs, findings, clusters, resamples, seed)


def _area_by_map(maps: AnyArray, covered: IntArray) -> FloatArray:
    """AUROC of each map's cells, each as ``covered`` parts inside and the others outside."""
    flat, inside = maps.reshape(len(maps), -1), covered.reshape(len(maps), -1)
    order = np.argsort(flat, axis=1, kind="stable")  # by radix where values are bytes
    ranked = np.take_along_axis(flat, order, axis=1)
    inside = np.take_along_axis(inside, order, axis=1)
    outside = CELLS**2 - inside
    upto = np.cumsum(outside, axis=1)
    place = np.arange(flat.shape[1])
    opens = np.ones(flat.shape, dtype=np.bool_)
    opens[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    closes = np.ones(flat.shape, dtype=np.bool_)
    closes[:, :-1] = opens[:, 1:]
    first = np.maximum.accumulate(np.where(opens, place, 0), axis=1)
    last = np.minimum.accumulate(np.where(closes, place, len(place))[:, ::-1], axis=1)[:, ::-1]
    below = np.take_along_axis(upto - outside, first, axis=1)
    wins = (inside * (below + np.take_along_axis(upto, last, axis=1))).sum(axis=1)
    return ratio(wins, 2 * inside.sum(axis=1) * outside.sum(axis=1))


def _over_maps(
    judge: Callable[[AnyArray, IntArray], FloatArray],
    maps: AnyArray,
    sizes: FloatArray,
    pairs: _Pairs,
    without: float,
) -> FloatArray:
    """``judge`` of the map of each pair beside how many parts of each cell its boxes cover."""
    values = np.full(len(pairs.image), without)
    mapped = np.flatnonzero(pairs.row >= 0)
    ends = np.searchsorted(pairs.pair, np.arange(len(pairs.image) + 1))
    step = max(1, _CHUNK // max(maps[0].size * CELLS**2, 1)) if len(maps) else 1
    for start in range(0, len(mapped), step):
        part = mapped[start : start + step]
        row = pairs.row[part]
        # The boxes of these pairs, each with the number of its pair within the part.
        count = ends[part + 1] - ends[part]
        within = np.repeat(np.arange(len(part)), count)
        box = np.repeat(ends[part] - np.cumsum(count) + count, count) + np.arange(count.sum())
        covered = _covered(pairs.boxes[box], within, sizes[row], maps.shape[1:])
        values[part] = judge(maps[row], covered)
    return values


def _covered(boxes: AnyArray, owner: IntArray, sizes: FloatArray, shape: tuple[int, ...]) -> IntArray:
    """How many parts of each cell lie in boxes: ``[P, H, W]``, 0 to ``CELLS ** 2``.

    ``owner`` ``[B]`` is the ascending number of each box's map, ``sizes`` ``[P, 2]`` of its image.
    """
    count, (height, width) = len(sizes), shape
    # Which rows and columns of parts each box reaches into: [B, H * CELLS], [B, W * CELLS].
    y = (np.arange(height * CELLS) + 0.5) / (height * CELLS) * sizes[owner, :1]
    x = (np.arange(width * CELLS) + 0.5) / (width * CELLS) * sizes[owner, 1:]
    rows = (boxes[:, 1, None] <= y) & (y < boxes[:, 3, None])
    columns = (boxes[:, 0, None] <= x) & (x < boxes[:, 2, None])
    several = np.bincount(owner, minlength=count) > 1
    covered = np.zeros((count, height, width), dtype=np.int32)
    alone = ~several[owner]
    covered[owner[alone]] = (
        rows[alone].reshape(-1, height, CELLS).sum(axis=2)[:, :, None]
        * columns[alone].reshape(-1, width, CELLS).sum(axis=2)[:, None, :]
    )
    if several.any():
        slot = np.arange(len(owner)) - np.searchsorted(owner, owner)
        place = np.cumsum(several) - 1
        union = np.zeros((int(several.sum()), height * CELLS, width * CELLS), dtype=np.bool_)
        for k in range(int(slot.max()) + 1):
            own = np.flatnonzero((slot == k) & ~alone)
            union[place[owner[own]]] |= rows[own, :, None] & columns[own, None, :]
        covered[several] = union.reshape(-1, height, CELLS, width, CELLS).sum(axis=(2, 4))
    return covered.astype(np.int64)


def _pairs(
    maps: int,
    map_images: npt.ArrayLike,
    map_classes: npt.ArrayLike,
    truth_images: npt.ArrayLike,
    truth_classes: npt.ArrayLike,
    truth_boxes: npt.ArrayLike,
    findings: Sequence[str],
) -> _Pairs:
    boxes = checked_boxes("truth_boxes", truth_boxes, axes=2)
    images = checked_integers("truth_images", truth_images, len(boxes))
    map_image = checked_integers("map_images", map_images, maps)
    groups = {}
    for name, values, length in (
        ("truth_classes", truth_classes, len(boxes)),
        ("map_classes", map_classes, maps),
    ):
        groups[name] = checked_integers(name, values, length)
        if length and not (groups[name].min() >= 0 and groups[name].max() < len(findings)):
            raise ValueError(
                f"{name}: expected indices into the {len(findings)} findings, got "
                f"{groups[name].min()} to {groups[name].max()}; pass every name in findings"
            )
    count = max(len(findings), 1)
    key, pair = np.unique(images * count + groups["truth_classes"], return_inverse=True)
    map_key = map_image * count + groups["map_classes"]
    order = np.argsort(map_key, kind="stable")
    ranked = map_key[order]
    twice = np.flatnonzero(ranked[1:] == ranked[:-1])
    if len(twice):
        image, group = divmod(int(ranked[twice[0]]), count)
        raise ValueError(
            f"expected one map for each image and class, got two for image {image}, "
            f"{findings[group]}; was a table read twice?"
        )
    row = np.full(len(key), -1, dtype=np.int64)
    if maps:
        at = np.minimum(np.searchsorted(ranked, key), maps - 1)
        row = np.where(ranked[at] == key, order[at], -1)
    by_pair = np.argsort(pair, kind="stable")
    return _Pairs(key // count, key % count, boxes[by_pair], pair[by_pair], row)


def _scores(
    values: FloatArray,
    pairs: _Pairs,
    findings: Sequence[str],
    clusters: npt.ArrayLike | None,
    resamples: int,
    seed: int,
) -> MapScores:
    known = ~np.isnan(values)
    value, image, group = values[known], pairs.image[known], pairs.group[known]
    count = len(findings)
    images = np.bincount(group, minlength=count)
    means = ratio(np.bincount(group, weights=value, minlength=count), images)
    cluster = checked_clusters(clusters, int(pairs.image.max(initial=-1)))
    ends, mean_ends = mean_interval(value, units_of(image, cluster), group, count, resamples, seed)
    mean = float(np.mean(means[images > 0])) if images.any() else float("nan")
    low, high = ends[..., 0], ends[..., 1]
    return MapScores(means, low, high, images, mean, float(mean_ends[0]), float(mean_ends[1]))


def _checked_maps(heatmaps: npt.ArrayLike) -> npt.NDArray[Any]:
    maps = np.asarray(heatmaps)
    if maps.ndim != 3 or maps.dtype.kind not in "fiu" or 0 in maps.shape[1:]:
        raise ValueError(
            f"heatmaps: expected real numbers [maps, height, width], got {maps.dtype} "
            f"{list(maps.shape)}; stack one map for each image and class"
        )
    if maps.dtype.kind == "f" and not np.isfinite(maps).all():
        first = int(np.argwhere(~np.isfinite(maps))[0, 0])
        raise ValueError(f"heatmaps: expected finite values, got others in map {first}; drop that map")
    return maps


def _checked_sizes(image_sizes: npt.ArrayLike, maps: int) -> FloatArray:
    sizes = np.asarray(image_sizes, dtype=np.float64)
    if sizes.shape != (maps, 2) or not (sizes > 0).all():
        raise ValueError(
            f"image_sizes: expected [{maps}, 2] heights and widths above 0, got {list(sizes.shape)}; "
            "repeat an image's size for each of its maps"
        )
    return sizes
