"""Metrics over heatmaps, against literal loops over cells, points and boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from cxr_fast import metrics
from cxr_fast.metrics import maps as module
from cxr_fast.metrics import resampling

FINDINGS = ("Mass", "Nodule", "Hernia")
H, W, PARTS = 5, 7, module.CELLS


class Scene:
    """Maps and truths of nine images: pairs without a map, maps without truth, boxes that overlap."""

    def __init__(self, rng: np.random.Generator, dtype: type = np.float64) -> None:
        self.sizes = rng.integers(30, 90, (9, 2))
        pairs = [(i, c) for i in range(9) for c in range(3)]
        mapped = [pairs[k] for k in rng.permutation(27)[:20]]
        self.images, self.classes = np.array(mapped).T
        self.heatmaps = rng.integers(0, 5, (20, H, W)).astype(dtype)
        for k in (*range(20), 4, 5, 6):  # a peak each, and a second one for three
            self.heatmaps[k, rng.integers(0, H), rng.integers(0, W)] = 5
        if dtype is np.float64:
            self.heatmaps /= 5
        self.truth: list[tuple[int, int, tuple[float, ...]]] = []
        for i, c in pairs:
            for _ in range(int(rng.integers(0, 3)) if c < 2 else 0):
                y, x = rng.random(2) * self.sizes[i] * 0.6
                h, w = rng.uniform(0.02, 0.8, 2) * self.sizes[i]
                self.truth.append((i, c, (x, y, x + w, y + h)))

    @property
    def drawn(self) -> tuple[np.ndarray, ...]:
        return tuple(np.array(column) for column in zip(*self.truth, strict=True))

    def boxes_of(self, image: int, c: int) -> list[tuple[float, ...]]:
        return [box for i, k, box in self.truth if (i, k) == (image, c)]

    def pairs(self, c: int) -> list[int]:
        return [i for i in range(9) if self.boxes_of(i, c)]

    def map_of(self, image: int, c: int) -> np.ndarray | None:
        rows = np.flatnonzero((self.images == image) & (self.classes == c))
        return self.heatmaps[rows[0]] if len(rows) else None

    def points(self, image: int, c: int) -> list[tuple[int, int, bool]]:
        """Row and column of the cell, and whether it lies in a box, for every part of every cell."""
        height, width = self.sizes[image]
        result = []
        for r in range(H * PARTS):
            for k in range(W * PARTS):
                y, x = (r + 0.5) / (H * PARTS) * height, (k + 0.5) / (W * PARTS) * width
                inside = any(a <= x < u and b <= y < v for a, b, u, v in self.boxes_of(image, c))
                result.append((r // PARTS, k // PARTS, inside))
        return result


def check(scores: metrics.MapScores, scene: Scene, value_of: Any) -> None:
    """Means, and percentiles of resamples of the images that have a value of any class."""
    values = {(i, c): value_of(i, c) for c in range(3) for i in scene.pairs(c)}
    values = {pair: value for pair, value in values.items() if value is not None}
    units = sorted({i for i, _ in values})
    once = np.ones(len(units), np.int64)
    weights = np.concatenate(list(resampling.drawn_weights(once, 60, 9)))
    replicates = np.full((60, 3), np.nan)
    for c in range(3):
        own = {i: value for (i, k), value in values.items() if k == c}
        assert scores.images[c] == len(own)
        if not own:
            assert np.isnan([scores.value[c], scores.low[c], scores.high[c]]).all()
            continue
        assert scores.value[c] == pytest.approx(np.mean(list(own.values())), abs=1e-12)
        for r, weight in enumerate(weights.astype(int)):
            drawn = [own[i] for i, n in zip(units, weight, strict=True) if i in own for _ in range(n)]
            replicates[r, c] = np.mean(drawn) if drawn else np.nan
        ends = np.nanpercentile(replicates[:, c], (2.5, 97.5))
        np.testing.assert_allclose((scores.low[c], scores.high[c]), ends, atol=1e-12)
    assert scores.mean == pytest.approx(np.mean(scores.value[:2]), abs=1e-12)
    ends = np.percentile(np.nanmean(replicates[:, :2], axis=1), (2.5, 97.5))
    np.testing.assert_allclose((scores.mean_low, scores.mean_high), ends, atol=1e-12)


@pytest.fixture(params=[np.float64, np.uint8])
def scene(request: pytest.FixtureRequest) -> Scene:
    return Scene(np.random.default_rng(11), request.param)


def test_pointing_game(scene: Scene) -> None:
    scene.heatmaps[3] = 0.5 if scene.heatmaps.dtype == np.float64 else 2  # points nowhere
    peaks = metrics.heatmap_peaks(scene.heatmaps, scene.sizes[scene.images])

    def hit(image: int, c: int) -> float:
        heatmap = scene.map_of(image, c)
        if heatmap is None or heatmap.min() == heatmap.max():
            return 0.0
        row, column = next((r, k) for r in range(H) for k in range(W) if heatmap[r, k] == heatmap.max())
        y, x = (row + 0.5) / H * scene.sizes[image][0], (column + 0.5) / W * scene.sizes[image][1]
        return float(any(a <= x < u and b <= y < v for a, b, u, v in scene.boxes_of(image, c)))

    assert np.isnan(peaks[3]).all()
    scores = metrics.pointing_game(
        peaks, scene.images, scene.classes, *scene.drawn, findings=FINDINGS, resamples=60, seed=9
    )
    check(scores, scene, hit)
    assert 0 < scores.mean < 1


def test_mean_iou(scene: Scene) -> None:
    threshold = 0.6 if scene.heatmaps.dtype == np.float64 else 3

    def literal(image: int, c: int) -> float:
        heatmap = scene.map_of(image, c)
        if heatmap is None:
            return 0.0
        marked = [(heatmap[r, k] >= threshold, inside) for r, k, inside in scene.points(image, c)]
        union = sum(m or i for m, i in marked)
        return sum(m and i for m, i in marked) / union if union else 0.0

    scores = metrics.map_iou(
        scene.heatmaps, scene.images, scene.classes, scene.sizes[scene.images], *scene.drawn,
        findings=FINDINGS, heatmap_threshold=threshold, resamples=60, seed=9,
    )  # fmt: skip
    check(scores, scene, literal)
    assert 0 < scores.mean < 1


def test_pixel_auc(scene: Scene) -> None:
    def literal(image: int, c: int) -> float | None:
        points = scene.points(image, c)
        inside = [(r, k) for r, k, own in points if own]
        outside = [(r, k) for r, k, own in points if not own]
        if not inside or not outside:
            return None
        heatmap = scene.map_of(image, c)
        heatmap = np.zeros((H, W)) if heatmap is None else heatmap.astype(float)
        values = [[heatmap[cell] for cell in side] for side in (inside, outside)]
        won = stats.mannwhitneyu(*values, method="asymptotic").statistic
        return float(won / (len(inside) * len(outside)))

    scores = metrics.pixel_auc(
        scene.heatmaps, scene.images, scene.classes, scene.sizes[scene.images], *scene.drawn,
        findings=FINDINGS, resamples=60, seed=9,
    )  # fmt: skip
    check(scores, scene, literal)


def test_chunks_of_maps_do_not_matter(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (
        scene.heatmaps, scene.images, scene.classes, scene.sizes[scene.images], *scene.drawn
    )  # fmt: skip
    at_once = metrics.pixel_auc(*arguments, findings=FINDINGS, resamples=5)
    monkeypatch.setattr(module, "_CHUNK", H * W * PARTS**2 * 3)
    np.testing.assert_equal(metrics.pixel_auc(*arguments, findings=FINDINGS, resamples=5), at_once)


def test_patients_are_drawn_whole(scene: Scene) -> None:
    """Nine images of one patient: every resample is the same."""
    peaks = metrics.heatmap_peaks(scene.heatmaps, scene.sizes[scene.images])
    scores = metrics.pointing_game(
        peaks, scene.images, scene.classes, *scene.drawn, findings=FINDINGS, clusters=np.zeros(9, int)
    )
    np.testing.assert_array_equal(scores.low, scores.value)
    np.testing.assert_array_equal(scores.high, scores.value)


def test_a_perfect_map_and_a_nodule_within_one_cell() -> None:
    heatmap = np.zeros((1, 4, 4))
    heatmap[0, 1, 2] = 1.0
    place: Any = (heatmap, [0], [0], [[40, 40]], [0], [0])
    whole, nodule = [[20, 10, 30, 20]], [[22, 12, 27, 17]]  # a fourth of the cell's sixteen parts
    assert metrics.heatmap_peaks(heatmap, [[40, 40]]).tolist() == [[25.0, 15.0]]
    for boxes, iou, auc in ((whole, 1.0, 1.0), (nodule, 4 / 16, 1 - 12 / 252 / 2)):
        assert metrics.map_iou(*place, boxes, findings=["Mass"]).value == [iou]
        assert metrics.pixel_auc(*place, boxes, findings=["Mass"]).value == pytest.approx(auc)
    edge = metrics.pointing_game([[25.0, 15.0]], [0], [0], [0], [0], [[10, 10, 25, 20]], findings=["M"])
    assert edge.value == [0.0]  # half-open
    all_marked = metrics.map_iou(*place, whole, findings=["Mass"], heatmap_threshold=0.0)
    assert all_marked.value == [1.0]  # zero marks nothing


def test_nothing_at_all() -> None:
    empty = metrics.map_iou(
        np.zeros((0, 2, 2)), [], [], np.zeros((0, 2)), [], [], [], findings=["Mass"]
    )
    assert np.isnan(empty.value).all()
    assert np.isnan(empty.mean)
    missed = metrics.pointing_game([], [], [], [4], [0], [[0, 0, 1, 1]], findings=["Mass"])
    assert missed.value.tolist() == [0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heatmaps": np.zeros((2, 3))}, r"expected real numbers \[maps, height, width\]"),
        ({"heatmaps": np.full((2, 3, 3), np.nan)}, "expected finite values, got others in map 0"),
        ({"image_sizes": [[0, 5], [5, 5]]}, "heights and widths above 0"),
        ({"map_classes": [0, 3]}, "map_classes: expected indices into the 1 findings"),
        ({"map_images": [0, 0]}, "two for image 0, Mass"),
        ({"truth_images": [0, 1]}, r"truth_images: expected \[1\] integers"),
        ({"clusters": [0]}, "clusters: expected"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "heatmaps": np.zeros((2, 3, 3)), "map_images": [0, 1], "map_classes": [0, 0],
        "image_sizes": [[5, 5]] * 2, "truth_images": [1], "truth_classes": [0],
        "truth_boxes": [[0, 0, 1, 1]], "findings": ["Mass"],
    }  # fmt: skip
    metrics.pixel_auc(**good)
    with pytest.raises(ValueError, match=message):
        metrics.pixel_auc(**{**good, **change})
