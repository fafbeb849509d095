from __future__ import annotations

import numpy as np
import pytest
import torch

from cxr_fast import ops

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# Around every tile size: vectors of 4 to 16 lanes, 6 or 14 rows, blocks of 32 and 128 channels.
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 5, 3, 7, 3),
    (1, 33, 1, 31, 14),
    (3, 129, 5, 13, 15),
    (2, 64, 16, 16, 14),
    (1, 300, 9, 9, 28),
    (2, 40, 7, 7, 256),
    (4, 31, 12, 11, 6),
]


def exact(features: torch.Tensor, weight: torch.Tensor) -> np.ndarray:
    """The product in float64, by numpy."""
    return np.einsum("ndhw,cd->nchw", features.double().numpy(), weight.double().numpy())


def assert_close(ours: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    scale = max(np.abs(expected).max(initial=0), 1e-30)
    np.testing.assert_allclose(ours.double().numpy() / scale, expected / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_product(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    n, d, h, w, c = shape
    features = torch.randn(n, d, h, w).to(dtype).contiguous(memory_format=layout)
    weight = torch.randn(c, d)
    cam = ops.cam(features, weight)
    double = dtype == torch.float64
    assert cam.dtype == (torch.float64 if double else torch.float32)
    assert cam.is_contiguous()
    assert_close(cam, exact(features, weight), 1e-14 if double else 2e-6)


@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_features_and_weight_may_differ_in_dtype(weight_dtype: torch.dtype) -> None:
    features = torch.randn(2, 20, 6, 6).bfloat16()
    weight = torch.randn(3, 20).to(weight_dtype)
    cam = ops.cam(features, weight)
    assert cam.dtype == (torch.float64 if weight_dtype == torch.float64 else torch.float32)
    assert_close(cam, exact(features, weight), 2e-6)


def test_two_byte_floats_are_read_exactly() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    one = torch.ones(1, 1)
    for dtype in (torch.float16, torch.bfloat16):
        values = every.view(dtype)
        for features in (values.view(1, 1, 256, 256), values.view(1, 1, 256, 256)[..., :253]):
            expected = features.float()
            torch.testing.assert_close(ops.cam(features, one), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_byte_gradients_round_to_nearest_even(
    dtype: torch.dtype, least_exact_factor: float
) -> None:
    bits = torch.randint(-(2**31), 2**31 - 1, (1, 1, 256, 256), dtype=torch.int64)
    grad = bits.to(torch.int32).view(torch.float32)
    grad = grad.where(~(grad.abs() < least_exact_factor), 0.0)
    features, one = torch.zeros(1, 1, 256, 256, dtype=dtype), torch.ones(1, 1)
    ours, _ = torch.ops.cxr_fast.cam_backward(grad, features, one, True, False)
    # 1 * g + 0, so that -0 becomes 0 as the sum makes it.
    torch.testing.assert_close(ours, (grad + 0).to(dtype), rtol=0, atol=0, equal_nan=True)


def test_slices_and_transposes_give_the_same_numbers() -> None:
    torch.manual_seed(1)
    big = torch.randn(6, 50, 20, 24)
    weight = torch.randn(60, 14).t()[:, ::2].contiguous()[:, :25]
    variants = [
        big[::2, 5:30, :, :],
        big[:, 5:30].to(memory_format=torch.channels_last),
        big.to(memory_format=torch.channels_last)[1:, 5:30],
        big[:, 5:30, ::2, 1::3],
        big[:, 5:30].transpose(2, 3),
        big[:, 5:30].permute(0, 1, 3, 2)[:, :, 2:],
        big[:, 5:30, 3:4, :],
        big[:1, 5:30].expand(4, -1, -1, -1),
        torch.randn(1, 25, 1, 1).expand(2, -1, 5, 7),
        torch.randn(2, 1, 5, 7).expand(-1, 25, -1, -1),
    ]
    for features in variants:
        assert_close(ops.cam(features, weight), exact(features, weight), 2e-6)
    assert_close(ops.cam(big[:, 5:30], weight.t().contiguous().t()), exact(big[:, 5:30], weight), 2e-6)


@pytest.mark.parametrize("shape", [(0, 4, 3, 3, 2), (2, 4, 3, 3, 0), (2, 0, 3, 3, 2)])
def test_empty(shape: tuple[int, ...]) -> None:
    n, d, h, w, c = shape
    features = torch.randn(n, d, h, w, requires_grad=True)
    weight = torch.randn(c, d, requires_grad=True)
    cam = ops.cam(features, weight)
    assert torch.equal(cam, torch.zeros(n, c, h, w))
    cam.sum().backward()
    assert torch.equal(features.grad, torch.zeros(n, d, h, w))
    assert torch.equal(weight.grad, torch.zeros(c, d))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradient(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format) -> None:
    torch.manual_seed(2)
    n, d, h, w, c = shape
    features = torch.randn(n, d, h, w).to(dtype).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(c, d, requires_grad=True)
    grad = torch.randn(n, c, h, w)
    cam = ops.cam(features, weight)
    cam.backward(grad.to(cam.dtype))
    assert features.grad.dtype == dtype
    assert weight.grad.dtype == torch.float32
    dx = np.einsum("nchw,cd->ndhw", grad.double().numpy(), weight.detach().double().numpy())
    dw = np.einsum("nchw,ndhw->cd", grad.double().numpy(), features.detach().double().numpy())
    rounding = {
        torch.float16: 6e-4,
        torch.bfloat16: 4e-3,
        torch.float32: 2e-6,
        torch.float64: 1e-14,
    }
    assert_close(features.grad, dx, rounding[dtype])
    assert_close(weight.grad, dw, 1e-5)


def test_only_the_wanted_gradient_is_computed() -> None:
    features, weight = torch.randn(2, 5, 4, 4), torch.randn(3, 5, requires_grad=True)
    ops.cam(features, weight).sum().backward()
    assert features.grad is None
    torch.testing.assert_close(weight.grad, features.sum((0, 2, 3)).expand(3, -1))


@pytest.mark.parametrize(
    ("features", "weight", "error", "message"),
    [
        (np.zeros((1, 2, 3, 3)), torch.zeros(1, 2), TypeError, "cxr_fast.runtime"),
        (
            torch.zeros(1, 2, 3, 3, dtype=torch.int32),
            torch.zeros(1, 2),
            TypeError,
            "float16, bfloat16",
        ),
        (torch.zeros(2, 3, 3), torch.zeros(1, 2), ValueError, r"\[N, D, H, W\].*\(2, 3, 3\)"),
        (torch.zeros(1, 2, 3, 3), torch.zeros(1, 3), ValueError, r"\[C, 2\].*\(1, 3\)"),
        (torch.zeros(1, 2, 3, 3), torch.zeros(2), ValueError, r"\[C, D\]"),
        (torch.zeros(1, 2, 0, 3), torch.zeros(1, 2), ValueError, "height of 1 to"),
        (torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, device="meta"), ValueError, "on the device of"),
    ],
)
def test_refusals(features: object, weight: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.cam(features, weight)
