"""Class activation maps before erasure: one skinny product (Eq. 7 with M_0 = 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cxr_fast import checks, reference
from cxr_fast.ops import library


def cam(features: Tensor, weight: Tensor) -> Tensor:
    """``cam[n,c,h,w] = sum over d of weight[c,d] * features[n,d,h,w]``.

    The erasure masks of attention mining multiply all channels alike, so they commute with this
    sum: one product serves every step, and the class-wise copies of Eq. 1 are never made.

    Args:
        features: [N, D, H, W]; float16, bfloat16, float32 or float64; NCHW or channels_last, slices
            of either without a copy.
        weight: [C, D], any of these dtypes, on the same device.

    Returns:
        [N, C, H, W] float32, summed in float32 (float64 if either input is). Differentiable in
        both: dX = W^T . dcam and dW = dcam . X^T, each read or written once.

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape or device, in a sentence.

    Source: Cai et al. 2018, Eq. 7.
    """
    library.require_float("features", features)
    library.require_float("weight", weight)
    checks.require_cam_arguments(features.shape, weight.shape)
    library.require_same_device("weight", weight, "features", features)
    if torch.float64 in (features.dtype, weight.dtype):
        features, weight = features.to(torch.float64), weight.to(torch.float64)
    else:
        weight = weight.to(torch.float32)
    result: Tensor = torch.ops.cxr_fast.cam(features, weight)
    return result


def _fake(features: Tensor, weight: Tensor) -> Tensor:
    n, _, h, w = features.shape
    return features.new_empty((n, weight.shape[0], h, w), dtype=weight.dtype)


def backward_reference(
    grad: Tensor, features: Tensor, weight: Tensor, need_features: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    """``cxr_fast::cam_backward`` in plain PyTorch: dX and dW; what is not needed has shape (0,)."""
    grad_features, grad_weight = _backward_fake(grad, features, weight, need_features, need_weight)
    with torch.autocast(features.device.type, enabled=False):
        if need_features:
            grad_features.copy_(torch.einsum("nchw,cd->ndhw", grad, weight))
        if need_weight:
            grad_weight.copy_(torch.einsum("nchw,ndhw->cd", grad, features.to(weight.dtype)))
    return grad_features, grad_weight


def _backward_fake(
    grad: Tensor, features: Tensor, weight: Tensor, need_features: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    layout = torch.contiguous_format if _is_planar(features) else torch.channels_last
    grad_features = features.new_empty(0)
    if need_features:
        grad_features = torch.empty(
            features.shape, dtype=features.dtype, device=features.device, memory_format=layout
        )
    return grad_features, weight.new_empty(weight.shape if need_weight else (0,))


def _is_planar(features: Tensor) -> bool:
    """Whether the kernel reads the features as planes of pixels (or copies them into such)."""
    _, channels, height, width = features.shape
    _, of_channel, of_row, of_pixel = features.stride()
    if features.numel() == 0:
        return True
    pixel = of_pixel if width > 1 else of_row if height > 1 else 1
    channel = of_channel if channels > 1 else 1
    rows_follow = height <= 1 or width <= 1 or of_row == width * of_pixel
    in_place = rows_follow and pixel > 0 and channel > 0 and 1 in (pixel, channel)
    return pixel == 1 or not in_place


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    features, weight = ctx.saved_tensors
    need_features, need_weight = ctx.needs_input_grad
    grad_features, grad_weight = torch.ops.cxr_fast.cam_backward(
        grad, features, weight, need_features, need_weight
    )
    return grad_features if need_features else None, grad_weight if need_weight else None


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.needs = inputs[3:]


def _second(
    ctx: Any, of_features: Tensor, of_weight: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
    # dX = W^T . g and dW = g . X^T are bilinear, so their gradients are the same three products.
    grad, features, weight = ctx.saved_tensors
    needs_features, needs_weight = ctx.needs
    product, backward = torch.ops.cxr_fast.cam, torch.ops.cxr_fast.cam_backward
    to_grad, to_features, to_weight = torch.zeros_like(grad), None, None
    if needs_features:
        to_grad = to_grad + product(of_features, weight)
        _, to_weight = backward(grad, of_features, weight, False, True)
    if needs_weight:
        to_grad = to_grad + product(features, of_weight)
        to_features, _ = backward(grad, features, of_weight, True, False)
    return to_grad, to_features, to_weight, None, None


library.define("cam", "(Tensor features, Tensor weight) -> Tensor", reference.cam, _fake)
library.define(
    "cam_backward",
    "(Tensor grad, Tensor features, Tensor weight, bool need_features, bool need_weight)"
    " -> (Tensor, Tensor)",
    backward_reference,
    _backward_fake,
)
library.differentiate("cam", _backward, _setup_context)
library.differentiate("cam_backward", _second, _setup_second)
