"""A folder of damaged files of every kind beside good ones: each is listed, no neighbour is lost."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import chunk, saved, smooth_picture, write_png
from PIL import Image

from cxr_fast.archive import pipeline
from cxr_fast.archive.findings import open_run, read_errors, read_findings
from cxr_fast.archive.images import list_images
from cxr_fast.archive.run import mine_archive, run_settings
from cxr_fast.config import MiningSettings
from cxr_fast.mining import Miner
from cxr_fast.models import Architecture, ModelCard, build, fold

PICTURE = Image.fromarray(smooth_picture(64, 56))


def whole_files() -> dict[str, bytes]:
    """One good file of each format."""
    files = {
        "png": saved(PICTURE, "PNG"),
        "png16": write_png(np.arange(3000).reshape(60, 50), bits=16, colour=0),
        "jpeg": saved(PICTURE, "JPEG", quality=90),
        "tiff": saved(PICTURE, "TIFF", compression="tiff_lzw"),
        "jp2": saved(PICTURE, "JPEG2000"),
    }
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("imagecodecs")
    assert pydicom
    from dicom_files import dataset, stored, written

    files["dicom"] = written(dataset(stored(12), 12))
    return files


def without_pixels() -> bytes:
    from dicom_files import dataset, stored, written

    made = dataset(stored(12), 12)
    del made.PixelData
    return written(made)


def bomb(side: int) -> bytes:
    """A small PNG whose header claims ``side`` squared pixels, and whose data inflate for ever."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(2**24), 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def corpus(files: dict[str, bytes]) -> dict[bytes, bytes]:
    rng = np.random.default_rng(8)
    made: dict[bytes, bytes] = {}

    def add(name: str | bytes, data: bytes) -> None:
        made[name.encode() if isinstance(name, str) else name] = data

    for kind, data in files.items():
        for i, share in enumerate(np.linspace(0, 0.995, 40)):
            add(f"truncated-{kind}-{i:02d}.{kind}", data[: int(len(data) * share)])
    for i in range(60):  # in what a checksum or a structure covers
        data = bytearray(files["png"])
        data[rng.integers(8, len(data) - 4)] ^= 1 << rng.integers(8)
        add(f"flipped-{i:02d}.png", bytes(data))
    for i, text in enumerate((b"not a picture", b"\0" * 4096, b"<html>", b"%PDF-1.4", b"PK\3\4rest")):
        add(f"wrong-{i}.png", text)
    add("bomb-60000.png", bomb(60000))
    add("bomb-16000.png", bomb(16000))
    add("zero-side.png", write_png(np.zeros((4, 4), np.uint8), bits=8, colour=0, size=(0, 4)))
    add("no-pixels.dcm", without_pixels())
    add("new\nline\x1b[31m.png", b"")
    add(b"latin-\xe9\xff.png", b"broken")
    add("quote'\",;.png", b"")
    return made


def test_every_damaged_file_is_listed_and_every_neighbour_mined(tmp_path: Path) -> None:
    files = whole_files()
    folder = tmp_path / "images"
    folder.mkdir()
    damaged = corpus(files)
    for name, data in damaged.items():
        (Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).write_bytes(data)
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "dangling.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")
    for i in range(30):
        kind, data = list(files.items())[i % len(files)]
        (folder / f"good-{i:02d}-{kind}.bin").write_bytes(data)

    card = ModelCard(Architecture("resnet18", "bilinear", 0.125, 1), ("A", "B"), 64)
    torch.manual_seed(0)
    model = fold(build(card).eval())
    miner = Miner(model, card, MiningSettings(), torch.device("cpu"), torch.float32)
    images = list_images(folder)
    options = pipeline.RunOptions(batch_size=8, shard_size=100)
    with open_run(tmp_path / "run", run_settings(images, miner.network, "model", options)) as run:
        report = mine_archive(images, pipeline.LocalEngine((miner,), 2), run, options)

    reasons = dict(zip(*read_errors(tmp_path / "run").to_pydict().values(), strict=True))
    good = {name for name in images.image_ids if name.startswith("good-")}
    assert len(images) == len(damaged) + 3 + 30
    assert len(damaged) + 3 >= 300
    # A flip in a chunk that decides no pixel, or in a bit that cancels out, is no damage.
    harmless = set(images.image_ids) - good - set(reasons)
    assert all(name.startswith("flipped-") for name in harmless), harmless
    assert len(harmless) <= 3
    assert not good & set(reasons)
    assert report.unreadable == len(reasons)
    assert good <= set(read_findings(tmp_path / "run")["image_id"].to_pylist())
    for name, reason in reasons.items():
        assert name.isprintable()
        assert 0 < len(reason) < 200, reason
        assert "\n" not in reason
        assert "0x" not in reason, f"{name}: an address changes from run to run"


def test_pixels_of_the_good_ones_are_pillow_s() -> None:
    from cxr_fast.archive.images import read_image

    for kind, data in whole_files().items():
        if kind in ("png", "tiff", "jp2"):
            expected = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
            np.testing.assert_array_equal(read_image(data), expected)
