"""Images resized once, kept in memory or in a cache that processes and threads share.

The cache is a folder of files, one a shard (``shards.py``). Where a shard ends follows from the
images' names alone (``_cut``), so an added image changes the shard that it falls into, and not
those after it. An image's checksum is looked at when a process reads it for the first time; a
shard that was damaged or deleted is made again on the spot.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_fast.archive.shards import Pixels, Progress, Shard, key_of, make_shards, read_shard, resized

_MEAN_IMAGES, _MOST_IMAGES = 160, 512  # of a shard: 40 and 128 MiB for inputs of 512 pixels


class ResizedImages:
    """N images, uint8 [N, S, S], that are read when they are asked for; see ``resize_images``.

    S is ``size`` pixels. ``pixels`` uint8 [N, S, S] holds them where there is no cache, ``shards``
    say where they lie where there is one.

    Indexed like an array in its first axis: an integer array [n] or a slice gives a copy
    uint8 [n, S, S], an integer [S, S]. Threads may share it; pickled, it takes the names along and
    no pixels, unless it has no cache.
    """

    def __init__(self, size: int, count: int, shards: Sequence[Shard], pixels: Pixels | None) -> None:
        self.shape = (count, size, size)
        self._pixels = pixels
        self._shards = tuple(shards)
        self._positions = np.arange(count)
        self._shard_of, self._row_of = np.empty((2, count), np.int64)
        self._checked = np.zeros(count, bool)
        for number, shard in enumerate(self._shards):
            self._shard_of[shard.indices] = number
            self._row_of[shard.indices] = np.arange(len(shard.indices))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Any) -> Pixels:
        """IndexError beyond the end; OSError for a cache that can be neither read nor mended."""
        picked = np.asarray(self._positions[indices])
        gathered = np.empty((picked.size, *self.shape[1:]), np.uint8)
        flat = picked.reshape(-1)
        if self._pixels is not None:
            np.take(self._pixels, flat, axis=0, out=gathered)
        else:
            shards = self._shard_of[flat]
            for number in np.unique(shards):
                places = np.flatnonzero(shards == number)
                self._gather(self._shards[number], flat[places], places, gathered)
        return gathered.reshape(*picked.shape, *self.shape[1:])

    def _gather(
        self, shard: Shard, images: npt.NDArray[np.int64], places: npt.NDArray[Any], gathered: Pixels
    ) -> None:
        rows, checked = self._row_of[images], self._checked[images]
        if not read_shard(shard, rows, checked, places, gathered):
            make_shards([shard], threads=1, thorough=True)
            if not read_shard(shard, rows, checked, places, gathered):
                raise OSError(
                    errno.EIO,
                    "expected the images that were just written, got others; is the disk failing?",
                    shard.path,
                )
        self._checked[images] = True


def resize_images(
    files: Sequence[str | os.PathLike[str]],
    input_size: int,
    *,
    cache: str | os.PathLike[str] | None = None,
    threads: int = 2,
    progress: Progress | None = None,
) -> ResizedImages:
    """Stretch images to squares of ``input_size`` pixels, bilinear from the original, rounded to uint8.

    With ``cache``, a folder that is made if need be, they are written there, N S^2 bytes in all,
    and what is there already is not made again; several processes may ask for the same images at
    once and share the work. Shards of images that changed stay until the folder is deleted.
    Without, the images stay in memory. ``progress`` counts images, in the calling thread.

    Raises ValueError that names file and reason for an image that cannot be read, and for files of
    one name in different folders; OSError if the cache cannot be written: for a full disk with its
    folder and the bytes needed, before an image is read where that can be known.
    """
    if input_size < 1 or threads < 1:
        raise ValueError(
            f"input_size and threads must be at least 1, but are {input_size} and {threads}"
        )
    paths = [os.fspath(file) for file in files]
    if cache is not None:
        shards = _plan(paths, input_size, Path(cache))
        make_shards(shards, threads=threads, progress=progress)
        return ResizedImages(input_size, len(paths), shards, None)
    pixels = np.empty((len(paths), input_size, input_size), np.uint8)

    def fill(index: int) -> None:
        pixels[index] = resized(paths[index], input_size)

    with ThreadPoolExecutor(threads) as pool:
        for done, _ in enumerate(pool.map(fill, range(len(paths))), 1):
            if progress:
                progress(done, len(paths))
    return ResizedImages(input_size, len(paths), (), pixels)


def _plan(paths: Sequence[str], size: int, cache: Path) -> list[Shard]:
    """Distribute images over shards, and name the shards."""
    names = [os.path.basename(path) for path in paths]
    order = sorted(range(len(paths)), key=names.__getitem__)
    for one, other in pairwise(order):
        if names[one] == names[other]:
            raise ValueError(
                f"expected images of distinct names, got {paths[one]} and {paths[other]}; rename one"
            )
    shards = []
    for indices in _cut(order, names):
        files = tuple(paths[index] for index in indices)
        shards.append(
            Shard(
                str(cache / f"{size}px"),
                key_of(files, size),
                files,
                np.asarray(indices, np.int64),
                size,
            )
        )
    return shards


def _cut(order: Sequence[int], names: Sequence[str]) -> Iterator[list[int]]:
    """Cut images, in order of their names, into shards: after every name whose hash says so.

    A shard cut for its size alone (one in 25) drags those after it along when an image is added.
    """
    shard: list[int] = []
    for index in order:
        shard.append(index)
        # Not a CRC: those of names that count up fall into patterns.
        drawn = hashlib.blake2b(os.fsencode(names[index]), digest_size=8).digest()
        if int.from_bytes(drawn, "big") % _MEAN_IMAGES == 0 or len(shard) == _MOST_IMAGES:
            yield shard
            shard = []
    if shard:
        yield shard
