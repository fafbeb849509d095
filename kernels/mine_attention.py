"""``mine_attention`` for maps of up to 64 x 64: one program a map, all steps in one launch.

A row of the map is a word, a pixel a bit. The flood fill fills whole runs of a row at once (upwards
by the carry of an addition, downwards by doubling shifts), hands the filled bits to the rows above
and below, and stops when a round adds nothing. The map and what is erased of it stay in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import on_device

LARGEST_SIDE = 64


@triton.jit
def _fill_runs(seed, foreground, SHIFTS: tl.constexpr):
    """Every run of ``foreground`` bits that holds a ``seed`` bit, whole; seeds are foreground."""
    # Adding a seed to its run carries through to the run's end: what the sum cleared is reached.
    seed |= foreground ^ (foreground & (foreground + seed))
    passable = foreground
    for doubling in tl.static_range(SHIFTS):
        seed |= passable & (seed >> (1 << doubling))
        passable &= passable >> (1 << doubling)
    return seed


@triton.jit
def _component(seed, foreground, ROWS: tl.constexpr, SHIFTS: tl.constexpr, CONNECTIVITY: tl.constexpr):
    """The connected component of ``foreground`` [ROWS] that holds the one ``seed`` bit."""
    row = tl.arange(0, ROWS)
    above, below = tl.maximum(row - 1, 0), tl.minimum(row + 1, ROWS - 1)
    reached = _fill_runs(seed & foreground, foreground, SHIFTS)
    # Every round but the last adds a bit, so there is a last one.
    grows = tl.max((reached != 0).to(tl.int32))
    while grows > 0:
        beside = tl.gather(reached, above, 0) | tl.gather(reached, below, 0)
        if CONNECTIVITY == 8:
            beside |= (beside << 1) | (beside >> 1)
        wider = _fill_runs(reached | (beside & foreground), foreground, SHIFTS)
        grows = tl.max((wider != reached).to(tl.int32))
        reached = wider
    return reached


@triton.jit
def _mine_kernel(
    cam_ptr, before_ptr, erased_ptr, extent_ptr, height, width, threshold, first_step,
    STEPS: tl.constexpr, CONNECTIVITY: tl.constexpr, GIVEN: tl.constexpr, ROWS: tl.constexpr,
    BITS: tl.constexpr, WORD: tl.constexpr, SHIFTS: tl.constexpr,
):  # fmt: skip
    """One map [height, width], in a tile [ROWS, BITS]."""
    program = tl.program_id(0).to(tl.int64)
    y, x = tl.arange(0, ROWS)[:, None], tl.arange(0, BITS)[None, :]
    row = tl.arange(0, ROWS)
    exists = (y < height) & (x < width)
    pixel = y * width + x
    at = program * height * width + pixel
    h = tl.load(cam_ptr + at, exists, 0.0)
    if GIVEN:
        erased = tl.load(before_ptr + at, exists, 1).to(tl.int32)
    else:
        erased = tl.where(exists, 0, 1)
    infinity, nan = float("inf"), float("nan")
    broken = tl.max((exists & ~(tl.abs(h) < infinity)).to(tl.int32))
    span = tl.max(tl.where(exists, h, -infinity)) - tl.min(tl.where(exists, h, infinity))
    minable = (broken == 0) & (span < infinity)
    bit = tl.full((1, BITS), 1, WORD) << x.to(WORD)
    for step in range(STEPS):
        alive = erased == 0
        lo = tl.min(tl.where(alive, h, infinity))
        hi = tl.max(tl.where(alive, h, -infinity))
        any_alive = hi >= lo
        # The launch forbids fused multiply-adds: each operation of the cut rounds. Nothing is above
        # NaN, the cut of a constant map and of one that cannot be mined.
        cut = lo + threshold * (hi - lo)
        cut = tl.where(minable & (hi > lo), cut, nan)
        foreground = alive & (h >= cut)
        words = tl.sum(tl.where(foreground, bit, 0), 1).to(WORD)
        # The first in row-major order; a row outside the foreground if there is none.
        peak = tl.min(tl.where(foreground & (h == hi), pixel, height * width))
        in_column = tl.full((ROWS,), 1, WORD) << (peak % width).to(WORD)
        seed = tl.where(row == peak // width, in_column, 0)
        reached = _component(seed, words, ROWS, SHIFTS, CONNECTIVITY)
        erased = tl.where((reached[:, None] & bit) != 0, first_step + step, erased)
        extent_at = extent_ptr + (program * STEPS + step) * 2
        tl.store(extent_at, tl.where(minable, tl.where(any_alive, lo, 0.0), nan))
        tl.store(extent_at + 1, tl.where(minable, tl.where(any_alive, hi, 0.0), nan))
    tl.store(erased_ptr + at, erased.to(tl.uint8), exists)


def mine_attention(
    cam: Tensor,
    steps: int,
    threshold: float,
    connectivity: int,
    erased_at: Tensor | None,
    first_step: int,
) -> tuple[Tensor, Tensor]:
    """Erase the component that holds the peak, ``steps`` times, for every map [H, W].

    Args:
        cam: [N, C, H, W] float32, any strides; H and W up to 64.
        steps, threshold, connectivity, erased_at, first_step: as for ``cxr_fast.ops``; a number of
            steps is compiled in.

    Returns:
        ``erased_at`` [N, C, H, W] uint8 and ``extent`` [N, C, steps, 2] float32.

    Raises:
        ValueError: a map is larger than 64 x 64.

    Source: Cai et al. 2018, Sec. 3.2.
    """
    n, c, height, width = cam.shape
    if max(height, width) > LARGEST_SIDE:
        raise ValueError(
            f"cam must have maps of at most {LARGEST_SIDE} x {LARGEST_SIDE} pixels here, but has "
            f"shape {tuple(cam.shape)}; use the reference for larger ones"
        )
    cam = cam.contiguous()
    before = cam if erased_at is None else erased_at.contiguous()
    erased = torch.empty(cam.shape, dtype=torch.uint8, device=cam.device)
    extent = cam.new_empty((n, c, steps, 2))
    if cam.numel() == 0:
        return erased, extent
    bits = 32 if width <= 32 else 64
    rows = max(triton.next_power_of_2(height), 2)
    with on_device(cam):
        _mine_kernel[(n * c,)](
            cam, before, erased, extent, height, width, threshold, first_step, STEPS=steps,
            CONNECTIVITY=connectivity, GIVEN=erased_at is not None, ROWS=rows, BITS=bits,
            WORD=tl.uint32 if bits == 32 else tl.uint64, SHIFTS=5 if bits == 32 else 6,
            num_warps=1 if rows * bits <= 1024 else 4, enable_fp_fusion=False,
        )  # fmt: skip
    return erased, extent
