"""Reading: PNG files to grey pixels, with their damage looked for, and on to the network's input.

The files are phantoms as Pillow writes them, or, where CXR_FAST_BENCH_PNG names a folder, the first of
its PNG files that are grey and not interlaced. Peers decode from bytes in memory, as ours does; of
them only ours checks every checksum. The yardsticks are the parts that nobody can leave out: inflating
with zlib and with ISA-L.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image

from cxr_fast import _numpy_ops
from cxr_fast.archive.images import read_image, to_input
from cxr_fast.benchmarks.place import Place, peer_module
from cxr_fast.benchmarks.racing import Case, Peer, Yardstick
from cxr_fast.phantom import PhantomSettings, render

Pixels = NDArray[Any]
Decode = Callable[[bytes], Pixels]

FOLDER = os.environ.get("CXR_FAST_BENCH_PNG")


@dataclass(frozen=True)
class Files:
    kind: str  # phantoms, or the name of the folder
    bits: int
    count: int = 8
    size: int = 1024
    threads: int = 1

    def __str__(self) -> str:
        threads = f", {self.threads} threads" if self.threads > 1 else ""
        return f"{self.count} {self.kind} of {self.bits} bits{threads}"


def decode_cases(place: Place) -> list[Files]:
    if place.quick:
        return [Files("phantoms", bits, 2, 128, threads) for bits in (8, 16) for threads in (1, 2)]
    kinds = [("phantoms", 8), ("phantoms", 16), *([(Path(FOLDER).name, 8)] if FOLDER else [])]
    return [Files(kind, bits, threads=threads) for kind, bits in kinds for threads in (1, 2)]


def parts_cases(place: Place) -> list[Files]:
    return [files for files in decode_cases(place) if files.threads == 1]


@cache
def files_of(files: Files) -> tuple[bytes, ...]:
    """The files themselves, read or drawn."""
    if files.kind != "phantoms":
        assert FOLDER is not None
        read = (path.read_bytes() for path in sorted(Path(FOLDER).glob("*.png")))
        plain = [data for data in read if data[24:29] == bytes([files.bits, 0, 0, 0, 0])]
        assert len(plain) >= files.count, f"expected {files.count} grey PNG files in {FOLDER}"
        return tuple(plain[: files.count])
    settings = PhantomSettings(images=files.count, size=files.size)
    random = np.random.default_rng(0)
    return tuple(
        _saved(render(index, settings).image, files.bits, random) for index in range(files.count)
    )


def _saved(pixels: Pixels, bits: int, random: np.random.Generator) -> bytes:
    if bits == 16:  # as a detector of 12 bits fills them
        fine = pixels.astype(np.uint16) * 16 + random.integers(0, 16, pixels.shape)
        pixels = fine.astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def compressed(data: bytes) -> bytes:
    """The zlib stream of a PNG."""
    pieces, start = [], 8
    while start < len(data):
        length, name = struct.unpack_from(">I4s", data, start)
        pieces += [data[start + 8 : start + 8 + length]] if name == b"IDAT" else []
        start += 12 + length
    return b"".join(pieces)


def peers(bits: int) -> dict[str, Decode]:
    found: dict[str, Decode] = {"Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)))}
    if cv2 := peer_module("cv2"):
        found["OpenCV"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if imagecodecs := peer_module("imagecodecs"):
        found["imagecodecs, libpng"] = imagecodecs.png_decode
        if bits == 8:  # its 16 bits are of colour only
            found["imagecodecs, libspng"] = imagecodecs.spng_decode
    return found


def equal(ours: Sequence[Pixels], theirs: Sequence[Pixels]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def each(function: Callable[[Any], Any], items: Sequence[Any], pool: ThreadPoolExecutor | None) -> Any:
    return list(map(function, items) if pool is None else pool.map(function, items))


def test_decode(case: Files, race: Callable[[Case], None], place: Place) -> None:
    """From bytes to pixels; several threads take a file each."""
    data = files_of(case)
    streams = [compressed(one) for one in data]
    room = case.size * (1 + case.size * case.bits // 8)
    with ThreadPoolExecutor(case.threads) as threads:
        pool = threads if case.threads > 1 else None
        rivals = [
            Peer(name, partial(each, run, data, pool), equal) for name, run in peers(case.bits).items()
        ]
        sticks = [
            Yardstick(f"inflating with {name}", partial(each, run, streams, pool))
            for name, run in (
                ("zlib", lambda stream: zlib.decompress(stream, bufsize=room)),
                ("ISA-L", lambda stream: isal_zlib.decompress(stream, bufsize=room)),
            )
        ]
        if pool is not None:
            sticks.append(Yardstick("ours, one thread", partial(each, read_image, data, None)))
        run = partial(each, read_image, data, pool)
        race(Case(f"decode {case}", (), run, rivals, sticks, wall=True, images=case.count))


def test_parts(case: Files, race: Callable[[Case], None], place: Place, tmp_path: Path) -> None:
    """From a file to the network's input of half the size, and where the time goes."""
    data = files_of(case)
    paths = [tmp_path / f"{index}.png" for index in range(case.count)]
    for path, content in zip(paths, data, strict=True):
        path.write_bytes(content)
    size = case.size // 2
    streams = [compressed(one) for one in data]
    pictures = [read_image(one) for one in data]
    rows = [
        (zlib.decompress(stream), picture) for stream, picture in zip(streams, pictures, strict=True)
    ]

    def unfilter(one: tuple[bytes, Pixels]) -> Any:
        return _numpy_ops.png_unfilter(one[0], *one[1].shape, 1, one[1].itemsize)

    def from_file(path: Path) -> Any:
        return to_input(read_image(path), size)

    steps: list[tuple[str, Callable[[Any], Any], Sequence[Any]]] = [
        ("reading the file", Path.read_bytes, paths),
        ("CRCs", zlib.crc32, streams),
        ("inflating", isal_zlib.decompress, streams),
        ("unfiltering", unfilter, rows),
        ("to_input", lambda picture: to_input(picture, size), pictures),
    ]
    sticks = [Yardstick(name, partial(each, run, items, None)) for name, run, items in steps]
    name = f"file to input of {case}"
    run = partial(each, from_file, paths, None)
    race(Case(name, (), run, yardsticks=sticks, wall=True, images=case.count))
