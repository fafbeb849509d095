"""mine_attention and label_components by Triton: bit for bit what the reference says."""

from __future__ import annotations

import os

import maps
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cxr_fast import reference
from cxr_fast.kernels.label_components import label_components
from cxr_fast.kernels.mine_attention import mine_attention

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def assert_mined(
    cam: torch.Tensor,
    steps: int = 3,
    threshold: float = 0.5,
    connectivity: int = 8,
    erased_at: torch.Tensor | None = None,
    first_step: int = 1,
    device: str = DEVICE,
) -> None:
    before = None if erased_at is None else erased_at.to(device)
    erased, extent = mine_attention(cam.to(device), steps, threshold, connectivity, before, first_step)
    expected = reference.mine_attention(cam, steps, threshold, connectivity, erased_at, first_step)
    assert erased.dtype == torch.uint8
    assert torch.equal(erased.cpu(), expected.erased_at)
    torch.testing.assert_close(extent.cpu(), expected.extent, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("shape", "connectivity"), [((9, 1), 8), ((4, 7), 4), ((6, 33), 8)])
def test_adversarial_maps(shape: tuple[int, int], connectivity: int, device: str) -> None:
    cam = torch.stack([h for _, h in maps.adversarial(*shape)])
    assert_mined(cam[None], 2, connectivity=connectivity, device=device)


@pytest.mark.parametrize(("side", "connectivity"), [(32, 4), (32, 8), (64, 8)])
def test_full_words(side: int, connectivity: int, device: str, rng: np.random.Generator) -> None:
    winding = torch.from_numpy(
        np.stack([maps.snake(side, side // 2), maps.spiral(side, side // 2)]).astype(np.float32)
    )
    winding = torch.cat((winding.flip(-1), winding), -1)  # two of each, one to be found
    cam = torch.cat((winding, maps.smooth((1, side, side), rng)))[None]
    assert_mined(cam, 2, 0.4, connectivity, device=device)


def test_many_steps_and_strides(device: str, rng: np.random.Generator) -> None:
    cam = torch.from_numpy(rng.integers(0, 9, (2, 6, 9, 10)).astype(np.float32))
    assert_mined(cam[:, ::3].transpose(2, 3), 17, 0.9, 4, device=device)


def test_staged_calls(device: str, rng: np.random.Generator) -> None:
    erased_at = torch.from_numpy(rng.integers(0, 3, (2, 3, 9, 14)).astype(np.uint8))
    erased_at[1, 1] = 1  # nothing alive
    assert_mined(maps.smooth((2, 3, 9, 14), rng), 2, 0.5, 8, erased_at, 3, device)
    assert_mined(maps.smooth((2, 3, 9, 14), rng), 1, 0.5, 8, erased_at, 255, device)


@settings(max_examples=15, deadline=None)
@given(
    cam=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.sampled_from([0.0, -0.0, 1.0, 2.5, -3.0, 1e-45, 3e38, -3e38, np.inf, np.nan]),
    ),
    connectivity=st.sampled_from([4, 8]),
    threshold=st.sampled_from([0.1, 0.5, 0.99]),
)
def test_any_map(cam: np.ndarray, connectivity: int, threshold: float) -> None:
    assert_mined(torch.from_numpy(cam)[None, None], 2, threshold, connectivity)


def test_what_is_too_large_is_refused_in_a_sentence(device: str) -> None:
    for shape in ((1, 1, 65, 4), (1, 1, 4, 65)):
        with pytest.raises(ValueError, match=r"at most 64 x 64 .* use the reference"):
            mine_attention(torch.zeros(shape).to(device), 1, 0.5, 8, None, 1)


def test_no_maps(device: str) -> None:
    erased, extent = mine_attention(torch.zeros(0, 3, 4, 5).to(device), 2, 0.5, 8, None, 1)
    assert erased.shape == (0, 3, 4, 5)
    assert extent.shape == (0, 3, 2, 2)


def assert_labelled(mask: torch.Tensor, connectivity: int, device: str) -> None:
    labels = label_components(mask.to(device), connectivity)
    assert labels.dtype == torch.int32
    assert torch.equal(labels.cpu(), reference.label_components(mask, connectivity))


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("shape", [(1, 1), (1, 530), (3, 4), (14, 41)])
def test_masks(
    shape: tuple[int, int], connectivity: int, device: str, rng: np.random.Generator
) -> None:
    """The last shape spans blocks of pixels, and so do its windings."""
    named = [mask for _, mask in maps.masks(*shape)]
    mixed = [rng.random(shape) < density for density in (0.3, 0.5, 0.7)]
    assert_labelled(torch.from_numpy(np.stack(named + mixed)), connectivity, device)


def test_long_columns_across_blocks(device: str) -> None:
    mask = torch.ones(600, 2, dtype=torch.bool)
    mask[:, 1] = torch.arange(600) % 3 == 0
    assert_labelled(mask, 4, device)


def test_batches_and_strides(device: str, rng: np.random.Generator) -> None:
    mask = torch.from_numpy(rng.random((2, 3, 17, 12)) < 0.5)
    assert_labelled(mask.transpose(2, 3), 8, device)
    assert_labelled(mask[:, ::2, 1:, ::2], 4, device)
    assert label_components(torch.zeros(0, 5, 5, dtype=torch.bool).to(device), 8).shape == (0, 5, 5)


@settings(max_examples=15, deadline=None)
@given(
    mask=hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=24)),
    connectivity=st.sampled_from([4, 8]),
)
def test_any_mask(mask: np.ndarray, connectivity: int) -> None:
    assert_labelled(torch.from_numpy(mask), connectivity, DEVICE)
