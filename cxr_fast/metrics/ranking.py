"""How well scores rank images: the area under the ROC curve, and its interval in closed form."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cxr_fast.metrics.checks import FloatArray, IntArray

_NORMAL_975 = 1.959963984540054  # the 97.5th percentile of the standard normal distribution


class AurocInterval(NamedTuple):
    """``area`` ``[C]``, its standard ``error`` ``[C]``, and ``low`` and ``high`` ``[C]``, the ends of
    its 95% interval within [0, 1]; float64.
    """

    area: FloatArray
    error: FloatArray
    low: FloatArray
    high: FloatArray


def auroc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> FloatArray:
    """Area under the ROC curve of each class: the chance that a positive outranks a negative.

    ``scores`` ``[N, C]`` real, higher means present (only their order counts); ``labels``
    ``[N, C]``, 0 or 1. Returns float64 ``[C]``. Equal scores count one half (Mann-Whitney U over
    mid-ranks, summed in integers, so exact up to one division). NaN for a class whose labels are
    all equal.

    Raises ValueError for other shapes, a NaN score, or a label that is neither 0 nor 1.

    Source: Mann and Whitney 1947.
    """
    score, positive = _checked(scores, labels)
    twice, positives, negatives = _twice_mid_ranks(score), *_counts(positive)
    wins = (twice * positive).sum(axis=0) - positives * (positives + 1)
    pairs = positives * negatives
    area = np.full(score.shape[1], np.nan)
    np.divide(wins, 2 * pairs, out=area, where=pairs > 0)
    return area


def auroc_interval(
    scores: npt.ArrayLike, labels: npt.ArrayLike, clusters: npt.ArrayLike | None = None
) -> AurocInterval:
    """:func:`auroc` with its 95% interval: area +- 1.96 standard errors, cut to [0, 1].

    The error is DeLong's (Biometrics 1988), from the share of negatives that each positive outranks
    and the other way round, by mid-ranks (Sun & Xu 2014): three sorts a class, no pair is visited.
    ``clusters`` ``[N]`` is the patient of each image; images of one patient count as related then
    (Obuchowski, Biometrics 1997), which is DeLong's error where every image has its own.

    Arguments, and errors, are those of :func:`auroc`; ValueError for clusters of another length. NaN
    for a class with less than two positives or two negatives (the area is given from one of each).
    A class that is ranked without a mistake has error 0: its interval is a point, and too short.
    """
    score, positive = _checked(scores, labels)
    cluster = np.arange(len(score)) if clusters is None else np.asarray(clusters)
    if cluster.shape != (len(score),):
        raise ValueError(
            f"clusters: expected one for each of the {len(score)} images, got {list(cluster.shape)}; "
            "pass the patient of each row of scores"
        )
    unit = np.unique(cluster, return_inverse=True)[1]
    area, error = np.full((2, score.shape[1]), np.nan)
    for c in range(score.shape[1]):
        area[c], error[c] = _delong(score[:, c], positive[:, c], unit)
    low, high = area - _NORMAL_975 * error, area + _NORMAL_975 * error
    return AurocInterval(area, error, np.clip(low, 0, 1), np.clip(high, 0, 1))


def _delong(
    score: npt.NDArray[Any], positive: npt.NDArray[np.bool_], unit: IntArray
) -> tuple[float, float]:
    """Area and standard error of one class; ``unit`` ``[N]`` numbers what is independent."""
    m, n = int(positive.sum()), int((~positive).sum())
    if m == 0 or n == 0:
        return float("nan"), float("nan")
    everyone = _twice_mid_ranks(score[:, None])[:, 0]
    # The share of the other side that each image beats (positives) or that beats it (negatives).
    won = (everyone[positive] - _twice_mid_ranks(score[positive][:, None])[:, 0]) / (2 * n)
    lost = 1 - (everyone[~positive] - _twice_mid_ranks(score[~positive][:, None])[:, 0]) / (2 * m)
    area = int((everyone[positive]).sum() - m * (m + 1)) / (2 * m * n)
    if min(m, n) < 2:
        return area, float("nan")
    units = int(unit.max()) + 1
    # Each patient's excess over what its images would win on average.
    above = np.bincount(unit[positive], weights=won - area, minlength=units)
    below = np.bincount(unit[~positive], weights=lost - area, minlength=units)
    with_positive, with_negative = (
        np.count_nonzero(np.bincount(unit[side])) for side in (positive, ~positive)
    )
    if min(with_positive, with_negative) < 2:
        return area, float("nan")
    s10 = with_positive / ((with_positive - 1) * m) * (above @ above)
    s01 = with_negative / ((with_negative - 1) * n) * (below @ below)
    s11 = units / (units - 1) * (above @ below)
    return area, math.sqrt(max(float(s10 / m + s01 / n + 2 * s11 / (m * n)), 0.0))


def _twice_mid_ranks(score: npt.NDArray[Any]) -> IntArray:
    """Twice the 1-based mid-rank of each score in its column ``[N, C]``; whole numbers, so exact."""
    order = np.argsort(score, axis=0)
    ranked = np.take_along_axis(score, order, axis=0)
    count = len(score)
    place = np.arange(count, dtype=np.int64)[:, None]
    opens = np.ones(score.shape, dtype=np.bool_)
    opens[1:] = ranked[1:] != ranked[:-1]
    closes = np.ones(score.shape, dtype=np.bool_)
    closes[:-1] = opens[1:]
    # The first and the last place of each run of ties; their sum + 2 is twice the mid-rank.
    first = np.maximum.accumulate(np.where(opens, place, 0), axis=0)
    last = np.minimum.accumulate(np.where(closes, place, count)[::-1], axis=0)[::-1]
    ranks = np.empty(score.shape, dtype=np.int64)
    np.put_along_axis(ranks, order, first + last + 2, axis=0)
    return ranks


def _counts(positive: npt.NDArray[np.bool_]) -> tuple[IntArray, IntArray]:
    positives = positive.sum(axis=0, dtype=np.int64)
    return positives, len(positive) - positives


def _checked(
    scores: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
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
    return score, positive
