"""PNG: every chunk is walked with its checksum before a decoder sees it."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import PngImagePlugin

from cxr_fast.archive.decode.common import Pixels, UnreadableImage, check_size, pixels_of, upright

# All that decides a pixel. Text, colour profiles and previews never reach the decoder, nor does EXIF:
# its orientation is read here.
_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


def decode_png(data: bytes, max_pixels: int) -> Pixels:
    """Decode a whole PNG file; see ``decode``."""
    needed, exif = _checked_png(data, max_pixels)
    pixels = pixels_of(lambda: PngImagePlugin.PngImageFile(io.BytesIO(needed)), "PNG")
    # Where the compressed rows end early, though every checksum is right, Pillow leaves the rest
    # 0. That shows unless 0 is not black (a palette) or the rows are out of order (interlaced).
    palette, interlaced = needed[25] == 3, needed[28] != 0
    if (palette or interlaced or not pixels[-1].any()) and not _has_all_rows(needed):
        raise UnreadableImage("corrupt PNG")
    return upright(pixels, exif)


def _has_all_rows(png: bytes) -> bool:
    """Tell whether the compressed data of a PNG hold as many bytes as its header asks for."""
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", png, 16)
    depth = bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    # Offset and step of each pass, in columns and rows.
    adam7 = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2))
    passes = (*adam7, (0, 1, 1, 2)) if interlaced else ((0, 1, 0, 1),)
    missing = 0
    for x, x_step, y, y_step in passes:
        columns, rows = len(range(x, width, x_step)), len(range(y, height, y_step))
        missing += rows * (1 + (columns * depth + 7) // 8) if columns else 0
    inflate, start = zlib.decompressobj(), 8
    while start < len(png) and missing > 0:
        length, name = struct.unpack_from(">I4s", png, start)
        waiting = png[start + 8 : start + 8 + length] if name == b"IDAT" else b""
        while waiting and missing > 0:
            try:
                missing -= len(inflate.decompress(waiting, 2**20))
            except zlib.error:
                return False
            waiting = inflate.unconsumed_tail
        start += 12 + length
    return missing <= 0


def _checked_png(data: bytes, max_pixels: int) -> tuple[bytes, bytes]:
    """Keep the chunks that decide the pixels, each with a right CRC, and find the EXIF data."""
    view = memoryview(data)
    kept = [view[:8]]
    start, name, exif = 8, b"", b""
    while name != b"IEND":
        if start + 12 > len(data):
            raise UnreadableImage("truncated PNG")
        length, name = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if start == 8 and (name != b"IHDR" or length != 13):
            raise UnreadableImage("corrupt PNG (no header)")
        if not name.isalpha():
            raise UnreadableImage("corrupt PNG (broken chunk)")
        if end > len(data):
            raise UnreadableImage("truncated PNG")
        if name in _KEPT:
            (crc,) = struct.unpack_from(">I", data, end - 4)
            if zlib.crc32(view[start + 4 : end - 4]) != crc:
                raise UnreadableImage("corrupt PNG (wrong checksum)")
            kept.append(view[start:end])
        if name == b"eXIf":
            exif = data[start + 8 : end - 4]
        if name == b"IHDR":
            width, height = struct.unpack_from(">II", data, 16)
            check_size(width, height, max_pixels)
        start = end
    return b"".join(kept), exif
