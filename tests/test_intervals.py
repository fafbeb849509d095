"""Bootstrapped intervals against lists that are rebuilt image by image and measured one at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cxr_fast import metrics
from cxr_fast.metrics import ImageCounts, resampling

FINDINGS = ("Mass", "Nodule", "Hernia")
THRESHOLDS = (0.1, 0.5)
RESAMPLES = 40


def random_table(rng: np.random.Generator, images: int = 12) -> dict[str, Any]:
    """Boxes and truths of three classes; Hernia has boxes but no truth."""
    detected, truth = [], []
    for image in range(images):
        for c in range(3):
            for _ in range(rng.integers(0, 3) if c < 2 else 0):
                corner = rng.integers(0, 6, 2)
                truth.append((image, c, (*corner, *(corner + rng.integers(1, 5, 2)))))
            for rank in range(rng.integers(0, 4)):
                corner = rng.integers(0, 6, 2)
                detected.append((image, rank, c, (*corner, *(corner + rng.integers(1, 5, 2)))))
    rows, drawn = list(zip(*detected, strict=True)), list(zip(*truth, strict=True))
    names = ("detected_images", "detected_ranks", "detected_classes", "detected_boxes")
    table = dict(zip(names, map(np.array, rows), strict=True))
    return table | dict(
        zip(("truth_images", "truth_classes", "truth_boxes"), map(np.array, drawn), strict=True)
    )


def redrawn(table: dict[str, Any], units: list[list[int]]) -> dict[str, Any]:
    """The lists with every drawn image under a number of its own, in image order; some not at all."""
    copies = sorted(image for unit in units for image in unit)
    result: dict[str, Any] = {}
    for side in ("detected", "truth"):
        names = [name for name in table if name.startswith(side)]
        chosen = [np.flatnonzero(table[f"{side}_images"] == image) for image in copies]
        number = np.repeat(np.arange(len(copies)), [len(rows) for rows in chosen])
        rows = np.concatenate([np.zeros(0, np.int64), *chosen])
        result |= {name: table[name][rows] for name in names}
        result[f"{side}_images"] = number
    return result


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("images", ["class", "all"])
@pytest.mark.parametrize("clustered", [False, True])
def test_intervals_are_the_percentiles_of_literal_resamples(
    rng: np.random.Generator, bounded: bool, images: str, clustered: bool
) -> None:
    table = random_table(rng)
    bounds = rng.choice([0.0, 0.3, 0.5, 0.75, 1.5, np.inf], (3, 2)) if bounded else None
    clusters = np.array([7, 7, 3, 3, 3, 9, 1, 1, 0, 2, 2, 4]) if clustered else None
    options: dict[str, Any] = {
        "findings": FINDINGS, "overlap_thresholds": THRESHOLDS, "afp_bounds": bounds,
        "images": images,
    }  # fmt: skip
    everyone = {"all_images": 15} if images == "all" and not clustered else {}
    everyone = {"all_images": 12} if images == "all" and clustered else everyone
    got = metrics.localization_intervals(
        **table, **options, **everyone, clusters=clusters, resamples=RESAMPLES, seed=3
    )

    # What is drawn: images with truth, or all (three without any box come last and weigh together).
    with_truth = sorted(set(table["truth_images"].tolist()))
    present = sorted({*with_truth, *table["detected_images"].tolist()})
    drawable = with_truth if images == "class" else present
    if clusters is not None:
        pool = range(12) if images == "all" else drawable
        names = sorted({int(clusters[i]) for i in pool})
        units = [[i for i in pool if clusters[i] == name] for name in names]
        multiplicity = np.ones(len(units), np.int64)
    else:
        units = [[i] for i in drawable]
        multiplicity = np.ones(len(units), np.int64)
        if images == "all":
            multiplicity = np.append(multiplicity, 15 - len(present))
            units.append([-1])
    weights = np.concatenate(list(resampling.drawn_weights(multiplicity, RESAMPLES, 3)))
    assert (weights.sum(axis=1) == multiplicity.sum()).all()

    acc, afp = np.full((2, RESAMPLES, 3, 2), np.nan)
    for r, weight in enumerate(weights.astype(int)):
        drawn = [unit for unit, times in zip(units, weight, strict=True) for _ in range(times)]
        total = sum(len(unit) for unit in drawn)
        if images == "all":
            options["all_images"] = total
        rows = metrics.localization_table(**redrawn(table, drawn), **options)
        acc[r] = np.array([row.result.acc for row in rows]).reshape(3, 2)
        afp[r] = np.array([row.result.afp for row in rows]).reshape(3, 2)
    for ours, literal in ((got.acc, acc), (got.afp, afp)):
        for c in range(3):
            known = literal[~np.isnan(literal[:, c, 0]), c]
            expected = np.percentile(known, (2.5, 97.5), axis=0).T if len(known) else np.nan
            np.testing.assert_allclose(ours[c], expected, rtol=1e-12, atol=1e-12)
    assert np.isnan(got.acc[2]).all()
    for ours, literal in ((got.mean_acc, acc), (got.mean_afp, afp)):
        means = np.nanmean(literal[:, :2], axis=1)  # of the classes with truth
        np.testing.assert_allclose(ours, np.percentile(means, (2.5, 97.5), axis=0).T, atol=1e-12)


def test_a_denominator_of_its_own_divides_every_resample(rng: np.random.Generator) -> None:
    """984 over 880 images: the intervals of 880 images, times 880 / 984."""
    table, options = random_table(rng), {"findings": FINDINGS, "overlap_thresholds": THRESHOLDS}
    alone = np.arange(12)
    shared = {**table, **options, "images": "all", "clusters": alone, "resamples": 50}
    plain = metrics.localization_intervals(**shared, all_images=12)
    larger = metrics.localization_intervals(**shared, all_images=16)
    np.testing.assert_allclose(larger.afp, plain.afp * 12 / 16, rtol=1e-12)
    np.testing.assert_array_equal(larger.acc, plain.acc)


def test_merging_equal_images_leaves_the_distribution_alone() -> None:
    rng = np.random.default_rng(1)
    counts = np.stack([rng.integers(0, 3, 9000), rng.integers(1, 3, 9000)]).astype(np.float64)
    once = np.ones(9000, np.int64)
    merged = np.concatenate(list(resampling.resampled_sums([counts], once, 3000, 5)))
    assert len(merged) == 3000
    expected = counts.sum(axis=1)
    spread = np.sqrt(9000 * counts.var(axis=1))
    assert (abs(merged.mean(axis=0) - expected) < 5 * spread / np.sqrt(3000)).all()
    np.testing.assert_allclose(merged.std(axis=0), spread, rtol=0.08)
    both = np.corrcoef(merged.T)[0, 1]
    assert both == pytest.approx(np.corrcoef(counts)[0, 1], abs=0.08)


def test_distinct_columns_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    for kind in (np.float32, np.float64):
        table = rng.integers(0, 3, (6, 5000)).astype(kind)
        multiplicity = rng.integers(1, 9, 5000)
        distinct, times = resampling._merged(table, multiplicity)
        assert len(np.unique(distinct, axis=1).T) == len(distinct.T) == len(np.unique(table, axis=1).T)
        np.testing.assert_array_equal(distinct @ times, table @ multiplicity)
        assert times.sum() == multiplicity.sum()


def test_sums_of_sparse_whole_and_broken_numbers(rng: np.random.Generator) -> None:
    dense, sparse = rng.random((3, 30)), np.zeros((2, 30))
    sparse[:, [4, 11]] = rng.random((2, 2))
    once = np.ones(30, np.int64)
    weights = np.concatenate(list(resampling.drawn_weights(once, 25, 8)))
    for tables in ([dense, sparse], [np.rint(dense * 9), np.rint(sparse * 9)]):
        sums = np.concatenate(list(resampling.resampled_sums(tables, once, 25, 8)))
        np.testing.assert_allclose(sums, weights @ np.concatenate(tables).T, rtol=1e-12)


def test_percentiles_leave_nan_out(rng: np.random.Generator) -> None:
    values = rng.random((31, 4))
    values[rng.random((31, 4)) < 0.4] = np.nan
    values[:, 3] = np.nan
    with np.errstate(all="raise"):
        got = resampling.percentiles(values)
    for column, ends in zip(values.T[:3], got, strict=False):
        known = column[~np.isnan(column)]
        np.testing.assert_allclose(ends, np.percentile(known, (2.5, 97.5)), rtol=1e-12)
    assert np.isnan(got[3]).all()


def test_nothing_at_all_and_one_image() -> None:
    options: dict[str, Any] = {"findings": ["Mass"], "overlap_thresholds": [0.1], "resamples": 7}
    none: dict[str, Any] = {
        f"{side}_{column}": []
        for side in ("detected", "truth")
        for column in ("images", "ranks", "classes", "boxes")
        if (side, column) != ("truth", "ranks")
    }
    empty = metrics.localization_intervals(**none, **options)
    assert np.isnan(np.concatenate([np.ravel(part) for part in empty])).all()
    bounded = metrics.localization_intervals(**none, **options, afp_bounds=[[0.5]])
    assert np.isnan(np.concatenate([np.ravel(part) for part in bounded])).all()
    one = {**none, "truth_images": [5], "truth_classes": [0], "truth_boxes": [[0, 0, 2, 2]]}
    missed = metrics.localization_intervals(**one, **options)
    assert missed.acc.tolist() == [[[0.0, 0.0]]]
    assert missed.afp.tolist() == [[[0.0, 0.0]]]


def test_image_counts_add_up_to_localization(rng: np.random.Generator) -> None:
    table = random_table(rng)
    own = {n: v[table["detected_classes"] == 0] for n, v in table.items() if n[0] == "d"}
    drawn = {n: v[table["truth_classes"] == 0] for n, v in table.items() if n[0] == "t"}
    rest = {n: v for n, v in {**own, **drawn}.items() if "classes" not in n}
    whole = metrics.localization(**rest, overlap_threshold=0.3)
    counts = metrics.image_counts(**rest, overlap_threshold=0.3)
    sums = [int(c.sum()) for c in counts]
    assert sums == [whole.truths, whole.found, whole.false_positives]
    assert len(counts.truths) == whole.images
    # In another order, with images that have nothing, each image as if it were alone.
    considered = rng.permutation(20)
    by_image = metrics.image_counts(**rest, overlap_threshold=0.3, considered=considered)
    for image, *numbers in zip(considered, *by_image, strict=True):
        alone = {n: v[rest[f"{n.split('_')[0]}_images"] == image] for n, v in rest.items()}
        result = metrics.localization(**alone, overlap_threshold=0.3, images="all", all_images=1)
        assert numbers == [result.truths, result.found, result.false_positives]
    with pytest.raises(ValueError, match="each image once"):
        metrics.image_counts(**rest, overlap_threshold=0.3, considered=[1, 1])


def random_counts(rng: np.random.Generator, truths: np.ndarray, chance: float) -> ImageCounts:
    return ImageCounts(truths, rng.binomial(truths, chance), rng.integers(0, 3, len(truths)))


@pytest.mark.parametrize("clustered", [False, True])
def test_difference_of_two_methods_with_several_seeds(
    rng: np.random.Generator, clustered: bool
) -> None:
    truths = rng.integers(0, 4, 30)
    first = [random_counts(rng, truths, 0.7) for _ in range(3)]
    second = [random_counts(rng, truths, 0.5) for _ in range(2)]
    clusters = rng.integers(0, 9, 30) if clustered else None
    got = metrics.acc_difference(first, second, clusters, resamples=200, seed=4)

    def difference(images: np.ndarray) -> float:
        total = truths[images].sum()
        accs = [np.mean([c.found[images].sum() / total for c in side]) for side in (first, second)]
        return float(accs[0] - accs[1])

    units = [np.flatnonzero(clusters == c) for c in np.unique(clusters)] if clustered else np.arange(30)
    once = np.ones(len(units), np.int64)
    values = []
    for weight in np.concatenate(list(resampling.drawn_weights(once, 200, 4))).astype(int):
        chosen = [np.atleast_1d(units[u]) for u in np.repeat(np.arange(len(units)), weight)]
        values.append(difference(np.concatenate(chosen)))
    assert got.difference == pytest.approx(difference(np.arange(30)), abs=1e-12)
    np.testing.assert_allclose(got[1:], np.percentile(values, (2.5, 97.5)), atol=1e-12)


def test_a_paired_difference_knows_that_the_methods_see_the_same_images() -> None:
    rng = np.random.default_rng(3)
    truths = np.ones(400, np.int64)
    easy = rng.random(400) < 0.5
    first = ImageCounts(truths, easy.astype(np.int64), truths * 0)
    second = ImageCounts(truths, (easy & (rng.random(400) < 0.9)).astype(np.int64), truths * 0)
    low, high = metrics.acc_difference(first, second)[1:]
    assert 0 < low < high
    assert high - low < 0.08  # two intervals of Acc are 0.1 wide each
    assert metrics.acc_difference(first, first) == (0.0, 0.0, 0.0)
    none = metrics.acc_difference(*[ImageCounts(*np.zeros((3, 0), np.int64))] * 2)
    assert np.isnan(none).all()


def test_intervals_cover_the_truth() -> None:
    """Of 100 experiments 95% should hold the true Acc."""
    rng = np.random.default_rng(4)
    held = 0
    for trial in range(100):
        images = np.repeat(np.arange(60), 2)  # two truths an image that are found together
        found = np.repeat(rng.random(60) < 0.6, 2)
        boxes = np.tile([[0, 0, 2, 2], [5, 5, 8, 8]], (60, 1))
        detected = np.where(found[:, None], boxes, [[20, 20, 21, 21]])
        result = metrics.localization_intervals(
            images, np.tile([1, 2], 60), np.zeros(120, int), detected, images, np.zeros(120, int),
            boxes, findings=["Mass"], overlap_thresholds=[0.5], resamples=300, seed=trial,
        )  # fmt: skip
        held += bool(result.acc[0, 0, 0] <= 0.6 <= result.acc[0, 0, 1])
    assert 88 <= held <= 99


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"clusters": [0]},
            "clusters: expected .* for each image number from 0 to 3",
        ),
        ({"clusters": [0.5] * 9}, "clusters: expected"),
        ({"resamples": 0}, "resamples: expected 1 or more, got 0"),
    ],
)
def test_intervals_refuse(change: dict[str, Any], message: str) -> None:
    box = [[0, 0, 1, 1]]
    good: dict[str, Any] = {"findings": ["Mass"], "overlap_thresholds": [0.1]}
    with pytest.raises(ValueError, match=message):
        metrics.localization_intervals([3], [1], [0], box, [3], [0], box, **good, **change)


def test_differences_refuse() -> None:
    some = ImageCounts(*np.ones((3, 4), np.int64))
    other = ImageCounts(*np.full((3, 4), 2))
    with pytest.raises(ValueError, match="the same truth"):
        metrics.acc_difference(some, [some, other])
    with pytest.raises(ValueError, match="at least one run"):
        metrics.acc_difference([], some)
    with pytest.raises(ValueError, match="expected one for each of the 4 rows"):
        metrics.acc_difference(some, some, clusters=[1, 2])


def test_a_bound_of_zero_takes_nothing_even_before_the_first_miss() -> None:
    boxes: Any = [[0, 0, 2, 2], [5, 5, 6, 6]]
    result = metrics.localization_intervals(
        [0, 0], [1, 2], [0, 0], boxes, [0], [0], boxes[:1],
        findings=["Mass"], overlap_thresholds=[0.1], afp_bounds=[[0.0]], resamples=5,
    )  # fmt: skip
    assert result.acc.tolist() == [[[0.0, 0.0]]]
