"""Pictures to test on, files made of them from the formats' own rules, and why one is refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cxr_fast.archive.images import UnreadableImage, read_image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
RANDOM = np.random.default_rng(7)
GREY = RANDOM.integers(0, 256, (13, 9), np.uint8)
COLOUR = RANDOM.integers(0, 256, (13, 9, 3), np.uint8)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def write_png(
    samples: np.ndarray, *, bits: int, colour: int, extra: bytes = b"", size: tuple | None = None
) -> bytes:
    """A PNG made from the specification alone: rows [H, W * channels] of raw samples, filter 0.

    ``size`` overrides the (width, height) of the header.
    """
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    height, width = samples.shape[0], samples.shape[1] // channels
    if bits == 16:
        rows = samples.astype(">u2").tobytes()
    elif bits == 8:
        rows = samples.astype(np.uint8).tobytes()
    else:
        planes = (samples[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        rows = np.packbits(planes.reshape(height, -1), axis=1).tobytes()
    stride = len(rows) // height
    filtered = b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(height))
    header = struct.pack(">IIBBBBB", *(size or (width, height)), bits, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(filtered))
    return PNG_SIGNATURE + chunk(b"IHDR", header) + extra + body + chunk(b"IEND", b"")


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def smooth_picture(height: int, width: int) -> np.ndarray:
    """A grey uint8 picture of slow waves and a little noise: compresses like a real image."""
    y, x = np.mgrid[:height, :width]
    waves = 128 + 60 * np.sin(y / 17.0) * np.cos(x / 23.0)
    noise = np.random.default_rng(0).normal(0, 3, (height, width))
    return np.clip(waves + noise, 0, 255).astype(np.uint8)


def reason(data: object, **options: int) -> str:
    with pytest.raises(UnreadableImage) as caught:
        read_image(data, **options)
    assert str(caught.value) == caught.value.reason
    return caught.value.reason


def read_damaged(data: bytes, first: int, near: int, tries: int, most: int) -> None:
    """Read files with 1 to ``most`` random bytes put in: each gives grey pixels or is refused.

    The bytes are put in behind ``first``, half of them before ``near``, where headers are.
    """
    for _ in range(tries):
        damaged = bytearray(data)
        for _ in range(RANDOM.integers(1, most + 1)):
            end = min(near, len(data)) if RANDOM.integers(2) else len(data)
            damaged[RANDOM.integers(first, end)] = RANDOM.integers(256)
        try:
            image = read_image(bytes(damaged), max_pixels=2**20)
        except UnreadableImage:
            continue
        assert image.dtype in (np.uint8, np.uint16)
