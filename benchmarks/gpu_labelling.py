"""Other ways to label batches of masks on a GPU, called as well as we know how."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cxr_fast import reference
from cxr_fast.benchmarks.labelling import EIGHT
from cxr_fast.benchmarks.place import peer_module

# Masks [M, H, W] bool -> labels of that shape, 0 = background, 8-connected.
Labeller = Callable[[Tensor], Tensor]

# More pooling passes than this are not raced: every pass reads and writes all pixels.
MOST_PASSES = 4096


def batched_labellers(passes: int | None) -> dict[str, Labeller]:
    """Those that take a whole batch and are there.

    ``passes``: how many kornia needs to be exact on these masks; None leaves it out.
    """
    found: dict[str, Labeller] = {"torch, pointer jumping": reference.label_components}
    if ndimage := peer_module("cupyx.scipy.ndimage"):
        found["cupyx, all masks at once"] = partial(_cupyx_batch, peer_module("cupy"), ndimage)
    if passes and (kornia := peer_module("kornia.contrib")):
        default = " (its default, 100, is inexact)" if passes > 100 else ""
        found[f"kornia, {passes} passes{default}"] = partial(_kornia, kornia, passes)
    if peer_module("triton"):
        from cxr_fast.kernels.label_components import label_components

        # The rival of the CUDA kernel, and the best of its kind that we know.
        found["Triton, union-find"] = partial(label_components, connectivity=8)
    return found


def cupyx_each(masks: Tensor) -> list[Tensor] | None:
    """Labels of every mask by a call each; None where cupyx is not installed."""
    cupy, ndimage = peer_module("cupy"), peer_module("cupyx.scipy.ndimage")
    if not (cupy and ndimage):
        return None
    return [
        torch.from_dlpack(ndimage.label(mask, EIGHT)[0])
        for mask in cupy.from_dlpack(masks.view(torch.uint8))
    ]


def _cupyx_batch(cupy: ModuleType, ndimage: ModuleType, masks: Tensor) -> Tensor:
    """One call: in three dimensions, with neighbours in the middle plane only."""
    structure = np.zeros((3, 3, 3), bool)
    structure[1] = True
    labels, _ = ndimage.label(cupy.from_dlpack(masks.view(torch.uint8)), structure)
    return torch.from_dlpack(labels)


def _kornia(contrib: ModuleType, passes: int, masks: Tensor) -> Tensor:
    labels = contrib.connected_components(masks[:, None].float(), num_iterations=passes)
    return labels[:, 0].to(torch.int32)


def pooling_passes(masks: Tensor, most: int = MOST_PASSES) -> int | None:
    """How many 3x3 max-pooling passes carry a component's largest number all over it.

    None where more than ``most`` would be needed.
    """
    alive = masks[:, None].float()
    numbers = alive * torch.arange(1, masks[0].numel() + 1, device=masks.device).view(masks[:1].shape)
    for passes in range(most + 1):
        spread = functional.max_pool2d(numbers, 3, stride=1, padding=1) * alive
        if torch.equal(spread, numbers):
            return max(passes, 1)
        numbers = spread
    return None
