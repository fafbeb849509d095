"""Listing, reading and resizing. Oracles: glob, the PNG specification, OpenCV, torch, numpy."""

from __future__ import annotations

import glob
import io
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cxr_fast.archive.images import (
    UnreadableImage,
    file_name,
    image_id_of,
    list_images,
    read_image,
    resize,
    to_input,
)

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


def luma(rgb: np.ndarray) -> np.ndarray:
    return rgb.astype(np.float64) @ [0.299, 0.587, 0.114]


def reason(data: object, **options: int) -> str:
    with pytest.raises(UnreadableImage) as caught:
        read_image(data, **options)
    assert str(caught.value) == caught.value.reason
    return caught.value.reason


# --- listing ------------------------------------------------------------------------------------


def grow(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_folder(tmp_path: Path) -> None:
    grow(tmp_path, "b/2.png", "b/1.JPG", "a.png", "b.png", "no_suffix", "scan.dcm", "b/c/d/e.tif")
    grow(tmp_path, ".hidden.png", ".git/x.png", "labels.csv", "notes.TXT", "m.json", "b/README.md")
    (tmp_path / "c").mkdir()
    found = list_images(tmp_path)
    ids = ("a.png", "b.png", "b/1.JPG", "b/2.png", "b/c/d/e.tif", "no_suffix", "scan.dcm")
    assert found.image_ids == ids
    assert found.paths == [str(tmp_path / name) for name in ids]
    assert found.path(2) == str(tmp_path / "b" / "1.JPG")
    assert len(found) == 7
    assert list_images(str(tmp_path) + "/") == found


def test_relative_source_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(grow(tmp_path, "in/a.png"))
    for source in ("in", "./in/", "in/*.png", "in/a.png", "../" + tmp_path.name + "/in"):
        assert list_images(source).image_ids == ("a.png",)
        assert list_images(source).paths == [str(tmp_path / "in" / "a.png")]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    grow(tmp_path, "in/z/1.png", "out/2.png", "out/deep/3.png", "4.png")
    source = tmp_path / "in"
    (source / "up").symlink_to("..")  # a loop
    (source / "self").symlink_to(".")
    (source / "a_link_to_z").symlink_to("z")  # sorts before z, yet z keeps its name
    (source / "file.png").symlink_to("../4.png")
    (source / "dead.png").symlink_to("nowhere")
    (source / "circle.png").symlink_to("circle.png")
    os.mkfifo(source / "pipe.png")
    found = list_images(source)
    # What cannot be read is listed too: it must end in the errors table, not in silence.
    assert found.image_ids == (
        *("circle.png", "dead.png", "file.png", "pipe.png"),
        *("up/4.png", "up/out/2.png", "up/out/deep/3.png", "z/1.png"),
    )


def test_a_linked_folder_keeps_its_own_name(tmp_path: Path) -> None:
    names = [f"{letter}/x.png" for letter in "bdfhjlnprt"]
    grow(tmp_path, *names)
    for name in names:
        for letter in "acz":
            (tmp_path / f"{letter}-{name[0]}").symlink_to(name[0])
    assert list(list_images(tmp_path).image_ids) == names


def test_the_number_of_links_does_not_matter(tmp_path: Path) -> None:
    for index in range(12):  # 12! ways through
        grow(tmp_path, f"{index}/x.png")
        for other in range(12):
            (tmp_path / f"{index}" / f"to{other}").symlink_to(f"../{other}")
    assert len(list_images(tmp_path)) == 12
    assert len(list_images(f"{tmp_path}/**/*.png")) == 12


@pytest.mark.parametrize(
    "pattern",
    [
        "*.png", "**/*.png", "**", "**/**/*", "*/*.png", "a/**/*.png", "**/b/*.png", "a/**/c/*.png",
        "?.png", "[ab].png", "**/c/**/*", "*/b/*", "a/b/*", "**/*b*/**", "./*.png", "a//*.png",
    ],
)  # fmt: skip
def test_patterns_agree_with_glob(tmp_path: Path, pattern: str) -> None:
    grow(tmp_path, "a.png", "b.png", "cc.png", "a/a.png", "a/b/x.png", "a/b/c/y.png", "b/b/z.png")
    grow(tmp_path, "a/c/c/w.jpg", "d/a/b/c/v.png", ".h/h.png", "a/.h.png")
    text = f"{tmp_path}/{pattern}"
    expected = {os.path.normpath(p) for p in glob.glob(text, recursive=True) if os.path.isfile(p)}
    found = list_images(text)
    assert set(found.paths) == expected
    assert list(found.image_ids) == sorted(found.image_ids)
    fixed = tmp_path / "a" if pattern.startswith("a/") else tmp_path
    fixed = fixed / "b" if pattern.startswith("a/b/") else fixed
    assert found.root == str(fixed)


def test_a_folder_whose_name_has_wildcards_is_that_folder(tmp_path: Path) -> None:
    grow(tmp_path, "a[b]*/x.png", "ab/y.png")
    assert list_images(tmp_path / "a[b]*").image_ids == ("x.png",)


@pytest.mark.parametrize("header", ["path", "Image Index", " IMAGE ", "PATH"])
def test_csv_with_a_known_column(tmp_path: Path, header: str) -> None:
    grow(tmp_path, "in/z.png", "in/a.png", "else.png")
    table = tmp_path / "in" / "list.csv"
    rows = ["z.png", "./a.png", "missing.png", "../else.png", str(tmp_path / "in/sub/../b.png")]
    lines = [f"label,{header}\n", *(f'"1,2",{row}\n' for row in rows), "\n"]
    if header == "path":  # first in its line, so right behind the byte order mark
        lines = [f"{header},label\n", *(f'{row},"1,2"\n' for row in rows), "\n"]
    table.write_text("\ufeff" + "".join(lines), encoding="utf-8")
    found = list_images(table)
    assert found.image_ids == ("z.png", "a.png", "missing.png", "../else.png", "b.png")
    assert os.path.samefile(found.path(3), tmp_path / "else.png")


def test_csv_by_its_first_column(tmp_path: Path) -> None:
    grow(tmp_path, "a.png", "b.png")
    table = tmp_path / "list.csv"
    table.write_text("file,label\nb.png,1\na.png,0\n")
    assert list_images(table).image_ids == ("b.png", "a.png")
    table.write_text("\ufeffb.png,1\na.png,0\n", encoding="utf-8")  # no header: a file
    assert list_images(table).image_ids == ("b.png", "a.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\na.png\n./a.png\n", r"names 'a\.png' more than once"),
        ("path\na.png\nsub/../a.png\n", r"names 'a\.png' more than once"),
        ("path\n", "names no file"),
        ("", "names no file"),
        ("label,path\n1,a.png\n2,\n", "line 3 of .* names no image"),
        ("label,path\n1\n", "line 2 of .* names no image"),
        ("path\n" + "x" * 200_000, "is not CSV"),
    ],
)
def test_csv_refusals(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "list.csv"
    table.write_text(text)
    with pytest.raises(ValueError, match=message):
        list_images(table)


def test_single_file(tmp_path: Path) -> None:
    grow(tmp_path, "sub/one.weird")
    found = list_images(tmp_path / "sub" / "one.weird")
    assert found.image_ids == ("one.weird",)
    assert found.paths == [str(tmp_path / "sub" / "one.weird")]


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.png", "", "a\0b", "sub/nothing.png"])
def test_missing_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^no images: "):
        list_images(source)


def test_empty_source(tmp_path: Path) -> None:
    grow(tmp_path, "notes.txt", ".hidden")
    for source in (tmp_path, f"{tmp_path}/*.png"):
        with pytest.raises(ValueError, match=r"^no images: the "):
            list_images(source)


def test_names_that_are_not_text(tmp_path: Path) -> None:
    names = [
        *(b"plain.png", "\u00e9.png".encode(), b"new\nline.png", b"latin\xe9.png", b"100%.png"),
        *(b"back\\x0aslash.png", b"tab\t\x7f.png", "sep\u2028\u0085.png".encode()),
        *(b"half\xc3.png", b"quote'\".png"),
    ]
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    found = list_images(tmp_path)
    assert sorted(os.fsencode(os.path.basename(path)) for path in found.paths) == sorted(names)
    assert all(os.path.isfile(path) for path in found.paths)
    assert all(len(image_id.splitlines()) == 1 for image_id in found.image_ids)
    assert pa.array(found.image_ids, pa.string()).to_pylist() == list(found.image_ids)
    ids = set(found.image_ids)
    assert {"plain.png", "\u00e9.png", "100%.png", r"new\x0aline.png", r"latin\xe9.png"} <= ids
    assert {r"back\x5cx0aslash.png", r"tab\x09\x7f.png", r"sep\xe2\x80\xa8\xc2\x85.png"} <= ids
    lines = b"path\n" + b"\n".join(n for n in names if not {10, 34} & set(n))
    (tmp_path / "list.csv").write_bytes(lines)
    assert set(list_images(tmp_path / "list.csv").image_ids) <= ids


@given(st.binary(min_size=1, max_size=40))
def test_an_id_is_reversible(raw: bytes) -> None:
    name = os.fsdecode(raw)
    image_id = image_id_of(name)
    image_id.encode("utf-8")  # valid text
    assert os.fsencode(file_name(image_id)) == raw
    assert "\n" not in image_id


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


# --- what is not an image -------------------------------------------------------------------------


def test_reasons_of_the_file_system(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "dead.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # a socket's whole path may have 107 bytes only
        server.bind("socket.png")
        os.chdir(here)
        assert reason(tmp_path / "socket.png") == "a socket, not a file"
    assert reason(tmp_path / "none.png") == "no such file"
    assert reason(tmp_path / "dead.png") == "no such file"
    assert reason(tmp_path / "empty.png" / "x.png") == "no such file"
    assert reason(tmp_path / "a\0b.png") == "no such file"
    assert reason(tmp_path / "empty.png") == "empty file (0 bytes)"
    assert reason(tmp_path) == "a folder, not a file"
    assert reason(tmp_path / "pipe.png") == "a pipe, not a file"
    assert reason("/dev/zero") == "a device, not a file"
    assert reason(tmp_path / "loop.png").startswith("cannot be read: Too many levels")
    assert reason(tmp_path / ("x" * 300)).startswith("cannot be read: File name too long")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(write_png(GREY, bits=8, colour=0))
    path.chmod(0)
    if os.geteuid() == 0:  # root may read everything

        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
    assert reason(path) == "no permission to read it"


def test_a_process_out_of_handles_is_not_the_images_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(24, "Too many open files")

    (tmp_path / "image.png").write_bytes(write_png(GREY, bits=8, colour=0))
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        read_image(tmp_path / "image.png")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"hello world", "unknown file type; first bytes 68 65 6c 6c 6f 20 77 6f"),
        (b"\0", "unknown file type; first bytes 00"),
        (b"\xff\xd8", "unknown file type; first bytes ff d8"),
        (b"II*\0" + bytes(40), "TIFF is not supported yet"),
        (bytes(128) + b"DICM" + bytes(40), "DICOM is not supported yet"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "WebP is not supported yet"),
        (b"", "empty file (0 bytes)"),
        (PNG_SIGNATURE, "truncated PNG"),
        (PNG_SIGNATURE + bytes(40), "corrupt PNG (no header)"),
        (b"\xff\xd8\xff\xd9", "corrupt JPEG (no picture in it)"),
        (b"\xff\xd8\xff\xe0", "truncated JPEG"),
    ],
)
def test_other_types(tmp_path: Path, data: bytes, expected: str) -> None:
    assert reason(data) == expected
    (tmp_path / "image").write_bytes(data)
    assert reason(tmp_path / "image") == expected


