"""Every CUDA C++ operator, run by the emulator, against the reference: integers and stated roundings to
the bit, sums within their tolerance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import maps
import numpy as np
import pytest
import torch
from scipy import ndimage
from test_equality import assert_same_mining

from cxr_fast import ops, reference

if TYPE_CHECKING:
    from emulation import Emulator

# Sums of another order, relative to the mean magnitude of a map.
GAP = 1e-5

# One word a row, two, and the block method; sides on both sides of every border.
SIDES = [(1, 1), (1, 32), (32, 1), (7, 5), (31, 32), (32, 32), (33, 20), (20, 33), (64, 64), (65, 3),
         (3, 65), (48, 70)]  # fmt: skip


def test_random_maps_of_random_shapes(emulator: Emulator, rng: np.random.Generator) -> None:
    for seed in range(40):
        height, width = rng.integers(1, 33, 2)
        cam = maps.smooth((2, 3, height, width), rng)
        with emulator.gpu(seed):
            assert_same_mining(cam, GAP)


@pytest.mark.parametrize("sides", SIDES, ids=str)
@pytest.mark.parametrize("connectivity", [4, 8])
def test_shapes_and_settings(
    emulator: Emulator, rng: np.random.Generator, sides: tuple[int, int], connectivity: int
) -> None:
    cam = maps.smooth((1, 3, *sides), rng)
    settings = {"connectivity": connectivity, "steps": 5, "threshold": 0.3, "mode": "raw"}
    with emulator.gpu():
        assert_same_mining(cam, GAP, **settings)
        assert_same_mining(cam, GAP, select="peak", max_boxes=7, max_overlap=0.1)


@pytest.mark.parametrize("sides", [(32, 32), (13, 29), (40, 64), (66, 37)], ids=str)
def test_adversarial_maps(emulator: Emulator, sides: tuple[int, int]) -> None:
    for seed, (name, cam) in enumerate(maps.adversarial(*sides)):
        for connectivity in (4, 8):
            with emulator.gpu(seed):
                ours = ops.mine_attention(cam[None, None], 4, 0.5, connectivity)
            theirs = reference.mine_attention(cam[None, None], 4, 0.5, connectivity)
            assert torch.equal(ours.erased_at, theirs.erased_at), name
            torch.testing.assert_close(
                ours.extent, theirs.extent, rtol=0, atol=0, equal_nan=True, msg=name
            )


@pytest.mark.parametrize("sides", [(9, 31), (50, 33), (70, 20)], ids=str)
def test_staged_mining_goes_on_where_earlier_steps_stopped(
    emulator: Emulator, rng: np.random.Generator, sides: tuple[int, int]
) -> None:
    first, second = maps.smooth((2, 1, 2, *sides), rng)
    broken = second.clone()
    broken[0, 0, 0, 0] = torch.nan
    for cam in (second, broken):
        staged = []
        for module in (ops, reference):
            with emulator.gpu():
                before = module.mine_attention(first, 2)
                after = module.mine_attention(cam, 2, erased_at=before.erased_at, first_step=3)
                per_step = torch.stack((first, first, cam, cam))
                both = ops.MinedAttention(after.erased_at, torch.cat((before.extent, after.extent), 2))
                heatmap = module.aggregate_heatmap(per_step, both)
            staged.append((after.erased_at, both.extent, heatmap))
        torch.testing.assert_close(*staged, rtol=0, atol=0, equal_nan=True)


def test_a_map_that_was_erased_whole_stays_so(emulator: Emulator) -> None:
    for side in (8, 70):
        cam, erased = torch.rand(1, 1, side, side), torch.full((1, 1, side, side), 2, dtype=torch.uint8)
        with emulator.gpu():
            mined = ops.mine_attention(cam, 2, erased_at=erased, first_step=3)
        assert torch.equal(mined.erased_at, erased)
        assert torch.equal(mined.extent, torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 3, 255])
def test_masked_gap_and_its_gradients(
    emulator: Emulator, rng: np.random.Generator, dtype: torch.dtype, steps: int
) -> None:
    cam = maps.smooth((2, 2, 9, 70), rng).to(dtype).requires_grad_()
    erased_at = torch.from_numpy(rng.integers(0, 256, cam.shape).astype(np.uint8))
    grad = torch.from_numpy(rng.standard_normal((2, 2, steps))).to(dtype)
    results = []
    for module in (ops, reference):
        with emulator.gpu():
            logits = module.masked_gap(cam, erased_at, steps)
        (of_cam,) = torch.autograd.grad(logits, cam, grad)
        results.append((logits.detach(), of_cam))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_gradcheck_of_the_kernels_in_double(emulator: Emulator) -> None:
    cam = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    erased_at = torch.randint(0, 4, cam.shape, dtype=torch.uint8)
    with emulator.gpu():
        assert torch.autograd.gradcheck(lambda h: ops.masked_gap(h, erased_at, 3), cam)
        assert "masked_gap_backward_double" in emulator.launched()


def test_gradient_of_the_fused_pass(emulator: Emulator, rng: np.random.Generator) -> None:
    cam, bias = maps.smooth((2, 3, 12, 20), rng), torch.randn(3)
    gradients = []
    for module in (ops, reference):
        h, b = cam.clone().requires_grad_(), bias.clone().requires_grad_()
        with emulator.gpu():
            result = module.mine_cam(h, b, image_size=(64, 64), thresholds=(0.5,), select="components")
            gradients.append(torch.autograd.grad(result.logits.square().sum(), (h, b)))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 1.0, 1.5, -0.1, float("nan")])
def test_a_direct_call_cannot_ask_for_a_cut_above_the_peak(
    emulator: Emulator, threshold: float
) -> None:
    for side in (8, 65):  # the block method would look for the parent of the background
        with emulator.gpu(), pytest.raises(RuntimeError, match="above 0 and below 1"):
            torch.ops.cxr_fast.mine_attention(torch.rand(1, 1, side, side), 1, threshold, 8, None, 1)


# ---- boxes ----


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("upsample", [1, 2, 3])
def test_boxes_of_noise_with_hundreds_of_components(
    emulator: Emulator, rng: np.random.Generator, connectivity: int, upsample: int
) -> None:
    heatmap = torch.from_numpy(rng.random((2, 1, 17, 24), np.float32))
    sizes = torch.tensor([[480, 640], [1024, 999]])
    arguments = (sizes, (0.5, 0.9, 1.0), "components", 40, 0.3, upsample, connectivity)
    with emulator.gpu():
        ours = ops.heatmap_boxes(heatmap, *arguments)
    for mine, theirs in zip(ours, reference.heatmap_boxes(heatmap, *arguments), strict=True):
        assert torch.equal(mine, theirs)
    assert ours.counts.min() > 10


def test_boxes_too_large_for_shared_memory(emulator: Emulator, rng: np.random.Generator) -> None:
    heatmap = maps.smooth((3, 3, 40, 50), rng)
    arguments = ((100, 90), (0.4, 0.8), "components", 3, 0.5, 2, 8)
    with emulator.gpu():
        ours = ops.heatmap_boxes(heatmap, *arguments)
    assert emulator.launched() == ["heatmap_boxes_global"]  # nine maps in the workspace of eight blocks
    for mine, theirs in zip(ours, reference.heatmap_boxes(heatmap, *arguments), strict=True):
        assert torch.equal(mine, theirs)


def test_maps_without_boxes(emulator: Emulator) -> None:
    heatmap = torch.rand(1, 4, 6, 6)
    heatmap[0, 0] = 0.5
    heatmap[0, 1, 2, 2] = torch.nan
    heatmap[0, 2, 2, 2] = torch.inf
    with emulator.gpu():
        found = ops.heatmap_boxes(heatmap, (60, 60), (0.5,))
    assert found.counts.tolist()[0][:3] == [0, 0, 0]
    assert found.counts[0, 3] > 0
    assert not found.boxes[0, :3].any()
    assert not found.scores[0, :3].any()


def test_more_thresholds_than_a_launch_carries(emulator: Emulator) -> None:
    with emulator.gpu(), pytest.raises(RuntimeError, match="at most 512, but 513 came"):
        ops.heatmap_boxes(torch.rand(1, 1, 4, 4), (4, 4), [0.5] * 513)


# ---- labels ----


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize(
    "sides", [(1, 1), (3, 200), (32, 32), (64, 64), (67, 65), (150, 90), (1, 9000)], ids=str
)
def test_labels_are_those_of_scipy(
    emulator: Emulator, sides: tuple[int, int], connectivity: int
) -> None:
    structure = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
    rng = np.random.default_rng(7)
    batch = [mask for _, mask in maps.masks(*sides)]
    batch += [rng.random(sides) < density for density in (0.3, 0.5, 0.6, 0.8)]
    for seed in (0, 1):
        with emulator.gpu(seed):
            labels = ops.label_components(torch.from_numpy(np.stack(batch)), connectivity)
        for mask, ours in zip(batch, labels.numpy(), strict=True):
            assert np.array_equal(ours, ndimage.label(mask, structure)[0])
    small = sides[0] * sides[1] <= 4096
    assert (emulator.launched() == ["label_small"]) == small


# ---- batches ----


def test_empty_batches_launch_nothing(emulator: Emulator) -> None:
    with emulator.gpu():
        result = ops.mine_cam(torch.empty(0, 3, 5, 6))
        assert ops.label_components(torch.empty(0, 4, 4, dtype=torch.bool)).shape == (0, 4, 4)
        assert (
            ops.masked_gap(torch.empty(2, 0, 3, 3), torch.empty(2, 0, 3, 3, dtype=torch.uint8)).numel()
            == 0
        )
    assert emulator.launched() == []
    assert result.found.boxes.shape == (0, 3, 3, 4)


def test_strided_input(emulator: Emulator, rng: np.random.Generator) -> None:
    cam = maps.smooth((3, 20, 2, 24), rng).permute(2, 0, 3, 1)[:, :, ::2]
    with emulator.gpu():
        assert_same_mining(cam, GAP)


def test_two_launches_after_the_cam(emulator: Emulator) -> None:
    for side in (8, 32, 64, 80):
        with emulator.gpu():
            ops.mine_cam(torch.rand(2, 2, side, side), steps=7)
        mining, boxes = emulator.launched()
        assert mining.startswith("mine_attention")
        assert boxes.startswith("heatmap_boxes")


def test_more_maps_than_blocks_that_take_turns(emulator: Emulator, rng: np.random.Generator) -> None:
    cam = maps.smooth((4, 5, 66, 5), rng)  # 20 maps, 2 multiprocessors
    with emulator.gpu():
        assert_same_mining(cam, GAP)
