"""The CAM and its gradients by torch's own products, in the layout that the features have."""

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


def matmul_cam_backward(grad: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """grad [N, C, H, W] of the CAM: dX in the layout of x, dW [C, D]; all of one dtype."""
    n, d, height, width = x.shape
    c = w.shape[0]
    if x.is_contiguous():
        flat = grad.reshape(n, c, -1)
        of_x = torch.matmul(w.t(), flat).view(n, d, height, width)
        return of_x, torch.matmul(flat, x.view(n, d, -1).transpose(1, 2)).sum(0)
    flat = grad.permute(0, 2, 3, 1).reshape(-1, c)
    of_x = (flat @ w).view(n, height, width, d).permute(0, 3, 1, 2)
    return of_x, flat.t() @ x.permute(0, 2, 3, 1).reshape(-1, d)


def einsum_cam(x: Tensor, w: Tensor) -> Tensor:
    """Eq. 7 as one writes it down."""
    return torch.einsum("ndhw,cd->nchw", x, w)


def einsum_cam_backward(grad: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of ``einsum_cam`` as one writes them down."""
    return torch.einsum("nchw,cd->ndhw", grad, w), torch.einsum("nchw,ndhw->cd", grad, x)


def literal_cam(x: Tensor, w: Tensor) -> Tensor:
    """A class at a time: weigh the channels, add them up, as code for CAMs usually does."""
    return torch.stack([(x.float() * row[:, None, None]).sum(1) for row in w], 1)
