"""``cam`` and its gradients (Eq. 7) as three skinny products that read the features once.

Factors of float32 are taken to tensor cores as ``pieces.py`` says, without rounding any input.

Launches: ``cam`` 2 (weight into pieces, product); ``cam_backward`` 4 (weight and gradient into
pieces, both gradients, sum over partial results), one more for over 64 classes. All shapes of blocks
and of workspace follow from shapes and dtypes alone: same input, same bits, and graphs may capture.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import interpreted, on_device
from .pieces import load_pieces, narrowed, pieces_of, product, settled, spread


class Blocks(NamedTuple):
    """Extent of a program's tile: ``classes`` x ``channels`` x ``pixels``, powers of two from 16."""

    classes: int
    channels: int
    pixels: int
    warps: int
    stages: int


def forward_blocks(classes: int, dtype: torch.dtype, planar: bool, pixels: int) -> Blocks:
    """The tile of ``cam`` for that many classes; ``pixels`` is H * W.

    Up to 256 classes share one read of the features. A tile's rows run along the contiguous axis,
    128 bytes or more where registers allow, and four programs fit an SM (loads in flight: over 48
    KiB an SM). Pixels rather than channels, since every block of pixels reads the weight anew, from
    L2; but float16 takes more registers, cut in two as it is.
    """
    rows = _padded(classes, 256)
    if rows > 64:
        across, deep, warps, stages = 32, 32, 8, 3
    elif rows > 16:
        across, deep, warps, stages = 64, 32, 4, 3
    elif dtype == torch.float16:
        across, deep, warps, stages = 64, 32, 4, 4
    elif planar or dtype == torch.float32:
        across, deep, warps, stages = 128, 32, 4, 4 if dtype == torch.bfloat16 else 3
    else:
        across, deep, warps, stages = 64, 64, 4, 3
    return Blocks(rows, deep, _padded(pixels, across), warps, stages)


def backward_blocks(classes: int, dtype: torch.dtype, pixels: int, capability: int = 9) -> Blocks:
    """The tile of ``cam_backward``; over 64 classes take several tiles.

    As large as four programs an SM allow, in registers first: a tile holds pieces of W and sums of
    dW beside those of dX. More channels mean fewer readings of the gradient, from L2, and from
    compute capability 9 (``capability`` is the major number) 64 of them cost no more registers.
    """
    rows = _padded(classes, 64)
    if rows > 16 or dtype == torch.float32:
        across, deep = 32, 32
    else:
        across, deep = 64, 32 if capability < 9 or dtype == torch.float16 else 64
    return Blocks(rows, deep, _padded(pixels, across), warps=4, stages=3)


# About four programs for each of the 132 SMs of an H100; each holds 64 channels of dW in registers
# and streams pixels past them.
BACKWARD_PROGRAMS = 528


def _padded(size: int, at_most: int) -> int:
    """The power of two that holds ``size``, 16 (the least of tl.dot) to ``at_most``."""
    return min(max(int(triton.next_power_of_2(size)), 16), at_most)


