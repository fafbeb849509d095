"""cxr_fast.metrics against oracles written from the papers' text, one box or pair at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_fast import metrics
from cxr_fast.config import BOXED_FINDINGS
from cxr_fast.metrics import Localization

Box = tuple[int, int, int, int]
Detections = list[tuple[int, int, Box]]  # image, rank, box
Truths = list[tuple[int, Box]]  # image, box


def overlap_of(detected: Box, truth: Box, kind: str) -> float:
    """Intersection over union, or over the detected box, by counting unit cells."""
    cells = [{(x, y) for x in range(b[0], b[2]) for y in range(b[1], b[3])} for b in (detected, truth)]
    whole = len(cells[0] | cells[1]) if kind == "iou" else len(cells[0])
    return len(cells[0] & cells[1]) / whole if whole else 0.0


def walk_literally(
    detections: Detections,
    truths: Truths,
    *,
    overlap_threshold: float,
    afp_bound: float | None,
    overlap: str,
    images: str,
    all_images: int | None,
) -> tuple[int, int, int, int, int]:
    """The paper's walk over the list B: found, truths, false positives, images, taken."""
    of_class = {image for image, _ in truths}
    considered = len(of_class) if images == "class" else all_images
    assert considered is not None
    found: set[int] = set()
    false_positives = taken = 0
    for rank in range(1, 6):
        for image in range(10):
            for box in [b for i, r, b in detections if (i, r) == (image, rank)]:
                if images == "class" and image not in of_class:
                    continue
                hits = {
                    g
                    for g, (i, truth) in enumerate(truths)
                    if i == image and overlap_of(box, truth, overlap) > overlap_threshold
                }
                after = false_positives + (not hits)
                if afp_bound is not None and after / considered >= afp_bound:
                    return len(found), len(truths), false_positives, considered, taken
                found |= hits
                false_positives, taken = after, taken + 1
    return len(found), len(truths), false_positives, considered, taken


def measure(detections: Detections, truths: Truths, **options: Any) -> Localization:
    return metrics.localization(
        np.array([image for image, _, _ in detections], dtype=np.int64),
        np.array([rank for _, rank, _ in detections], dtype=np.int64),
        np.array([box for _, _, box in detections], dtype=np.float32).reshape(-1, 4),
        np.array([image for image, _ in truths], dtype=np.int64),
        np.array([box for _, box in truths], dtype=np.float32).reshape(-1, 4),
        **options,
    )


sides = st.tuples(*[st.integers(0, 4)] * 4).map(
    lambda v: (min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3]))
)
detection_lists: st.SearchStrategy[Detections] = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 4), sides),
    max_size=14,
    unique_by=lambda row: row[:2],
)
truth_lists: st.SearchStrategy[Truths] = st.lists(st.tuples(st.integers(0, 5), sides), max_size=8)
option_sets = st.fixed_dictionaries(
    {
        "overlap_threshold": st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.75]),
        "afp_bound": st.sampled_from([None, 0.0, 0.25, 1 / 3, 0.5, 1.0, 1.5]),
        "overlap": st.sampled_from(["iou", "iobb"]),
    }
)
denominators = st.sampled_from([("class", None), ("all", 6), ("all", 9)])


@settings(max_examples=400, deadline=None)
@given(detection_lists, truth_lists, option_sets, denominators)
def test_localization_is_the_literal_walk(
    detections: Detections,
    truths: Truths,
    options: dict[str, Any],
    denominator: tuple[str, int | None],
) -> None:
    options = {**options, "images": denominator[0], "all_images": denominator[1]}
    got = measure(detections, truths, **options)
    expected = walk_literally(detections, truths, **options)
    assert (got.found, got.truths, got.false_positives, got.images, got.taken) == expected
    for ratio, part, whole in (
        (got.acc, got.found, got.truths),
        (got.afp, got.false_positives, got.images),
    ):
        assert ratio == part / whole if whole else math.isnan(ratio)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(detection_lists, truth_lists), min_size=1, max_size=3), st.randoms())
