"""Connected components of batches of masks."""

from __future__ import annotations

import torch
from torch import Tensor

from cxr_fast import checks, reference
from cxr_fast.ops import library


def label_components(mask: Tensor, connectivity: int = 8) -> Tensor:
    """Number the connected components of every mask.

    Args:
        mask: [..., H, W] bool; every leading axis is a batch.
        connectivity: 4 (sides) or 8 (sides and corners).

    Returns:
        [..., H, W] int32: 0 = background, 1..n in row-major order of each component's first
        pixel, each image on its own (as ``scipy.ndimage.label`` numbers them). Not differentiable.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape or connectivity, in a sentence.

    Source: labels by union-find (Rosenfeld and Pfaltz 1966) over runs of pixels; on a GPU over pixels.
    """
    library.require_tensor("mask", mask)
    checks.require_dtype("mask", mask.dtype, (torch.bool,))
    if mask.dim() < 2:
        raise ValueError(
            f"mask must have the dimensions [..., H, W], but has shape {tuple(mask.shape)}"
        )
    checks.require_sides("mask", mask.shape)
    checks.require_connectivity(connectivity)
    result: Tensor = torch.ops.cxr_fast.label_components(mask, connectivity)
    return result


def _fake(mask: Tensor, connectivity: int) -> Tensor:
    return torch.empty(mask.shape, dtype=torch.int32, device=mask.device)


library.define(
    "label_components",
    "(Tensor mask, int connectivity) -> Tensor",
    reference.label_components,
    _fake,
)
library.not_differentiable("label_components", inputs=2)
