"""All operators in one call: features and classifier in, logits, heatmaps and boxes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cxr_fast import checks, reference
from cxr_fast.ops import library
from cxr_fast.ops.aggregate_heatmap import aggregate_heatmap
from cxr_fast.ops.cam import cam as compute_cam
from cxr_fast.ops.heatmap_boxes import (
    DEFAULTS,
    SIZE_SCHEMA,
    empty_boxes,
    heatmap_boxes,
    image_size_of,
    size_arguments,
)
from cxr_fast.ops.masked_gap import masked_gap
from cxr_fast.ops.mine_attention import mine_attention
from cxr_fast.reference import HeatmapBoxes, MinedAttention, MiningResult


def attention_mining(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    steps: int = DEFAULTS.steps,
    threshold: float = DEFAULTS.cam_threshold,
    connectivity: int = DEFAULTS.connectivity,
    mode: str = DEFAULTS.mode,
    image_size: tuple[int, int] | Tensor = (1024, 1024),
    thresholds: Sequence[float] = DEFAULTS.thresholds,
    select: str = DEFAULTS.select,
    max_boxes: int = DEFAULTS.max_boxes,
    max_overlap: float = DEFAULTS.max_overlap,
    upsample: int = DEFAULTS.upsample,
) -> MiningResult:
    """Attention mining of a batch: ``cam``, ``mine_attention``, ``masked_gap``, heatmap, boxes.

    Args:
        features: [N, D, H, W], as for ``cam``.
        weight: [C, D] of the linear layer behind the pooling.
        bias: [C] of the same layer, added to the logits of every step.
        steps: T, as ``threshold`` and ``connectivity`` for ``mine_attention``.
        threshold: of the CAM, each step; ``thresholds`` cut the aggregated heatmap into boxes.
        connectivity: 4 or 8, for erasure and for boxes.
        mode: of ``aggregate_heatmap``.
        image_size: as the remaining arguments, for ``heatmap_boxes``.
        thresholds: see ``heatmap_boxes``.
        select: see ``heatmap_boxes``.
        max_boxes: see ``heatmap_boxes``.
        max_overlap: see ``heatmap_boxes``.
        upsample: see ``heatmap_boxes``.

    Returns:
        ``logits`` [N, C, T] and ``cam`` [N, C, H, W] (differentiable), ``mined``, ``heatmap``
        [N, C, H, W] and ``found`` (not differentiable).

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape, device or range, in a sentence.

    Source: Cai et al. 2018, Sec. 2.1 and 3.2.
    """
    return mine_cam(
        compute_cam(features, weight),
        bias,
        steps,
        threshold,
        connectivity,
        mode,
        image_size,
        thresholds,
        select,
        max_boxes,
        max_overlap,
        upsample,
    )


def mine_cam(
    cam: Tensor,
    bias: Tensor | None = None,
    steps: int = DEFAULTS.steps,
    threshold: float = DEFAULTS.cam_threshold,
    connectivity: int = DEFAULTS.connectivity,
    mode: str = DEFAULTS.mode,
    image_size: tuple[int, int] | Tensor = (1024, 1024),
    thresholds: Sequence[float] = DEFAULTS.thresholds,
    select: str = DEFAULTS.select,
    max_boxes: int = DEFAULTS.max_boxes,
    max_overlap: float = DEFAULTS.max_overlap,
    upsample: int = DEFAULTS.upsample,
) -> MiningResult:
    """``attention_mining`` for someone who has the CAM already, as a folded network gives it.

    Arguments, errors, results and source as of ``attention_mining``, with ``cam`` [N, C, H, W] (any
    float dtype) in place of features and weight.
    """
    library.require_float("cam", cam)
    checks.require_maps("cam", cam.shape)
    checks.require_steps(steps)
    checks.require_threshold("threshold", threshold)
    checks.require_choice("mode", mode, ("normalized", "raw"))
    checks.require_box_arguments(thresholds, select, max_boxes, max_overlap, upsample, connectivity)
    if bias is not None:
        library.require_float("bias", bias)
        checks.require_equal_shape("bias", bias.shape, "the classes of cam", (cam.shape[1],))
        library.require_same_device("bias", bias, "cam", cam)
    if cam.dtype == torch.float64:
        # For gradcheck: the same steps one by one, whose logits are float64.
        mined = mine_attention(cam, steps, threshold, connectivity)
        logits = masked_gap(cam, mined.erased_at, steps)
        if bias is not None:
            logits = logits + bias.to(torch.float64)[:, None]
        heatmap = aggregate_heatmap(cam, mined, mode)
        found = heatmap_boxes(
            heatmap,
            image_size,
            thresholds,
            select,
            max_boxes,
            max_overlap,
            upsample,
            connectivity,
        )
        return MiningResult(logits, cam, mined, heatmap, found)
    cam = cam.to(torch.float32)
    logits, erased_at, extent, heatmap, boxes, scores, counts = torch.ops.cxr_fast.mine_cam(
        cam,
        None if bias is None else bias.to(torch.float32),
        steps,
        threshold,
        connectivity,
        mode,
        *size_arguments(image_size, cam),
        [float(t) for t in thresholds],
        select,
        max_boxes,
        float(max_overlap),
        upsample,
    )
    mined = MinedAttention(erased_at, extent)
    return MiningResult(logits, cam, mined, heatmap, HeatmapBoxes(boxes, scores, counts))


def _reference(
    cam: Tensor,
    bias: Tensor | None,
    steps: int,
    threshold: float,
    connectivity: int,
    mode: str,
    image_sizes: Tensor | None,
    image_height: int,
    image_width: int,
    thresholds: Sequence[float],
    select: str,
    max_boxes: int,
    max_overlap: float,
    upsample: int,
) -> tuple[Tensor, ...]:
    result = reference.mine_cam(
        cam,
        bias,
        steps,
        threshold,
        connectivity,
        mode,
        image_size=image_size_of(image_sizes, image_height, image_width),
        thresholds=thresholds,
        select=select,
        max_boxes=max_boxes,
        max_overlap=max_overlap,
        upsample=upsample,
    )
    return result.logits, *result.mined, result.heatmap, *result.found


def _fake(
    cam: Tensor,
    bias: Tensor | None,
    steps: int,
    threshold: float,
    connectivity: int,
    mode: str,
    image_sizes: Tensor | None,
    image_height: int,
    image_width: int,
    thresholds: Sequence[float],
    select: str,
    max_boxes: int,
    max_overlap: float,
    upsample: int,
) -> tuple[Tensor, ...]:
    n, c = cam.shape[:2]
    erased_at = torch.empty(cam.shape, dtype=torch.uint8, device=cam.device)
    extent, heatmap = cam.new_empty((n, c, steps, 2)), cam.new_empty(cam.shape)
    return cam.new_empty((n, c, steps)), erased_at, extent, heatmap, *empty_boxes(cam, max_boxes)


def _setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
    _, erased_at, *_ = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(erased_at)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    (erased_at,) = ctx.saved_tensors
    need_cam, need_bias = ctx.needs_input_grad[:2]
    grad_cam = torch.ops.cxr_fast.masked_gap_backward(grad, erased_at) if need_cam else None
    grad_bias = grad.sum((0, 2)) if need_bias else None
    return grad_cam, grad_bias, *(None,) * 12


library.define(
    "mine_cam",
    f"(Tensor cam, Tensor? bias, int steps, float threshold, int connectivity, str mode,"
    f" {SIZE_SCHEMA}, float[] thresholds, str select, int max_boxes, float max_overlap,"
    " int upsample) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _reference,
    _fake,
)
library.differentiate("mine_cam", _backward, _setup_context)