def test_table_is_localization_for_each_class_and_threshold(
    classes: list[tuple[Detections, Truths]], random: Any
) -> None:
    detected = [(c, *row) for c, (rows, _) in enumerate(classes) for row in rows]
    truth = [(c, *row) for c, (_, rows) in enumerate(classes) for row in rows]
    random.shuffle(detected)
    random.shuffle(truth)
    thresholds, bounds = (0.1, 0.5), [[0.5 * c, np.inf] for c in range(1, len(classes) + 1)]
    rows = metrics.localization_table(
        [row[1] for row in detected],
        [row[2] for row in detected],
        [row[0] for row in detected],
        np.array([row[3] for row in detected], dtype=np.float64).reshape(-1, 4),
        [row[1] for row in truth],
        [row[0] for row in truth],
        np.array([row[2] for row in truth], dtype=np.float64).reshape(-1, 4),
        findings=list(BOXED_FINDINGS[: len(classes)]),
        overlap_thresholds=thresholds,
        afp_bounds=bounds,
    )
    assert len(rows) == 2 * len(classes)
    for row, (c, k) in zip(rows, np.ndindex(len(classes), 2), strict=True):
        assert row[:2] == (BOXED_FINDINGS[c], thresholds[k])
        alone = measure(
            *classes[c], overlap_threshold=thresholds[k], afp_bound=None if k else bounds[c][k]
        )
        np.testing.assert_equal(row.result, alone)


def test_hits_misses_and_the_order_of_the_list() -> None:
    near, far = (0, 0, 10, 10), (50, 50, 60, 60)
    truths: Truths = [(3, near), (8, near)]
    detections: Detections = [(8, 2, near), (3, 1, far), (3, 2, near), (8, 1, far), (3, 3, near)]
    # B: image 3 far, image 8 far, image 3 near (hit), image 8 near (hit), image 3 near (again).
    assert measure(detections, truths, overlap_threshold=0.5) == (1.0, 1.0, 2, 2, 2, 2, 5)
    below_one = measure(detections, truths, overlap_threshold=0.5, afp_bound=1.0)
    assert below_one == (0.0, 0.5, 0, 2, 1, 2, 1)  # the second miss would reach the bound
    assert measure(detections, truths, overlap_threshold=0.5, afp_bound=1.01).taken == 5
    assert measure(detections, truths, overlap_threshold=0.5, afp_bound=0.0).taken == 0


def test_one_box_finds_every_truth_it_hits() -> None:
    truths: Truths = [(0, (0, 0, 10, 10)), (0, (0, 0, 10, 9)), (0, (30, 30, 31, 31))]
    result = measure([(0, 1, (0, 0, 10, 10))], truths, overlap_threshold=0.5)
    assert (result.found, result.false_positives) == (2, 0)


def test_hit_is_strictly_above_the_threshold() -> None:
    truths: Truths = [(0, (0, 0, 10, 10))]
    detections: Detections = [(0, 1, (0, 0, 10, 3))]  # IoU is exactly 0.3
    assert measure(detections, truths, overlap_threshold=0.3).found == 0
    assert measure(detections, truths, overlap_threshold=0.29).found == 1
    assert measure(detections, truths, overlap_threshold=0.3, overlap="iobb").found == 1


def test_nothing_detected_nothing_drawn_and_boxes_without_area() -> None:
    box = (0, 0, 4, 4)
    nothing = metrics.localization([], [], [], [], [], overlap_threshold=0.1)
    np.testing.assert_equal(nothing, (math.nan, math.nan, 0, 0, 0, 0, 0))
    assert measure([], [(0, box)], overlap_threshold=0.1) == (0.0, 0.0, 0, 1, 0, 1, 0)
    everywhere = measure([(0, 1, box)], [], overlap_threshold=0.1, images="all", all_images=4)
    np.testing.assert_equal(everywhere, (math.nan, 0.25, 0, 0, 1, 4, 1))
    point = (2, 2, 2, 2)
    flat = measure([(0, 1, point), (0, 2, box)], [(0, point)], overlap_threshold=0.0)
    assert (flat.found, flat.truths, flat.false_positives) == (0, 1, 2)


@settings(max_examples=100, deadline=None)
@given(st.lists(sides, min_size=1, max_size=6), st.lists(sides, min_size=1, max_size=6))
def test_iou_and_iobb_count_cells(first: list[Box], second: list[Box]) -> None:
    one, other = np.array(first, dtype=np.float32), np.array(second)
    for kind, function in (("iou", metrics.iou), ("iobb", metrics.iobb)):
        expected = [[overlap_of(a, b, kind) for b in second] for a in first]
        with np.errstate(all="raise"):
            got = function(one[:, None], other[None])
        np.testing.assert_array_equal(got, expected)
    assert metrics.iou(one[0], other[0]).shape == ()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.tuples(st.integers(-2, 2), st.booleans())] * 2), max_size=20))
