"""Resizing and scaling. Oracles: the definition, torch."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import RANDOM, smooth_picture

from cxr_fast.archive.images import resize, to_input


def triangle_weights(pixels: int, size: int) -> np.ndarray:
    """[size, pixels]: the docstring's definition, written out densely."""
    scale = pixels / size
    centre = (np.arange(size) + 0.5) * scale
    distance = np.abs(np.arange(pixels) + 0.5 - centre[:, None])
    weights = np.maximum(0, 1 - distance / max(scale, 1))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("shape", [(64, 64), (100, 37), (31, 80), (1, 1), (1, 9), (16, 300)])
@pytest.mark.parametrize("size", [1, 7, 32, 64])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_resize_is_its_definition(shape: tuple, size: int, dtype: type) -> None:
    image = RANDOM.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    down, across = triangle_weights(shape[0], size), triangle_weights(shape[1], size)
    expected = down @ image.astype(np.float64) @ across.T
    made = resize(image, size)
    assert made.dtype == np.float32
    assert made.flags.writeable
    np.testing.assert_allclose(made, expected, rtol=1e-6, atol=1e-5 * np.iinfo(dtype).max / 255)


def test_resize_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch")
    image = smooth_picture(300, 220)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None, None].double(), (96, 96), mode="bilinear", antialias=True
    )[0, 0]
    np.testing.assert_allclose(resize(image, 96), expected.numpy(), atol=1e-4)


def test_to_input_scales_by_the_type() -> None:
    for dtype in (np.uint8, np.uint16):
        white = to_input(np.full((5, 7), np.iinfo(dtype).max, dtype), 4)
        assert white.dtype == np.float32
        np.testing.assert_allclose(white, np.ones((4, 4)), rtol=1e-6)
    image = to_input(np.full((4, 4), 51, np.uint8), 4)
    np.testing.assert_allclose(image, np.full((4, 4), 0.2), rtol=1e-6)
    same = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_allclose(to_input(same, 16), same / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("image", "size"),
    [
        (np.zeros((4, 4), np.float32), 2),
        (np.zeros((4, 4, 3), np.uint8), 2),
        (np.zeros((0, 4), np.uint8), 2),
        (np.zeros((4, 4), np.uint8), 0),
    ],
)
def test_to_input_refuses(image: np.ndarray, size: int) -> None:
    with pytest.raises(ValueError, match=r"expected an image|cannot resize"):
        to_input(image, size)