def test_real_dicom_is_named(real_images) -> None:
    # One of them begins like a TIFF.
    reasons = {reason(path) for path in real_images("dicom", 99)}
    assert reasons == {"DICOM is not supported yet"}


def test_the_header_decides_about_size(tmp_path: Path) -> None:
    zero = write_png(GREY, bits=8, colour=0, size=(0, 13))
    assert reason(zero) == "width or height is 0 (0 x 13)"
    absurd = write_png(GREY, bits=16, colour=6, extra=b"", size=(2**31 - 1, 2**31 - 1))[:4000]
    assert reason(absurd) == "2147483647 x 2147483647 is more than 268435456 pixels"
    fits = write_png(GREY, bits=8, colour=0)
    assert read_image(fits, max_pixels=117).shape == (13, 9)
    assert reason(fits, max_pixels=116) == "9 x 13 is more than 116 pixels"
    jpeg = bytearray(saved(Image.fromarray(smooth_picture(16, 16)), "JPEG"))
    assert reason(bytes(jpeg), max_pixels=255) == "16 x 16 is more than 255 pixels"
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 4] = 12
    assert reason(bytes(jpeg)) == "JPEG of 12 bits is not supported"
    jpeg[frame + 4 : frame + 7] = b"\x08\0\0"
    assert reason(bytes(jpeg)) == "width or height is 0 (16 x 0)"
    jpeg[frame + 1] = 0xC3
    assert reason(bytes(jpeg)) == "lossless or hierarchical JPEG is not supported"
    big = tmp_path / "big.png"
    with big.open("wb") as file:  # sparse: a terabyte on paper
        file.write(fits)
        file.truncate(2**40)
    assert reason(big).startswith("a file of 1099511627776 bytes")


