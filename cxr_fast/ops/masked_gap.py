"""Logits of every step from one CAM: masked global average pooling (Eq. 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cxr_fast import checks, reference
from cxr_fast.ops import library


def masked_gap(cam: Tensor, erased_at: Tensor, steps: int = 3) -> Tensor:
    """``z_t = sum over pixels of M_{t-1} * cam / (H * W)``, for t = 1..steps, without bias.

    M_{t-1} is what the first t - 1 steps left; erased pixels count as 0 in the mean.

    Args:
        cam: [N, C, H, W], any float dtype.
        erased_at: [N, C, H, W] uint8 of ``mine_attention``, on the same device.
        steps: T, 1 to 255.

    Returns:
        [N, C, T] float32 (float64 for a float64 cam), to 1e-5 of the mean magnitude. Differentiable in
        cam:
        dcam = sum over t of dz_t * M_{t-1} / (H * W).

    Raises:
        TypeError, ValueError: a wrong type, dtype, shape, device or range, in a sentence.

    Source: Cai et al. 2018, Eq. 2 with Eq. 7.
    """
    library.require_float("cam", cam)
    checks.require_maps("cam", cam.shape)
    library.require_tensor("erased_at", erased_at)
    checks.require_dtype("erased_at", erased_at.dtype, (torch.uint8,))
    checks.require_equal_shape("erased_at", erased_at.shape, "cam", cam.shape)
    library.require_same_device("erased_at", erased_at, "cam", cam)
    checks.require_steps(steps)
    if cam.dtype != torch.float64:
        cam = cam.to(torch.float32)
    result: Tensor = torch.ops.cxr_fast.masked_gap(cam, erased_at, steps)
    return result


def _fake(cam: Tensor, erased_at: Tensor, steps: int) -> Tensor:
    return cam.new_empty((cam.shape[0], cam.shape[1], steps))


def _backward_reference(grad: Tensor, erased_at: Tensor) -> Tensor:
    total = torch.zeros(erased_at.shape, dtype=grad.dtype, device=grad.device)
    for t in range(1, grad.shape[-1] + 1):
        alive = (erased_at == 0) | (erased_at >= t)
        total += grad[..., t - 1, None, None].where(alive, 0.0)
    return total / (erased_at.shape[-2] * erased_at.shape[-1])


def _backward_fake(grad: Tensor, erased_at: Tensor) -> Tensor:
    return torch.empty(erased_at.shape, dtype=grad.dtype, device=grad.device)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (erased_at,) = ctx.saved_tensors
    return torch.ops.cxr_fast.masked_gap_backward(grad, erased_at), None, None


def _setup_second(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.steps = inputs[0].shape[-1]


def _second(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (erased_at,) = ctx.saved_tensors
    return torch.ops.cxr_fast.masked_gap(grad, erased_at, ctx.steps), None


library.define(
    "masked_gap",
    "(Tensor cam, Tensor erased_at, int steps) -> Tensor",
    reference.masked_gap,
    _fake,
)
library.define(
    "masked_gap_backward",
    "(Tensor grad, Tensor erased_at) -> Tensor",
    _backward_reference,
    _backward_fake,
)
library.differentiate("masked_gap", _backward, _setup_context)
library.differentiate("masked_gap_backward", _second, _setup_second)
