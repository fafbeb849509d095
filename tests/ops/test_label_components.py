from __future__ import annotations

import maps
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from cxr_fast import ops, reference

STRUCTURES = {4: ndimage.generate_binary_structure(2, 1), 8: np.ones((3, 3))}


def assert_as_scipy(mask: np.ndarray, connectivity: int) -> None:
    """scipy numbers components in row-major order of their first pixel too."""
    expected, _ = ndimage.label(mask, STRUCTURES[connectivity])
    for module in (ops, reference):
        labels = module.label_components(torch.from_numpy(mask), connectivity)
        assert labels.dtype == torch.int32
        np.testing.assert_array_equal(labels.numpy(), expected)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 130), (130, 1), (3, 63), (7, 64), (9, 65), (33, 31), (64, 128), (40, 200)]
)
def test_adversarial_masks(shape: tuple[int, int], connectivity: int) -> None:
    for _, mask in maps.masks(*shape):
        assert_as_scipy(mask, connectivity)


@settings(max_examples=150, deadline=None)
@given(
    mask=hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=70)),
    connectivity=st.sampled_from([4, 8]),
)
def test_any_mask(mask: np.ndarray, connectivity: int) -> None:
    assert_as_scipy(mask, connectivity)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("density", [0.1, 0.45, 0.6, 0.9])
def test_large_images_in_strips(density: float, connectivity: int, rng: np.random.Generator) -> None:
    mask = rng.random((700, 517)) < density
    expected, _ = ndimage.label(mask, STRUCTURES[connectivity])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            labels = ops.label_components(torch.from_numpy(mask), connectivity)
            np.testing.assert_array_equal(labels.numpy(), expected)
    finally:
        torch.set_num_threads(before)


def test_every_image_of_a_batch_on_its_own(rng: np.random.Generator) -> None:
    masks = rng.random((3, 4, 20, 33)) < 0.5
    labels = ops.label_components(torch.from_numpy(masks)).numpy()
    for index in np.ndindex(3, 4):
        expected, _ = ndimage.label(masks[index], STRUCTURES[8])
        np.testing.assert_array_equal(labels[index], expected)


def test_strides_and_empty_batches(rng: np.random.Generator) -> None:
    mask = torch.from_numpy(rng.random((40, 60)) < 0.5)
    assert torch.equal(ops.label_components(mask.t()), ops.label_components(mask.t().contiguous()))
    assert ops.label_components(torch.zeros(0, 5, 5, dtype=torch.bool)).shape == (0, 5, 5)


@pytest.mark.parametrize(
    ("mask", "connectivity", "error", "message"),
    [
        (torch.zeros(3, 3), 8, TypeError, "must be bool, but is float32"),
        (torch.zeros(3, dtype=torch.bool), 8, ValueError, r"\[\.\.\., H, W\]"),
        (torch.zeros(3, 3, dtype=torch.bool), 6, ValueError, "4 .sides. or 8"),
        (np.zeros((3, 3), bool), 8, TypeError, "torch.Tensor"),
    ],
)
def test_refusals(mask: object, connectivity: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.label_components(mask, connectivity)
