"""The bytes of an image file to grey pixels, with damage found before a decoder can paint over it.

Pillow turns the bytes into pixels, but for the PNG files that archives are made of, which ``png`` reads
several times as fast. All of it releases the GIL. Pillow does not check a PNG's checksums, and no JPEG
library can tell a damaged scan from a grey one, so the structure of the file is walked here first:
every PNG chunk with its CRC, every JPEG marker up to the end marker.
"""

from __future__ import annotations

from collections.abc import Callable

from cxr_fast.archive.decode.common import Pixels, UnreadableImage
from cxr_fast.archive.decode.jpeg import decode_jpeg
from cxr_fast.archive.decode.png import PNG_SIGNATURE, decode_png

__all__ = ["HEAD_BYTES", "Pixels", "UnreadableImage", "check_type", "decode", "file_type"]

# Longer than any preamble below; a DICOM file shows its name at byte 128.
HEAD_BYTES = 132

_SIGNATURES = (
    (PNG_SIGNATURE, "PNG"),
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


_DECODERS: dict[str, Callable[[bytes, int], Pixels]] = {"PNG": decode_png, "JPEG": decode_jpeg}