def test_auroc_is_the_share_of_pairs_won(rows: list[Any]) -> None:
    table = np.array(rows, dtype=np.float64).reshape(-1, 2, 2)
    expected = []
    for c in range(2):
        positive = table[table[:, c, 1] == 1, c, 0]
        negative = table[table[:, c, 1] == 0, c, 0]
        wins = [(p > n) + (p == n) / 2 for p in positive for n in negative]
        expected.append(sum(wins) / len(wins) if wins else math.nan)
    labels = table[..., 1].astype(np.uint8)
    with np.errstate(all="raise"):
        got = metrics.auroc(table[..., 0], labels)
    np.testing.assert_array_equal(got, expected)


def test_auroc_of_infinite_scores_and_bool_labels() -> None:
    scores = np.array([[-np.inf], [0.0], [np.inf]], dtype=np.float32)
    assert metrics.auroc(scores, np.array([[False], [False], [True]])) == [1.0]


BOX = [[0.0, 0.0, 1.0, 1.0]]
GOOD: dict[str, Any] = {
    "detected_images": [0],
    "detected_ranks": [1],
    "detected_boxes": BOX,
    "truth_images": [0],
    "truth_boxes": BOX,
    "overlap_threshold": 0.1,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detected_boxes": [[0, 0, np.nan, 1]]}, r"detected_boxes: expected finite .* at \[0\];"),
        ({"truth_boxes": [[0, 0, np.inf, 1]]}, "truth_boxes: expected finite corners"),
        ({"truth_boxes": [[3, 0, 1, 1]]}, "x1 <= x2"),
        ({"truth_boxes": [[0, 0, 1]]}, r"expected real numbers \[boxes, 4\]"),
        ({"truth_boxes": [BOX]}, r"expected real numbers \[boxes, 4\]"),
        ({"truth_boxes": [["a", "b", "c", "d"]]}, "expected real numbers"),
        ({"truth_images": [0, 1]}, r"truth_images: expected \[1\] integers"),
        ({"truth_images": ["00000001_000.png"]}, "number the names"),
        ({"detected_ranks": [1.0]}, r"detected_ranks: expected \[1\] integers"),
        ({"detected_ranks": []}, r"detected_ranks: expected \[1\] integers"),
        ({"overlap_threshold": 30}, "divided by 100"),
        ({"overlap_threshold": np.nan}, "divided by 100"),
        ({"afp_bound": -0.1}, "AFP bounds"),
        ({"afp_bound": np.nan}, "AFP bounds"),
        ({"overlap": "giou"}, "expected 'iou' or 'iobb', got 'giou'"),
        ({"images": "some"}, "expected 'class' or 'all', got 'some'"),
        ({"all_images": 5}, "pass images='all'"),
        ({"images": "all"}, "got None; pass how many images were mined"),
        ({"images": "all", "all_images": 1, "truth_images": [7]}, "the 2 that have boxes"),
        (
            {"detected_images": [0, 0], "detected_ranks": [1, 1], "detected_boxes": BOX * 2},
            "got two for image 0, rank 1",
        ),
    ],
)
def test_localization_refuses(change: dict[str, Any], message: str) -> None:
    metrics.localization(**GOOD)
    with pytest.raises(ValueError, match=message):
        metrics.localization(**{**GOOD, **change})


def test_table_refuses_classes_and_bounds_that_do_not_fit() -> None:
    good = {key: value for key, value in GOOD.items() if key != "overlap_threshold"}
    good |= {"findings": ["Mass", "Nodule"], "overlap_thresholds": [0.1]}
    classes: dict[str, Any] = {"detected_classes": [1], "truth_classes": [0]}
    assert len(metrics.localization_table(**good, **classes)) == 2
    for name in classes:
        for outside in (-1, 2):
            with pytest.raises(ValueError, match=f"{name}: expected indices into the 2 findings"):
                metrics.localization_table(**good, **{**classes, name: [outside]})
    with pytest.raises(ValueError, match=r"AFP bounds: expected shape \[2, 1\]"):
        metrics.localization_table(**good, **classes, afp_bounds=[[0.5]])


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.5, 0.1], [1, 0], r"scores\[:, None\]"),
        ([[0.5, 0.1]], [[1], [0]], r"one shape \[N, C\]"),
        ([["a"]], [[1]], "expected real scores"),
        ([[0.5, np.nan]], [[1, 0]], "got NaN in row 0, class 1"),
        ([[0.5], [0.1]], [[1], [-1]], "expected labels 0 or 1, got -1 in row 1, class 0"),
    ],
)
def test_auroc_refuses(scores: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.auroc(scores, labels)
