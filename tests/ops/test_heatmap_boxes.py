"""heatmap_boxes against scipy's components and torch's upsampling, and against boxes drawn by hand."""

from __future__ import annotations

from typing import Any

import maps
import numpy as np
import pytest
import torch
from scipy import ndimage

from cxr_fast import ops, reference

STRUCTURES = {4: ndimage.generate_binary_structure(2, 1), 8: np.ones((3, 3))}

Box = tuple[float, float, float, float]


def iou(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return shared / (area_a + area_b - shared)


def expected_boxes(
    heatmap: np.ndarray,
    thresholds: tuple[float, ...],
    select: str,
    max_boxes: int,
    max_overlap: float,
    upsample: int,
    connectivity: int,
) -> list[tuple[float, Box]] | None:
    """(score, box in cells of the upsampled grid), best first; None where rounding may decide."""
    h = heatmap.astype(np.float64)
    h = (h - h.min()) / (h.max() - h.min())
    h = torch.nn.functional.interpolate(
        torch.from_numpy(h)[None, None], scale_factor=upsample, mode="bilinear", align_corners=False
    )[0, 0].numpy()
    close = 1e-5
    if any(np.abs(h - cut).min() < close for cut in thresholds):
        return None
    candidates = []
    for cut in thresholds:
        labels, _ = ndimage.label(h >= cut, STRUCTURES[connectivity])
        at_peak = labels.flat[h.argmax()]
        if (labels[h > h.max() - close] != at_peak).any():
            return None
        for label, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
            if select == "peak" and label != at_peak:
                continue
            box = (columns.start, rows.start, columns.stop, rows.stop)
            candidates.append((h[rows, columns].mean(), box))
    # Equal boxes, from two thresholds that cut alike, score alike: one of them is enough.
    candidates = sorted({box: (score, box) for score, box in candidates}.values(), reverse=True)
    scores = [score for score, _ in candidates]
    if len(scores) > 1 and np.abs(np.diff(scores)).min() < close:
        return None
    kept: list[tuple[float, Box]] = []
    for score, box in candidates:
        overlaps = [iou(box, other) for _, other in kept]
        if any(abs(overlap - max_overlap) < 1e-9 for overlap in overlaps):
            return None
        if all(overlap <= max_overlap for overlap in overlaps):
            kept.append((score, box))
    return kept[:max_boxes]


@pytest.mark.parametrize("select", ["components", "peak"])
@pytest.mark.parametrize("upsample", [1, 2, 5])
@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize(("max_boxes", "max_overlap"), [(3, 0.5), (20, 0.07)])
def test_scipy_and_interpolate(
    select: str,
    upsample: int,
    connectivity: int,
    max_boxes: int,
    max_overlap: float,
    rng: np.random.Generator,
) -> None:
    thresholds = (0.235, 0.4, 0.706)
    clear = 0
    for shape in ((16, 16), (9, 23), (1, 14), (21, 2)):
        heatmap = maps.smooth((5, 2, *shape), rng)
        rows, columns = shape[0] * upsample, shape[1] * upsample
        found = ops.heatmap_boxes(
            heatmap,
            (rows, columns),
            thresholds,
            select,
            max_boxes,
            max_overlap,
            upsample,
            connectivity,
        )
        for index in np.ndindex(5, 2):
            expected = expected_boxes(
                heatmap[index].numpy(),
                thresholds,
                select,
                max_boxes,
                max_overlap,
                upsample,
                connectivity,
            )
            if expected is None:
                continue
            clear += 1
            count = int(found.counts[index])
            assert count == len(expected)
            boxes, scores = found.boxes[index], found.scores[index]
            assert boxes[:count].tolist() == [list(map(float, box)) for _, box in expected]
            np.testing.assert_allclose(scores[:count], [s for s, _ in expected], atol=2e-6)
            assert not boxes[count:].any()
            assert not scores[count:].any()
    assert clear >= 25, "too few maps were clear of rounding to test anything"


# ---- boxes drawn by hand ----


def boxes_of(rows: list[list[float]], **settings: Any) -> tuple[list[list[float]], list[float]]:
    """Boxes in cells and scores of one map; ops and reference must agree."""
    heatmap = torch.tensor([[rows]], dtype=torch.float32)
    arguments = {
        "image_size": tuple(heatmap.shape[2:]),
        "thresholds": (0.5,),
        "select": "components",
        **settings,
    }
    ours = ops.heatmap_boxes(heatmap, **arguments)
    theirs = reference.heatmap_boxes(heatmap, **arguments)
    for name in ("boxes", "scores", "counts"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    count = int(ours.counts[0, 0])
    return ours.boxes[0, 0, :count].tolist(), ours.scores[0, 0, :count].tolist()


TWO = [
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.75],
    [0.0, 1.0, 1.0, 0.0, 0.0, 0.75],
    [0.0, 1.0, 0.25, 0.0, 0.0, 0.0],
]


def test_two_components() -> None:
    boxes, scores = boxes_of(TWO)
    assert boxes == [[1, 1, 3, 3], [5, 0, 6, 2]]
    assert scores == [3.25 / 4, 0.75]
    assert boxes_of(TWO, select="peak") == ([[1, 1, 3, 3]], [3.25 / 4])
    assert boxes_of(TWO, max_boxes=1) == ([[1, 1, 3, 3]], [3.25 / 4])
    assert boxes_of(TWO, thresholds=(0.76,)) == ([[1, 1, 3, 3]], [3.25 / 4])


def test_image_size_is_height_and_width() -> None:
    assert boxes_of(TWO, image_size=(300, 1200))[0] == [[200, 100, 600, 300], [1000, 0, 1200, 200]]


def test_one_image_size_for_each_image() -> None:
    heatmap = torch.tensor([[TWO]] * 2)
    found = ops.heatmap_boxes(heatmap, torch.tensor([[3, 6], [30, 12]]), (0.5,), "peak")
    assert found.boxes[:, 0, 0].tolist() == [[1, 1, 3, 3], [2, 10, 6, 30]]


def test_a_lower_threshold_holds_the_higher_ones_box() -> None:
    rows = [[0.3, 0.3, 0.3, 0.3], [0.3, 1.0, 1.0, 0.3], [0.0, 0.0, 0.0, 0.0]]
    small, large = [1, 1, 3, 2], [0, 0, 4, 2]
    score = float(np.float32(np.float32([0.3] * 6 + [1, 1]).astype(np.float64).mean()))
    assert boxes_of(rows, thresholds=(0.2, 0.5)) == ([small, large], [1, score])
    assert boxes_of(rows, thresholds=(0.5, 0.2)) == ([small, large], [1, score])
    # They share 2 of 8 cells: an IoU of exactly 0.25 is kept at 0.25.
    assert boxes_of(rows, thresholds=(0.2, 0.5), max_overlap=0.25)[0] == [small, large]
    assert boxes_of(rows, thresholds=(0.2, 0.5), max_overlap=0.2499)[0] == [small]
    assert boxes_of(rows, thresholds=(0.2, 0.5), select="peak")[0] == [small, large]


def test_equal_boxes_of_two_thresholds_are_one() -> None:
    assert boxes_of(TWO, thresholds=(0.4, 0.5))[0] == [[1, 1, 3, 3], [5, 0, 6, 2]]
    # Only an overlap of 1 is no reason to drop a box.
    assert len(boxes_of(TWO, thresholds=(0.4, 0.5), max_overlap=1.0)[0]) == 3


def test_a_dropped_box_drops_no_other() -> None:
    """B overlaps A and goes; C overlaps only B, and stays."""
    rows = [
        [1.0, 1.0, 0.6, 0.6, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.9],
    ]
    assert boxes_of(rows, thresholds=(0.5, 0.95), max_overlap=0.4)[0] == [
        [0, 0, 2, 1],
        [7, 1, 8, 2],
    ]


def test_ties_go_to_the_larger_box_then_row_by_row() -> None:
    rows = [
        [0, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1],
        [1, 0, 0, 0, 0, 0],
    ]
    boxes, scores = boxes_of(rows, max_boxes=9)
    assert scores == [1.0] * 4
    assert boxes == [[4, 2, 6, 3], [4, 0, 5, 1], [0, 1, 1, 2], [0, 3, 1, 4]]
    # In one row, from the left; of the same area, whatever their shapes.
    boxes, _ = boxes_of([[0, 1, 1, 0, 1], [0, 0, 0, 0, 1], [1, 1, 0, 0, 0]])
    assert boxes == [[1, 0, 3, 1], [4, 0, 5, 2], [0, 2, 2, 3]]


def test_peak_is_the_first_maximum() -> None:
    rows = [[0, 0, 1], [1, 0, 0]]
    assert boxes_of(rows, select="peak")[0] == [[2, 0, 3, 1]]
    assert boxes_of(rows)[0] == [[2, 0, 3, 1], [0, 1, 1, 2]]


def test_connectivity() -> None:
    rows = [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert boxes_of(rows)[0] == [[0, 0, 2, 2]]
    assert boxes_of(rows, connectivity=4)[0] == [[0, 0, 1, 1], [1, 1, 2, 2]]


def test_a_raw_heatmap_is_normalised_first() -> None:
    raw = [[value * 40 - 30 for value in row] for row in TWO]
    assert boxes_of(raw) == boxes_of(TWO)


def test_the_threshold_itself_and_1() -> None:
    assert boxes_of(TWO, thresholds=(0.75,)) == boxes_of(TWO)
    assert boxes_of(TWO, thresholds=(1.0,))[0] == [[1, 1, 3, 3]]
    # Upsampled, no pixel reaches the peak: nothing is above 1.
    assert boxes_of([[0.0, 0.0, 1.0, 0.0, 0.0]], thresholds=(1.0,), upsample=2)[0] == []
    assert boxes_of([[0.0, 1.0, 1.0, 0.0, 0.0]], thresholds=(1.0,), upsample=2)[0] == [[1.5, 0, 2.5, 1]]


def test_upsampling_moves_edges_between_cells() -> None:
    """A step from 1 to 0 between cells 1 and 2, at 4 times: 1, 7/8, 5/8, 3/8, 1/8, 0."""
    rows = [[1.0, 1.0, 0.0, 0.0]]
    for cut, edge in ((0.9, 1.5), (0.8, 1.75), (0.5, 2.0), (0.3, 2.25), (0.1, 2.5)):
        boxes, _ = boxes_of(rows, thresholds=(cut,), upsample=4)
        assert boxes == [[0, 0, edge, 1]]


@pytest.mark.parametrize("fill", [0.0, 1.0, -3.0, torch.nan, torch.inf])
def test_nothing_in_a_constant_or_broken_map(fill: float) -> None:
    heatmap = torch.full((2, 1, 4, 6), fill)
    heatmap[1] = torch.tensor(TWO[:1] * 2 + TWO[1:])
    for upsample in (1, 3):
        for select in ("components", "peak"):
            found = ops.heatmap_boxes(heatmap, (4, 6), (0.5,), select, upsample=upsample)
            assert not found.boxes[0].any()
            assert not found.scores[0].any()
            assert found.counts.tolist() == [[0], [1 if select == "peak" else 2]]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_broken_value_is_enough(value: float) -> None:
    heatmap = torch.rand(1, 1, 6, 7)
    for at in (0, 20, 41):
        broken = heatmap.clone()
        broken.view(-1)[at] = value
        for upsample in (1, 2):
            assert ops.heatmap_boxes(broken, upsample=upsample).counts.item() == 0
    wide = torch.tensor([[[[-3e38, 3e38, 0.0]]]])
    assert ops.heatmap_boxes(wide).counts.item() == 0


def test_defaults_are_those_of_the_settings() -> None:
    from cxr_fast.config import MiningSettings

    chosen, heatmap = MiningSettings(), torch.rand(2, 3, 16, 16)
    explicit = ops.heatmap_boxes(
        heatmap,
        (1024, 1024),
        chosen.thresholds,
        chosen.select,
        chosen.max_boxes,
        chosen.max_overlap,
        chosen.upsample,
        chosen.connectivity,
    )
    for ours, expected in zip(ops.heatmap_boxes(heatmap), explicit, strict=True):
        assert torch.equal(ours, expected)


def test_most_boxes() -> None:
    """A dotted map has more components than may be kept."""
    heatmap = torch.zeros(1, 1, 40, 40)
    heatmap[..., ::2, ::2] = 1
    found = ops.heatmap_boxes(heatmap, (40, 40), (0.5,), max_boxes=255)
    assert found.counts.item() == 255
    expected = [[x, y, x + 1, y + 1] for y in range(0, 40, 2) for x in range(0, 40, 2)]
    assert found.boxes[0, 0].tolist() == expected[:255]


def test_other_dtypes_and_strides(rng: np.random.Generator) -> None:
    heatmap = maps.smooth((2, 3, 12, 10), rng)
    for other in (heatmap.transpose(2, 3), heatmap.double(), heatmap.half(), heatmap[:, :, ::2]):
        ours = ops.heatmap_boxes(other)
        for a, b in zip(ours, ops.heatmap_boxes(other.float().contiguous()), strict=True):
            assert torch.equal(a, b)


MAP = torch.rand(2, 1, 4, 4)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"heatmap": MAP.numpy()}, TypeError, "heatmap must be a torch.Tensor"),
        ({"heatmap": MAP > 0}, TypeError, "heatmap must be float16, .*, but is bool"),
        ({"heatmap": MAP[0]}, ValueError, r"heatmap must have the 4 dimensions \[N, C, H, W\]"),
        ({"heatmap": MAP[..., :0]}, ValueError, "heatmap must have a width of 1 to 32768"),
        ({"image_size": 1024}, ValueError, "image_size must be .height, width. .* but is 1024"),
        ({"image_size": (0, 5)}, ValueError, r"image_size must be .* but is \(0, 5\)"),
        ({"image_size": (5.5, 5)}, ValueError, "image_size must be .height, width. in pixels"),
        ({"image_size": (5, 5, 3)}, ValueError, "image_size must be"),
        ({"image_size": torch.ones(2)}, ValueError, r"or \[2, 2\] with one row an image.*\(2,\)"),
        ({"image_size": torch.ones(3, 2)}, ValueError, r"but has shape \(3, 2\)"),
        ({"thresholds": 0.5}, ValueError, r"for one threshold write \(0.5,\)"),
        ({"thresholds": []}, ValueError, "at least one number"),
        ({"thresholds": (0.5, 0.0)}, ValueError, "above 0 and at most 1, but hold 0.0"),
        ({"thresholds": (180,)}, ValueError, "but hold 180; .* write 180 / 255"),
        ({"thresholds": (float("nan"),)}, ValueError, "but hold nan"),
        ({"select": "all"}, ValueError, "select must be 'components' or 'peak', but is 'all'"),
        ({"max_boxes": 0}, ValueError, "max_boxes must be from 1 to 255, but is 0"),
        ({"max_boxes": 256}, ValueError, "max_boxes must be from 1 to 255, but is 256"),
        ({"max_boxes": 3.0}, TypeError, "max_boxes must be an int"),
        ({"max_overlap": -0.1}, ValueError, "max_overlap is an IoU from 0 to 1, but is -0.1"),
        ({"max_overlap": float("nan")}, ValueError, "max_overlap is an IoU from 0 to 1"),
        ({"upsample": 0}, ValueError, "upsample must be from 1 to 64, but is 0"),
        ({"upsample": 1.5}, TypeError, "upsample must be an int"),
        ({"connectivity": 1}, ValueError, "connectivity must be 4"),
    ],
)
def test_refusals(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.heatmap_boxes(**{"heatmap": MAP, **settings})
