"""TIFF, whole and damaged. Oracles: the arrays that tifffile and Pillow wrote."""

from __future__ import annotations

import io
import pickle
import struct

import numpy as np
import pytest
from pictures import read_damaged, reason, saved, smooth_picture
from PIL import Image

from cxr_fast.archive.images import UnreadableImage, read_image, read_picture

tifffile = pytest.importorskip("tifffile")

RANDOM = np.random.default_rng(11)
GREY = smooth_picture(90, 70)
DEEP = (GREY.astype(np.uint16) << 8) + RANDOM.integers(0, 256, GREY.shape, np.uint16)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)
LAYOUTS = [{}, {"rowsperstrip": 16}, {"tile": (32, 48)}]
CODECS = [None, "lzw", "zlib", "packbits"]


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def luma(rgb: np.ndarray) -> np.ndarray:
    return rgb.astype(np.float64) @ [0.299, 0.587, 0.114]


def entries(data: bytes) -> dict[int, int]:
    """Where each field of the first directory of a little-endian classic TIFF lies."""
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    places = range(start + 2, start + 2 + 12 * count, 12)
    return {struct.unpack_from("<H", data, place)[0]: place for place in places}


def changed(data: bytes, tag: int, value: int, kind: int = 4) -> bytes:
    """The first directory's field with one value, given instead of its own."""
    place = entries(data)[tag]
    body = struct.pack("<HIHH" if kind == 3 else "<HII", kind, 1, value, *([0] if kind == 3 else []))
    return data[: place + 2] + body + data[place + 12 :]


# --- what comes out -------------------------------------------------------------------------------


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("white", [False, True])
@pytest.mark.parametrize("pixels", [GREY, DEEP], ids=["8", "16"])
def test_grey_is_exact(byteorder, bigtiff, layout, codec, white, pixels) -> None:
    data = tiff(
        pixels,
        byteorder=byteorder,
        bigtiff=bigtiff,
        photometric="miniswhite" if white else "minisblack",
        compression=codec,
        **layout,
    )
    image = read_image(data)
    assert image.dtype == pixels.dtype
    np.testing.assert_array_equal(image, np.invert(pixels) if white else pixels)


@pytest.mark.parametrize("codec", ["lzw", "zlib"])
@pytest.mark.parametrize("pixels", [GREY, DEEP, COLOUR], ids=["8", "16", "rgb"])
def test_predictor(codec, pixels) -> None:
    data = tiff(pixels, compression=codec, predictor=True)
    expected = luma(pixels) if pixels.ndim == 3 else pixels
    assert np.abs(read_image(data) - expected).max() <= (0.51 if pixels.ndim == 3 else 0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("codec", CODECS)
def test_colour_is_luma(layout, planar, codec) -> None:
    pixels = COLOUR if planar == "contig" else np.ascontiguousarray(COLOUR.transpose(2, 0, 1))
    data = tiff(pixels, photometric="rgb", planarconfig=planar, compression=codec, **layout)
    image = read_image(data)
    assert image.dtype == np.uint8
    assert np.abs(image - luma(COLOUR)).max() <= 0.51


@pytest.mark.parametrize("codec", CODECS)
def test_sixteen_bit_colour_is_cut_to_eight(codec) -> None:
    samples = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]], -1)
    image = read_image(tiff(samples, photometric="rgb", compression=codec))
    assert image.dtype == np.uint8
    assert np.abs(image - luma(samples / 257)).max() <= 1.5


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_alpha_is_composited_on_black(kind) -> None:
    alpha = RANDOM.integers(0, 256, (*GREY.shape, 1), np.uint8)
    straight = RANDOM.integers(0, 256, COLOUR.shape, np.uint8)
    premultiplied = np.rint(straight * (alpha / 255)).astype(np.uint8)
    stored = straight if kind == "unassalpha" else premultiplied
    data = tiff(np.concatenate([stored, alpha], -1), photometric="rgb", extrasamples=[kind])
    assert np.abs(read_image(data) - luma(straight * (alpha / 255))).max() <= 1.51


