"""Decoding PNG and JPEG, whole and damaged. Oracles: the PNG specification, OpenCV, Pillow."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import COLOUR, GREY, RANDOM, chunk, reason, saved, smooth_picture, write_png
from PIL import Image

from cxr_fast.archive.images import UnreadableImage, read_image


def luma(rgb: np.ndarray) -> np.ndarray:
    return rgb.astype(np.float64) @ [0.299, 0.587, 0.114]


# --- lossless formats, against the specification --------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("width", [1, 7, 8, 33])
def test_grey_png_is_exact(bits: int, width: int) -> None:
    samples = RANDOM.integers(0, 2**bits, (11, width))
    image = read_image(write_png(samples, bits=bits, colour=0))
    assert image.dtype == (np.uint16 if bits == 16 else np.uint8)
    scale = 1 if bits == 16 else 255 // (2**bits - 1)
    np.testing.assert_array_equal(image, samples * scale)


@pytest.mark.parametrize("filter_type", range(5))
def test_png_filters(filter_type: int) -> None:
    rows = smooth_picture(40, 40)
    data = saved(Image.fromarray(rows), "PNG")
    cv2 = pytest.importorskip("cv2")
    done, encoded = cv2.imencode(".png", rows, [cv2.IMWRITE_PNG_FILTER, 8 << filter_type])
    assert done
    np.testing.assert_array_equal(read_image(encoded.tobytes()), rows)
    np.testing.assert_array_equal(read_image(data), rows)


def test_colour_png_is_luma() -> None:
    image = read_image(write_png(COLOUR.reshape(13, -1), bits=8, colour=2))
    assert image.dtype == np.uint8
    assert np.abs(image - luma(COLOUR)).max() <= 0.51


def test_sixteen_bit_colour_is_cut_to_eight() -> None:
    samples = RANDOM.integers(0, 2**16, (13, 9, 3))
    image = read_image(write_png(samples.reshape(13, -1), bits=16, colour=2))
    assert image.dtype == np.uint8
    assert np.abs(image - luma(samples / 257)).max() <= 1.5


@pytest.mark.parametrize("with_alpha", [False, True])
def test_palette(with_alpha: bool) -> None:
    palette = RANDOM.integers(0, 256, (5, 3), np.uint8)
    indices = RANDOM.integers(0, 5, (13, 9))
    alpha = np.array([255, 0, 100, 255, 255])
    extra = chunk(b"PLTE", palette.tobytes())
    if with_alpha:
        extra += chunk(b"tRNS", bytes(alpha[:3].tolist()))
    image = read_image(write_png(indices, bits=4, colour=3, extra=extra))
    expected = luma(palette)[indices] * (alpha[indices] / 255 if with_alpha else 1)
    assert np.abs(image - expected).max() <= 1.01


@pytest.mark.parametrize("colour", [4, 6])
def test_alpha_is_composited_on_black(colour: int) -> None:
    channels = 1 if colour == 4 else 3
    values = RANDOM.integers(0, 256, (13, 9, channels))
    alpha = RANDOM.integers(0, 256, (13, 9, 1))
    samples = np.concatenate([values, alpha], 2).reshape(13, -1)
    image = read_image(write_png(samples, bits=8, colour=colour))
    grey = values[..., 0] if colour == 4 else luma(values)
    assert np.abs(image - grey * alpha[..., 0] / 255).max() <= 1.01


def test_opaque_rgba_of_a_grey_image_is_that_image() -> None:
    samples = np.stack([GREY, GREY, GREY, np.full_like(GREY, 255)], 2).reshape(13, -1)
    np.testing.assert_array_equal(read_image(write_png(samples, bits=8, colour=6)), GREY)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_transparent_grey_is_black(bits: int) -> None:
    samples = np.array([[7, 1000 % 2**bits, 40]])
    hidden = struct.pack(">H", 1000 % 2**bits)
    image = read_image(write_png(samples, bits=bits, colour=0, extra=chunk(b"tRNS", hidden)))
    np.testing.assert_array_equal(image, [[7, 0, 40]])


def test_real_pngs_agree_with_opencv(real_images) -> None:
    cv2 = pytest.importorskip("cv2")
    for path in real_images("nih/images", 12):
        expected = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(read_image(path), expected)


def test_the_one_rgba_image_of_nih(real_images) -> None:
    rgba = [p for p in real_images("nih/images", 999) if p.read_bytes()[25] == 6]
    assert rgba
    with Image.open(rgba[0]) as image:
        np.testing.assert_array_equal(read_image(rgba[0]), np.asarray(image)[..., 0])


def test_accepts_every_kind_of_bytes_and_path(tmp_path: Path) -> None:
    data = write_png(GREY, bits=8, colour=0)
    path = tmp_path / "image.dat"
    path.write_bytes(data)
    for source in (data, bytearray(data), memoryview(data), path, str(path)):
        image = read_image(source)
        np.testing.assert_array_equal(image, GREY)
        image[0, 0] = 0  # the caller's own: it can be written to
        assert image.flags.c_contiguous


def test_text_and_profiles_do_not_matter() -> None:
    # 64 MiB of text in 64 KiB: decoders that read it refuse the image.
    bomb = chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(2**26), 9))
    extra = bomb + chunk(b"gAMA", struct.pack(">I", 10)) + chunk(b"iCCP", b"x\0\0broken")
    image = read_image(write_png(GREY, bits=8, colour=0, extra=extra))
    np.testing.assert_array_equal(image, GREY)


# --- JPEG -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_grey_jpeg_agrees_with_opencv(options: dict) -> None:
    cv2 = pytest.importorskip("cv2")
    data = saved(Image.fromarray(smooth_picture(70, 51)), "JPEG", **options)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.abs(read_image(data).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("options", [{}, {"keep_rgb": True}, {"subsampling": 0}])
def test_colour_jpeg_is_luma(options: dict) -> None:
    planes = [smooth_picture(64, 64), np.full((64, 64), 200), smooth_picture(64, 64).T]
    rgb = np.stack(planes, 2).astype(np.uint8)
    image = read_image(saved(Image.fromarray(rgb), "JPEG", quality=98, **options))
    assert np.abs(image - luma(rgb)).mean() < 1.0


def test_colour_jpeg_is_the_luma_that_the_file_holds() -> None:
    cv2 = pytest.importorskip("cv2")
    rgb = RANDOM.integers(0, 256, (64, 64, 3), np.uint8)
    data = saved(Image.fromarray(rgb), "JPEG", quality=90)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    # By way of RGB, clipping alone would move a third of these pixels.
    assert (read_image(data) != expected).mean() < 0.01


def test_cmyk_jpeg() -> None:
    cmyk = np.zeros((32, 32, 4), np.uint8)
    cmyk[:, :16, 3] = 200
    image = read_image(saved(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=98))
    assert abs(image[:, :12].mean() - 55) < 3
    assert abs(image[:, 20:].mean() - 255) < 3


def test_real_jpegs_agree_with_opencv(real_images) -> None:
    cv2 = pytest.importorskip("cv2")
    for path in real_images("kermany/images", 40) + real_images("siim_covid/images", 40):
        expected = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(int)
        assert np.abs(read_image(path) - expected).max() <= 1, path.name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation_is_honoured(kind: str, orientation: int) -> None:
    upright = np.zeros((24, 40), np.uint8)
    upright[:8, :16] = 250  # top left
    upright[16:, :16] = 120  # bottom left
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif)
    image = read_image(data)
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).mean() < 2


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0junk", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_broken_exif_is_no_reason_to_lose_an_image(exif: bytes) -> None:
    data = saved(Image.fromarray(smooth_picture(16, 16)), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    assert read_image(data[:2] + segment + data[2:]).shape == (16, 16)


# --- damage ---------------------------------------------------------------------------------------


def samples() -> dict[str, bytes]:
    picture = Image.fromarray(smooth_picture(200, 200))
    return {
        "png": saved(picture, "PNG"),
        "rgba": saved(picture.convert("RGBA"), "PNG"),
        "jpeg": saved(picture, "JPEG"),
        "progressive": saved(picture, "JPEG", progressive=True),
        "colour": saved(picture.convert("RGB"), "JPEG"),
    }


@pytest.mark.parametrize("name", list(samples()))
def test_truncation_is_always_found(name: str) -> None:
    data = samples()[name]
    lengths = [len(data) * part // 40 for part in range(40)] + list(range(len(data) - 16, len(data)))
    for length in lengths:
        assert reason(data[:length]), length


def test_truncation_of_real_files(real_images) -> None:
    for path in real_images("nih/images", 1) + real_images("kermany/images", 1):
        data = path.read_bytes()
        for part in range(1, 40):
            assert reason(data[: len(data) * part // 40]).startswith("truncated")


def test_flipped_bits_in_a_png_never_change_a_pixel() -> None:
    data = samples()["png"]
    whole = read_image(data)
    random = np.random.default_rng(1)
    found = 0
    for _ in range(200):
        damaged = bytearray(data)
        damaged[random.integers(len(data))] ^= 1 << random.integers(8)
        try:
            np.testing.assert_array_equal(read_image(bytes(damaged)), whole)
        except UnreadableImage:
            found += 1
    assert found >= 195  # a flip in what no pixel needs is let be


@pytest.mark.parametrize("name", ["jpeg", "progressive", "colour"])
def test_flipped_bytes_in_a_jpeg_never_crash(name: str) -> None:
    data = samples()[name]
    random = np.random.default_rng(2)
    for _ in range(200):
        damaged = bytearray(data)
        for _ in range(random.integers(1, 4)):
            damaged[random.integers(len(data))] = random.integers(256)
        try:
            image = read_image(bytes(damaged), max_pixels=2**22)
        except UnreadableImage:
            continue
        assert image.dtype == np.uint8
        assert image.ndim == 2


def test_a_forged_marker_in_a_scan_is_found() -> None:
    data = bytearray(samples()["jpeg"])
    middle = (data.index(b"\xff\xda") + len(data)) // 2
    data[middle : middle + 2] = b"\xff\x31"
    assert reason(bytes(data)) == "corrupt JPEG (broken marker)"
