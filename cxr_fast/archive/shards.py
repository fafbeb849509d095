"""One shard of resized images: a file that is made once, checked, and read by many.

``<key>.npy`` holds uint8 [n, S, S], followed by a CRC-32 of each image and one of those. The key
says what it was made from (names, sizes and times of the files, S, version of the format), so
nothing in a cache ever goes stale: a changed image asks for a file of another name.

How it is made: ``<key>.npy.part`` is opened and locked, filled, synced, renamed. The lock is the
kernel's, so a killed process leaves no lock, just a part that the next one empties. Images are read
with ``pread``, not mapped: a map of a file that another process cuts short ends in SIGBUS, and
thousands of maps hold thousands of file handles.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO

import numpy as np
import numpy.typing as npt

from cxr_fast.archive.images import UnreadableImage, read_image, to_input

# Called with (images done, images in all).
Progress = Callable[[int, int], None]
Pixels = npt.NDArray[np.uint8]

_FORMAT = 1
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Shard:
    """``files[i]`` is image ``indices[i]`` of the whole; ``folder`` and ``key`` say where it lies."""

    folder: str
    key: str
    files: tuple[str, ...]
    indices: npt.NDArray[np.int64]
    size: int

    @property
    def path(self) -> str:
        """The file in the cache."""
        return os.path.join(self.folder, f"{self.key}.npy")

    @cached_property
    def header(self) -> bytes:
        """What NumPy's format puts before the images."""
        file = BytesIO()
        described = {
            "descr": "|u1",
            "fortran_order": False,
            "shape": (len(self.files), self.size, self.size),
        }
        np.lib.format.write_array_header_1_0(file, described)
        return file.getvalue()

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return self.size**2

    @property
    def file_bytes(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + len(self.files) * (self.image_bytes + 4) + 4


def make_shards(
    shards: Sequence[Shard], *, threads: int, progress: Progress | None = None, thorough: bool = False
) -> None:
    """Make those shards of one folder that it lacks; return when it has all of them.

    ``thorough`` reads those that are there, to see whether they are damaged. Raises what
    ``resize_images`` does.
    """
    total, done = sum(len(shard.files) for shard in shards), 0

    def count(images: int) -> None:
        nonlocal done
        done += images
        if progress and images:
            progress(done, total)

    missing = []
    for shard in shards:
        if _is_whole(shard, thorough):
            count(len(shard.files))
        else:
            missing.append(shard)
    if not missing:
        return
    os.makedirs(missing[0].folder, exist_ok=True)
    _require_space(missing)
    with ThreadPoolExecutor(threads) as pool:
        # What another process is at work on comes last, so that several share the work.
        waiting = []
        for shard in missing:
            if not _make(shard, pool, count, thorough, wait=False):
                waiting.append(shard)
        for shard in waiting:
            _make(shard, pool, count, thorough, wait=True)


def _make(
    shard: Shard, pool: ThreadPoolExecutor, count: Callable[[int], None], thorough: bool, wait: bool
) -> bool:
    """Make one shard, unless it is there by now; False if it is locked and we don't wait."""
    with _locked_part(shard.path + ".part", wait) as file:
        if file is None:
            return False
        if _is_whole(shard, thorough):
            os.unlink(shard.path + ".part")
            count(len(shard.files))
            return True
        try:
            _fill(file, shard, pool, count)
            os.fsync(file)
            if key_of(shard.files, shard.size) != shard.key:
                raise ValueError(
                    f"expected the images to stay as they are while they are resized, but one of "
                    f"{shard.files[0]} to {shard.files[-1]} changed; start again"
                )
        except BaseException as error:
            os.unlink(shard.path + ".part")
            if isinstance(error, OSError) and error.errno in _FULL:
                raise _full(shard.folder, shard.file_bytes, error) from error
            raise
        os.rename(shard.path + ".part", shard.path)
        folder = os.open(shard.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return True


def read_shard(
    shard: Shard,
    rows: npt.NDArray[np.int64],
    checked: npt.NDArray[np.bool_],
    places: npt.NDArray[np.int64],
    gathered: Pixels,
) -> bool:
    """Read images ``rows`` into ``gathered[places]``; False if the shard is absent or damaged.

    Those that are not ``checked`` yet are compared with their checksums.
    """
    try:
        file = os.open(shard.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        sums = None if checked.all() else _checksums(file, shard)
        if sums is None and not checked.all():
            return False
        for row, place, is_checked in zip(rows.tolist(), places, checked, strict=True):
            if not _pread(file, gathered[place], len(shard.header) + row * shard.image_bytes):
                return False
            if sums is not None and not is_checked and zlib.crc32(gathered[place].data) != sums[row]:
                return False
    finally:
        os.close(file)
    return True


@contextmanager
def _locked_part(path: str, wait: bool) -> Iterator[int | None]:
    """Open a part and hold its lock, or give None for one that is locked and not waited for."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield None
                return
            # While we waited, its holder may have renamed it into the cache, or deleted it.
            try:
                is_ours = os.path.samestat(os.fstat(file), os.stat(path))
            except FileNotFoundError:
                is_ours = False
            if is_ours:
                yield file
                return
        finally:
            os.close(file)


def _fill(file: int, shard: Shard, pool: ThreadPoolExecutor, count: Callable[[int], None]) -> None:
    os.ftruncate(file, 0)
    try:
        os.posix_fallocate(file, 0, shard.file_bytes)  # a full disk shows before the work
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # not every file system can
            raise
    _pwrite(file, shard.header, 0)

    def put(row: int) -> int:
        pixels = resized(shard.files[row], shard.size)
        _pwrite(file, pixels.data, len(shard.header) + row * shard.image_bytes)
        return zlib.crc32(pixels.data)

    sums = np.empty(len(shard.files), "<u4")
    try:
        for row, crc in enumerate(pool.map(put, range(len(shard.files)))):
            sums[row] = crc
            count(1)
    except BaseException:
        # The file is closed next: no thread may still write to its number.
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    trailer = sums.tobytes() + np.uint32(zlib.crc32(sums.data)).astype("<u4").tobytes()
    _pwrite(file, trailer, shard.file_bytes - len(trailer))


def resized(path: str, size: int) -> Pixels:
    """Read an image and stretch it to uint8 [size, size]; ValueError that names file and reason."""
    try:
        pixels = to_input(read_image(path), size)
    except UnreadableImage as error:
        raise ValueError(f"{path} cannot be read: {error}; fetch it again, or leave it out") from error
    return np.rint(pixels * 255).astype(np.uint8)


def key_of(files: Sequence[str], size: int) -> str:
    """Digest what a shard is made from."""
    described = [f"cxr_fast resized images {_FORMAT}, {size}"]
    for file in files:
        status = _status(file)
        described.append(f"{os.path.basename(file)!r} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:32]


def _status(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{path} cannot be read: no such file; complete the archive") from error


def _is_whole(shard: Shard, thorough: bool = False) -> bool:
    """Tell whether a shard is there, with the right length and checksums; of its images if thorough."""
    try:
        file = os.open(shard.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if os.fstat(file).st_size != shard.file_bytes:
            return False
        header = shard.header
        found = np.empty(len(header), np.uint8)
        _pread(file, found, 0)
        sums = _checksums(file, shard)
        if found.tobytes() != header or sums is None:
            return False
        pixels = np.empty(shard.image_bytes, np.uint8)
        for row in range(len(shard.files) if thorough else 0):
            _pread(file, pixels, len(header) + row * shard.image_bytes)
            if zlib.crc32(pixels.data) != sums[row]:
                return False
    finally:
        os.close(file)
    return True


def _checksums(file: int, shard: Shard) -> npt.NDArray[np.uint32] | None:
    """Read the CRCs of a shard's images; None if they are damaged themselves."""
    trailer = np.zeros(4 * len(shard.files) + 4, np.uint8)
    _pread(file, trailer, shard.file_bytes - len(trailer))
    sums = trailer.view("<u4")
    return sums[:-1] if zlib.crc32(sums[:-1].data) == sums[-1] else None


def _pread(file: int, into: Pixels, offset: int) -> bool:
    """Fill an array from a file; False where the file ends before it is full."""
    view = into.data.cast("B")
    while view:
        got = os.preadv(file, [view], offset)
        if not got:
            return False
        view, offset = view[got:], offset + got
    return True


def _pwrite(file: int, content: bytes | memoryview, offset: int) -> None:
    view = memoryview(content).cast("B")
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _require_space(shards: Sequence[Shard]) -> None:
    folder = shards[0].folder
    needed = sum(shard.file_bytes for shard in shards)
    disk = os.statvfs(folder)
    available = disk.f_bavail * disk.f_frsize
    for shard in shards:  # a part, half made by another or left by a killed one, is made over
        with suppress(FileNotFoundError):
            available += os.stat(shard.path + ".part").st_blocks * 512
    if needed > available:
        raise _full(folder, needed, OSError(errno.ENOSPC, f"{available} bytes are free"))


def _full(folder: str, needed: int, error: OSError) -> OSError:
    return OSError(
        error.errno,
        f"the resized images need {needed} more bytes in the cache: {error.strerror}; free some, or "
        "give a cache on another disk",
        folder,
    )
