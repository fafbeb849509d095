"""TIFF and BigTIFF: the first page, every strip or tile of it looked at before a decoder sees it.

libtiff, inside Pillow, turns strips into pixels. It fills what is missing with grey or black more
often than it complains, so the first directory is read here: strips must lie in the file, hold
enough, and inflate with their checksum. Pillow then gets the file under a new directory that holds
the fields which decide pixels and nothing else: no text, no private field, no metadata.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import TiffImagePlugin

from cxr_fast.archive.decode.common import (
    Picture,
    UnreadableImage,
    check_size,
    pixels_of,
    turned,
)
from cxr_fast.archive.decode.jpeg import walk_jpeg

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_ORIENTATION, _SAMPLES, _ROWS, _PLANAR = 274, 277, 278, 284
_STRIPS, _STRIP_SIZES, _TILES, _TILE_SIZES = 273, 279, 324, 325
_TILE_WIDTH, _TILE_HEIGHT, _EXTRA, _FORMAT, _TABLES = 322, 323, 338, 339, 347
_PREDICTOR, _COLOURS, _SUBSAMPLING = 317, 320, 530
_KEPT = frozenset(
    (
        *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _SAMPLES, _ROWS, _PLANAR),
        *(_STRIPS, _STRIP_SIZES, _TILES, _TILE_SIZES, _TILE_WIDTH, _TILE_HEIGHT, _EXTRA),
        *(_TABLES, _PREDICTOR, _COLOURS, _SUBSAMPLING),
    )
)

_LISTS = frozenset((_BITS, _STRIPS, _STRIP_SIZES, _TILES, _TILE_SIZES, _TABLES, _COLOURS, _SUBSAMPLING))

_KINDS = {1: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}  # of a field's values: the whole numbers
_NO_COMPRESSION, _LZW, _JPEG, _DEFLATE, _OLD_DEFLATE, _PACKBITS = 1, 5, 7, 8, 32946, 32773
_COMPRESSIONS = (_NO_COMPRESSION, _LZW, _JPEG, _DEFLATE, _OLD_DEFLATE, _PACKBITS)
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_READ = {  # photometric interpretation and samples a pixel: bits a sample
    (_WHITE_IS_ZERO, 1): (1, 2, 4, 8, 16),
    (_BLACK_IS_ZERO, 1): (1, 2, 4, 8, 16),
    (_WHITE_IS_ZERO, 2): (8,),
    (_BLACK_IS_ZERO, 2): (8,),
    (_RGB, 3): (8, 16),
    (_RGB, 4): (8, 16),
    (_PALETTE, 1): (1, 2, 4, 8),
    (_CMYK, 4): (8,),
    (_YCBCR, 3): (8,),
}
_ASSOCIATED_ALPHA = 1
_MOST_TILE_PIXELS = 2**22  # of a tile that is larger than the picture


class _Field(NamedTuple):
    kind: int
    values: tuple[int, ...]


class _Layout(NamedTuple):
    """Where a page's strips or tiles lie, and what each holds."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    width: int
    heights: tuple[int, ...]  # one a strip or tile
    row_bytes: int


