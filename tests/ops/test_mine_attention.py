"""mine_attention against the words of the specification, written again in numpy and scipy."""

from __future__ import annotations

import maps
import numpy as np
import pytest
import torch
from scipy import ndimage

from cxr_fast import ops, reference

STRUCTURES = {4: ndimage.generate_binary_structure(2, 1), 8: np.ones((3, 3))}
F = np.float32


def mine_one(
    h: np.ndarray,
    steps: int,
    threshold: float,
    connectivity: int,
    erased_at: np.ndarray | None = None,
    first_step: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """One map: erased_at [H, W] and extent [T, 2], sentence by sentence."""
    erased = np.zeros(h.shape, np.uint8) if erased_at is None else erased_at.copy()
    extent = np.zeros((steps, 2), F)
    # A map with a NaN or an infinity, or whose hi - lo overflows, erases nothing: NaN extents.
    with np.errstate(over="ignore", invalid="ignore"):
        if not np.isfinite(h.max() - h.min()):
            return erased, np.full_like(extent, np.nan)
    for step in range(steps):
        alive = np.argwhere(erased == 0)  # row-major
        if len(alive) == 0:
            continue
        values = h[tuple(alive.T)]
        lo, hi = values.min(), values.max()
        extent[step] = lo, hi
        if lo == hi:
            continue  # a constant map erases nothing
        cut = F(lo + F(F(threshold) * F(hi - lo)))
        foreground = (erased == 0) & (h >= cut)
        peak = tuple(alive[np.flatnonzero(values == hi)[0]])
        labels, _ = ndimage.label(foreground, STRUCTURES[connectivity])
        assert labels[peak] > 0
        erased[labels == labels[peak]] = first_step + step
    return erased, extent


def assert_as_the_words(cam: np.ndarray, steps: int, threshold: float, connectivity: int) -> None:
    """cam [..., H, W]."""
    cam = cam.astype(F).reshape(-1, 1, *cam.shape[-2:])
    mined = ops.mine_attention(torch.from_numpy(cam), steps, threshold, connectivity)
    assert mined.erased_at.dtype == torch.uint8
    assert mined.extent.dtype == torch.float32
    for i, h in enumerate(cam[:, 0]):
        erased_at, extent = mine_one(h, steps, threshold, connectivity)
        np.testing.assert_array_equal(mined.erased_at[i, 0].numpy(), erased_at)
        np.testing.assert_array_equal(mined.extent[i, 0].numpy(), extent)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.83])
@pytest.mark.parametrize("shape", [(32, 32), (13, 70), (1, 9), (9, 1), (6, 5)])
def test_smooth_noisy_and_tied_maps(
    shape: tuple[int, int], threshold: float, connectivity: int, rng: np.random.Generator
) -> None:
    smooth = maps.smooth((8, *shape), rng).numpy()
    noise = rng.standard_normal((4, *shape))
    tied = rng.integers(0, 4, (4, *shape))
    ternary = rng.integers(-1, 2, (4, *shape)) * 0.1
    for values in (smooth, noise, tied, ternary):
        assert_as_the_words(values, 4, threshold, connectivity)


@pytest.mark.parametrize("steps", [1, 17, 255])
def test_many_steps(steps: int, rng: np.random.Generator) -> None:
    assert_as_the_words(rng.integers(0, 9, (2, 14, 15)), steps, 0.9, 4)


def test_staged_calls_with_other_maps(rng: np.random.Generator) -> None:
    """Every step on a CAM of its own, from whatever was erased before, peaks under it included."""
    mined = ops.MinedAttention(torch.zeros(3, 2, 16, 21, dtype=torch.uint8), torch.empty(0))
    for first_step in (1, 3, 4, 250):
        cam = maps.smooth((3, 2, 16, 21), rng)
        before = mined.erased_at
        kept = before.clone()
        steps = 2 if first_step == 1 else 1
        mined = ops.mine_attention(cam, steps, erased_at=before, first_step=first_step)
        assert torch.equal(before, kept), "the argument was written to"
        for index in np.ndindex(3, 2):
            erased_at, extent = mine_one(
                cam[index].numpy(), steps, 0.5, 8, before[index].numpy(), first_step
            )
            np.testing.assert_array_equal(mined.erased_at[index].numpy(), erased_at)
            np.testing.assert_array_equal(mined.extent[index].numpy(), extent)
    assert set(mined.erased_at.unique().tolist()) == {0, 1, 2, 3, 4, 250}


# ---- what the paper leaves open, as decided ----


