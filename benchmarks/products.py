"""The CAM by torch.matmul, in the layout that the features have."""

from __future__ import annotations

import torch
from torch import Tensor


def matmul_cam(x: Tensor, w: Tensor) -> Tensor:
    """features [N, D, H, W], weight [C, D]: [N, C, H, W] in the layout of x, without a copy."""
    n, d, height, width = x.shape
    if x.is_contiguous():
        return torch.matmul(w, x.view(n, d, -1)).view(n, -1, height, width)
    pixels = x.permute(0, 2, 3, 1).reshape(n, -1, d) @ w.t()
    return pixels.view(n, height, width, -1).permute(0, 3, 1, 2)
