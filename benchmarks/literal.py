"""The paper as it is printed: an erased copy of the features for every class and every step.

Eq. 1, 2 and 7 and the erasure of Sec. 3.2, with torch and scikit-image; no heatmap and no boxes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from products import matmul_cam
from skimage import measure
from torch import Tensor


def einsum_cam(x: Tensor, w: Tensor) -> Tensor:
    """Eq. 7 as one writes it down."""
    return torch.einsum("ndhw,cd->nchw", x, w)


def literal(
    features: Tensor,
    weight: Tensor,
    steps: int = 3,
    product: Callable[[Tensor, Tensor], Tensor] = matmul_cam,
) -> tuple[Tensor, Tensor]:
    """features [N, D, H, W], weight [C, D]: erased_at [N, C, H, W] uint8, logits [N, C, T].

    ``product`` computes Eq. 7: a matrix product (the fastest that torch has), or ``einsum_cam``.
    """
    features = features.to(torch.float32)
    n, _, height, width = features.shape
    c = weight.shape[0]
    erased_at = torch.zeros(n, c, height, width, dtype=torch.uint8)
    logits = torch.zeros(n, c, steps)
    for t in range(1, steps + 1):
        for k in range(c):
            alive = erased_at[:, k] == 0
            erased = features * alive[:, None].to(torch.float32)  # Eq. 1
            logits[:, k, t - 1] = erased.mean((-2, -1)) @ weight[k]  # Eq. 2: GAP, then linear
            cam = product(erased, weight[k : k + 1])[:, 0]  # Eq. 7
            for i in range(n):
                component = _peak_component(cam[i].numpy(), alive[i].numpy())
                erased_at[i, k][torch.from_numpy(component)] = t
    return erased_at, logits


def _peak_component(cam: np.ndarray, alive: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    lo, hi = cam[alive].min(), cam[alive].max()
    if hi == lo:
        return np.zeros_like(alive)
    normalized = (cam - lo) / (hi - lo)
    labels = measure.label(alive & (normalized >= threshold), connectivity=2)
    peak = np.where(alive, cam, -np.inf).argmax()
    return labels == labels.flat[peak]