def test_an_image_above_pillows_own_limit_is_read() -> None:
    side = 13_400  # 180 million pixels; Pillow's Image.open refuses 179 million
    rows = zlib.compress((b"\0" + b"\xff" * ((side + 7) // 8)) * side, 1)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert read_image(PNG_SIGNATURE + data).shape == (side, side)


def test_a_png_whose_data_end_early_is_no_picture() -> None:
    for kind, value in ((0, 0), (0, 200), (3, 1), (6, 255)):  # colour type, each sample's value
        width = 4 if kind == 6 else 1
        row = b"\0" + bytes([value]) * 64 * width
        extra = chunk(b"PLTE", bytes([90, 90, 90, 7, 7, 7])) if kind == 3 else b""
        header = struct.pack(">IIBBBBB", 64, 64, 8, kind, 0, 0, 0)
        for rows in (0, 1, 32, 63, 63.5, 64):
            body = chunk(b"IDAT", zlib.compress((row * 64)[: int(len(row) * rows)]))
            end = chunk(b"IEND", b"")
            whole = PNG_SIGNATURE + chunk(b"IHDR", header) + extra + body + end  # checksums right
            if rows == 64:
                assert read_image(whole).shape == (64, 64)
            else:
                assert reason(whole) == "corrupt PNG"


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (13, 21)])
@pytest.mark.parametrize("black", [False, True])
def test_interlaced_png(size: tuple, black: bool) -> None:
    picture = np.zeros(size, np.uint8) if black else RANDOM.integers(0, 256, size, np.uint8)
    rows = b""
    for x, x_step, y, y_step in (
        *((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4)),
        *((0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2)),
    ):
        for row in picture[y::y_step, x::x_step]:
            rows += b"\0" + row.tobytes() if row.size else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], 8, 0, 0, 0, 1))
    for cut in range(len(rows)):
        body = chunk(b"IDAT", zlib.compress(rows[: len(rows) - cut]))
        whole = PNG_SIGNATURE + header + body + chunk(b"IEND", b"")
        if cut:
            assert reason(whole) == "corrupt PNG"
        else:
            np.testing.assert_array_equal(read_image(whole), picture)


