"""From CAMs to logits: global average pooling, or log-sum-exp, of what is not erased."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cxr_fast import ops
from cxr_fast.models.card import Pooling


def logits_of(
    cam: Tensor,
    bias: Tensor | None,
    pooling: Pooling = "gap",
    sharpness: float = 4.0,
    erased_at: Tensor | None = None,
    steps: int = 1,
) -> Tensor:
    """Logits [N, C, T] of the steps 1..T from cam [N, C, H, W], pooled as ``Architecture`` describes.

    Step t sees what the steps before it left: pixels with ``erased_at`` (uint8 [N, C, H, W]; None:
    nothing is erased) 0 or at least t. ``gap`` divides by all pixels (Eq. 2), ``lse`` by those that are
    left; of a map that is erased whole the logit is the bias. Differentiable in cam and bias.
    """
    if erased_at is None:
        erased_at = torch.zeros_like(cam, dtype=torch.uint8)
    if pooling == "gap":
        logits = ops.masked_gap(cam, erased_at, steps)
    else:
        pooled = [_log_sum_exp(cam, erased_at, t, sharpness) for t in range(1, steps + 1)]
        logits = torch.stack(pooled, 2)
    return logits if bias is None else logits + bias.to(logits.dtype)[:, None]


def _log_sum_exp(cam: Tensor, erased_at: Tensor, step: int, sharpness: float) -> Tensor:
    """log(mean(exp(r * cam))) / r over what step ``step`` sees, [N, C]."""
    seen = ((erased_at == 0) | (erased_at >= step)).flatten(2)
    count = seen.sum(2)
    # A value that is finite keeps the gradient of a map without a seen pixel at 0 instead of NaN.
    values = (sharpness * cam).flatten(2).masked_fill(~seen, -math.inf)
    values = torch.where(count[..., None] > 0, values, 0.0)
    pooled = (values.logsumexp(2) - count.clamp(min=1).to(cam.dtype).log()) / sharpness
    return torch.where(count > 0, pooled, 0.0)
