"""Iterative erasure of the component that holds the peak (Sec. 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from cxr_fast import checks, reference
from cxr_fast.ops import library
from cxr_fast.reference import MinedAttention


def mine_attention(
    cam: Tensor,
    steps: int = 3,
    threshold: float = 0.5,
    connectivity: int = 8,
    erased_at: Tensor | None = None,
    first_step: int = 1,
) -> MinedAttention:
    """For every (image, class) map, erase the peak's connected component, ``steps`` times.

    At each step, over the pixels still alive: foreground is ``cam >= lo + threshold * (hi - lo)``
    (float32, each operation rounded), and the component that contains the first maximum in
    row-major order is erased. A constant map erases nothing; one with a NaN or an infinity, or
    whose range overflows float32, erases nothing and has NaN extents.

    Args:
        cam: [N, C, H, W], any float dtype; decisions are made in float32.
        steps: how many steps this call runs, 1 to 255.
        threshold: fraction of the range, 0 < threshold < 1; 0.5 in the paper.
        connectivity: 4 or 8.
        erased_at: [N, C, H, W] uint8, what earlier steps erased (values below ``first_step``); the
            staged protocol, where every step's CAM comes from another network.
        first_step: the number of this call's first step.

    Returns:
        ``erased_at`` [N, C, H, W] uint8 (0 = never, t = at step t; earlier steps included) and
        ``extent`` [N, C, steps, 2] float32, (lo, hi) before each of this call's steps; concatenate
        the extents of staged calls along dim 2. No pixel alive: (0, 0). Not differentiable.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape, device or range, in a sentence.

    Source: Cai et al. 2018, Sec. 3.2; normalisation over alive pixels is this library's reading.
    """
    library.require_float("cam", cam)
    checks.require_maps("cam", cam.shape)
    checks.require_steps(steps, first_step)
    checks.require_threshold("threshold", threshold)
    checks.require_connectivity(connectivity)
    if erased_at is not None:
        library.require_tensor("erased_at", erased_at)
        checks.require_dtype("erased_at", erased_at.dtype, (torch.uint8,))
        checks.require_equal_shape("erased_at", erased_at.shape, "cam", cam.shape)
        library.require_same_device("erased_at", erased_at, "cam", cam)
    return MinedAttention(
        *torch.ops.cxr_fast.mine_attention(
            cam.detach().to(torch.float32), steps, threshold, connectivity, erased_at, first_step
        )
    )


def _fake(
    cam: Tensor,
    steps: int,
    threshold: float,
    connectivity: int,
    erased_at: Tensor | None,
    first_step: int,
) -> tuple[Tensor, Tensor]:
    n, c = cam.shape[:2]
    erased = torch.empty(cam.shape, dtype=torch.uint8, device=cam.device)
    return erased, cam.new_empty((n, c, steps, 2))


library.define(
    "mine_attention",
    "(Tensor cam, int steps, float threshold, int connectivity, Tensor? erased_at, int first_step)"
    " -> (Tensor, Tensor)",
    reference.mine_attention,
    _fake,
)
library.not_differentiable("mine_attention", inputs=6)
