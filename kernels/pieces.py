"""Products of a float32 factor on tensor cores as exact as on ordinary units.

Beside features of two bytes, a float32 factor is cut by masking bits into three bfloat16 pieces of 8
bits each (8 + 8 + 8 = 24), and a float16 feature into two (8 + 3 = 11). Every product of two pieces
is then exact in a tensor core and sums in float32, so no input is rounded. The sum of the leading
pieces is kept apart from the rest:

- An infinity times a piece that happens to be 0 would be NaN, so where the leading sum is not
  finite, it alone is the result, of the class (inf, -inf, NaN) that a float32 sum has.
- Tensor cores cut each sum off instead of rounding it. The leading sum of one block is therefore
  begun at 0 and added to the total by an ordinary, rounded addition.

Pieces hold nothing below 2^-133, so factors under 1e-33 lose low bits. float32 features are
multiplied as they are ("ieee"), on the ordinary units.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import interpreted


@triton.jit
def _operand(x, INTERPRETED: tl.constexpr):
    """``x`` as tl.dot takes it; the interpreter has no products in bfloat16."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x


@triton.jit
def narrowed(x, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """float32 rounded to nearest even; the interpreter would cut bfloat16 off."""
    if INTERPRETED and DTYPE == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = tl.where(x != x, bits | 0x400000, bits + 0x7FFF + ((bits >> 16) & 1))
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(DTYPE)


@triton.jit
def settled(main, rest, PIECES: tl.constexpr):
    """The sum of leading and other pieces, or the leading alone where that is not finite."""
    if PIECES == 3:
        main = tl.where(tl.abs(main) < float("inf"), main + rest, main)
    return main


@triton.jit
def _pieces_kernel(
    source_ptr, pieces_ptr, rows, columns, padded, PIECES: tl.constexpr,
    INTERPRETED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """[rows, columns] float32 to [PIECES, rows, padded], zeros in the padding."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, column = at // padded, at % padded
    exists = row < rows
    v = tl.load(source_ptr + row * columns + column, exists & (column < columns), 0.0)
    if PIECES == 1:
        tl.store(pieces_ptr + at, v, exists)
    else:
        # A NaN stays one, though its set bits may all be low ones. The rest of an infinity is NaN, but
        # its leading sum counts alone.
        bits = v.to(tl.uint32, bitcast=True)
        bits = tl.where(v != v, bits | 0x400000, bits) & 0xFFFF0000
        hi = bits.to(tl.float32, bitcast=True)
        rest = v - hi
        mid = (rest.to(tl.uint32, bitcast=True) & 0xFFFF0000).to(tl.float32, bitcast=True)
        size = rows.to(tl.int64) * padded
        tl.store(pieces_ptr + at, narrowed(hi, tl.bfloat16, INTERPRETED), exists)
        tl.store(pieces_ptr + size + at, narrowed(mid, tl.bfloat16, INTERPRETED), exists)
        tl.store(pieces_ptr + 2 * size + at, narrowed(rest - mid, tl.bfloat16, INTERPRETED), exists)


@triton.jit
def load_pieces(at, piece, exists, PIECES: tl.constexpr, INTERPRETED: tl.constexpr):
    """A tile of hi, mid and lo, as operands; three times the same where there is one piece."""
    hi = _operand(tl.load(at, exists, 0.0), INTERPRETED)
    mid, lo = hi, hi
    if PIECES == 3:
        mid = _operand(tl.load(at + piece, exists, 0.0), INTERPRETED)
        lo = _operand(tl.load(at + 2 * piece, exists, 0.0), INTERPRETED)
    return hi, mid, lo


@triton.jit
def product(hi, mid, lo, x, main, rest, zero, PIECES: tl.constexpr, INTERPRETED: tl.constexpr):
    """Adds the product of a factor in pieces and the features; ``zero`` is 0.0."""
    if PIECES == 1:
        main = tl.dot(hi, x, main, input_precision="ieee")
    else:
        # A zero that the compiler cannot see: it would make the total the accumulator.
        begun = tl.full(main.shape, zero, tl.float32)
        if x.dtype == tl.float16:
            wide = x.to(tl.float32)
            x = narrowed(wide, tl.bfloat16, INTERPRETED)
            x_hi = _operand(x, INTERPRETED)
            left = wide - x_hi.to(tl.float32)  # NaN for an infinity, whose leading sum counts
            x_lo = _operand(narrowed(left, tl.bfloat16, INTERPRETED), INTERPRETED)
            rest = tl.dot(lo, x_lo, rest)
            rest = tl.dot(mid, x_lo, rest)
            rest = tl.dot(hi, x_lo, rest)
        else:
            x_hi = _operand(x, INTERPRETED)
        main += tl.dot(hi, x_hi, begun)
        rest = tl.dot(lo, x_hi, rest)
        rest = tl.dot(mid, x_hi, rest)
    return main, rest


@triton.jit
def spread(w_hi, w_mid, w_lo, g_hi, g_mid, g_lo, main, rest, PIECES: tl.constexpr):
    """Adds ``W^T . g`` of one tile of classes: of nine products of pieces, the six that count."""
    if PIECES == 3:
        rest = tl.dot(w_lo, g_hi, rest)
        rest = tl.dot(w_mid, g_mid, rest)
        rest = tl.dot(w_hi, g_lo, rest)
        rest = tl.dot(w_mid, g_hi, rest)
        rest = tl.dot(w_hi, g_mid, rest)
    main = tl.dot(w_hi, g_hi, main, input_precision="ieee")
    return main, rest


def pieces_of(source: Tensor, dtype: torch.dtype, multiple: int) -> Tensor:
    """[R, L] float32 as [1 or 3, R, L'] for products with ``dtype``, L' a multiple of ``multiple``."""
    rows, columns = source.shape
    padded = triton.cdiv(columns, multiple) * multiple
    count = 1 if dtype == torch.float32 else 3
    of = torch.float32 if count == 1 else torch.bfloat16
    pieces = torch.empty((count, rows, padded), dtype=of, device=source.device)
    _pieces_kernel[(triton.cdiv(rows * padded, 1024),)](
        source.contiguous(), pieces, rows, columns, padded,
        PIECES=count, INTERPRETED=interpreted(), BLOCK=1024,
    )  # fmt: skip
    return pieces
