from __future__ import annotations

import maps
import numpy as np
import pytest
import torch

from cxr_fast import ops, reference


def exact(cam: torch.Tensor, erased_at: torch.Tensor, steps: int) -> np.ndarray:
    """Eq. 2 in float64: the mean over all pixels of what was alive before each step."""
    h, s = cam.detach().double().numpy(), erased_at.numpy().astype(int)
    s = np.where(s == 0, 1000, s)
    pixels = h.shape[-2] * h.shape[-1]
    sums = [np.where(s >= t, h, 0.0).sum((-2, -1)) for t in range(1, steps + 1)]
    return np.stack(sums, -1) / pixels


def test_by_hand() -> None:
    cam = torch.tensor([[[[8.0, 4.0], [2.0, -1.0]]]])
    erased_at = torch.tensor([[[[1, 2], [0, 200]]]], dtype=torch.uint8)
    logits = ops.masked_gap(cam, erased_at, 4)
    assert torch.equal(logits, torch.tensor([[[13.0, 5.0, 1.0, 1.0]]]) / 4)
    assert torch.equal(ops.masked_gap(cam, erased_at, 201)[0, 0, 199:], torch.tensor([0.25, 0.5]))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 1, 17), (3, 1, 33, 5), (2, 2, 40, 41)])
@pytest.mark.parametrize("steps", [1, 2, 3, 31, 255])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_closed_form(
    shape: tuple[int, ...], steps: int, dtype: torch.dtype, rng: np.random.Generator
) -> None:
    """Any bytes may come: values above ``steps`` are erased after the last one."""
    cam = torch.from_numpy(rng.standard_normal(shape)).to(dtype).requires_grad_()
    erased_at = torch.from_numpy(rng.integers(0, 256, shape).astype(np.uint8))
    erased_at[rng.random(shape) < 0.3] = 0
    logits = ops.masked_gap(cam, erased_at, steps)
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = 1e-14 if dtype == torch.float64 else 2e-6
    np.testing.assert_allclose(
        logits.detach().numpy(), exact(cam, erased_at, steps), rtol=tolerance, atol=tolerance
    )
    grad = torch.from_numpy(rng.standard_normal(logits.shape)).to(logits.dtype)
    logits.backward(grad)
    last = torch.where(erased_at == 0, 255, erased_at.int()).clamp(max=steps)
    running = torch.nn.functional.pad(grad.double().cumsum(-1), (1, 0))
    expected = running.gather(-1, last.flatten(2).to(torch.int64)).view(shape)
    expected = expected / (shape[2] * shape[3])
    assert cam.grad.dtype == dtype
    rounding = {
        torch.float16: 1e-3,
        torch.bfloat16: 8e-3,
        torch.float32: 1e-5,
        torch.float64: 1e-13,
    }
    limits = {"rtol": rounding[dtype], "atol": rounding[dtype] * float(grad.abs().max())}
    torch.testing.assert_close(cam.grad.double(), expected, **limits)


def test_without_erasure_it_is_the_mean(rng: np.random.Generator) -> None:
    cam = maps.smooth((2, 3, 19, 8), rng)
    logits = ops.masked_gap(cam, torch.zeros(cam.shape, dtype=torch.uint8), 5)
    torch.testing.assert_close(logits, cam.mean((-2, -1))[..., None].expand(-1, -1, 5))


def test_erased_values_do_not_count() -> None:
    """A NaN or an infinity that was erased is not in the sum; one that is alive is."""
    cam = torch.tensor([[[[torch.nan, torch.inf, 3.0, 1.0]]]])
    erased_at = torch.tensor([[[[1, 2, 3, 0]]]], dtype=torch.uint8)
    for module in (ops, reference):
        logits = module.masked_gap(cam, erased_at, 4)[0, 0]
        assert torch.isnan(logits[0])
        assert torch.equal(logits[1:], torch.tensor([torch.inf, 1.0, 0.25]))


