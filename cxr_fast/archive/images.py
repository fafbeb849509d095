"""From a source of images to the network's input: list, read, resize.

``list_images`` names the files, ``read_image`` or ``read_picture`` gives grey pixels, and ``to_input``
what a network takes. All three may run in many threads at once: decoding and resizing release the
GIL, and nothing here is shared.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxr_fast import _numpy_ops
from cxr_fast.archive.decode import (
    MAX_PIXELS,
    Picture,
    Pixels,
    UnreadableImage,
    check_keep_tags,
    decode,
    most_bytes,
)
from cxr_fast.archive.sources import ImageList, file_name, image_id_of, list_images
from cxr_fast.archive.sources.local import read_file

__all__ = [
    "ImageList",
    "Picture",
    "UnreadableImage",
    "check_keep_tags",
    "file_name",
    "image_id_of",
    "list_images",
    "read_image",
    "read_picture",
    "resize",
    "to_input",
]


def read_image(
    path_or_bytes: str | Path | bytes | bytearray | memoryview, *, max_pixels: int = MAX_PIXELS
) -> Pixels:
    """Read an image, given as a path or as the file's bytes, to grey pixels [H, W].

    PNG, JPEG, JPEG 2000, TIFF (the first page) and DICOM (the first frame, through its windows and
    lookup tables; with the extra ``dicom``); docs/archives.md says what of each.
    uint16 for grey of more than 8 bits, else uint8 (16-bit colour, or grey with alpha, is cut to 8
    bits). Colour becomes ITU-R 601 luma. Transparent pixels are composited on black, and an alpha
    that is opaque everywhere (some NIH files) changes nothing. The orientation of EXIF or TIFF is
    honoured: pixels, and boxes on them, are those of the upright picture. Colour profiles and gamma
    are ignored.

    Raises UnreadableImage with a short reason: the file is missing, may not be read, is no regular
    file, is empty, of another type, truncated or corrupt, or its header claims no pixels or more
    than ``max_pixels``. A JPEG holds no checksum: damage inside its scan that forges no marker
    cannot be told from content. MemoryError, and OSError for a process out of file handles, pass.
    """
    return read_picture(path_or_bytes, max_pixels=max_pixels).pixels


def read_picture(
    path_or_bytes: str | Path | bytes | bytearray | memoryview,
    *,
    max_pixels: int = MAX_PIXELS,
    keep_tags: Sequence[str] = (),
) -> Picture:
    """Read an image as ``read_image`` does, with a note for the run's record, and tags asked for.

    ``note`` is empty or one sentence, such as "first of 12 frames". ``tags`` has the values of
    those of ``keep_tags`` that a DICOM file holds, as text, under the names given: a keyword
    ("PatientSex") or a number ("0010,0040"), which ``check_keep_tags`` accepts. No other value of a
    DICOM header is in what this returns, raises or logs.
    """
    if isinstance(path_or_bytes, (str, Path)):
        data = read_file(os.fspath(path_or_bytes), most_bytes(max_pixels))
    else:
        data = bytes(path_or_bytes)
    return decode(data, max_pixels, keep_tags)


def to_input(image: Pixels, size: int) -> NDArray[np.float32]:
    """Scale an image [H, W], uint8 or uint16, to float32 [size, size] in [0, 1]; see ``resize``.

    uint8 is divided by 255 and uint16 by 65535. Raises ValueError on anything else.
    """
    if image.ndim != 2 or image.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"expected an image [H, W] of uint8 or uint16, got {list(image.shape)} of"
            f" {image.dtype}; read it with read_image"
        )
    return _resized(image, size, 1.0 / np.iinfo(image.dtype).max)


def resize(image: Pixels, size: int) -> NDArray[np.float32]:
    """Stretch an image [H, W] to float32 [size, size], bilinear with antialiasing.

    The definition, for each axis of n pixels on its own: with s = n / size, output i is the mean
    of the pixels j weighted with the triangle ::

        max(0, 1 - |j + 0.5 - (i + 0.5) s| / max(s, 1))

    where pixels beyond the edge have weight 0. That is plain bilinear (half-pixel centres) when it
    enlarges, and widens by s when it reduces, so that no pixel of a fine structure is skipped.
    Pixels are not rounded on the way: unlike an 8-bit resize, the result keeps its fractions.

    Raises ValueError if ``size`` or an axis of the image is less than 1.
    """
    return _resized(image, size, 1.0)


def _resized(image: Pixels, size: int, scale: float) -> NDArray[np.float32]:
    if size < 1 or 0 in image.shape:
        raise ValueError(f"cannot resize {list(image.shape)} to {size} x {size}: both need pixels")
    resized: NDArray[np.float32] = _numpy_ops.resize(np.ascontiguousarray(image), size, scale)
    return resized