def test_a_jpeg_with_thousands_of_scans_is_refused() -> None:
    data = saved(Image.fromarray(smooth_picture(16, 16)), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    assert reason(data[:scan] + data[scan:-2] * 600 + data[-2:]) == "JPEG with more than 500 scans"


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


# --- resize ---------------------------------------------------------------------------------------


def triangle_weights(pixels: int, size: int) -> np.ndarray:
    """[size, pixels]: the docstring's definition, written out densely."""
    scale = pixels / size
    centre = (np.arange(size) + 0.5) * scale
    distance = np.abs(np.arange(pixels) + 0.5 - centre[:, None])
    weights = np.maximum(0, 1 - distance / max(scale, 1))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("shape", [(64, 64), (100, 37), (31, 80), (1, 1), (1, 9), (16, 300)])
@pytest.mark.parametrize("size", [1, 7, 32, 64])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_resize_is_its_definition(shape: tuple, size: int, dtype: type) -> None:
    image = RANDOM.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    down, across = triangle_weights(shape[0], size), triangle_weights(shape[1], size)
    expected = down @ image.astype(np.float64) @ across.T
    made = resize(image, size)
    assert made.dtype == np.float32
    assert made.flags.writeable
    np.testing.assert_allclose(made, expected, rtol=1e-6, atol=1e-5 * np.iinfo(dtype).max / 255)


def test_resize_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch")
    image = smooth_picture(300, 220)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None, None].double(), (96, 96), mode="bilinear", antialias=True
    )[0, 0]
    np.testing.assert_allclose(resize(image, 96), expected.numpy(), atol=1e-4)


