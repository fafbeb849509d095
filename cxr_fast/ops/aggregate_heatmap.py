"""The aggregated heatmap of all steps (Eq. 8)."""

from __future__ import annotations

import torch
from torch import Tensor

from cxr_fast import checks, reference
from cxr_fast.ops import library
from cxr_fast.reference import MinedAttention


def aggregate_heatmap(cam: Tensor, mined: MinedAttention, mode: str = "normalized") -> Tensor:
    """The mean over steps of each step's map, erased regions filled in from the step that took them.

    ``heatmap(p) = 1/T * sum over t of v_min(t, s(p))(p)``, where s is the step that erased p.

    Args:
        cam: [N, C, H, W], or [T, N, C, H, W] with one map a step (staged); any float dtype.
        mined: of ``mine_attention``, with T extents.
        mode: ``"normalized"``: v_t = (cam - lo_t) / (hi_t - lo_t), so the heatmap lies in [0, 1] and
            peaks at 1 (0 everywhere for a constant map). ``"raw"``: v_t = cam, the literal Eq. 8,
            which equals the CAM itself when all steps share one.

    Returns:
        [N, C, H, W] float32. NaN where the map's extent is NaN. Not differentiable.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape, device or range, in a sentence.

    Source: Cai et al. 2018, Eq. 8; normalising each step is this library's reading.
    """
    library.require_float("cam", cam)
    library.require_tensor("mined.erased_at", mined.erased_at)
    library.require_tensor("mined.extent", mined.extent)
    checks.require_maps("mined.erased_at", mined.erased_at.shape)
    checks.require_dtype("mined.erased_at", mined.erased_at.dtype, (torch.uint8,))
    checks.require_dtype("mined.extent", mined.extent.dtype, (torch.float32,))
    checks.require_dims("mined.extent", mined.extent.shape, "[N, C, T, 2]", 4)
    steps = mined.extent.shape[2]
    checks.require_steps(steps)
    expected = tuple(mined.erased_at.shape)
    checks.require_equal_shape(
        "mined.extent", mined.extent.shape, "mined.erased_at", (*expected[:2], steps, 2)
    )
    if cam.dim() == 5:
        expected = (steps, *expected)
    checks.require_equal_shape("cam", cam.shape, "mined", expected)
    library.require_same_device("mined.erased_at", mined.erased_at, "cam", cam)
    library.require_same_device("mined.extent", mined.extent, "cam", cam)
    checks.require_choice("mode", mode, ("normalized", "raw"))
    result: Tensor = torch.ops.cxr_fast.aggregate_heatmap(
        cam.detach().to(torch.float32), mined.erased_at, mined.extent, mode
    )
    return result


def _reference(cam: Tensor, erased_at: Tensor, extent: Tensor, mode: str) -> Tensor:
    return reference.aggregate_heatmap(cam, MinedAttention(erased_at, extent), mode)


def _fake(cam: Tensor, erased_at: Tensor, extent: Tensor, mode: str) -> Tensor:
    return cam.new_empty(erased_at.shape)


library.define(
    "aggregate_heatmap",
    "(Tensor cam, Tensor erased_at, Tensor extent, str mode) -> Tensor",
    _reference,
    _fake,
)
library.not_differentiable("aggregate_heatmap", inputs=4)
