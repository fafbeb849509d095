"""What all decoders share: the error, the grey pixels, the upright picture."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8] | NDArray[np.uint16]

MAX_PIXELS = 2**28


class Picture(NamedTuple):
    """What a file gave: grey pixels [H, W], a sentence for the run's record, the tags asked for."""

    pixels: Pixels
    note: str = ""
    tags: Mapping[str, str] = {}


class UnreadableImage(Exception):  # noqa: N818 (it reads as what it says)
    """An image that gives no pixels; ``reason`` says why, short and the same on every run."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def most_bytes(max_pixels: int) -> int:
    """Bytes that a file of so many pixels may have: two each, not compressed, texts and profiles."""
    return 2 * max_pixels + 2**24


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse a header's claim before memory is taken for it."""
    if width == 0 or height == 0:
        raise UnreadableImage(f"width or height is 0 ({width} x {height})")
    if width * height > max_pixels:
        raise UnreadableImage(f"{width} x {height} is more than {max_pixels} pixels")


def pixels_of(opened: Callable[[], Image.Image], name: str) -> Pixels:
    """Load what Pillow opens; ``UnreadableImage`` for whatever it raises on damage."""
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


def luma(rgb: NDArray[Any]) -> NDArray[Any]:
    """ITU-R 601 luma of [..., 3] in the dtype of ``rgb``, rounded as Pillow rounds it."""
    weights = np.array([19595, 38470, 7471], np.uint32)  # 0.299, 0.587, 0.114 in 1/65536; sum 65536
    red, green, blue = (rgb[..., i].astype(np.uint32) * weights[i] for i in range(3))
    grey: NDArray[Any] = ((red + green + blue + np.uint32(0x8000)) >> 16).astype(rgb.dtype)
    return grey


def upright(pixels: NDArray[Any], exif: bytes) -> NDArray[Any]:
    """Undo the EXIF orientation (1 to 8; anything else counts as 1)."""
    return turned(pixels, _orientation(exif))


def turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Make a picture stored in an ``orientation`` of EXIF and TIFF (1 to 8, else 1) upright."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.T
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
