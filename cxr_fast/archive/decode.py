"""PNG and JPEG bytes to grey pixels, with damage found before a decoder can paint over it.

Pillow turns the bytes into pixels. It releases the GIL while it inflates and unfilters, and its
wheel is a sixth of OpenCV's. It does not check a PNG's checksums, and no JPEG library can tell a
damaged scan from a grey one, so the structure of the file is walked here first: every PNG chunk
with its CRC, every JPEG marker up to the end marker.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, PngImagePlugin

Pixels = NDArray[np.uint8] | NDArray[np.uint16]

# Longer than any preamble below; a DICOM file shows its name at byte 128.
HEAD_BYTES = 132

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\x93NUMPY", "NumPy"),
    (b"\x89HDF", "HDF5"),
    (b"%PDF", "PDF"),
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "ZIP"),
    (b"version https://git-lfs", "Git LFS pointer"),
)
# All that decides a pixel. Text, colour profiles and previews never reach the decoder, nor does
# EXIF: its orientation is read here.
_PNG_CHUNKS_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_JPEG_TEXT = (*range(0xE1, 0xEE), 0xEF, 0xFE)  # APP1 to APP15 but Adobe's APP14, and comments
_END_OF_SCAN = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")  # a marker that is not a restart
_MAX_SCANS = 500  # a progressive JPEG has about ten; each one costs a pass over all pixels


class UnreadableImage(Exception):  # noqa: N818 (it reads as what it says)
    """An image that gives no pixels; ``reason`` says why, short and the same on every run."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def file_type(head: bytes) -> str | None:
    """Name the type that the first ``HEAD_BYTES`` bytes of a file show, if known."""
    if head[128:132] == b"DICM":  # asked first: some DICOM files begin like a TIFF
        return "DICOM"
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    return None


def check_type(head: bytes) -> None:
    """Raise UnreadableImage unless a file that starts with ``head`` can be decoded here."""
    if not head:
        raise UnreadableImage("empty file (0 bytes)")
    name = file_type(head)
    if name is None:
        raise UnreadableImage(f"unknown file type; first bytes {head[:8].hex(' ')}")
    if name not in _DECODERS:
        raise UnreadableImage(f"{name} is not supported yet")


def decode(data: bytes, max_pixels: int) -> Pixels:
    """Grey pixels [H, W], uint8 or uint16, of a whole PNG or JPEG file.

    Raises UnreadableImage. A header that claims more than ``max_pixels`` pixels is refused before
    memory is taken for them.
    """
    check_type(data[:HEAD_BYTES])
    name = file_type(data[:HEAD_BYTES])
    assert name is not None  # check_type refused it
    return _DECODERS[name](data, max_pixels)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width == 0 or height == 0:
        raise UnreadableImage(f"width or height is 0 ({width} x {height})")
    if width * height > max_pixels:
        raise UnreadableImage(f"{width} x {height} is more than {max_pixels} pixels")


# --- PNG ------------------------------------------------------------------------------------------


def _decode_png(data: bytes, max_pixels: int) -> Pixels:
    needed, exif = _checked_png(data, max_pixels)
    pixels = _pixels(lambda: PngImagePlugin.PngImageFile(io.BytesIO(needed)), "PNG")
    # Where the compressed rows end early, though every checksum is right, Pillow leaves the rest
    # 0. That shows unless 0 is not black (a palette) or the rows are out of order (interlaced).
    palette, interlaced = needed[25] == 3, needed[28] != 0
    if (palette or interlaced or not pixels[-1].any()) and not _has_all_rows(needed):
        raise UnreadableImage("corrupt PNG")
    return _upright(pixels, exif)


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
        if name in _PNG_CHUNKS_KEPT:
            (crc,) = struct.unpack_from(">I", data, end - 4)
            if zlib.crc32(view[start + 4 : end - 4]) != crc:
                raise UnreadableImage("corrupt PNG (wrong checksum)")
            kept.append(view[start:end])
        if name == b"eXIf":
            exif = data[start + 8 : end - 4]
        if name == b"IHDR":
            width, height = struct.unpack_from(">II", data, 16)
            _check_size(width, height, max_pixels)
        start = end
    return b"".join(kept), exif