def decode_tiff(data: bytes, max_pixels: int) -> Picture:
    """Decode the first page of a TIFF file; see ``decode``.

    Bilevel, grey, palette, RGB and CMYK of unsigned samples; grey of 16 bits gives uint16, all else
    uint8. Where white is 0 the picture is inverted. The orientation is undone.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    header = struct.unpack_from(order + "Q", data, 8) if big and len(data) >= 16 else None
    if len(data) < (16 if big else 8):
        raise UnreadableImage("truncated TIFF")
    (start,) = header or struct.unpack_from(order + "I", data, 4)
    fields, following = _directory(data, start, order, big)
    _check_kind(fields, max_pixels)
    layout = _layout(fields, max_pixels)
    _check_strips(data, fields, layout)
    pages = _pages(data, start, following, order, big)

    photometric = _one(fields, _PHOTOMETRIC, -1)
    needed = _needed(fields)
    rewritten = _with_directory(data, needed, order)
    pixels = pixels_of(lambda: TiffImagePlugin.TiffImageFile(io.BytesIO(rewritten)), "TIFF")
    if pixels.shape != (_one(fields, _HEIGHT, 0), _one(fields, _WIDTH, 0)):
        raise UnreadableImage("corrupt TIFF")
    if photometric == _WHITE_IS_ZERO:
        pixels = np.invert(pixels)
    note = f"first of {pages} pages" if pages > 1 else ""
    return Picture(turned(pixels, _one(fields, _ORIENTATION, 1)), note)


def _directory(
    data: bytes, start: int, order: str, big: bool, *, values: bool = True
) -> tuple[dict[int, _Field], int]:
    """Read the directory at ``start``: its fields of whole numbers, and where the next one is."""
    count_kind, entry_size, offset_kind = ("Q", 20, "Q") if big else ("H", 12, "I")
    first = start + struct.calcsize("=" + count_kind)
    if start < 8 or first > len(data):
        raise UnreadableImage("truncated TIFF" if start >= 8 else "corrupt TIFF (no page in it)")
    (count,) = struct.unpack_from(order + count_kind, data, start)
    end = first + count * entry_size
    if end + struct.calcsize("=" + offset_kind) > len(data):
        raise UnreadableImage("truncated TIFF")
    (following,) = struct.unpack_from(order + offset_kind, data, end)
    fields = {}
    for at in range(first, end if values else first, entry_size):
        tag, kind, number = struct.unpack_from(f"{order}HH{offset_kind}", data, at)
        if tag not in _KEPT and tag not in (_ORIENTATION, _FORMAT):
            continue
        if kind not in _KINDS or number == 0:
            raise UnreadableImage("corrupt TIFF (a field of the wrong kind)")
        unit = _KINDS[kind]
        size = number * struct.calcsize("=" + unit)
        place = at + 4 + struct.calcsize("=" + offset_kind)
        if size > entry_size - (place - at):
            (place,) = struct.unpack_from(order + offset_kind, data, place)
        if place + size > len(data):
            raise UnreadableImage("truncated TIFF")
        fields[tag] = _Field(kind, struct.unpack_from(f"{order}{number}{unit}", data, place))
    return fields, following


def _pages(data: bytes, start: int, following: int, order: str, big: bool) -> int:
    """Count the directories; each must lie in the file, and none may come twice."""
    seen = {start}
    while following:
        if following in seen:
            raise UnreadableImage("corrupt TIFF (its pages run in a circle)")
        seen.add(following)
        _, following = _directory(data, following, order, big, values=False)
    return len(seen)


def _one(fields: dict[int, _Field], tag: int, default: int) -> int:
    field = fields.get(tag)
    return field.values[0] if field is not None else default


def _check_kind(fields: dict[int, _Field], max_pixels: int) -> None:
    """Refuse a page of a kind that is not read here, and a size that is not allowed."""
    if _WIDTH not in fields or _HEIGHT not in fields:
        raise UnreadableImage("corrupt TIFF (no size)")
    check_size(_one(fields, _WIDTH, 0), _one(fields, _HEIGHT, 0), max_pixels)
    compression = _one(fields, _COMPRESSION, _NO_COMPRESSION)
    if compression not in _COMPRESSIONS:
        raise UnreadableImage(f"TIFF of compression {compression} is not supported")
    formats = fields.get(_FORMAT, _Field(3, (1,))).values
    if any(value != 1 for value in formats):
        raise UnreadableImage("TIFF of signed or floating-point samples is not supported")
    photometric, samples = _one(fields, _PHOTOMETRIC, -1), _one(fields, _SAMPLES, 1)
    bits = set(fields.get(_BITS, _Field(3, (1,))).values)
    known = _READ.get((photometric, samples))
    if known is None:
        kind = f"photometric interpretation {photometric} and {samples} samples a pixel"
        raise UnreadableImage(f"TIFF of {kind} is not supported")
    if len(bits) != 1 or not bits <= set(known):
        named = " and ".join(str(value) for value in sorted(bits)[:4])
        raise UnreadableImage(f"TIFF of {named} bits a sample is not supported")
    if (photometric == _YCBCR and compression != _JPEG) or (compression == _JPEG and bits != {8}):
        raise UnreadableImage(f"TIFF of compression {compression} is not supported for its samples")
    if _one(fields, _FILL_ORDER, 1) != 1 and bits != {1}:
        raise UnreadableImage("TIFF with the bits of a byte reversed is not supported")
    if _one(fields, _PLANAR, 1) not in (1, 2) or _one(fields, _PREDICTOR, 1) not in (1, 2):
        raise UnreadableImage("TIFF of this planar configuration or predictor is not supported")
    colours = fields.get(_COLOURS, _Field(3, ())).values
    if photometric == _PALETTE and len(colours) != 3 * 2 ** next(iter(bits)):
        raise UnreadableImage("corrupt TIFF (a palette of the wrong length)")


def _layout(fields: dict[int, _Field], max_pixels: int) -> _Layout:
    """Find the strips or tiles, and what each must hold."""
    width, height = _one(fields, _WIDTH, 0), _one(fields, _HEIGHT, 0)
    samples, bits = _one(fields, _SAMPLES, 1), _one(fields, _BITS, 1)
    planes = samples if _one(fields, _PLANAR, 1) == 2 else 1
    if _TILES in fields:
        across, down = _one(fields, _TILE_WIDTH, 0), _one(fields, _TILE_HEIGHT, 0)
        check_size(across, down, max(max_pixels, _MOST_TILE_PIXELS))
        heights = (down,) * (-(-width // across) * -(-height // down))
        offsets, sizes = fields[_TILES], fields.get(_TILE_SIZES)
    else:
        across, rows = width, min(_one(fields, _ROWS, height), height)
        if rows == 0 or _STRIPS not in fields:
            raise UnreadableImage("corrupt TIFF (no strips)")
        heights = (rows,) * (height // rows) + ((height % rows,) if height % rows else ())
        offsets, sizes = fields[_STRIPS], fields.get(_STRIP_SIZES)
    heights *= planes
    if sizes is None or min(len(offsets.values), len(sizes.values)) < len(heights):
        raise UnreadableImage("corrupt TIFF (fewer strips or tiles than its size needs)")
    row_bytes = (across * bits * (samples // planes) + 7) // 8
    number = len(heights)
    return _Layout(offsets.values[:number], sizes.values[:number], across, heights, row_bytes)


def _check_strips(data: bytes, fields: dict[int, _Field], layout: _Layout) -> None:
    compression = _one(fields, _COMPRESSION, _NO_COMPRESSION)
    for offset, size, height in zip(layout.offsets, layout.sizes, layout.heights, strict=True):
        if offset < 8 or size == 0:
            raise UnreadableImage("corrupt TIFF (a strip or tile is missing)")
        if offset + size > len(data):
            raise UnreadableImage("truncated TIFF")
        needed = layout.row_bytes * height
        if compression == _NO_COMPRESSION and size < needed:
            raise UnreadableImage("corrupt TIFF (a strip or tile is too short)")
        strip = data[offset : offset + size] if compression != _NO_COMPRESSION else b""
        if compression in (_DEFLATE, _OLD_DEFLATE):
            _check_inflates(strip, needed)
        elif compression == _JPEG:
            _, frame, _ = walk_jpeg(strip)
            if frame.width != layout.width or frame.height < height or frame.bits != 8:
                raise UnreadableImage("corrupt TIFF (its JPEG has another size)")


def _check_inflates(strip: bytes, needed: int) -> None:
    """See that a strip inflates to ``needed`` bytes, and that its checksum is right."""
    inflate, found = zlib.decompressobj(), 0
    try:
        while not inflate.eof and found <= needed:
            part = inflate.decompress(strip, 2**20)
            strip = inflate.unconsumed_tail
            if not part and not strip:
                break
            found += len(part)
    except zlib.error:
        found = -1
    # A last strip may be written whole, with rows below the picture: more than needed is right.
    if found < needed or (found == needed and not inflate.eof):
        raise UnreadableImage("corrupt TIFF (a strip or tile does not inflate)")


def _needed(fields: dict[int, _Field]) -> dict[int, _Field]:
    """The fields that decide pixels, each with as many values as it must have."""
    kept = {tag: field for tag, field in fields.items() if tag in _KEPT}
    for tag in kept.keys() - _LISTS:
        kept[tag] = kept[tag]._replace(values=kept[tag].values[:1])
    photometric, samples = _one(fields, _PHOTOMETRIC, -1), _one(fields, _SAMPLES, 1)
    kept[_BITS] = _Field(3, (_one(fields, _BITS, 1),) * samples)
    if photometric == _WHITE_IS_ZERO:  # Pillow would not invert all kinds of it
        kept[_PHOTOMETRIC] = _Field(3, (_BLACK_IS_ZERO,))
    if samples in (2, 4) and photometric != _CMYK:
        extra = _one(fields, _EXTRA, 0)
        # Associated alpha is composited on black as it is.
        kept[_EXTRA] = _Field(3, (0 if extra == _ASSOCIATED_ALPHA else extra,))
    return kept


def _with_directory(data: bytes, fields: dict[int, _Field], order: str) -> bytes:
    """Give the file, as a classic TIFF, a directory of ``fields`` behind all that it holds."""
    padding = bytes(-len(data) % 4)
    start = len(data) + len(padding)
    outside = start + 2 + 12 * len(fields) + 4
    entries, values = [], b""
    for tag, (kind, numbers) in sorted(fields.items()):
        kind = 4 if kind == 16 else kind
        unit = _KINDS[kind]
        packed = struct.pack(f"{order}{len(numbers)}{unit}", *_in_range(numbers, unit))
        if len(packed) > 4:
            entry = struct.pack(order + "HHII", tag, kind, len(numbers), outside + len(values))
            values += packed + bytes(-len(packed) % 4)
        else:
            entry = struct.pack(order + "HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
        entries.append(entry)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)
    return b"".join((head, memoryview(data)[8:], padding, directory, values))


def _in_range(numbers: Sequence[int], unit: str) -> Sequence[int]:
    if unit == "I" and max(numbers, default=0) >= 2**32:  # a BigTIFF's offset that no file has
        raise UnreadableImage("corrupt TIFF")
    return numbers
