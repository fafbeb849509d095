"""JPEG 2000: the codestream is walked to its end marker, tile by tile, before a decoder sees it.

OpenJPEG, inside Pillow, turns it into pixels, and refuses most of what ends early. Not all: a lossy
codestream may end within its last tile and be painted over. So every tile-part must be as long as
it says, every tile must be there, and the codestream must end as one does.
"""

from __future__ import annotations

import io
import struct
from typing import NamedTuple

import numpy as np
from PIL import Jpeg2KImagePlugin

from cxr_fast.archive.decode.common import Pixels, UnreadableImage, check_size, pixels_of

_END = b"\xff\xd9"
_TILE_PART, _SIZE = 0xFF90, 0xFF51
# A superbox holds boxes; of these only the header matters, and it needs no look inside.
_CODESTREAM_BOX = b"jp2c"


class Codestream(NamedTuple):
    """What the size marker of a JPEG 2000 codestream says."""

    width: int
    height: int
    bits: int
    signed: bool
    components: int


def decode_jpeg2000(data: bytes, max_pixels: int) -> Pixels:
    """Decode a whole JP2 file or raw codestream; see ``decode``.

    8 bits give uint8 and more give uint16; fewer than 8, or than 16, are stretched to the full range,
    as a PNG's are. Colour becomes luma of 8 bits.
    """
    codestream = data if data.startswith(b"\xff\x4f") else _codestream_of_jp2(data)
    found = walk_codestream(codestream, max_pixels)
    if found.signed or found.bits > 16 or (found.bits < 8 and found.components > 1):
        sign = "signed " if found.signed else ""
        raise UnreadableImage(f"JPEG 2000 of {sign}{found.bits} bits is not supported")
    if found.components > 4:
        raise UnreadableImage(f"JPEG 2000 of {found.components} components is not supported")

    def opened() -> Jpeg2KImagePlugin.Jpeg2KImageFile:
        image = Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(data))
        if image.size != (found.width, found.height):  # a JP2 file says it twice
            raise UnreadableImage("corrupt JPEG 2000")
        return image

    pixels = pixels_of(opened, "JPEG 2000")
    container = 8 * pixels.itemsize
    if found.components == 1 and found.bits < container:
        # Pillow shifts samples to the top of their bytes; the brightest is to be white.
        samples = (pixels >> (container - found.bits)).astype(np.uint32)
        top, highest = 2**container - 1, 2**found.bits - 1
        stretched: Pixels = ((samples * top + highest // 2) // highest).astype(pixels.dtype)
        return stretched
    return pixels


def walk_codestream(data: bytes, max_pixels: int) -> Codestream:
    """Read the size marker of a codestream, and follow its tile-parts to the end marker.

    Raises UnreadableImage where it claims too many pixels, is truncated, lacks a tile, or has
    components of several kinds.
    """
    found: Codestream | None = None
    tiles, seen = 0, set()
    start = 2
    while True:
        marker, length = _segment(data, start)
        if marker == _TILE_PART:
            break
        if marker == _SIZE:
            found, tiles = _size(data[start + 4 : start + 2 + length])
            check_size(found.width, found.height, max_pixels)
        start += 2 + length
    if found is None:
        raise UnreadableImage("corrupt JPEG 2000 (no size)")
    end = len(data.rstrip(b"\0"))  # DICOM pads to an even length
    while data[start : start + 2] != _END:
        marker, _ = _segment(data, start)
        if marker != _TILE_PART or start + 12 > len(data):
            raise UnreadableImage("corrupt JPEG 2000 (broken marker)")
        tile, length = struct.unpack_from(">HI", data, start + 4)
        seen.add(tile)
        if length == 0:  # the last one, down to the end marker
            length = end - 2 - start
        if start + length + 2 > len(data):
            raise UnreadableImage("truncated JPEG 2000")
        if length < 14:
            raise UnreadableImage("corrupt JPEG 2000 (broken marker)")
        start += length
        if data[start : start + 2] not in (_END, b"\xff\x90"):
            raise UnreadableImage("truncated JPEG 2000")
    if len(seen) != tiles:
        raise UnreadableImage("corrupt JPEG 2000 (a tile is missing)")
    return found


def _segment(data: bytes, start: int) -> tuple[int, int]:
    """Read the marker at ``start`` and how long its segment is, the marker not counted."""
    if start + 4 > len(data):
        raise UnreadableImage("truncated JPEG 2000")
    marker, length = struct.unpack_from(">HH", data, start)
    if marker < 0xFF00 or length < 2:
        raise UnreadableImage("corrupt JPEG 2000 (broken marker)")
    if start + 2 + length > len(data):
        raise UnreadableImage("truncated JPEG 2000")
    return marker, length


def _size(segment: bytes) -> tuple[Codestream, int]:
    """Read a size segment; gives the number of tiles too."""
    if len(segment) < 39:
        raise UnreadableImage("corrupt JPEG 2000 (no size)")
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top, components = (
        struct.unpack_from(">8IH", segment, 2)
    )
    kinds = {segment[36 + 3 * i : 39 + 3 * i] for i in range(components)}
    if not (left < right and top < bottom and tile_width and tile_height and components):
        raise UnreadableImage("corrupt JPEG 2000 (no size)")
    if len(kinds) != 1 or (kind := kinds.pop())[1:] != b"\1\1":
        raise UnreadableImage("JPEG 2000 whose components differ in size or depth is not supported")
    across = -(-(right - tile_left) // tile_width)
    down = -(-(bottom - tile_top) // tile_height)
    bits, signed = (kind[0] & 0x7F) + 1, kind[0] >= 0x80
    return Codestream(right - left, bottom - top, bits, signed, components), across * down


def _codestream_of_jp2(data: bytes) -> bytes:
    start = 0
    while start + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, start)
        header = 8
        if length == 1 and start + 16 <= len(data):
            (length,) = struct.unpack_from(">Q", data, start + 8)
            header = 16
        elif length == 0:  # the last box, down to the end of the file
            length = len(data) - start
        if length < header:
            raise UnreadableImage("corrupt JPEG 2000 (broken box)")
        if start + length > len(data):
            raise UnreadableImage("truncated JPEG 2000")
        if name == _CODESTREAM_BOX:
            return data[start + header : start + length]
        start += length
    raise UnreadableImage("truncated JPEG 2000")
