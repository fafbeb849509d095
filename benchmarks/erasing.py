"""Attention mining of CAMs around another library's labelling, as peers: numpy, or torch on a GPU.

Erased pixels become minus infinity in a working copy, so that one comparison gives the alive
foreground. The least value need not be searched again: what a step erases lies above its cut.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from cxr_fast.benchmarks import gpu_labelling
from cxr_fast.benchmarks.labelling import Labeller, label_batch

# foreground [H, W] bool and the peak's flat index in, the mask of its component out.
Component = Callable[[np.ndarray, int], np.ndarray]


def labelled(label: Labeller) -> Component:
    """The peak's component by labelling all of them."""

    def component(foreground: np.ndarray, peak: int) -> np.ndarray:
        labels = label(foreground)
        return labels == labels.flat[peak]

    return component


def flooded(cv2: ModuleType) -> Component:
    """The peak's component by cv2.floodFill from the peak."""

    def component(foreground: np.ndarray, peak: int) -> np.ndarray:
        fill = foreground.view(np.uint8)
        y, x = divmod(peak, fill.shape[1])
        cv2.floodFill(fill, None, (x, y), 2, flags=8)
        return fill == 2

    return component


def mine_each(component: Component, cam: np.ndarray, steps: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """cam [M, H, W]: erased_at [M, H, W] uint8 and extent [M, T, 2], a map at a time."""
    erased_at = np.zeros(cam.shape, np.uint8)
    extent = np.empty((len(cam), steps, 2), np.float32)
    half, nothing = np.float32(0.5), np.float32(-np.inf)
    for h, erased, limits in zip(cam, erased_at, extent, strict=True):
        work = h.copy()
        lo = h.min()
        for t in range(steps):
            peak = int(work.argmax())
            hi = work.flat[peak]
            limits[t] = lo, hi
            if hi > lo:
                chosen = component(work >= lo + half * (hi - lo), peak)
                work[chosen] = nothing
                erased[chosen] = t + 1
    return erased_at, extent


def mine_batch(label: Labeller, cam: np.ndarray, steps: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """As ``mine_each``, with every numpy call and one labelling a step on all maps at once."""
    erased_at = np.zeros(cam.shape, np.uint8)
    extent = np.empty((len(cam), steps, 2), np.float32)
    work, every = cam.copy(), np.arange(len(cam))
    lo = cam.min((1, 2))
    for t in range(steps):
        peak = work.reshape(len(work), -1).argmax(1)
        y, x = np.divmod(peak, cam.shape[2])
        hi = work[every, y, x]
        extent[:, t] = np.stack((lo, hi), 1)
        cut = np.where(hi > lo, lo + np.float32(0.5) * (hi - lo), np.inf)
        labels = label_batch(label, work >= cut[:, None, None])
        # A constant map has no foreground, and its peak's label is 0: match nothing.
        wanted = labels[every, y, x].astype(np.int64)
        wanted[wanted == 0] = -1
        chosen = labels == wanted[:, None, None]
        work[chosen] = -np.inf
        erased_at[chosen] = t + 1
    return erased_at, extent


def mine_on_gpu(label: gpu_labelling.Labeller, cam: Tensor, steps: int = 3) -> tuple[Tensor, Tensor]:
    """cam [N, C, H, W]: erased_at alike and extent [N, C, T, 2]; ``mine_batch`` with torch."""
    n, c, height, width = cam.shape
    work = cam.flatten(2).flatten(0, 1).clone()
    erased_at = torch.zeros(work.shape, dtype=torch.uint8, device=cam.device)
    lo, extent = work.amin(1, keepdim=True), []
    for t in range(1, steps + 1):
        peak = work.argmax(1, keepdim=True)
        hi = work.gather(1, peak)
        extent.append(torch.cat((lo, hi), 1))
        cut = torch.where(hi > lo, lo + 0.5 * (hi - lo), torch.inf)
        labels = label((work >= cut).view(-1, height, width)).flatten(1)
        wanted = labels.gather(1, peak)
        chosen = (labels == wanted) & (wanted > 0)
        work.masked_fill_(chosen, -torch.inf)
        erased_at.masked_fill_(chosen, t)
    return erased_at.view_as(cam), torch.stack(extent, 1).view(n, c, steps, 2)


def mine_by_cupyx(cam: Tensor, steps: int = 3) -> tuple[Tensor, Tensor]:
    """The same, with a call of cupyx for every map and step."""

    def each(masks: Tensor) -> Tensor:
        return torch.stack(gpu_labelling.cupyx_each(masks))

    return mine_on_gpu(each, cam, steps)