def test_to_input_scales_by_the_type() -> None:
    for dtype in (np.uint8, np.uint16):
        white = to_input(np.full((5, 7), np.iinfo(dtype).max, dtype), 4)
        assert white.dtype == np.float32
        np.testing.assert_allclose(white, np.ones((4, 4)), rtol=1e-6)
    image = to_input(np.full((4, 4), 51, np.uint8), 4)
    np.testing.assert_allclose(image, np.full((4, 4), 0.2), rtol=1e-6)
    same = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_allclose(to_input(same, 16), same / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("image", "size"),
    [
        (np.zeros((4, 4), np.float32), 2),
        (np.zeros((4, 4, 3), np.uint8), 2),
        (np.zeros((0, 4), np.uint8), 2),
        (np.zeros((4, 4), np.uint8), 0),
    ],
)
def test_to_input_refuses(image: np.ndarray, size: int) -> None:
    with pytest.raises(ValueError, match=r"expected an image|cannot resize"):
        to_input(image, size)


# --- the process ----------------------------------------------------------------------------------


def test_decoding_and_resizing_release_the_gil() -> None:
    rows = np.random.default_rng(3).integers(0, 256, (3000, 3000), np.uint8)
    data = saved(Image.fromarray(rows), "PNG", compress_level=1)

    def longest_wait(work) -> float:
        waits, stop = [], threading.Event()

        def watch() -> None:
            while not stop.is_set():
                start = time.perf_counter()
                time.sleep(0.001)
                waits.append(time.perf_counter() - start)

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        work()
        took = time.perf_counter() - start
        stop.set()
        watcher.join()
        return len(waits) / (took * 1000)

    # A thread that wants to run each millisecond gets to: it would starve if the GIL were held.
    assert longest_wait(lambda: [read_image(data) for _ in range(5)]) > 0.3
    assert longest_wait(lambda: [to_input(rows, 1024) for _ in range(5)]) > 0.3


def test_unreadable_image_crosses_processes() -> None:
    copy = pickle.loads(pickle.dumps(UnreadableImage("truncated PNG")))
    assert copy.reason == "truncated PNG"


def test_import_brings_no_torch() -> None:
    code = "import sys, cxr_fast.archive.images, cxr_fast.archive.findings; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "cv2", "imagecodecs"} & set(result.stdout.split())
