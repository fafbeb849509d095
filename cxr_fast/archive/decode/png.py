"""PNG: every chunk is walked with its checksum before a decoder sees it.

What archives are made of, grey of 8 and 16 bits and colour of 8, is inflated by ISA-L and unfiltered by
a kernel of ours; Pillow decodes the rest (palettes, interlacing, fewer bits, transparent values). Rows
that end early, a filter that is none, and a wrong Adler-32 behind the last row are damage. What is
compressed beyond the last row is ignored, and so is a missing Adler-32: every chunk has its own CRC.
"""

from __future__ import annotations

import io
import struct

from isal import isal_zlib
from PIL import Image, PngImagePlugin

from cxr_fast import _numpy_ops
from cxr_fast.archive.decode.common import Pixels, UnreadableImage, check_size, pixels_of, upright

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# All that decides a pixel. Text, colour profiles and previews never reach the decoder, nor does EXIF:
# its orientation is read here.
_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# What a header says behind width and height of rows that need no more than unfiltering: samples a
# pixel, bytes a sample. Bits, colour type, and 0 for compression, filters and no interlacing.
_PLAIN = {
    b"\x08\0\0\0\0": (1, 1),
    b"\x10\0\0\0\0": (1, 2),
    b"\x08\2\0\0\0": (3, 1),
    b"\x08\4\0\0\0": (2, 1),
    b"\x08\6\0\0\0": (4, 1),
}

_InflateError: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # its stub errs
_Chunks = list[tuple[bytes, memoryview]]  # name; all of it, from length to checksum


def decode_png(data: bytes, max_pixels: int) -> Pixels:
    """Decode a whole PNG file; see ``decode``."""
    chunks, exif = _checked_png(data, max_pixels)
    layout = _PLAIN.get(data[24:29])
    if layout is not None and {name for name, _ in chunks[1:-1]} == {b"IDAT"}:
        pixels = _plain(chunks, *layout)
    else:
        pixels = _by_pillow(chunks)
    return upright(pixels, exif)


def _plain(chunks: _Chunks, channels: int, sample_bytes: int) -> Pixels:
    """Decode rows of whole bytes in order, all from IDAT chunks that follow the header."""
    width, height = struct.unpack_from(">II", chunks[0][1], 8)
    size = height * (1 + width * channels * sample_bytes)
    try:
        # With room for one byte more it goes on to the Adler-32, if that is what comes next.
        rows = isal_zlib.decompressobj().decompress(_compressed(chunks), size + 1)
        if len(rows) < size:
            raise UnreadableImage("corrupt PNG")
        pixels: Pixels = _numpy_ops.png_unfilter(rows, height, width, channels, sample_bytes)
    except (_InflateError, ValueError) as error:  # broken data, an unknown filter
        raise UnreadableImage("corrupt PNG") from error
    return pixels if channels == 1 else pixels_of(lambda: Image.fromarray(pixels), "PNG")


def _by_pillow(chunks: _Chunks) -> Pixels:
    needed = b"".join([PNG_SIGNATURE, *(chunk for _, chunk in chunks)])
    pixels = pixels_of(lambda: PngImagePlugin.PngImageFile(io.BytesIO(needed)), "PNG")
    # Where the compressed rows end early, though every checksum is right, Pillow leaves the rest
    # 0. That shows unless 0 is not black (a palette) or the rows are out of order (interlaced).
    palette, interlaced = needed[25] == 3, needed[28] != 0
    if (palette or interlaced or not pixels[-1].any()) and not _has_all_rows(chunks):
        raise UnreadableImage("corrupt PNG")
    return pixels


def _has_all_rows(chunks: _Chunks) -> bool:
    """Tell whether the compressed data of a PNG hold as many bytes as its header asks for."""
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", chunks[0][1], 8)
    depth = bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    # Offset and step of each pass, in columns and rows.
    adam7 = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2))
    passes = (*adam7, (0, 1, 1, 2)) if interlaced else ((0, 1, 0, 1),)
    missing = 0
    for x, x_step, y, y_step in passes:
        columns, rows = len(range(x, width, x_step)), len(range(y, height, y_step))
        missing += rows * (1 + (columns * depth + 7) // 8) if columns else 0
    inflate = isal_zlib.decompressobj()
    piece = waiting = _compressed(chunks)
    while piece and missing > 0:
        try:
            piece = inflate.decompress(waiting, 2**20)
        except _InflateError:
            return False
        missing -= len(piece)
        waiting = inflate.unconsumed_tail  # may be empty while there is more to come
    return missing <= 0


def _compressed(chunks: _Chunks) -> bytes:
    return b"".join([chunk[8:-4] for name, chunk in chunks if name == b"IDAT"])


def _checked_png(data: bytes, max_pixels: int) -> tuple[_Chunks, bytes]:
    """Keep the chunks that decide the pixels, each with a right CRC, and find the EXIF data."""
    view = memoryview(data)
    kept: _Chunks = []
    start, name, exif = len(PNG_SIGNATURE), b"", b""
    while name != b"IEND":
        if start + 12 > len(data):
            raise UnreadableImage("truncated PNG")
        length, name = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if not kept and (name != b"IHDR" or length != 13):
            raise UnreadableImage("corrupt PNG (no header)")
        if not name.isalpha():
            raise UnreadableImage("corrupt PNG (broken chunk)")
        if end > len(data):
            raise UnreadableImage("truncated PNG")
        if name in _KEPT:
            (crc,) = struct.unpack_from(">I", data, end - 4)
            if isal_zlib.crc32(view[start + 4 : end - 4]) != crc:
                raise UnreadableImage("corrupt PNG (wrong checksum)")
            kept.append((name, view[start:end]))
        if name == b"eXIf":
            exif = data[start + 8 : end - 4]
        if name == b"IHDR":
            width, height = struct.unpack_from(">II", data, 16)
            check_size(width, height, max_pixels)
        start = end
    return kept, exif
