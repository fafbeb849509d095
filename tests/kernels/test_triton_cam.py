"""cam and cam_backward by Triton, against numpy in float64 and against the reference."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from cxr_fast import reference
from cxr_fast.kernels import cam as kernels

operator = importlib.import_module("cxr_fast.ops.cam")  # the module; the name is its function's

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
# n, d, h, w, c: around every tile, of 16 to 256 classes, 32 or 64 channels, 16 to 128 pixels.
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 7, 3, 5, 3),
    (1, 768, 1, 5, 14),
    (2, 100, 9, 8, 16),
    (2, 64, 5, 7, 17),
    (1, 100, 4, 5, 100),
    (2, 33, 3, 3, 256),
    (1, 40, 1, 7, 300),
]
ROUNDING = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 0.0}


def assert_close(ours: torch.Tensor, expected: np.ndarray, terms: np.ndarray, rounding: float) -> None:
    """Within what a float32 sum may lose of its ``terms`` (their absolute values, summed), and
    the rounding of the result."""
    allowed = terms * 1e-6 + np.abs(expected) * rounding + (2**-25 if rounding else 0)
    error = np.abs(ours.double().cpu().numpy() - expected)
    assert (error <= allowed).all(), f"{(error / np.maximum(allowed, 1e-300)).max():.3g} times too far"


def check(
    features: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor, tile: kernels.Blocks | None = None
) -> None:
    x, w, g = (t.double().cpu().numpy() for t in (features, weight, grad))
    cam = kernels.cam(features, weight, tile)
    assert cam.dtype == torch.float32
    assert cam.is_contiguous()
    product = "ndhw,cd->nchw"
    assert_close(cam, np.einsum(product, x, w), np.einsum(product, abs(x), abs(w)), 0)

    dx, dw = kernels.cam_backward(grad, features, weight, True, True, tile)
    expected = operator._backward_fake(grad, features, weight, True, True)
    for ours, fake in zip((dx, dw), expected, strict=True):
        assert (ours.dtype, ours.shape, ours.stride()) == (fake.dtype, fake.shape, fake.stride())
    product = "nchw,cd->ndhw"
    terms = np.einsum(product, abs(g), abs(w))
    assert_close(dx, np.einsum(product, g, w), terms, ROUNDING[features.dtype])
    product = "nchw,ndhw->cd"
    assert_close(dw, np.einsum(product, g, x), np.einsum(product, abs(g), abs(x)), 0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_product_and_gradients(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, device: str
) -> None:
    torch.manual_seed(0)
    n, d, h, w, c = shape
    features = torch.randn(n, d, h, w).to(device, dtype).contiguous(memory_format=layout)
    check(features, torch.randn(c, d).to(device), torch.randn(n, c, h, w).to(device))


@pytest.mark.parametrize("tile", [(16, 32, 16, 4, 2), (32, 16, 64, 8, 3), (16, 128, 32, 4, 3)])
def test_any_tile_gives_the_product(tile: tuple[int, ...], device: str) -> None:
    torch.manual_seed(1)
    features, weight = torch.randn(2, 50, 5, 9).to(device).bfloat16(), torch.randn(20, 50).to(device)
    check(features, weight, torch.randn(2, 20, 5, 9).to(device), kernels.Blocks(*tile))


@pytest.mark.parametrize("dtype", DTYPES)
def test_programs_that_take_several_blocks_of_pixels(
    dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "BACKWARD_PROGRAMS", 3)
    torch.manual_seed(6)
    # What lies beyond the last image must not be read, nor written in dX.
    features = torch.randn(7, 33, 5, 9).to(device, dtype)
    features[5:] = torch.nan
    check(features[:5], torch.randn(3, 33).to(device), torch.randn(5, 3, 5, 9).to(device))


def test_slices_and_other_strides(device: str) -> None:
    torch.manual_seed(2)
    big = torch.randn(3, 30, 6, 8).to(device).bfloat16()
    last = big.to(memory_format=torch.channels_last)
    weight = torch.randn(25, 14).to(device).t()[:, ::2]  # [14, 13]
    variants = [
        big[::2, 5:18],
        big[:, 4:30:2],
        last[1:, 5:18],
        last[:, 5:18, :, 2:7],
        last[:, 5:18, 3:4],
        big[:, 5:18, ::2, 1::3],
        big[:, 5:18].transpose(2, 3),
        big[:1, 5:18].expand(3, -1, -1, -1),
        big[:, :13, :1, :1].expand(-1, -1, 4, 5),
        big[:, :1].expand(-1, 13, -1, -1),
    ]
    for features in variants:
        n, _, h, w = features.shape
        check(features, weight, torch.randn(h, w, n, 14).to(device).permute(2, 3, 0, 1))


@pytest.mark.parametrize(
    "strides",
    [(2**31 + 64, 1024, 8, 1), (64, 2**31 + 1024, 8, 1), (2**31 + 64, 1, 8192, 1024)],
    ids=["images", "planes", "channels last"],
)
def test_offsets_beyond_32_bits(strides: tuple[int, ...], device: str) -> None:
    storage = torch.empty(2**31 + 2**16, dtype=torch.bfloat16, device=device)  # hardly touched
    features = storage.as_strided((2, 2, 4, 8), strides)
    features.copy_(torch.randn(2, 2, 4, 8))
    check(features, torch.randn(3, 2).to(device), torch.randn(2, 3, 4, 8).to(device))


@pytest.mark.parametrize("shape", [(0, 4, 3, 3, 2), (2, 4, 3, 3, 0), (2, 0, 3, 3, 2)])
def test_empty(shape: tuple[int, ...], device: str) -> None:
    n, d, h, w, c = shape
    features, weight = torch.randn(n, d, h, w).to(device), torch.randn(c, d).to(device)
    assert torch.equal(kernels.cam(features, weight).cpu(), torch.zeros(n, c, h, w))
    grad = torch.randn(n, c, h, w).to(device)
    dx, dw = kernels.cam_backward(grad, features, weight, True, True)
    assert torch.equal(dx.cpu(), torch.zeros(n, d, h, w))
    assert torch.equal(dw.cpu(), torch.zeros(c, d))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_byte_floats_are_read_exactly(dtype: torch.dtype, device: str) -> None:
    """All of them: subnormals, infinities and NaNs as well, whatever a piece of 0 would make."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    features = every.view(1, 1, 256, 256).to(device)
    one = torch.ones(1, 1).to(device)
    wide = kernels.Blocks(16, 16, 8192, 4, 1) if device == "cpu" else None  # numpy likes it wide
    cam = kernels.cam(features, one, wide).cpu()
    torch.testing.assert_close(cam, features.float().cpu(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_byte_gradients_round_to_nearest_even(dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(3)
    bits = torch.randint(-(2**31), 2**31 - 1, (1, 1, 64, 32), dtype=torch.int64)
    grad = bits.to(torch.int32).view(torch.float32)
    grad[grad.abs() < 1e-33] = 0  # pieces would lose bits
    features, one = torch.zeros(1, 1, 64, 32, dtype=dtype).to(device), torch.ones(1, 1).to(device)
    ours, _ = kernels.cam_backward(grad.to(device), features, one, True, False)
    expected = (grad + 0).to(dtype)
    torch.testing.assert_close(ours.cpu(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_factors_count_to_the_last_bit(dtype: torch.dtype, device: str) -> None:
    """Sums whose leading bits cancel: what is left stood in the lowest bits of weight or gradient."""
    torch.manual_seed(4)
    first = 1 + torch.rand(14)
    nudged = first.view(torch.int32) ^ torch.randint(1, 8, (14,), dtype=torch.int32)
    pair = torch.stack((first, nudged.view(torch.float32)), 1).to(device)  # [14, 2]
    left = pair[:, 0] - pair[:, 1]
    signs = torch.tensor([1.0, -1.0]).to(device)
    across = signs.to(dtype).view(1, 2, 1, 1)
    assert torch.equal(kernels.cam(across, pair), left.view(1, 14, 1, 1))
    # The weight's bits in dX, the gradient's in dX, and the gradient's in dW.
    features = torch.zeros(1, 14, 1, 1).to(device, dtype)
    dx, _ = kernels.cam_backward(signs.view(1, 2, 1, 1), features, pair.t(), True, False)
    assert torch.equal(dx.flatten(), left.to(dtype))
    features = torch.zeros(1, 1, 1, 14).to(device, dtype)
    grad = pair.t().reshape(1, 2, 1, 14)
    dx, _ = kernels.cam_backward(grad, features, signs.view(2, 1), True, False)
    assert torch.equal(dx.flatten(), left.to(dtype))
    features, grad = across.view(1, 1, 1, 2), pair.view(1, 14, 1, 2)
    _, dw = kernels.cam_backward(grad, features, pair[:, :1], False, True)
    assert torch.equal(dw.flatten(), left)


def classes_of(values: torch.Tensor) -> torch.Tensor:
    """0 finite, 1 infinite, 2 minus infinite, 3 NaN."""
    return values.isposinf() * 1 + values.isneginf() * 2 + values.isnan() * 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_and_nan_go_where_a_sum_takes_them(dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(5)
    features = torch.randn(2, 20, 4, 5).to(dtype)
    weight, grad = torch.randn(6, 20), torch.randn(2, 6, 4, 5)
    low_nan = torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32)[0]
    weight[0, 3], weight[1, 4], weight[2, 5] = torch.inf, -torch.inf, low_nan
    # Overflows against 2 * 2, and nowhere else: whether a sum that passes through an overflow comes
    # back depends on the order of its terms, and on whether a product is rounded before it is added.
    weight[3, :2] = 3e38
    features[:, :2] = features[:, :2].clamp(-0.4, 0.4)
    weight[4] = 0.5  # its other pieces are 0
    features[0, :2, 0, 0] = 2
    features[0, 3, 0, 1] = 0  # inf * 0
    features[1, 7, 2, 2], features[1, 8, 3, 3], features[1, 9, 3, 4] = torch.inf, -torch.inf, torch.nan
    grad[0, 0, 1, 1], grad[0, 4, 2, 2], grad[1, 5, 0, 0] = torch.inf, -torch.inf, low_nan
    cam = kernels.cam(features.to(device), weight.to(device)).cpu()
    expected = reference.cam(features, weight)
    assert torch.equal(classes_of(cam), classes_of(expected))
    assert classes_of(cam).unique().tolist() == [0, 1, 2, 3]
    dx, dw = kernels.cam_backward(grad.to(device), features.to(device), weight.to(device), True, True)
    for ours, theirs in zip(
        (dx, dw), operator.backward_reference(grad, features, weight, True, True), strict=True
    ):
        assert torch.equal(classes_of(ours.cpu()), classes_of(theirs))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_needed_is_not_read(dtype: torch.dtype, device: str) -> None:
    features, weight = torch.randn(2, 20, 4, 9).to(device, dtype), torch.randn(3, 20).to(device)
    grad = torch.randn(2, 3, 4, 9).to(device)
    both = kernels.cam_backward(grad, features, weight, True, True)
    features_alone = kernels.cam_backward(grad, features * torch.nan, weight, True, False)
    weight_alone = kernels.cam_backward(grad, features, weight * torch.nan, False, True)
    assert torch.equal(features_alone[0], both[0])
    assert torch.equal(weight_alone[1], both[1])
    assert features_alone[1].shape == weight_alone[0].shape == (0,)


def test_programs_share_all_blocks_of_pixels() -> None:
    for count in [*range(1, 80), 512, 1000, 1024, 65536, 10**6]:
        for programs in (1, 2, 12, 24, 600):
            rounds = kernels._rounds(count, programs)
            assert 1 <= rounds <= count
            parts = -(-count // rounds)
            assert rounds == count or parts * programs <= kernels.BACKWARD_PROGRAMS + programs