# --- JPEG -----------------------------------------------------------------------------------------


def _decode_jpeg(data: bytes, max_pixels: int) -> Pixels:
    needed, exif = _checked_jpeg(data, max_pixels)

    def opened() -> Image.Image:
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(needed))
        # The file's own luma, which is ITU-R 601's, without a detour through RGB.
        image.draft("L", None)
        return image

    return _upright(_pixels(opened, "JPEG"), exif)


def _checked_jpeg(data: bytes, max_pixels: int) -> tuple[bytes, bytes]:
    """Keep the segments that decide the pixels, down to the end marker; find the EXIF data."""
    view = memoryview(data)
    kept = [view[:2]]
    start, scans, framed, exif = 2, 0, False, b""
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
            _check_frame(marker[1], data[start + 4 : end], max_pixels)
            framed = True
        if marker[1] == 0xDA:
            scans += 1
            if scans > _MAX_SCANS:
                raise UnreadableImage(f"JPEG with more than {_MAX_SCANS} scans")
            stop = _END_OF_SCAN.search(data, end)
            if stop is None:
                raise UnreadableImage("truncated JPEG")
            end = stop.end() - 2
        if marker[1] not in _JPEG_TEXT:
            kept.append(view[start:end])
        elif marker[1] == 0xE1 and data[start + 4 : start + 10] == b"Exif\0\0":
            exif = exif or data[start + 10 : end]
        start = end
    if not framed or scans == 0:
        raise UnreadableImage("corrupt JPEG (no picture in it)")
    kept.append(view[start : start + 2])
    return b"".join(kept), exif


def _check_frame(marker: int, frame: bytes, max_pixels: int) -> None:
    if len(frame) < 6:
        raise UnreadableImage("corrupt JPEG (broken marker)")
    bits, height, width = struct.unpack_from(">BHH", frame)
    if marker not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA):
        raise UnreadableImage("lossless or hierarchical JPEG is not supported")
    if bits != 8:
        raise UnreadableImage(f"JPEG of {bits} bits is not supported")
    _check_size(width, height, max_pixels)


# --- both -----------------------------------------------------------------------------------------


def _pixels(opened: Callable[[], Image.Image], name: str) -> Pixels:
    try:
        # The plugins' own classes: Image.open would apply its process-wide size limit.
        with opened() as image:
            image.load()
            return _grey(image)
    except MemoryError:
        raise
    except Exception as error:
        # On damaged data Pillow raises nearly anything: OSError, SyntaxError, struct.error, ...
        raise UnreadableImage(f"corrupt {name}") from error


def _grey(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):  # 16-bit grey; older Pillows hand some of it out as int32
        pixels = np.asarray(image).astype(np.uint16)
        if (hidden := image.info.get("transparency")) is not None:
            pixels[pixels == hidden] = 0
        return pixels
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
        grey, alpha = image.convert("RGBA").convert("LA").split()
        return _on_black(np.asarray(grey), np.asarray(alpha))
    if image.mode == "CMYK":
        image = image.convert("RGB")
    return np.array(image if image.mode == "L" else image.convert("L"))


def _on_black(grey: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if alpha.min() == 255:
        return grey.copy()
    product = grey.astype(np.uint16) * alpha
    return ((product + 127) // 255).astype(np.uint8)


def _orientation(exif: bytes) -> int:
    """Find the orientation in EXIF data; 1, which is upright, where they are broken."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for index in range(count):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, start + 2 + 12 * index)
            if (tag, kind) == (0x0112, 3):
                return int(value)
    except struct.error:  # it points past its end
        pass
    return 1


def _upright(pixels: NDArray[Any], exif: bytes) -> NDArray[Any]:
    """Undo the EXIF orientation (1 to 8; anything else counts as 1)."""
    orientation = _orientation(exif)
    if orientation in (5, 6, 7, 8):
        pixels = pixels.T
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


_DECODERS: dict[str, Callable[[bytes, int], Pixels]] = {"PNG": _decode_png, "JPEG": _decode_jpeg}
