"""Acc over AFP along the list B, and bootstrapped intervals of it.

Acc at an AFP of x is that of the longest prefix of B whose AFP is at most x, which is what
``localization`` gives for a bound just above x. It changes only where a false positive comes, so a
curve has one point for each number of false positives, from none to all, and is a staircase between.
An interval at x is that of the bootstrap: the prefix is cut anew in every resample (see ``bootstrap``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cxr_fast.metrics.bootstrap import Units, considered_images, rows_of, sums_of_walks, units_drawn
from cxr_fast.metrics.checks import FloatArray, IntArray
from cxr_fast.metrics.localization import Images, Walk, false_positives_of, first_hits
from cxr_fast.metrics.resampling import CHUNK, drawn_weights, percentiles, ratio


class AccCurve(NamedTuple):
    """Acc over AFP of one class at one overlap threshold, all of it NaN where there is no truth.

    ``afp`` and ``acc`` ``[F + 1]`` after 0 .. F false positives; ``at`` ``[Q]`` are those of the AFP
    values at which the ends ``low`` and ``high`` ``[Q]`` of the 95% interval of Acc were computed.
    """

    afp: FloatArray
    acc: FloatArray
    at: FloatArray
    low: FloatArray
    high: FloatArray


def acc_curves(
    walks: Sequence[Walk],
    thresholds: Sequence[float],
    images: Images = "class",
    clusters: npt.ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
    places: int = 200,
) -> list[list[AccCurve]]:
    """The curve of each walk at each of K overlap thresholds, ``[C][K]``: the list B of the paper's
    Sec. 3.2 cut everywhere, where Table 2 cuts it once.

    ``walks`` are those of ``cxr_fast.evaluate.judge_walks``, ``images`` what AFP is divided by,
    ``clusters`` ``[N]`` the patient of each image (None: images are drawn). Intervals are percentiles
    of ``resamples`` draws that ``seed`` decides, at no more than ``places`` AFP values a curve, evenly
    spread over its points. ValueError for other clusters or less than one resample.
    """
    considered = [considered_images(walk, images) for walk in walks]
    all_images = max((walk.images for walk in walks), default=0) if images == "all" else None
    units = units_drawn(considered, all_images, clusters)
    truths, counted = sums_of_walks(walks, considered, units, all_images)
    plain = [[_curve(walk, float(t)) for t in thresholds] for walk in walks]
    at = [[_spread(afp, places) for afp, _ in of_class] for of_class in plain]
    drawn = [[np.full((resamples, len(x)), np.nan) for x in of_class] for of_class in at]
    start = 0
    for weights in drawn_weights(units.multiplicity, resamples, seed):
        part = slice(start, start := start + len(weights))
        for c, walk in enumerate(walks):
            whole, number = weights @ truths[c], weights @ counted[c]
            for k, threshold in enumerate(thresholds):
                found = _found_at(walk, float(threshold), at[c][k], units, weights, number)
                drawn[c][k][part] = ratio(found, whole[:, None])
    return [
        [
            AccCurve(*plain[c][k], at[c][k], *np.moveaxis(percentiles(drawn[c][k]), -1, 0))
            for k in range(len(thresholds))
        ]
        for c in range(len(walks))
    ]


def _curve(walk: Walk, threshold: float) -> tuple[FloatArray, FloatArray]:
    misses = np.flatnonzero(false_positives_of(walk, threshold))
    ends = np.append(misses, walk.length)  # a prefix with k false positives ends before the next one
    found = np.searchsorted(np.sort(first_hits(walk, threshold)), ends, side="left")
    return ratio(np.arange(len(ends)), walk.images), ratio(found, walk.truths)


def _spread(afp: FloatArray, places: int) -> FloatArray:
    chosen = np.linspace(0, len(afp) - 1, min(places, len(afp))).round().astype(np.int64)
    return afp[chosen]


def _found_at(
    walk: Walk,
    threshold: float,
    at: FloatArray,
    units: Units,
    weights: npt.NDArray[np.float32],
    images: FloatArray,
) -> FloatArray:
    """Boxes found [r, Q] in each resample by the longest prefix whose AFP is at most each of ``at``."""
    misses = np.flatnonzero(false_positives_of(walk, threshold))
    first = first_hits(walk, threshold)
    hits = np.flatnonzero(first < walk.length)
    hits = hits[np.argsort(first[hits], kind="stable")]
    hit_at = first[hits]
    ends = np.append(misses, walk.length)
    rows, truth_rows = rows_of(units, walk.image[misses]), rows_of(units, walk.truth_image[hits])
    found = np.zeros((len(weights), len(at)))
    step = max(1, CHUNK // max(len(misses), len(hits), 1))
    for begin in range(0, len(weights), step):
        part = slice(begin, begin + step)
        along = np.cumsum(weights[part][:, rows], axis=1, dtype=np.float64)
        afp = ratio(along, images[part, None])  # NaN, which sorts last, where no image was drawn
        gained = np.cumsum(weights[part][:, truth_rows], axis=1, dtype=np.float64)
        gained = np.concatenate([np.zeros((len(gained), 1)), gained], axis=1)
        for r, (own_afp, own_gain) in enumerate(zip(afp, gained, strict=True), begin):
            cut: IntArray = ends[np.searchsorted(own_afp, at, side="right")]
            found[r] = own_gain[np.searchsorted(hit_at, cut, side="left")]
    return found