def erased(rows: list[list[float]], **settings: object) -> tuple[list[list[int]], list[list[float]]]:
    """erased_at and extent of one map given by hand; ops and reference must agree."""
    cam = torch.tensor([[rows]], dtype=torch.float32)
    ours = ops.mine_attention(cam, **settings)
    theirs = reference.mine_attention(cam, **settings)
    assert torch.equal(ours.erased_at, theirs.erased_at)
    torch.testing.assert_close(ours.extent, theirs.extent, rtol=0, atol=0, equal_nan=True)
    return ours.erased_at[0, 0].tolist(), ours.extent[0, 0].tolist()


def test_only_alive_pixels_count() -> None:
    """All values are below 0, so erased zeros, read literally, would be the next maximum."""
    erased_at, extent = erased([[-1, -5, -3, -9, -4]], steps=3)
    # -1 alone is above -5; then -3 alone of -9..-3 with cut -6, but -5 and -3 are apart; then ...
    assert erased_at == [[1, 1, 1, 0, 2]]
    assert extent == [[-9, -1], [-9, -4], [-9, -9]]
    erased_at, extent = erased([[-1, -8, -3, -9, -4]], steps=4)
    # Literally, step 2 would see 0 at the erased pixel, take it for the peak, and erase it again.
    assert erased_at == [[1, 4, 2, 0, 3]]
    assert extent == [[-9, -1], [-9, -3], [-9, -4], [-9, -8]]


def test_the_cut_follows_what_is_alive() -> None:
    """After the 100 is gone, 4 is foreground of the range 0..5; of 0..100 it would not be."""
    assert erased([[100, 0, 5, 4, 0]], steps=2)[0] == [[1, 0, 2, 2, 0]]


