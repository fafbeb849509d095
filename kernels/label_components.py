"""``label_components`` by a union-find forest over pixels, in global memory.

A pixel's parent is a pixel of its component with no greater index, so the root of a tree is its least
pixel: the component's first in row-major order. Counting roots in order numbers the components.

Five launches and a cumulative sum, whatever the image: runs (within a block of pixels), joins between
rows, a count of roots a block, numbers for the roots, numbers for all.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import on_device

BLOCK = 512


@triton.jit
def _later(a, b):
    return tl.maximum(a, b)


@triton.jit
def _place(blocks, BLOCK: tl.constexpr):
    """The image of this program, its block, and the block's pixels."""
    program = tl.program_id(0)
    block = program % blocks
    return (program // blocks).to(tl.int64), block, block * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _runs_kernel(mask_ptr, parent_ptr, area, width, blocks, BLOCK: tl.constexpr):
    """Every foreground pixel begins as a child of the first pixel of its run within the block."""
    image, block, i = _place(blocks, BLOCK)
    exists = i < area
    at = image * area + i
    on = tl.load(mask_ptr + at, exists, 0) != 0
    x = i % width
    left = tl.load(mask_ptr + at - 1, exists & (x > 0), 0) != 0
    begins = on & ~(left & (i > block * BLOCK))
    start = tl.associative_scan(tl.where(begins, i, 0), 0, _later)
    tl.store(parent_ptr + at, tl.where(on, start, -1), exists)


@triton.jit
def _climb(forest, a, busy):
    """The parent's parent of every ``busy`` lane's a, which becomes its parent: paths halve."""
    up = tl.load(forest + a, busy, 0, volatile=True)
    further = tl.load(forest + up, busy, 0, volatile=True)
    # By an atomic, so that parents only ever fall.
    tl.atomic_min(forest + a, further, busy & (further != up), sem="relaxed")
    return further


@triton.jit
def _join(forest, a, b, busy):
    """Puts a and b into one tree, for every lane that is ``busy``.

    A round either ends a lane's work or lowers its a or b (parents lie below their children), so the
    loop ends. Parents read may be out of date; what counts is what the atomic found.
    """
    while tl.max(busy.to(tl.int32)) > 0:
        up_a, up_b = _climb(forest, a, busy), _climb(forest, b, busy)
        at_roots = (up_a == a) & (up_b == b)
        busy = busy & ~(at_roots & (a == b))
        links = busy & at_roots
        high, low = tl.maximum(a, b), tl.minimum(a, b)
        found = tl.atomic_min(forest + high, low, links, sem="relaxed")
        # Where another lane was faster, the parent it left has to be joined too.
        busy = busy & ~(links & (found == high))
        a = tl.where(links, found, up_a)
        b = tl.where(links, low, up_b)


@triton.jit
def _joins_kernel(
    mask_ptr, parent_ptr, area, width, blocks, CONNECTIVITY: tl.constexpr, BLOCK: tl.constexpr
):
    """Joins every pixel to the run above that it touches, and to its run across blocks."""
    image, block, i = _place(blocks, BLOCK)
    exists = i < area
    mask, forest = mask_ptr + image * area, parent_ptr + image * area
    on = tl.load(mask + i, exists, 0) != 0
    x = i % width
    left = tl.load(mask + i - 1, on & (x > 0), 0) != 0
    has_above = on & (i >= width)
    above = tl.load(mask + i - width, has_above, 0) != 0
    above_left = tl.load(mask + i - width - 1, has_above & (x > 0), 0) != 0
    _join(forest, i, tl.maximum(i - 1, 0), left & (i == block * BLOCK))
    # Runs that touch in several places need one join: the pixel on the left made it already.
    beside = above & ~(left & above_left)
    target = i - width
    if CONNECTIVITY == 8:
        above_right = tl.load(mask + i - width + 1, has_above & (x < width - 1), 0) != 0
        corner = above_left & ~above & ~left
        target = tl.where(corner, target - 1, target)
        _join(forest, i, tl.maximum(i - width + 1, 0), above_right & ~above)
        beside = beside | corner
    _join(forest, i, tl.maximum(target, 0), beside)


@triton.jit
def _count_kernel(parent_ptr, count_ptr, area, blocks, BLOCK: tl.constexpr):
    image, block, i = _place(blocks, BLOCK)
    parent = tl.load(parent_ptr + image * area + i, i < area, -1)
    tl.store(count_ptr + image * blocks + block, tl.sum((parent == i).to(tl.int32)))


@triton.jit
def _number_kernel(parent_ptr, upto_ptr, label_ptr, area, blocks, BLOCK: tl.constexpr):
    """Labels of roots, and 0 for the background. ``upto`` counts roots, the block's own included."""
    image, block, i = _place(blocks, BLOCK)
    parent = tl.load(parent_ptr + image * area + i, i < area, -1)
    is_root = (parent == i).to(tl.int32)
    before = tl.load(upto_ptr + image * blocks + block) - tl.sum(is_root)
    label = tl.where(is_root != 0, before + tl.cumsum(is_root, 0), 0)
    tl.store(label_ptr + image * area + i, label, (i < area) & ((parent == i) | (parent < 0)))


@triton.jit
def _label_kernel(parent_ptr, label_ptr, area, blocks, BLOCK: tl.constexpr):
    """Every pixel takes the label of its root, which no program writes any more."""
    image, _, i = _place(blocks, BLOCK)
    forest = parent_ptr + image * area
    root = tl.load(forest + i, i < area, -1)
    child = (root >= 0) & (root != i)
    climbs = child
    # Parents lie below their children: every round lowers a lane or ends it. Each leaves what it
    # found, and so all lanes double each other's steps.
    while tl.max(climbs.to(tl.int32)) > 0:
        up = tl.load(forest + root, climbs, 0, volatile=True)
        climbs = climbs & (up != root)
        root = tl.where(climbs, up, root)
        tl.store(forest + i, root, climbs)
    label = tl.load(label_ptr + image * area + root, child, 0)
    tl.store(label_ptr + image * area + i, label, child)


def label_components(mask: Tensor, connectivity: int) -> Tensor:
    """Number the connected components of every mask [..., H, W] (bool, any strides).

    Returns:
        int32 of the same shape: 0 = background, 1..n in row-major order of each component's first
        pixel, each image on its own. H * W is below 2^31. Takes 4 bytes of workspace a pixel.
    """
    height, width = mask.shape[-2:]
    area = height * width
    mask = mask.contiguous()
    labels = torch.empty(mask.shape, dtype=torch.int32, device=mask.device)
    if mask.numel() == 0:
        return labels
    blocks = triton.cdiv(area, BLOCK)
    images = mask.numel() // area
    parent = torch.empty_like(labels)
    count = labels.new_empty((images, blocks))
    grid = (images * blocks,)
    with on_device(mask):
        _runs_kernel[grid](mask, parent, area, width, blocks, BLOCK=BLOCK)
        _joins_kernel[grid](mask, parent, area, width, blocks, CONNECTIVITY=connectivity, BLOCK=BLOCK)
        _count_kernel[grid](parent, count, area, blocks, BLOCK=BLOCK)
        upto = count.cumsum(1, dtype=torch.int32)
        _number_kernel[grid](parent, upto, labels, area, blocks, BLOCK=BLOCK)
        _label_kernel[grid](parent, labels, area, blocks, BLOCK=BLOCK)
    return labels
