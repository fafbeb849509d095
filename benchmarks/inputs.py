"""What the benchmarks run on: smooth random features and maps, as real ones are, and snakes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

# The sizes of the paper's network on 512x512 images: a batch on two cores, and its own on a GPU.
CHANNELS, SIDE, CLASSES, STEPS = 768, 32, 14, 3
CPU_BATCH, GPU_BATCH = 8, 64


def features(n: int, d: int, side: int, seed: int = 0) -> Tensor:
    """Average-pooled noise [N, D, side, side], float32."""
    noise = torch.randn(n, d, side, side, generator=torch.Generator().manual_seed(seed))
    return functional.avg_pool2d(noise, 5, stride=1, padding=2)


def weight(c: int, d: int, seed: int = 1) -> Tensor:
    """A classifier [C, D], scaled as a trained one."""
    return torch.randn(c, d, generator=torch.Generator().manual_seed(seed)) / d**0.5


def maps(n: int, c: int, height: int, width: int, seed: int = 2) -> Tensor:
    """Smooth maps [N, C, H, W] with a few hills each, whatever their size."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, c, 8, 8, generator=generator)
    fine = torch.randn(n, c, height // 2 + 1, width // 2 + 1, generator=generator)
    size = (height, width)
    hills = functional.interpolate(coarse, size, mode="bicubic", align_corners=False)
    return hills + 0.1 * functional.interpolate(fine, size, mode="bilinear", align_corners=False)


def blobs(n: int, height: int, width: int, seed: int = 3) -> Tensor:
    """Masks [N, H, W] of smooth blobs about 8 pixels wide."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 1, height // 8, width // 8, generator=generator)
    fine = functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return fine[:, 0] > 0.3


def noise(n: int, height: int, width: int, density: float = 0.5, seed: int = 4) -> Tensor:
    """Masks [N, H, W] of independent pixels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, height, width, generator=generator) < density


def snakes(n: int, height: int, width: int) -> Tensor:
    """Masks [N, side, side], each one ``snake``."""
    return _repeated(snake(min(height, width)), n)


def spirals(n: int, height: int, width: int) -> Tensor:
    """Masks [N, side, side], each one ``spiral``."""
    return _repeated(spiral(min(height, width)), n)


def _repeated(mask: np.ndarray, n: int) -> Tensor:
    return torch.from_numpy(mask).expand(n, *mask.shape).contiguous()


def snake(side: int) -> np.ndarray:
    """One component as long as can be: full rows joined at alternating ends."""
    mask = np.zeros((side, side), bool)
    mask[::2] = True
    mask[1::4, -1] = True
    mask[3::4, 0] = True
    return mask


def spiral(side: int) -> np.ndarray:
    """One component a pixel wide that winds inwards, a pixel of gap between its turns."""
    mask = np.zeros((side, side), bool)
    y, x, dy, dx = 0, 0, 0, 1
    legs = [side - 1] * 3 + [leg for leg in range(side - 3, 0, -2) for _ in (0, 1)]
    for leg in legs:
        next_y, next_x = y + leg * dy, x + leg * dx
        mask[min(y, next_y) : max(y, next_y) + 1, min(x, next_x) : max(x, next_x) + 1] = True
        y, x, dy, dx = next_y, next_x, dx, -dy
    return mask


def winding(shape: str, n: int, c: int, side: int) -> Tensor:
    """Maps [N, C, side, side] whose foreground is a ``snake`` or ``spiral``, peak at its end."""
    mask = snake(side) if shape == "snake" else spiral(side)
    ramp = np.arange(side * side, dtype=np.float32).reshape(side, side) / side**2
    graded = torch.from_numpy(np.where(mask, 10, 0).astype(np.float32) + ramp)
    return graded.expand(n, c, side, side).contiguous()


def sides(value: object) -> str:
    """``8x14x32x32`` for a shape, for the names of cases."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
