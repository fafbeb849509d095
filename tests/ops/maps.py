"""Maps to test on: smooth ones, as networks make them, and ones that break careless code."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy import ndimage

THRESHOLDS = (60 / 255, 180 / 255)


def smooth(shape: tuple[int, ...], rng: np.random.Generator) -> torch.Tensor:
    """Blurred noise [..., H, W] float32, with a random scale and offset for each map."""
    noise = rng.standard_normal(shape)
    sigma = rng.uniform(0.7, 4.0)
    blurred = ndimage.gaussian_filter(noise, (0,) * (len(shape) - 2) + (sigma, sigma))
    scale = np.exp(rng.normal(0, 2, (*shape[:-2], 1, 1)))
    return torch.from_numpy((blurred * scale + rng.normal(0, 1, scale.shape)).astype(np.float32))


def snake(height: int, width: int) -> np.ndarray:
    """One component as long as can be: full rows joined at alternating ends."""
    mask = np.zeros((height, width), bool)
    mask[::2] = True
    mask[1::4, -1] = True
    mask[3::4, 0] = True
    return mask


def spiral(height: int, width: int) -> np.ndarray:
    """One component that winds inwards, a pixel wide, with gaps a pixel wide."""
    mask = np.zeros((height, width), bool)
    y, x, dy, dx = 0, 0, 0, 1
    mask[0, 0] = True
    turns = 0
    while turns < 2:
        ahead, beyond = (y + dy, x + dx), (y + 2 * dy, x + 2 * dx)
        inside = 0 <= ahead[0] < height and 0 <= ahead[1] < width
        wall = 0 <= beyond[0] < height and 0 <= beyond[1] < width and mask[beyond]
        if inside and not wall and not mask[ahead]:
            y, x = ahead
            mask[y, x] = True
            turns = 0
        else:
            dy, dx = dx, -dy
            turns += 1
    return mask


def comb(height: int, width: int) -> np.ndarray:
    """Teeth that meet only in the last row: a row-by-row labelling joins them at the very end."""
    mask = np.zeros((height, width), bool)
    mask[:, ::2] = True
    mask[-1] = True
    return mask


def masks(height: int, width: int) -> Iterator[tuple[str, np.ndarray]]:
    y, x = np.mgrid[:height, :width]
    yield "snake", snake(height, width)
    yield "snake upright", snake(width, height).T.copy()
    yield "spiral", spiral(height, width)
    yield "comb", comb(height, width)
    yield "comb upside down", comb(height, width)[::-1].copy()
    yield "checkerboard", (y + x) % 2 == 0
    yield "diagonals", (y - x) % 3 == 0
    yield "dots", (y % 2 == 0) & (x % 2 == 0)
    yield "empty", np.zeros((height, width), bool)
    yield "full", np.ones((height, width), bool)
    yield "frame", (y == 0) | (x == 0) | (y == height - 1) | (x == width - 1)


def adversarial(height: int, width: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Named maps [H, W] float32."""
    ramp = np.arange(height * width, dtype=np.float32).reshape(height, width)
    for name, mask in masks(height, width):
        yield name, torch.from_numpy(np.where(mask, 1.0, -1.0).astype(np.float32))
        # Distinct values on and off the mask, the peak at the component's far end.
        graded = np.where(mask, 10.0, 0.0) + ramp / ramp.size
        yield f"{name}, graded", torch.from_numpy(graded.astype(np.float32))
    flat = torch.zeros(height, width)
    yield "constant", flat + 3.25
    yield "negative zero", -flat
    yield "all negative", torch.from_numpy(-1.0 - ramp)
    yield "ties", torch.from_numpy(np.floor(ramp * 7 % 4))
    yield "one ulp", torch.nextafter(flat + 1, flat + (torch.from_numpy(ramp) % 2) * 9)
    yield "subnormal", torch.from_numpy(ramp % 3) * 1e-45
    yield "huge", torch.from_numpy(ramp % 5) * 6e37
    for name, value in (
        ("NaN", torch.nan),
        ("infinity", torch.inf),
        ("minus infinity", -torch.inf),
    ):
        broken = torch.from_numpy(ramp.copy())
        broken.view(-1)[-1] = value
        yield name, broken
    wide = torch.full((height, width), -3e38)
    wide.view(-1)[0] = 3e38
    yield "overflow", wide
