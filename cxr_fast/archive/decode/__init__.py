"""The bytes of an image file to grey pixels, with damage found before a decoder can paint over it.

Pillow turns the bytes into pixels, but for the PNG files that archives are made of, which ``png`` reads
several times as fast, and for DICOM's frames, which imagecodecs decodes. All of it releases the GIL,
but for TIFF and JPEG 2000. Pillow does not check a PNG's checksums, no JPEG library can tell a damaged
scan from a grey one, and libtiff fills what is missing. So the structure of the file is walked here
first: every PNG chunk with its CRC, every marker of a JPEG or JPEG 2000 up to the end marker, every
strip of a TIFF, every element of a DICOM file up to its pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cxr_fast.archive.decode.common import MAX_PIXELS, Picture, Pixels, UnreadableImage, most_bytes
from cxr_fast.archive.decode.dicom import check_keep_tags, decode_dicom
from cxr_fast.archive.decode.dicom_elements import begins_without_preamble
from cxr_fast.archive.decode.jpeg import decode_jpeg
from cxr_fast.archive.decode.jpeg2000 import decode_jpeg2000
from cxr_fast.archive.decode.png import PNG_SIGNATURE, decode_png
from cxr_fast.archive.decode.tiff import decode_tiff

__all__ = [
    "HEAD_BYTES",
    "MAX_PIXELS",
    "Picture",
    "Pixels",
    "UnreadableImage",
    "check_keep_tags",
    "check_type",
    "decode",
    "file_type",
    "most_bytes",
]

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
    # Asked first: some DICOM files begin like a TIFF.
    if head[128:132] == b"DICM" or begins_without_preamble(head):
        return "DICOM"
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    return None


def check_type(head: bytes) -> str:
    """Return ``file_type``; UnreadableImage unless a file that starts so can be decoded here."""
    if not head:
        raise UnreadableImage("empty file (0 bytes)")
    name = file_type(head)
    if name is None:
        raise UnreadableImage(f"unknown file type; first bytes {head[:8].hex(' ')}")
    if name not in ("DICOM", "TIFF") and name not in _PLAIN:
        raise UnreadableImage(f"{name} is not supported")
    return name


def decode(data: bytes, max_pixels: int, keep_tags: Sequence[str] = ()) -> Picture:
    """The picture of a whole image file: grey pixels [H, W], uint8 or uint16, a note, and tags.

    Of a DICOM file, the values of ``keep_tags`` are given too, and no other; see
    ``check_keep_tags``. Raises UnreadableImage. A header that claims more than ``max_pixels`` pixels
    is refused before memory is taken for them.
    """
    name = check_type(data[:HEAD_BYTES])
    if name == "DICOM":
        return decode_dicom(data, max_pixels, keep_tags)
    if name == "TIFF":
        return decode_tiff(data, max_pixels)
    return Picture(_PLAIN[name](data, max_pixels))


_PLAIN: dict[str, Callable[[bytes, int], Pixels]] = {
    "PNG": decode_png,
    "JPEG": decode_jpeg,
    "JPEG 2000": decode_jpeg2000,
}
