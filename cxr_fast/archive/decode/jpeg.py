"""JPEG: every marker is walked up to the end marker before a decoder sees it."""

from __future__ import annotations

import io
import re
import struct
from typing import NamedTuple

from PIL import Image, JpegImagePlugin

from cxr_fast.archive.decode.common import Pixels, UnreadableImage, check_size, pixels_of, upright

# EXIF's orientation is read here; what else is text never reaches the decoder.
_TEXT = (*range(0xE1, 0xEE), 0xEF, 0xFE)  # APP1 to APP15 but Adobe's APP14, and comments
_END_OF_SCAN = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")  # a marker that is not a restart
_MAX_SCANS = 500  # a progressive JPEG has about ten; each one costs a pass over all pixels
_FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)  # sequential and progressive, Huffman and arithmetic
LOSSLESS = 0xC3


class Frame(NamedTuple):
    """A JPEG's frame header; ``coding`` is the second byte of its marker."""

    coding: int
    bits: int
    height: int
    width: int
    components: bytes  # their identifiers


def decode_jpeg(data: bytes, max_pixels: int) -> Pixels:
    """Decode a whole JPEG file; see ``decode``."""
    needed, frame, exif = walk_jpeg(data)
    if frame.coding not in _FRAMES:
        raise UnreadableImage("lossless or hierarchical JPEG is not supported")
    if frame.bits != 8:
        raise UnreadableImage(f"JPEG of {frame.bits} bits is not supported")
    check_size(frame.width, frame.height, max_pixels)

    def opened() -> Image.Image:
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(needed))
        # The file's own luma, which is ITU-R 601's, without a detour through RGB.
        image.draft("L", None)
        return image

    return upright(pixels_of(opened, "JPEG"), exif)


def walk_jpeg(data: bytes) -> tuple[bytes, Frame, bytes]:
    """Walk a JPEG to its end marker: the segments that decide pixels, the frame, the EXIF data."""
    view = memoryview(data)
    kept = [view[:2]]
    start, scans, frame, exif = 2, 0, None, b""
    while True:
        while data[start : start + 2] == b"\xff\xff":  # fill bytes
            start += 1
        marker = data[start : start + 2]
        if marker == b"\xff\xd9":
            break
        if len(marker) == 2 and (marker[0] != 0xFF or marker[1] < 0xC0):
            raise UnreadableImage("corrupt JPEG (broken marker)")
        if start + 4 > len(data):
            raise UnreadableImage("truncated JPEG")
        (length,) = struct.unpack_from(">H", data, start + 2)
        end = start + 2 + length
        if end > len(data):
            raise UnreadableImage("truncated JPEG")
        if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
            if frame is not None:
                raise UnreadableImage("lossless or hierarchical JPEG is not supported")
            frame = _frame(marker[1], data[start + 4 : end])
        if marker[1] == 0xDA:
            scans += 1
            if scans > _MAX_SCANS:
                raise UnreadableImage(f"JPEG with more than {_MAX_SCANS} scans")
            stop = _END_OF_SCAN.search(data, end)
            if stop is None:
                raise UnreadableImage("truncated JPEG")
            end = stop.end() - 2
        if marker[1] not in _TEXT:
            kept.append(view[start:end])
        elif marker[1] == 0xE1 and data[start + 4 : start + 10] == b"Exif\0\0":
            exif = exif or data[start + 10 : end]
        start = end
    if frame is None or scans == 0:
        raise UnreadableImage("corrupt JPEG (no picture in it)")
    kept.append(view[start : start + 2])
    return b"".join(kept), frame, exif


def _frame(coding: int, header: bytes) -> Frame:
    if len(header) < 6 or len(header) < 6 + 3 * header[5]:
        raise UnreadableImage("corrupt JPEG (broken marker)")
    bits, height, width = struct.unpack_from(">BHH", header)
    return Frame(coding, bits, height, width, header[6 : 6 + 3 * header[5] : 3])
