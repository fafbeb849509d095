"""Batched connected components by union-find in global memory, as segmentation models ship it.

Every pixel starts as its own parent, pixels join their four earlier neighbours by an atomic minimum on
the larger root, and a last pass replaces every pixel by its root (Komura 2015; Playne and Hawick
2018). It knows nothing of the size of the masks. Runs where triton runs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256


@triton.jit
def _root(parent, node, active):
    above = tl.load(parent + node, mask=active, other=0, volatile=True)
    climbing = active & (above != node)
    while tl.max(climbing.to(tl.int32), 0) > 0:
        node = tl.where(climbing, above, node)
        above = tl.load(parent + node, mask=climbing, other=0, volatile=True)
        climbing = climbing & (above != node)
    return node


@triton.jit
def _join(parent, a, b, active):
    while tl.max(active.to(tl.int32), 0) > 0:
        a = _root(parent, a, active)
        b = _root(parent, b, active)
        active = active & (a != b)
        larger = tl.maximum(a, b)
        smaller = tl.minimum(a, b)
        before = tl.atomic_min(parent + larger, smaller, mask=active)
        # Somebody else was faster where it was no root any more: go on with what it points at.
        active = active & (before != larger)
        a = tl.where(active, before, a)
        b = tl.where(active, smaller, b)


@triton.jit
def _join_neighbours(mask, parent, pixels, height, width, BLOCK: tl.constexpr):
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    own = inside & (tl.load(mask + pixel, mask=inside, other=0) != 0)
    x = pixel % width
    y = (pixel // width) % height
    for k in tl.static_range(4):  # west, north-west, north, north-east
        dx = -1 if k < 2 else k - 2
        dy = 0 if k == 0 else -1
        there = own & (x + dx >= 0) & (x + dx < width) & (y + dy >= 0)
        other = pixel + dy * width + dx
        there = there & (tl.load(mask + other, mask=there, other=0) != 0)
        _join(parent, tl.where(there, pixel, 0), tl.where(there, other, 0), there)


@triton.jit
def _number(mask, parent, labels, pixels, BLOCK: tl.constexpr):
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    own = inside & (tl.load(mask + pixel, mask=inside, other=0) != 0)
    root = _root(parent, tl.where(own, pixel, 0), own)
    tl.store(labels + pixel, tl.where(own, root + 1, 0), mask=inside)


def union_find(masks: Tensor) -> Tensor:
    """masks [M, H, W] bool -> int32 labels, 1 + the batch's index of each component's first pixel."""
    count, height, width = masks.shape
    mask = masks.contiguous().view(torch.uint8)
    parent = torch.arange(masks.numel(), dtype=torch.int32, device=masks.device)
    labels = torch.empty(count, height, width, dtype=torch.int32, device=masks.device)
    grid = (triton.cdiv(masks.numel(), BLOCK),)
    _join_neighbours[grid](mask, parent, masks.numel(), height, width, BLOCK)
    _number[grid](mask, parent, labels, masks.numel(), BLOCK)
    return labels
