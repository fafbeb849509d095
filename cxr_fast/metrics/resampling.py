"""Drawing images, or whole patients, again with replacement: the bootstrap that all intervals share.

Every metric here is a ratio of sums over images: boxes found over boxes drawn, false positives over
images, hits over images. A resample gives each image a weight, how often it was drawn, and the ratio
becomes a ratio of weighted sums, so all resamples of all columns are one matrix product. Images with
equal counts are interchangeable: the weights of the distinct columns of counts are multinomial, which
is what makes a million images cheap.

Intervals are percentiles of the resamples (Efron & Tibshirani 1993, Sec. 13.3); a resample without
any truth of a class says nothing of its Acc and is left out of that class's percentiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_fast.metrics.checks import AnyArray, FloatArray, IntArray

LEVEL = 0.95
CHUNK = 4_000_000  # weights held at a time
_WORTH_MERGING = 4096  # columns; below that equal ones are not looked for


def mean_interval(
    values: FloatArray, unit: IntArray, group: IntArray, groups: int, resamples: int, seed: int
) -> tuple[FloatArray, FloatArray]:
    """Intervals of the mean of ``values`` ``[M]`` in each of ``groups`` groups, and of their mean.

    ``unit`` and ``group`` ``[M]`` number what is drawn and the group of each value, from 0. Returns
    ``[groups, 2]`` and ``[2]``.
    """
    units = np.unique(unit, return_inverse=True)[1]
    count = int(units.max(initial=-1)) + 1
    cell = group * count + units
    total = np.bincount(cell, weights=values, minlength=groups * count).reshape(groups, count)
    number = np.bincount(cell, minlength=groups * count).reshape(groups, count)
    once = np.ones(count, dtype=np.int64)
    sums = np.concatenate(list(resampled_sums([total, number], once, resamples, seed)))
    means = ratio(sums[:, :groups], sums[:, groups:])
    return percentiles(means), percentiles(mean_over_classes(means))


def resampled_sums(
    tables: Sequence[AnyArray], multiplicity: IntArray, resamples: int, seed: int
) -> Iterator[FloatArray]:
    """Weighted sums ``[r, Q]`` of the rows of the tables ``[q, U]``, over all resamples in chunks."""
    largest = max((float(t.max(initial=0)) for t in tables), default=0.0) * float(multiplicity.sum())
    # Whole numbers whose sums stay below 2^24 are exact in float32, and the product twice as fast.
    whole = largest < 2**24 and all((t == np.rint(t)).all() for t in tables)
    table = np.concatenate([t.astype(np.float32 if whole else np.float64) for t in tables])
    if table.shape[1] > _WORTH_MERGING:
        table, multiplicity = _merged(table, multiplicity)
    # A table of mostly zeros, as that of a class which few images have, is multiplied without them.
    products = []
    for part in np.split(table, np.cumsum([len(t) for t in tables])[:-1]):
        used = np.flatnonzero(part.any(axis=0))
        sparse = 2 * len(used) < part.shape[1]
        products.append((used, part[:, used].T) if sparse else (None, part.T))
    for weights in drawn_weights(multiplicity, resamples, seed):
        weights = weights.astype(table.dtype, copy=False)
        sums = [(weights if used is None else weights[:, used]) @ part for used, part in products]
        yield np.concatenate(sums, axis=1).astype(np.float64)


def drawn_weights(
    multiplicity: IntArray, resamples: int, seed: int
) -> Iterator[npt.NDArray[np.float32]]:
    """How often each row is drawn, ``[r, U]`` in chunks that add up to ``resamples`` rows.

    As many are drawn as there are, ``multiplicity.sum()``: multinomial, by whichever of two ways is
    cheaper, one draw a unit or one a distinct row.
    """
    if resamples < 1:
        raise ValueError(f"resamples: expected 1 or more, got {resamples}; 1000 is usual")
    rng = np.random.default_rng(seed)
    rows, total = len(multiplicity), int(multiplicity.sum())
    merged = total > 10 * rows
    row_of = None if total == rows else np.repeat(np.arange(rows), multiplicity)
    chunk = max(1, CHUNK // max(rows, 1))
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        if rows == 0:
            yield np.zeros((count, 0), dtype=np.float32)
        elif merged:
            yield rng.multinomial(total, multiplicity / total, size=count).astype(np.float32)
        else:
            weights = np.empty((count, rows), dtype=np.float32)
            for r in range(count):
                drawn = rng.integers(0, total, size=total, dtype=np.int32)
                weights[r] = np.bincount(drawn if row_of is None else row_of[drawn], minlength=rows)
            yield weights


def percentiles(replicates: FloatArray, level: float = LEVEL) -> FloatArray:
    """Ends ``[..., 2]`` of the central ``level`` of replicates ``[R, ...]``; NaN are left out."""
    ordered = np.sort(replicates, axis=0)  # NaN last
    count = (~np.isnan(ordered)).sum(axis=0)
    ends = []
    for quantile in ((1 - level) / 2, (1 + level) / 2):
        place = quantile * np.maximum(count - 1, 0)
        below = np.floor(place).astype(np.int64)
        above = np.minimum(below + 1, np.maximum(count - 1, 0))
        low, high = (np.take_along_axis(ordered, at[None], axis=0)[0] for at in (below, above))
        ends.append(low + (high - low) * (place - below))
    return np.stack(ends, axis=-1)


def units_of(images: IntArray, clusters: IntArray | None) -> IntArray:
    """What is drawn for each image number: the number itself, or its cluster."""
    return images if clusters is None else clusters[images]


def _merged(table: AnyArray, multiplicity: IntArray) -> tuple[AnyArray, IntArray]:
    """The distinct columns of a table [Q, U], and how often each stands in it."""
    rng = np.random.default_rng(0)
    odd = rng.integers(1, 2**63, size=len(table), dtype=np.uint64) | np.uint64(1)
    # One 64-bit key a column of the table; sorting the columns themselves would take seconds.
    key = np.zeros(table.shape[1], dtype=np.uint64)
    for row, factor in zip(np.ascontiguousarray(table), odd, strict=True):
        bits = row.view(np.uint32 if row.itemsize == 4 else np.uint64).astype(np.uint64) + factor
        bits ^= bits >> np.uint64(31)
        key += (bits * factor) ^ (bits >> np.uint64(7))
    _, first, place = np.unique(key, return_index=True, return_inverse=True)
    distinct = table[:, first]
    if not all(np.array_equal(d[place], row) for d, row in zip(distinct, table, strict=True)):
        return table, multiplicity  # two columns with one key: never seen, and no harm done
    return distinct, np.bincount(place, weights=multiplicity).astype(np.int64)


def ratio(part: Any, whole: Any) -> FloatArray:
    """``part / whole``, NaN where the whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, dtype=np.float64), whole)
    result = np.full(part.shape, np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def mean_over_classes(values: FloatArray) -> FloatArray:
    """The mean over axis 1 of what is not NaN; NaN where all is."""
    there = ~np.isnan(values)
    return ratio(np.where(there, values, 0.0).sum(axis=1), there.sum(axis=1))
