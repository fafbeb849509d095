"""The interval of AUROC against sums over all pairs, a bootstrap, and cases known in advance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from cxr_fast import metrics


def over_all_pairs(score: np.ndarray, label: np.ndarray, cluster: np.ndarray) -> tuple[float, float]:
    """Area and its standard error, from the definition (Obuchowski 1997, Sec. 2)."""
    positive, negative = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    won = {
        (p, n): (score[p] > score[n]) + (score[p] == score[n]) / 2 for p in positive for n in negative
    }
    m, n = len(positive), len(negative)
    area = sum(won.values()) / (m * n)
    x = {p: sum(won[p, q] for q in negative) / n for p in positive}
    y = {q: sum(won[p, q] for p in positive) / m for q in negative}
    names = sorted(set(cluster.tolist()))
    x_of = {k: sum(x[p] - area for p in positive if cluster[p] == k) for k in names}
    y_of = {k: sum(y[q] - area for q in negative if cluster[q] == k) for k in names}
    i10, i01 = len({cluster[p] for p in positive}), len({cluster[q] for q in negative})
    s10 = i10 / ((i10 - 1) * m) * sum(v**2 for v in x_of.values())
    s01 = i01 / ((i01 - 1) * n) * sum(v**2 for v in y_of.values())
    s11 = len(names) / (len(names) - 1) * sum(x_of[k] * y_of[k] for k in names)
    return area, math.sqrt(s10 / m + s01 / n + 2 * s11 / (m * n))


@pytest.mark.parametrize("clustered", [False, True])
def test_error_is_that_of_all_pairs(rng: np.random.Generator, clustered: bool) -> None:
    for levels in (3, 1000):  # with many ties, and with few
        labels = rng.random((40, 3)) < (0.5, 0.2, 0.8)
        scores = rng.integers(0, levels, (40, 3)) + labels * levels // 2
        cluster = rng.integers(0, 15, 40) if clustered else np.arange(40)
        got = metrics.auroc_interval(scores, labels, cluster if clustered else None)
        for c in range(3):
            area, error = over_all_pairs(scores[:, c], labels[:, c].astype(int), cluster)
            assert got.area[c] == pytest.approx(area, abs=1e-12)
            assert got.error[c] == pytest.approx(error, abs=1e-12)
            reach = stats.norm.ppf(0.975) * error
            assert got.low[c] == pytest.approx(max(area - reach, 0), abs=1e-12)
            assert got.high[c] == pytest.approx(min(area + reach, 1), abs=1e-12)
        np.testing.assert_array_equal(got.area, metrics.auroc(scores, labels))


@pytest.mark.parametrize("together", [1, 4])
def test_error_is_the_spread_of_a_bootstrap(together: int) -> None:
    """Images of one patient repeat each other, so there are fewer of them than there seem to be."""
    rng = np.random.default_rng(6)
    patients = 300 // together
    label = np.repeat(rng.random(patients) < 0.4, together)
    patient = np.repeat(np.arange(patients), together)
    score = label + np.repeat(rng.normal(size=patients), together) + rng.normal(size=300) * 0.3
    error = metrics.auroc_interval(score[:, None], label[:, None], patient).error[0]
    areas = []
    for _ in range(1500):
        rows = (rng.integers(0, patients, patients)[:, None] * together + np.arange(together)).ravel()
        drawn, positive = score[rows], label[rows]
        areas.append((drawn[positive][:, None] > drawn[~positive]).mean())
    assert error == pytest.approx(np.std(areas), rel=0.1)
    if together > 1:
        alone = metrics.auroc_interval(score[:, None], label[:, None]).error[0]
        assert alone < 0.7 * error


def test_what_has_no_error_or_no_area() -> None:
    scores = np.array([[0.1], [0.2], [0.8], [0.9]])

    def interval(*labels: int) -> list[float]:
        return [float(part[0]) for part in metrics.auroc_interval(scores, np.array([labels]).T)]

    assert interval(0, 0, 1, 1) == [1.0, 0.0, 1.0, 1.0]  # without a mistake
    nan = math.nan
    np.testing.assert_equal(interval(0, 0, 0, 1), [1.0, nan, nan, nan])  # one positive
    np.testing.assert_equal(interval(0, 0, 0, 0), [nan] * 4)
    none = metrics.auroc_interval(np.zeros((0, 2)), np.zeros((0, 2), int))
    assert np.isnan(none).all()
    one_patient = metrics.auroc_interval(scores, np.array([[0, 0, 1, 1]]).T, [5, 6, 7, 7])
    assert one_patient.area == [1.0]
    assert np.isnan(one_patient.error).all()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="clusters: expected one for each of the 2 images"):
        metrics.auroc_interval([[0.1], [0.2]], [[0], [1]], clusters=[1])
    with pytest.raises(ValueError, match="got NaN in row 1"):
        metrics.auroc_interval([[0.1], [np.nan]], [[0], [1]])
