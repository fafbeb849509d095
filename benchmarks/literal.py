"""The paper as it is printed: an erased copy of the features for every class and every step.

Eq. 1, 2 and 7 and the erasure of Sec. 3.2, with torch and scikit-image; no heatmap and no boxes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cxr_fast.benchmarks.labelling import Labeller
from cxr_fast.benchmarks.products import matmul_cam


def literal(
    label: Labeller,
    features: Tensor,
    weight: Tensor,
    steps: int = 3,
    product: Callable[[Tensor, Tensor], Tensor] = matmul_cam,
) -> tuple[Tensor, Tensor]:
    """features [N, D, H, W], weight [C, D]: erased_at [N, C, H, W] uint8, logits [N, C, T].

    ``product`` computes Eq. 7: a matrix product (the fastest that torch has), or ``einsum_cam``.
    ``label`` numbers the components of one mask, on the CPU wherever the features are.
    """
    features = features.to(torch.float32)
    n, _, height, width = features.shape
    c, device = weight.shape[0], features.device
    erased_at = torch.zeros(n, c, height, width, dtype=torch.uint8, device=device)
    logits = torch.zeros(n, c, steps, device=device)
    for t in range(1, steps + 1):
        for k in range(c):
            alive = erased_at[:, k] == 0
            erased = features * alive[:, None].to(torch.float32)  # Eq. 1
            logits[:, k, t - 1] = erased.mean((-2, -1)) @ weight[k]  # Eq. 2: GAP, then linear
            cam = product(erased, weight[k : k + 1])[:, 0]  # Eq. 7
            pairs = zip(cam.cpu().numpy(), alive.cpu().numpy(), strict=True)
            components = np.stack([peak_component(label, *pair) for pair in pairs])
            erased_at[:, k][torch.from_numpy(components).to(device)] = t
    return erased_at, logits


def peak_component(
    label: Labeller, cam: np.ndarray, alive: np.ndarray, threshold: float = 0.5
) -> np.ndarray:
    """cam, alive [H, W]: the foreground's component that holds the peak of what is alive."""
    lo, hi = cam[alive].min(), cam[alive].max()
    if hi == lo:
        return np.zeros_like(alive)
    normalized = (cam - lo) / (hi - lo)
    labels = label(alive & (normalized >= threshold))
    peak = np.where(alive, cam, -np.inf).argmax()
    return labels == labels.flat[peak]
