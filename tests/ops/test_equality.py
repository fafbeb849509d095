"""The compiled operators against the reference: integers exactly, floats to the bit where the order of
operations is stated, within a tolerance where it is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import maps
import numpy as np
import pytest
import torch

from cxr_fast import ops, reference

SHAPES = [
    (1, 1),
    (1, 40),
    (40, 1),
    (2, 2),
    (5, 9),
    (16, 16),
    (17, 33),
    (32, 32),
    (31, 64),
    (20, 65),
]


SameMining = Callable[..., None]


@pytest.fixture
def same_mining(gap_tolerance: float) -> SameMining:
    return partial(assert_same_mining, gap_tolerance=gap_tolerance)


def assert_same_mining(cam: torch.Tensor, gap_tolerance: float, **settings: object) -> None:
    """mine_cam of ops and of the reference on the same CAM bits.

    ``gap_tolerance``: by how much masked_gap may differ from the logits of the fused pass, relative;
    GPU kernels add up in another order, CPU kernels in the same.
    """
    arguments = {"thresholds": maps.THRESHOLDS, "select": "components", **settings}
    ours = ops.mine_cam(cam, image_size=(1024, 768), **arguments)
    theirs = reference.mine_cam(cam, image_size=(1024, 768), **arguments)
    assert torch.equal(ours.mined.erased_at, theirs.mined.erased_at)
    torch.testing.assert_close(ours.mined.extent, theirs.mined.extent, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(ours.heatmap, theirs.heatmap, rtol=0, atol=0, equal_nan=True)
    for name in ("counts", "boxes", "scores"):
        assert torch.equal(getattr(ours.found, name), getattr(theirs.found, name)), name
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-5, atol=1e-5, equal_nan=True)
    # The fused pass is the operators one by one.
    mined = ops.mine_attention(cam, ours.logits.shape[2])
    if settings.keys() <= {"steps"}:
        assert torch.equal(mined.erased_at, ours.mined.erased_at)
        heatmap = ops.aggregate_heatmap(cam, mined)
        torch.testing.assert_close(heatmap, ours.heatmap, rtol=0, atol=0, equal_nan=True)
        found = ops.heatmap_boxes(heatmap, (1024, 768), maps.THRESHOLDS)
        assert torch.equal(found.boxes, ours.found.boxes)
        gap = ops.masked_gap(cam, mined.erased_at, ours.logits.shape[2])
        magnitude = cam.nan_to_num(0, 0, 0).abs().double().mean((2, 3)).flatten()
        largest = torch.cat((magnitude, torch.zeros(1))).max().item()
        torch.testing.assert_close(
            gap, ours.logits, rtol=0, atol=gap_tolerance * largest, equal_nan=True
        )


@pytest.mark.parametrize(
    "count", [2_000, pytest.param(10_000, marks=pytest.mark.slow)], ids="{} maps".format
)
def test_smooth_maps_of_random_shapes(
    count: int, rng: np.random.Generator, same_mining: SameMining
) -> None:
    for _ in range(count // 50):
        height, width = rng.integers(1, 41, 2)
        cam = maps.smooth((10, 5, height, width), rng)
        same_mining(cam)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("connectivity", [4, 8])
def test_adversarial_maps(shape: tuple[int, int], connectivity: int, same_mining: SameMining) -> None:
    cam = torch.stack([values for _, values in maps.adversarial(*shape)])[:, None]
    same_mining(cam, connectivity=connectivity)


@pytest.mark.parametrize("steps", [1, 2, 7, 255])
def test_steps(steps: int, rng: np.random.Generator, same_mining: SameMining) -> None:
    same_mining(maps.smooth((3, 2, 19, 23), rng), steps=steps)


@pytest.mark.parametrize("threshold", [1e-30, 0.05, 0.6, 0.95, 1 - 2**-24])
def test_cam_thresholds(threshold: float, rng: np.random.Generator, same_mining: SameMining) -> None:
    same_mining(maps.smooth((6, 3, 21, 30), rng), threshold=threshold)


@pytest.mark.parametrize("mode", ["normalized", "raw"])
@pytest.mark.parametrize("select", ["components", "peak"])
@pytest.mark.parametrize("upsample", [1, 2, 3])
def test_box_settings(
    mode: str, select: str, upsample: int, rng: np.random.Generator, same_mining: SameMining
) -> None:
    for shape in ((1, 1), (7, 31), (16, 24)):
        cam = maps.smooth((4, 3, *shape), rng)
        for max_overlap, max_boxes in ((0.5, 3), (0.0, 5), (1.0, 2)):
            same_mining(
                cam,
                mode=mode,
                select=select,
                upsample=upsample,
                max_overlap=max_overlap,
                max_boxes=max_boxes,
                thresholds=(0.2, 0.5, 1.0),
            )


@pytest.mark.parametrize("shape", [(100, 75), (64, 64), (130, 200)])
def test_larger_maps(shape: tuple[int, int], rng: np.random.Generator, same_mining: SameMining) -> None:
    same_mining(maps.smooth((2, 2, *shape), rng))
    noise = torch.from_numpy(rng.standard_normal((1, 1, *shape)).astype(np.float32))
    same_mining(noise, thresholds=(0.8,))


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (3, 0, 8, 8)])
def test_no_images_or_no_classes(shape: tuple[int, ...], same_mining: SameMining) -> None:
    same_mining(torch.zeros(shape))


def test_masks_fully_erased() -> None:
    cam = torch.rand(2, 3, 9, 9)
    before = torch.ones_like(cam, dtype=torch.uint8)
    ours = ops.mine_attention(cam, 2, erased_at=before, first_step=2)
    theirs = reference.mine_attention(cam, 2, erased_at=before, first_step=2)
    assert torch.equal(ours.erased_at, before)
    assert torch.equal(ours.extent, theirs.extent)
    assert torch.equal(ours.extent, torch.zeros(2, 3, 2, 2))
    assert torch.equal(before, torch.ones_like(before)), "the argument was written to"


def test_results_do_not_depend_on_threads(rng: np.random.Generator) -> None:
    features = maps.smooth((5, 70, 24, 20), rng)
    weight = torch.from_numpy(rng.standard_normal((9, 70)).astype(np.float32))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            result = ops.attention_mining(features, weight)
            gradients = torch.ops.cxr_fast.cam_backward(result.cam, features, weight, True, True)
            results.append((result.cam, result.heatmap, result.found.boxes, result.logits, *gradients))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)
