from __future__ import annotations

from collections.abc import Sequence

import maps
import numpy as np
import pytest
import torch

from cxr_fast import ops, reference
from cxr_fast.ops import MinedAttention


def literal(
    cams: Sequence[np.ndarray], erased_at: np.ndarray, extent: np.ndarray, mode: str
) -> np.ndarray:
    """Eq. 8 in float64: each step's map, with what earlier steps erased filled back in, averaged.

    cams: one [N, C, H, W] a step.
    """
    steps = len(cams)
    shown = []
    for t in range(1, steps + 1):
        v = cams[t - 1].astype(np.float64)
        if mode == "normalized":
            lo, hi = np.moveaxis(extent[:, :, t - 1].astype(np.float64), -1, 0)[..., None, None]
            spread = hi - lo
            v = np.where(spread > 0, (v - lo) / np.where(spread > 0, spread, 1), 0)
        alive = (erased_at == 0) | (erased_at >= t)
        filled = np.where(alive, v, 0.0)
        for k in range(1, t):  # the region that step k erased shows what step k saw there
            filled = np.where(erased_at == k, shown[k - 1], filled)
        shown.append(filled)
    return sum(shown) / steps


def random_mined(
    shape: tuple[int, ...], steps: int, rng: np.random.Generator
) -> tuple[MinedAttention, torch.Tensor]:
    """Bytes and extents that no mining has made, values above ``steps`` included."""
    erased_at = rng.integers(0, min(256, steps + 3), shape).astype(np.uint8)
    lo = rng.standard_normal((*shape[:2], steps))
    extent = np.stack((lo, lo + rng.uniform(0.5, 2, lo.shape)), -1).astype(np.float32)
    extent[rng.random(lo.shape) < 0.1] = 1.25  # constant at that step
    cam = torch.from_numpy(rng.standard_normal((steps, *shape)).astype(np.float32))
    return MinedAttention(torch.from_numpy(erased_at), torch.from_numpy(extent)), cam