def test_double_keeps_its_digits() -> None:
    cam = torch.full((1, 1, 10, 10), 1 + 2.0**-40, dtype=torch.float64)
    erased_at = torch.zeros(cam.shape, dtype=torch.uint8)
    assert (ops.masked_gap(cam, erased_at, 1) - 1).item() == pytest.approx(2.0**-40, rel=1e-3)


def test_a_large_offset_does_not_swamp_the_sum() -> None:
    """One float sum over all pixels would be off by 1e-2; sums of blocks are not."""
    cam = torch.full((1, 1, 2048, 2048), 1000.1)
    logits = ops.masked_gap(cam, torch.zeros(cam.shape, dtype=torch.uint8), 2)
    torch.testing.assert_close(logits, torch.full((1, 1, 2), 1000.1), rtol=1e-5, atol=0)


def test_strides(rng: np.random.Generator) -> None:
    cam = maps.smooth((4, 3, 20, 18), rng)
    erased_at = ops.mine_attention(cam).erased_at
    expected = ops.masked_gap(cam.transpose(2, 3).contiguous(), erased_at.transpose(2, 3).contiguous())
    assert torch.equal(ops.masked_gap(cam.transpose(2, 3), erased_at.transpose(2, 3)), expected)
    last = cam.to(memory_format=torch.channels_last)
    assert torch.equal(ops.masked_gap(last, erased_at), ops.masked_gap(cam, erased_at))
    assert torch.equal(
        ops.masked_gap(cam[::2, :, ::3], erased_at[::2, :, ::3]),
        ops.masked_gap(cam[::2, :, ::3].contiguous(), erased_at[::2, :, ::3].contiguous()),
    )


def test_an_expanded_gradient() -> None:
    """``sum().backward()`` sends one number, expanded to [N, C, T]."""
    cam = torch.rand(2, 3, 4, 5, requires_grad=True)
    erased_at = ops.mine_attention(cam).erased_at
    ops.masked_gap(cam, erased_at).sum().backward()
    times = torch.where(erased_at == 0, 3, erased_at).float()
    torch.testing.assert_close(cam.grad, times / 20)


def test_empty() -> None:
    for shape in ((0, 2, 3, 3), (2, 0, 3, 3)):
        cam = torch.zeros(shape, requires_grad=True)
        logits = ops.masked_gap(cam, torch.zeros(shape, dtype=torch.uint8))
        assert logits.shape == (*shape[:2], 3)
        logits.sum().backward()
        assert cam.grad.shape == shape


CAM, ERASED = torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("cam", "erased_at", "steps", "error", "message"),
    [
        (CAM.numpy(), ERASED, 3, TypeError, "cam must be a torch.Tensor.*cxr_fast.runtime"),
        (CAM.int(), ERASED, 3, TypeError, "cam must be float16, bfloat16, float32 or float64"),
        (CAM[0], ERASED[0], 3, ValueError, r"\[N, C, H, W\], but has shape \(2, 3, 3\)"),
        (CAM[:, :, :0], ERASED[:, :, :0], 3, ValueError, "cam must have a height of 1 to 32768"),
        (CAM, ERASED.numpy(), 3, TypeError, "erased_at must be a torch.Tensor"),
        (CAM, ERASED.bool(), 3, TypeError, "erased_at must be uint8, but is bool; convert it"),
        (
            CAM,
            ERASED[:, :1],
            3,
            ValueError,
            r"erased_at must have shape \(1, 2, 3, 3\).*\(1, 1, 3, 3\)",
        ),
        (CAM, ERASED.to("meta"), 3, ValueError, "erased_at must be on the device of cam, cpu"),
        (CAM, ERASED, 0, ValueError, "steps must be from 1 to 255, but is 0"),
        (CAM, ERASED, 256, ValueError, "steps must be from 1 to 255, but is 256"),
        (CAM, ERASED, 3.0, TypeError, r"steps must be an int, but is 3.0 \(float\)"),
        (CAM, ERASED, True, TypeError, "steps must be an int, but is True"),
    ],
)
def test_refusals(
    cam: object, erased_at: object, steps: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ops.masked_gap(cam, erased_at, steps)