@pytest.mark.parametrize("white", [False, True])
@pytest.mark.parametrize("codec", [None, "packbits", "zlib", "lzw"])
def test_bilevel(white, codec) -> None:
    bits = GREY > 128
    photometric = "miniswhite" if white else "minisblack"
    image = read_image(tiff(bits, photometric=photometric, compression=codec))
    np.testing.assert_array_equal(image, 255 * (bits != white).astype(np.uint8))


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_fill_the_range(bits) -> None:
    pytest.importorskip("imagecodecs")
    samples = RANDOM.integers(0, 2**bits, GREY.shape, np.uint8)
    image = read_image(tiff(samples, bitspersample=bits, photometric="minisblack"))
    np.testing.assert_array_equal(image, samples * (255 // (2**bits - 1)))


def test_palette() -> None:
    palette = RANDOM.integers(0, 256, (3, 256)) * 257
    data = tiff(GREY, photometric="palette", colormap=palette.astype(np.uint16))
    assert np.abs(read_image(data) - luma(palette.T / 257)[GREY]).max() <= 1.01


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_strips(mode) -> None:
    picture = Image.fromarray(GREY).convert(mode)
    data = saved(picture, "TIFF", compression="jpeg", quality=95)
    assert np.abs(read_image(data).astype(int) - GREY).mean() < 2


@pytest.mark.parametrize("tile", [(32, 48), None])
@pytest.mark.parametrize("kind", ["minisblack", "rgb"])
def test_jpeg_tiles_of_another_writer(tile, kind) -> None:
    pytest.importorskip("imagecodecs")
    pixels = GREY if kind == "minisblack" else np.stack([GREY] * 3, -1)
    data = tiff(pixels, compression="jpeg", compressionargs={"level": 95}, photometric=kind, tile=tile)
    assert np.abs(read_image(data).astype(int) - GREY).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("pixels", [GREY, DEEP], ids=["8", "16"])
def test_orientation_is_honoured(orientation, pixels) -> None:
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.T,
        6: np.rot90(pixels, 1),
        7: pixels[::-1, ::-1].T,
        8: np.rot90(pixels, -1),
    }[orientation]
    data = tiff(stored, extratags=[(274, "H", 1, orientation, True)])
    np.testing.assert_array_equal(read_image(data), pixels)


def test_the_first_page_with_a_note() -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page in (GREY, DEEP[:5], COLOUR):
            writer.write(page)
    picture = read_picture(file.getvalue())
    np.testing.assert_array_equal(picture.pixels, GREY)
    assert picture.note == "first of 3 pages"
    assert pickle.loads(pickle.dumps(picture)).note == picture.note
    assert read_picture(tiff(GREY))[1:] == ("", {})


def test_text_and_private_fields_reach_nobody(recwarn, capfd) -> None:
    marker = "MARKER" * 20
    extra = [(65000, "s", 0, marker, True), (33432, "s", 0, marker, True), (700, "B", 3, b"xyz", True)]
    data = tiff(GREY, description=marker, software=marker, extratags=extra)
    np.testing.assert_array_equal(read_image(data), GREY)
    assert not recwarn.list
    assert "".join(capfd.readouterr()) == ""


# --- what is refused ------------------------------------------------------------------------------


def test_kinds_that_are_refused() -> None:
    unsupported = "TIFF of signed or floating-point samples is not supported"
    assert reason(tiff(GREY.astype(np.float32))) == unsupported
    assert reason(tiff(GREY.astype(np.int16))) == unsupported
    assert reason(tiff(GREY.astype(np.uint32))) == "TIFF of 32 bits a sample is not supported"
    data = tiff(GREY)
    assert reason(changed(data, 259, 6, 3)) == "TIFF of compression 6 is not supported"
    assert reason(changed(data, 259, 34712, 3)) == "TIFF of compression 34712 is not supported"
    said = "TIFF of photometric interpretation 8 and 1 samples a pixel is not supported"
    assert reason(changed(data, 262, 8, 3)) == said
    assert reason(changed(data, 256, 0)) == "width or height is 0 (0 x 90)"
    assert reason(changed(data, 259, 2, 2)) == "corrupt TIFF (a field of the wrong kind)"
    assert reason(b"II*\0" + bytes(40)) == "corrupt TIFF (no page in it)"
    assert reason(b"II+\0" + bytes(40)) == "corrupt TIFF (no page in it)"
    assert reason(b"II*\0") == "truncated TIFF"


def test_the_header_decides_about_size() -> None:
    data = tiff(GREY)
    huge = changed(changed(data, 256, 60000), 257, 60000)
    assert reason(huge) == "60000 x 60000 is more than 268435456 pixels"
    assert reason(data, max_pixels=6299) == "70 x 90 is more than 6299 pixels"
    assert read_image(data, max_pixels=6300).shape == (90, 70)
    tiled = tiff(GREY, tile=(32, 48))
    assert reason(changed(changed(tiled, 322, 60000), 323, 60000), max_pixels=10**6) == (
        "60000 x 60000 is more than 4194304 pixels"
    )
    claimed = changed(changed(data, 256, 8000), 257, 8000)
    assert reason(changed(claimed, 278, 8000)) == "corrupt TIFF (a strip or tile is too short)"
    assert reason(claimed) == "corrupt TIFF (fewer strips or tiles than its size needs)"


def test_a_circle_of_pages_is_found() -> None:
    data = bytearray(tiff(GREY))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    data[start + 2 + 12 * count : start + 6 + 12 * count] = struct.pack("<I", start)
    assert reason(bytes(data)) == "corrupt TIFF (its pages run in a circle)"


def jpeg_tiff() -> bytes:
    return saved(Image.fromarray(GREY).convert("RGB"), "TIFF", compression="jpeg")


def samples() -> dict[str, bytes]:
    found = {
        f"{codec}-{name}-{layout}": tiff(pixels, compression=codec, **LAYOUTS[layout])
        for codec in CODECS
        for name, pixels in (("8", GREY), ("16", DEEP), ("rgb", COLOUR))
        for layout in range(3)
    }
    found["jpeg"] = jpeg_tiff()
    # Pillow writes the directory in front of the strips, tifffile too; libtiff behind them.
    found["behind"] = saved(Image.fromarray(GREY), "TIFF", compression="tiff_lzw")
    return found


@pytest.mark.parametrize("name", list(samples()))
def test_truncation_is_always_found(name: str) -> None:
    data = samples()[name]
    lengths = [len(data) * part // 40 for part in range(40)] + list(range(len(data) - 16, len(data)))
    for length in lengths:
        assert "TIFF" in reason(data[:length]) or length < 8, length


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("pixels", [GREY, DEEP, COLOUR], ids=["8", "16", "rgb"])
def test_strips_that_end_early_are_found(codec, pixels) -> None:
    """The file is whole, but its one strip is said to be shorter than it is."""
    data = tiff(pixels, compression=codec, rowsperstrip=90)
    place = entries(data)[279]
    (size,) = struct.unpack_from("<I", data, place + 8)
    for part in range(1, 30):
        assert reason(changed(data, 279, size * part // 30)).startswith("corrupt TIFF"), part


def test_a_jpeg_strip_that_ends_early_is_found() -> None:
    data = jpeg_tiff()
    (size,) = struct.unpack_from("<I", data, entries(data)[279] + 8)
    for part in range(1, 20):
        assert "JPEG" in reason(changed(data, 279, size * part // 20))


def test_a_jpeg_strip_of_another_size_is_found() -> None:
    strips = [saved(Image.fromarray(GREY[:, :60]), "JPEG"), saved(Image.fromarray(GREY[:50]), "JPEG")]
    for strip in strips:
        data = changed(tiff(GREY), 259, 7, 3)
        data = changed(changed(data, 273, len(data)), 279, len(strip)) + strip
        assert reason(data) == "corrupt TIFF (its JPEG has another size)"


def test_flipped_bits_in_deflated_strips_never_change_a_pixel() -> None:
    data = tiff(DEEP, compression="zlib")
    (start,) = struct.unpack_from("<I", data, entries(data)[273] + 8)
    found = 0
    for _ in range(100):
        damaged = bytearray(data)
        damaged[RANDOM.integers(start, len(data))] ^= 1 << RANDOM.integers(8)
        try:
            np.testing.assert_array_equal(read_image(bytes(damaged)), DEEP)
        except UnreadableImage:
            found += 1
    assert found >= 98


@pytest.mark.parametrize("name", ["None-16-1", "lzw-8-2", "zlib-rgb-0", "packbits-8-1", "jpeg"])
def test_flipped_bytes_never_crash(name: str, recwarn) -> None:
    read_damaged(samples()[name], 0, 400, 300, 5)
    assert not recwarn.list
