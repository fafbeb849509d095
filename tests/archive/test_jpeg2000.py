"""JPEG 2000, whole and damaged. Oracles: the arrays that were encoded without loss, imagecodecs."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from pictures import read_damaged, reason, saved, smooth_picture
from PIL import Image

from cxr_fast.archive.images import read_image

imagecodecs = pytest.importorskip("imagecodecs")

RANDOM = np.random.default_rng(13)
GREY = smooth_picture(90, 70)
DEEP = (GREY.astype(np.uint16) << 8) + RANDOM.integers(0, 256, GREY.shape, np.uint16)
FORMS = ["j2k", "jp2"]


def encoded(pixels: np.ndarray, form: str = "j2k", tile: tuple | None = None, **options) -> bytes:
    if tile is not None:  # which imagecodecs does not write
        picture = Image.fromarray(pixels)
        return saved(picture, "JPEG2000", no_jp2=form == "j2k", tile_size=tile, irreversible=False)
    return imagecodecs.jpeg2k_encode(pixels, codecformat=form, **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pixels", [GREY, DEEP], ids=["8", "16"])
@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_grey_is_exact(form, pixels, tile) -> None:
    data = encoded(pixels, form, tile=tile)
    image = read_image(data)
    assert image.dtype == pixels.dtype
    # Some Pillows write other tiles of 16 bits than they were given.
    expected = pixels if tile is None else imagecodecs.jpeg2k_decode(data)
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [10, 12, 15])
def test_ten_to_fifteen_bits_fill_sixteen(form, bits) -> None:
    samples = DEEP >> (16 - bits)
    samples[0, 0], samples[0, 1] = 0, 2**bits - 1
    image = read_image(encoded(samples, form, bitspersample=bits))
    np.testing.assert_array_equal(image, np.rint(samples / (2**bits - 1) * 65535))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mct", [False, True])
def test_colour_is_luma(form, mct) -> None:
    colour = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)
    image = read_image(encoded(colour, form, mct=mct))
    assert image.dtype == np.uint8
    assert np.abs(image - colour @ np.array([0.299, 0.587, 0.114])).max() <= 0.51


def test_lossy_agrees_with_another_reader() -> None:
    data = encoded(GREY, level=35)
    np.testing.assert_array_equal(read_image(data), imagecodecs.jpeg2k_decode(data))


def test_high_throughput_codestream() -> None:
    np.testing.assert_array_equal(read_image(imagecodecs.htj2k_encode(DEEP)), DEEP)


def test_kinds_that_are_refused() -> None:
    assert reason(encoded(GREY.astype(np.int16))) == "JPEG 2000 of signed 16 bits is not supported"
    assert reason(encoded(DEEP.astype(np.uint32) << 4, bitspersample=20)) == (
        "JPEG 2000 of 20 bits is not supported"
    )
    assert reason(b"\xff\x4f\xff\x51") == "truncated JPEG 2000"
    assert reason(b"\xff\x4f\xff\x51\0\x20" + bytes(40)) == "corrupt JPEG 2000 (no size)"
    assert reason(b"\0\0\0\x0cjP  \r\n\x87\n") == "truncated JPEG 2000"


@pytest.mark.parametrize("form", FORMS)
def test_the_header_decides_about_size(form) -> None:
    data = encoded(GREY, form)
    assert reason(data, max_pixels=6299) == "70 x 90 is more than 6299 pixels"
    assert read_image(data, max_pixels=6300).shape == (90, 70)
    place = data.index(b"\xff\x51")
    huge = data[: place + 6] + struct.pack(">II", 60000, 60000) + data[place + 14 :]
    assert reason(huge) == "60000 x 60000 is more than 268435456 pixels"
    # Allowed, but not what the tiles fill.
    wide = data[: place + 6] + struct.pack(">II", 16000, 16000) + data[place + 14 :]
    assert reason(wide) in (
        "corrupt JPEG 2000 (a tile is missing)",
        "corrupt JPEG 2000",
    )


def samples() -> dict[str, bytes]:
    return {
        "j2k": encoded(GREY),
        "jp2": encoded(DEEP, "jp2"),
        "tiles": encoded(DEEP, tile=(32, 32)),
        "lossy": encoded(GREY, level=35),
        "lossy16": encoded(DEEP >> 4, level=40, bitspersample=12),
        "layers": encoded(GREY, "jp2", level=40, resolutions=3),
        "htj2k": imagecodecs.htj2k_encode(DEEP),
    }


@pytest.mark.parametrize("name", list(samples()))
def test_truncation_is_always_found(name: str) -> None:
    data = samples()[name]
    assert read_image(data).shape == GREY.shape
    lengths = [len(data) * part // 60 for part in range(60)] + list(range(len(data) - 16, len(data)))
    for length in lengths:
        assert reason(data[:length]), length
        # An end marker behind what is left does not make it whole.
        assert length >= len(data) - 2 or reason(data[:length] + b"\xff\xd9"), length


def test_a_missing_tile_is_found() -> None:
    data = encoded(DEEP, tile=(32, 32))
    start = data.index(b"\xff\x90")
    (length,) = struct.unpack_from(">I", data, start + 6)
    assert reason(data[:start] + data[start + length :]) == "corrupt JPEG 2000 (a tile is missing)"


@pytest.mark.parametrize("name", ["j2k", "jp2", "tiles", "lossy", "htj2k"])
def test_flipped_bytes_never_crash(name: str, recwarn, capfd) -> None:
    read_damaged(samples()[name], 0, 200, 200, 3)
    assert not recwarn.list
    assert "".join(capfd.readouterr()) == ""