@pytest.mark.parametrize("mode", ["normalized", "raw"])
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 255])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 7, 5), (3, 1, 16, 33)])
@pytest.mark.parametrize("per_step", [False, True])
def test_literal_equation(
    shape: tuple[int, ...], steps: int, mode: str, per_step: bool, rng: np.random.Generator
) -> None:
    mined, cam = random_mined(shape, steps, rng)
    cam = cam if per_step else cam[0]
    heatmap = ops.aggregate_heatmap(cam, mined, mode)
    cams = list(cam.numpy()) if per_step else [cam.numpy()] * steps
    expected = literal(cams, mined.erased_at.numpy(), mined.extent.numpy(), mode)
    assert heatmap.dtype == torch.float32
    np.testing.assert_allclose(heatmap.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(heatmap, reference.aggregate_heatmap(cam, mined, mode))


@pytest.mark.parametrize("mode", ["normalized", "raw"])
def test_after_real_mining_step_by_step(mode: str, rng: np.random.Generator) -> None:
    """The staged protocol: three networks, three CAMs, masks that go on from step to step."""
    cams = maps.smooth((3, 2, 4, 21, 17), rng)
    mined, extents = None, []
    for t in (1, 2, 3):
        before = None if mined is None else mined.erased_at
        mined = ops.mine_attention(cams[t - 1], 1, erased_at=before, first_step=t)
        extents.append(mined.extent)
    mined = MinedAttention(mined.erased_at, torch.cat(extents, 2))
    heatmap = ops.aggregate_heatmap(cams, mined, mode)
    expected = literal(list(cams.numpy()), mined.erased_at.numpy(), mined.extent.numpy(), mode)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(heatmap.numpy(), expected, rtol=1e-5, atol=1e-6 * scale)
    if mode == "normalized":
        assert heatmap.min() >= 0
        assert torch.equal(heatmap.amax((-2, -1)), torch.ones(2, 4))


def test_by_hand() -> None:
    cam = torch.tensor([[[[9.0, 1.0, 5.0, 2.0, 3.0]]]])
    mined = ops.mine_attention(cam, 3)
    assert mined.erased_at.tolist() == [[[[1, 0, 2, 3, 3]]]]
    assert mined.extent.tolist() == [[[[1, 9], [1, 5], [1, 3]]]]
    heatmap = ops.aggregate_heatmap(cam, mined)
    # The 5 is 1/2, then 1, and keeps it; the 3 is 1/4, 1/2, 1; the 2 is 1/8, 1/4, 1/2.
    expected = torch.tensor([3, 0, 0.5 + 1 + 1, 0.125 + 0.25 + 0.5, 0.25 + 0.5 + 1]) / 3
    torch.testing.assert_close(heatmap[0, 0, 0], expected)
    assert heatmap[0, 0, 0, 0] == 1
    assert heatmap[0, 0, 0, 1] == 0


def test_raw_is_the_cam(rng: np.random.Generator) -> None:
    cam = maps.smooth((4, 5, 30, 11), rng)
    for steps in (1, 3, 255):
        heatmap = ops.aggregate_heatmap(cam, ops.mine_attention(cam, steps), "raw")
        torch.testing.assert_close(heatmap, cam, rtol=2e-7 * steps, atol=0)


@pytest.mark.parametrize("mode", ["normalized", "raw"])
def test_nan_extents_make_nan_maps(mode: str) -> None:
    cam = torch.rand(2, 2, 3, 5)
    mined = ops.mine_attention(cam, 2)
    for step, side in ((0, 0), (1, 1)):
        extent = mined.extent.clone()
        extent[0, 1, step, side] = torch.nan
        heatmap = ops.aggregate_heatmap(cam, MinedAttention(mined.erased_at, extent), mode)
        assert torch.isnan(heatmap[0, 1]).all()
        whole = ops.aggregate_heatmap(cam, mined, mode)
        assert torch.equal(heatmap[1], whole[1])
        assert torch.equal(heatmap[0, 0], whole[0, 0])


def test_a_constant_map_is_zero() -> None:
    cam = torch.full((1, 1, 4, 4), -7.0)
    assert torch.equal(ops.aggregate_heatmap(cam, ops.mine_attention(cam)), torch.zeros(1, 1, 4, 4))


def test_other_dtypes_and_strides(rng: np.random.Generator) -> None:
    mined, cam = random_mined((2, 3, 8, 10), 3, rng)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        narrow = cam.to(dtype)
        assert torch.equal(
            ops.aggregate_heatmap(narrow, mined), ops.aggregate_heatmap(narrow.float(), mined)
        )
    turned = MinedAttention(mined.erased_at.transpose(2, 3), mined.extent)
    expected = ops.aggregate_heatmap(cam, mined).transpose(2, 3)
    assert torch.equal(ops.aggregate_heatmap(cam.transpose(3, 4), turned), expected)
    last = cam[1].to(memory_format=torch.channels_last)
    assert torch.equal(ops.aggregate_heatmap(last, mined), ops.aggregate_heatmap(cam[1], mined))
    strided = MinedAttention(mined.erased_at, mined.extent.flip(-1).flip(-1).permute(3, 0, 1, 2))
    strided = strided._replace(extent=strided.extent.contiguous().permute(1, 2, 3, 0))
    assert not strided.extent.is_contiguous()
    assert torch.equal(ops.aggregate_heatmap(cam, strided), ops.aggregate_heatmap(cam, mined))


def test_empty() -> None:
    for shape in ((0, 2, 3, 3), (2, 0, 3, 3)):
        cam = torch.zeros(shape)
        mined = ops.mine_attention(cam)
        assert ops.aggregate_heatmap(cam, mined).shape == shape
        assert ops.aggregate_heatmap(torch.stack([cam] * 3), mined).shape == shape


CAM = torch.rand(1, 2, 3, 4)
MINED = ops.mine_attention(CAM, 2)


@pytest.mark.parametrize(
    ("cam", "mined", "mode", "error", "message"),
    [
        (CAM.numpy(), MINED, "raw", TypeError, "cam must be a torch.Tensor"),
        (CAM.int(), MINED, "raw", TypeError, "cam must be float16, bfloat16, float32 or float64"),
        (CAM[0], MINED, "raw", ValueError, r"cam must have shape \(1, 2, 3, 4\) to go with mined"),
        (CAM[:, :1], MINED, "raw", ValueError, r"but has shape \(1, 1, 3, 4\)"),
        (CAM.expand(3, -1, -1, -1, -1), MINED, "raw", ValueError, r"cam .*\(2, 1, 2, 3, 4\)"),
        (CAM, MINED, "mean", ValueError, "mode must be 'normalized' or 'raw', but is 'mean'"),
        (CAM, MINED._replace(erased_at=None), "raw", TypeError, "mined.erased_at must be a torch"),
        (CAM, MINED._replace(extent=[1]), "raw", TypeError, "mined.extent must be a torch.Tensor"),
        (CAM, MINED._replace(erased_at=CAM), "raw", TypeError, "mined.erased_at must be uint8"),
        (
            CAM,
            MINED._replace(erased_at=MINED.erased_at[0]),
            "raw",
            ValueError,
            "mined.erased_at must",
        ),
        (
            CAM,
            MINED._replace(extent=MINED.extent.half()),
            "raw",
            TypeError,
            "extent must be float32",
        ),
        (CAM, MINED._replace(extent=MINED.extent[0]), "raw", ValueError, r"\[N, C, T, 2\]"),
        (CAM, MINED._replace(extent=MINED.extent[:, :1]), "raw", ValueError, r"\(1, 2, 2, 2\)"),
        (
            CAM,
            MINED._replace(extent=MINED.extent[:, :, :0]),
            "raw",
            ValueError,
            "steps must be from 1",
        ),
        (CAM.to("meta"), MINED, "raw", ValueError, "mined.erased_at must be on the device of cam"),
        (
            CAM,
            MINED._replace(extent=MINED.extent.to("meta")),
            "raw",
            ValueError,
            "mined.extent must be on the device of cam, cpu, but is on meta",
        ),
    ],
)
def test_refusals(
    cam: object, mined: MinedAttention, mode: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ops.aggregate_heatmap(cam, mined, mode)