@triton.jit
def _cam_kernel(
    x_ptr, w_ptr, cam_ptr, C, P, pixel_blocks, x_image, x_channel, x_pixel, w_piece, w_class, zero,
    D: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, BP: tl.constexpr, PIECES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program: a tile of classes x a block of pixels of one image, over all D channels."""
    tiles = tl.cdiv(C, BC)
    program = tl.program_id(0)
    n = (program // tiles // pixel_blocks).to(tl.int64)
    c = program % tiles * BC + tl.arange(0, BC)[:, None]
    p = program // tiles % pixel_blocks * BP + tl.arange(0, BP)[None, :]
    d = tl.arange(0, BD)
    x_at = x_ptr + n * x_image + d[:, None].to(tl.int64) * x_channel + p.to(tl.int64) * x_pixel
    w_at = w_ptr + c.to(tl.int64) * w_class + d[None, :]
    main = tl.zeros((BC, BP), tl.float32)
    rest = tl.zeros((BC, BP), tl.float32)
    for i in range(tl.cdiv(D, BD)):
        inside = p < P
        if D % BD != 0:
            inside = inside & (d[:, None] < D - i * BD)
        x = tl.load(x_at, inside, 0.0)
        hi, mid, lo = load_pieces(w_at, w_piece, c < C, PIECES, INTERPRETED)
        main, rest = product(hi, mid, lo, x, main, rest, zero, PIECES, INTERPRETED)
        x_at += BD * tl.cast(x_channel, tl.int64)
        w_at += BD
    at = cam_ptr + (n * C + c) * P + p
    tl.store(at, settled(main, rest, PIECES), (c < C) & (p < P))


@triton.jit
def _features_kernel(
    w_ptr, g_ptr, dx_ptr, C, P, pixel_blocks, dx_channel, dx_pixel, w_piece, w_class, g_piece,
    g_class, CLASS_BLOCKS: tl.constexpr, D: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
    BP: tl.constexpr, PIECES: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Makes dX alone. One program: a block of channels x a block of pixels of an image, all classes."""
    d_blocks: tl.constexpr = tl.cdiv(D, BD)
    program = tl.program_id(0)
    n = (program // d_blocks // pixel_blocks).to(tl.int64)
    d = program % d_blocks * BD + tl.arange(0, BD)[:, None]
    p = program // d_blocks % pixel_blocks * BP + tl.arange(0, BP)[None, :]
    main = tl.zeros((BD, BP), tl.float32)
    rest = tl.zeros((BD, BP), tl.float32)
    for i in range(CLASS_BLOCKS):
        c = i * BC + tl.arange(0, BC)
        w_at = w_ptr + c[None, :].to(tl.int64) * w_class + d
        g_at = g_ptr + (n * C + c[:, None]) * g_class + p
        w_hi, w_mid, w_lo = load_pieces(w_at, w_piece, c[None, :] < C, PIECES, INTERPRETED)
        g_exists = (c[:, None] < C) & (p < g_class)
        g_hi, g_mid, g_lo = load_pieces(g_at, g_piece, g_exists, PIECES, INTERPRETED)
        main, rest = spread(w_hi, w_mid, w_lo, g_hi, g_mid, g_lo, main, rest, PIECES)
    dx = narrowed(settled(main, rest, PIECES), dx_ptr.dtype.element_ty, INTERPRETED)
    at = dx_ptr + n * D * P + d.to(tl.int64) * dx_channel + p.to(tl.int64) * dx_pixel
    tl.store(at, dx, (d < D) & (p < P))


@triton.jit
def _weight_kernel(
    x_ptr, w_ptr, g_ptr, dx_ptr, partial_ptr, C, P, pixel_blocks, blocks, parts, x_image, x_channel,
    x_pixel, dx_channel, dx_pixel, w_piece, w_class, g_piece, g_class, zero,
    NEED_FEATURES: tl.constexpr, ROUNDS: tl.constexpr, D: tl.constexpr, BC: tl.constexpr,
    BD: tl.constexpr, BP: tl.constexpr, PIECES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """A part of dW, and with NEED_FEATURES dX as well, while the gradient's tile is here.

    One program: a tile of classes x a block of channels, whose dW and W stay in registers, and every
    ``parts``-th block of pixels. Neighbouring programs read neighbouring memory.
    """
    d_blocks: tl.constexpr = tl.cdiv(D, BD)
    program = tl.program_id(0)
    part = program // d_blocks
    d0 = program % d_blocks * BD
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    d = d0 + tl.arange(0, BD)
    if NEED_FEATURES:
        w_at = w_ptr + c[None, :].to(tl.int64) * w_class + d[:, None]
        w_hi, w_mid, w_lo = load_pieces(w_at, w_piece, c[None, :] < C, PIECES, INTERPRETED)
    main = tl.zeros((BC, BD), tl.float32)
    rest = tl.zeros((BC, BD), tl.float32)
    for i in range(ROUNDS):
        block = part + i * parts
        n = (block // pixel_blocks).to(tl.int64)
        p = block % pixel_blocks * BP + tl.arange(0, BP)
        # Parts that end a round early see no pixels.
        g_exists = (c[:, None] < C) & (p[None, :] < g_class) & (block < blocks)
        g_at = g_ptr + (n * C + c[:, None]) * g_class + p[None, :]
        g_hi, g_mid, g_lo = load_pieces(g_at, g_piece, g_exists, PIECES, INTERPRETED)
        pixel = p.to(tl.int64)
        inside = (p[:, None] < P) & (block < blocks)
        if D % BD != 0:
            inside = inside & (d[None, :] < D)
        x_at = x_ptr + n * x_image + pixel[:, None] * x_pixel + d[None, :].to(tl.int64) * x_channel
        x = tl.load(x_at, inside, 0.0)
        main, rest = product(g_hi, g_mid, g_lo, x, main, rest, zero, PIECES, INTERPRETED)
        if NEED_FEATURES:
            dx_main = tl.zeros((BD, BP), tl.float32)
            dx_rest = tl.zeros((BD, BP), tl.float32)
            dx_main, dx_rest = spread(w_hi, w_mid, w_lo, g_hi, g_mid, g_lo, dx_main, dx_rest, PIECES)
            dx = settled(dx_main, dx_rest, PIECES)
            of_channel = d[:, None].to(tl.int64) * dx_channel
            dx_at = dx_ptr + n * D * P + of_channel + pixel[None, :] * dx_pixel
            exists = (p[None, :] < P) & (block < blocks) & (d[:, None] < D)
            tl.store(dx_at, narrowed(dx, dx_ptr.dtype.element_ty, INTERPRETED), exists)
    at = partial_ptr + (part * C + c[:, None]).to(tl.int64) * D + d[None, :]
    tl.store(at, settled(main, rest, PIECES), (c[:, None] < C) & (d[None, :] < D))


def cam(features: Tensor, weight: Tensor, blocks: Blocks | None = None) -> Tensor:
    """``cam[n,c,h,w] = sum over d of weight[c,d] * features[n,d,h,w]``, [N, C, H, W] float32.

    Args:
        features: [N, D, H, W] float16, bfloat16 or float32 (float64 is not served), NCHW or
            channels_last or slices of either, read in place; other strides are copied first.
        weight: [C, D] float32, on the same device.
        blocks: the tile, for benchmarks; by default ``forward_blocks`` chooses.

    Source: Cai et al. 2018, Eq. 7 with M_0 = 1.
    """
    n, d, h, w = features.shape
    c, p = weight.shape[0], h * w
    result = features.new_empty((n, c, h, w), dtype=torch.float32)
    if features.numel() == 0 or c == 0:
        return result.zero_()
    features, strides = _in_place(features)
    tile = blocks or forward_blocks(c, features.dtype, strides[2] == 1, p)
    pixel_blocks = triton.cdiv(p, tile.pixels)
    with on_device(features):
        pieces = pieces_of(weight.detach(), features.dtype, tile.channels)
        _cam_kernel[(n * pixel_blocks * triton.cdiv(c, tile.classes),)](
            features, pieces, result, c, p, pixel_blocks, *strides, *pieces.stride()[:2], 0.0,
            D=d, **_constants(features.dtype, tile),
        )  # fmt: skip
    return result


def cam_backward(
    grad: Tensor,
    features: Tensor,
    weight: Tensor,
    need_features: bool,
    need_weight: bool,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor]:
    """``dX = W^T . grad`` and ``dW = grad . X^T``; an output that is not needed has shape (0,).

    Args:
        grad: [N, C, H, W] float32, any strides.
        features, weight, blocks: as for ``cam``.

    Returns:
        dX [N, D, H, W] in the features' dtype, NCHW or channels_last as they are read (NCHW if they
        had to be copied); dW [C, D] float32. With both, and up to 64 classes, one pass over the
        features serves both; more classes make dX and dW apart, dW in tiles of 64 classes.

    Source: Cai et al. 2018, Eq. 7, differentiated.
    """
    n, d, h, w = features.shape
    c, p = weight.shape[0], h * w
    of_features = features.new_empty(0)
    of_weight = weight.new_empty((c, d) if need_weight else (0,))
    features, strides = _in_place(features)
    planar = strides[2] == 1
    if need_features:
        layout = torch.contiguous_format if planar else torch.channels_last
        of_features = torch.empty_like(features, memory_format=layout)
    if features.numel() == 0 or c == 0:
        return of_features.zero_(), of_weight.zero_()
    dtype = features.dtype
    capability = torch.cuda.get_device_capability(grad.device)[0] if grad.is_cuda else 9
    tile = blocks or backward_blocks(c, dtype, p, capability)
    class_blocks, pixel_blocks = triton.cdiv(c, tile.classes), triton.cdiv(p, tile.pixels)
    d_blocks, count = triton.cdiv(d, tile.channels), n * pixel_blocks
    constants = _constants(dtype, tile) | {"D": d}
    dx_strides = (p, 1) if planar else (1, d)
    with on_device(features):
        w_pieces = pieces_of(weight.detach(), dtype, tile.channels)
        g_pieces = pieces_of(grad.detach().reshape(n * c, p), dtype, 16)
        inner = (*w_pieces.stride()[:2], *g_pieces.stride()[:2])
        fused = need_features and need_weight and class_blocks == 1
        if need_features and not fused:
            _features_kernel[(count * d_blocks,)](
                w_pieces, g_pieces, of_features, c, p, pixel_blocks, *dx_strides, *inner,
                CLASS_BLOCKS=class_blocks, **constants,
            )  # fmt: skip
        if need_weight:
            rounds = _rounds(count, d_blocks * class_blocks)
            parts = triton.cdiv(count, rounds)
            partial = features.new_empty((parts, c, d), dtype=torch.float32)
            _weight_kernel[(d_blocks * parts, class_blocks)](
                features, w_pieces, g_pieces, of_features, partial, c, p, pixel_blocks, count, parts,
                *strides, *dx_strides, *inner, 0.0, NEED_FEATURES=fused, ROUNDS=rounds, **constants,
            )  # fmt: skip
            torch.sum(partial, 0, out=of_weight)
    return of_features, of_weight


def _rounds(count: int, programs: int) -> int:
    """How many blocks of pixels a program of ``_weight_kernel`` takes.

    Of 1, 2, 3, 4, 6, 8, 12, ... (a number is compiled in), the least that keeps all of them within
    BACKWARD_PROGRAMS, as long as there are pixels to share out.
    """
    wanted = triton.cdiv(count * programs, BACKWARD_PROGRAMS)
    power = 1
    while power * 2 < wanted:
        power *= 2
    steps = (power, power * 3 // 2, power * 2)
    return min(next(step for step in steps if step >= wanted), count)


def _in_place(features: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """The features, copied if need be, and their strides of image, channel and pixel.

    One of the latter two is 1; ``cxr_fast.ops.cam`` foretells the same layout.
    """
    _, d, h, w = features.shape
    image, channel, row, column = features.stride()
    pixel = column if w > 1 else row if h > 1 else 1
    channel = channel if d > 1 else 1
    rows_follow = h <= 1 or w <= 1 or row == w * column
    in_place = rows_follow and pixel > 0 and channel > 0 and 1 in (pixel, channel)
    if features.numel() == 0 or not in_place:
        return features.contiguous(), (d * h * w, h * w, 1)
    return features, (image, channel, pixel)


def _constants(dtype: torch.dtype, tile: Blocks) -> dict[str, Any]:
    return {
        "BC": tile.classes,
        "BD": tile.channels,
        "BP": tile.pixels,
        "PIECES": 1 if dtype == torch.float32 else 3,
        "INTERPRETED": interpreted(),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
