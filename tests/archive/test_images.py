"""What is refused as no image, with which reason, and what reading does to its process."""

from __future__ import annotations

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
import pytest
from pictures import GREY, PNG_SIGNATURE, RANDOM, chunk, reason, saved, smooth_picture, write_png
from PIL import Image

from cxr_fast.archive.images import UnreadableImage, read_image, to_input

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
        (b"GIF89a" + bytes(40), "GIF is not supported"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "WebP is not supported"),
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
    assert not {"torch", "cv2", "imagecodecs", "pydicom"} & set(result.stdout.split())