def test_the_first_of_equal_peaks() -> None:
    assert erased([[0, 0, 7], [7, 0, 0]], steps=1)[0] == [[0, 0, 1], [0, 0, 0]]
    assert erased([[0, 0, 7], [7, 0, 0]], steps=2)[0] == [[0, 0, 1], [2, 0, 0]]
    # The component of the first peak, though the other's is larger.
    rows = [[0, 0, 0, 9], [9, 8, 0, 0], [8, 8, 0, 0]]
    assert erased(rows, steps=1)[0] == [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_the_cut_itself_is_foreground() -> None:
    assert erased([[0, 2, 4, 1.9999]], steps=1)[0] == [[0, 1, 1, 0]]


def test_corners_join_with_8_and_not_with_4() -> None:
    rows = [[9, 0, 0], [0, 8, 0], [0, 0, 9]]
    assert erased(rows, steps=1)[0] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert erased(rows, steps=3, connectivity=4)[0] == [[1, 0, 0], [0, 3, 0], [0, 0, 2]]


def test_constant_maps_erase_nothing() -> None:
    for value in (0.0, -3.5, 1e38, 1e-45):
        assert erased([[value] * 3] * 2, steps=2)[0] == [[0] * 3] * 2
    assert erased([[0.0, -0.0]], steps=2)[0] == [[0, 0]]


def test_a_map_becomes_constant() -> None:
    erased_at, extent = erased([[3, 1, 1, 1]], steps=3)
    assert erased_at == [[1, 0, 0, 0]]
    assert extent == [[1, 3], [1, 1], [1, 1]]


def test_nothing_left_alive() -> None:
    before = torch.ones(1, 1, 2, 2, dtype=torch.uint8)
    erased_at, extent = erased([[1, 2], [3, 4]], steps=2, erased_at=before, first_step=7)
    assert erased_at == [[1, 1], [1, 1]]
    assert extent == [[0, 0], [0, 0]]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("at", [0, 7, 20, 34])
def test_a_map_with_a_value_that_is_not_finite(broken: float, at: int) -> None:
    cam = torch.arange(70, dtype=torch.float32).view(1, 2, 5, 7)
    cam[0, 0].view(-1)[at] = broken
    before = torch.zeros(cam.shape, dtype=torch.uint8)
    before[..., 0, :2] = 1
    for settings in ({}, {"erased_at": before, "first_step": 2}):
        mined = ops.mine_attention(cam, 3, **settings)
        assert torch.equal(mined.erased_at[0, 0], before[0, 0] if settings else before[0, 0] * 0)
        assert torch.isnan(mined.extent[0, 0]).all()
        assert torch.isfinite(mined.extent[0, 1]).all(), "its neighbour is a map like any other"
        assert mined.erased_at[0, 1].max() > 1


def test_a_range_that_overflows() -> None:
    erased_at, extent = erased([[-3e38, 3e38, 0]], steps=2)
    assert erased_at == [[0, 0, 0]]
    assert np.isnan(extent).all()
    assert erased([[-1.7e38, 1.7e38, 0]], steps=1)[0] == [[0, 1, 1]]


def test_decisions_are_made_in_float32() -> None:
    """Two values that only float64 tells apart are a tie."""
    cam = torch.tensor([[[[1.0, 0.0, 1.0 + 1e-12, 0.0]]]], dtype=torch.float64)
    assert ops.mine_attention(cam, 1).erased_at.tolist() == [[[[1, 0, 0, 0]]]]
    for dtype in (torch.float16, torch.bfloat16):
        half = torch.randn(2, 2, 9, 9).to(dtype)
        assert torch.equal(
            ops.mine_attention(half).erased_at, ops.mine_attention(half.float()).erased_at
        )


def test_strides(rng: np.random.Generator) -> None:
    cam = maps.smooth((4, 3, 20, 18), rng)
    before = ops.mine_attention(cam.flip(-1), 1).erased_at
    for view in (
        lambda t: t.transpose(2, 3),
        lambda t: t.to(memory_format=torch.channels_last),
        lambda t: t[1:, ::2, ::3, 2:],
        lambda t: t[:1].expand(3, -1, -1, -1),
    ):
        ours = ops.mine_attention(view(cam), 2, erased_at=view(before), first_step=2)
        plain = [view(t).contiguous() for t in (cam, before)]
        expected = ops.mine_attention(plain[0], 2, erased_at=plain[1], first_step=2)
        assert torch.equal(ours.erased_at, expected.erased_at)
        assert torch.equal(ours.extent, expected.extent)


CAM, ERASED = torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"cam": CAM.numpy()}, TypeError, "cam must be a torch.Tensor.*cxr_fast.runtime"),
        ({"cam": CAM.long()}, TypeError, "cam must be float16, .*, but is int64; convert it first"),
        ({"cam": CAM[0]}, ValueError, r"cam must have the 4 dimensions.*\(2, 3, 3\); reshape it"),
        ({"cam": CAM[:, :, :0]}, ValueError, r"height of 1 to 32768, but has shape \(1, 2, 0, 3\)"),
        ({"cam": torch.zeros(1, 1, 1, 32769)}, ValueError, "width of 1 to 32768"),
        ({"steps": 0}, ValueError, "steps must be from 1 to 255, but is 0"),
        ({"steps": 256}, ValueError, "steps must be from 1 to 255, but is 256"),
        ({"steps": 1.5}, TypeError, r"steps must be an int, but is 1.5 \(float\)"),
        ({"steps": True}, TypeError, "steps must be an int"),
        ({"first_step": 0}, ValueError, "first_step must be from 1 to 255"),
        ({"first_step": "2"}, TypeError, "first_step must be an int"),
        ({"first_step": 254}, ValueError, "first_step 254 and steps 3 end at 256; run fewer"),
        ({"threshold": 0.0}, ValueError, "threshold must be above 0 and below 1, but is 0.0"),
        ({"threshold": 1}, ValueError, "threshold must be above 0 and below 1, but is 1"),
        ({"threshold": 1 - 2**-26}, ValueError, "threshold must be above 0 and below 1"),
        ({"threshold": float("nan")}, ValueError, "but is nan"),
        ({"threshold": "0.5"}, ValueError, "but is '0.5'"),
        ({"connectivity": 6}, ValueError, "connectivity must be 4 .sides. or 8 .* but is 6"),
        ({"erased_at": ERASED.numpy()}, TypeError, "erased_at must be a torch.Tensor"),
        ({"erased_at": ERASED.int()}, TypeError, "erased_at must be uint8, but is int32"),
        ({"erased_at": ERASED[0]}, ValueError, r"\(1, 2, 3, 3\) to go with cam, but .*\(2, 3, 3\)"),
        ({"erased_at": ERASED.to("meta")}, ValueError, "device of cam, cpu, but is on meta; move"),
    ],
)
def test_refusals(settings: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.mine_attention(**{"cam": CAM, **settings})


def test_the_last_step_is_255() -> None:
    cam = torch.arange(12, dtype=torch.float32).view(1, 1, 3, 4)
    assert ops.mine_attention(cam, 1, first_step=255).erased_at.max() == 255
    assert ops.mine_attention(cam, 3, first_step=253).erased_at.max() == 255
