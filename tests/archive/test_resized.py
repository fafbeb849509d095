"""cxr_fast.archive.resized: the right bytes, each made once, whatever breaks."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxr_fast.archive import resized, shards
from cxr_fast.archive.images import read_image, to_input
from cxr_fast.archive.resized import resize_images

SIZE = 24
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_small(monkeypatch.setattr)


def cut_small(assign: Callable[[object, str, int], None]) -> None:
    assign(resized, "_MEAN_IMAGES", 4)
    assign(resized, "_MOST_IMAGES", 12)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """30 pictures of all shapes, not in the order of their names."""
    (tmp_path / "images").mkdir()
    return [write(tmp_path / "images", number) for number in np.random.default_rng(0).permutation(30)]


def write(folder: Path, number: int, seed: int = 0) -> Path:
    rng = np.random.default_rng([number, seed])
    path = folder / f"{number:04d}.png"
    pixels = rng.integers(0, 256, rng.integers(20, 70, 2), np.uint8)
    Image.fromarray(pixels.astype(np.uint16) * 257 if number % 7 == 0 else pixels).save(path)
    return path


def direct(files: list[Path]) -> np.ndarray:
    return np.stack([np.rint(to_input(read_image(f), SIZE) * 255).astype(np.uint8) for f in files])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that were decoded, in no order."""
    names: list[str] = []

    def watched(path: str) -> np.ndarray:
        names.append(os.path.basename(path))
        return read_image(path)

    monkeypatch.setattr(shards, "read_image", watched)
    return names


def whole_files(cache: Path) -> dict[str, bytes]:
    assert not list(cache.rglob("*.part"))
    return {path.name: path.read_bytes() for path in cache.rglob("*.npy")}


@pytest.mark.parametrize("cached", [True, False])
def test_bytes_are_those_of_decoding_and_resizing(
    files: list[Path], tmp_path: Path, cached: bool
) -> None:
    told: list[tuple[int, int]] = []
    images = resize_images(
        files,
        SIZE,
        cache=tmp_path / "cache" if cached else None,
        threads=3,
        progress=lambda done, total: told.append((done, total)),
    )
    expected = direct(files)
    assert images.shape == expected.shape
    assert len(images) == 30
    rng = np.random.default_rng(1)
    for indices in (
        slice(None),
        slice(3, 29, 5),
        slice(0, 0),
        rng.integers(0, 30, 50),
        np.array([-1, 7, 7, -30]),
        np.array([], np.int64),
        rng.integers(0, 2, 30).astype(bool),
        list(range(5)),
        11,
    ):
        got = images[indices]
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, expected[indices])
        got[...] = 0  # a copy: what is read next is unharmed
    with pytest.raises(IndexError):
        images[np.array([30])]
    assert [done for done, _ in told] == list(range(1, 31))
    assert {total for _, total in told} == {30}
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(images))[:], expected)


def test_no_images(tmp_path: Path) -> None:
    for cache in (None, tmp_path):
        images = resize_images([], SIZE, cache=cache)
        assert images.shape == (0, SIZE, SIZE)
        assert images[:].shape == (0, SIZE, SIZE)


def test_the_cache_serves_without_the_images(
    files: list[Path], tmp_path: Path, decoded: list[str]
) -> None:
    resize_images(files, SIZE, cache=tmp_path / "cache")
    assert sorted(decoded) == sorted(file.name for file in files)
    expected = direct(files)
    decoded.clear()
    told: list[int] = []
    shuffled = [files[index] for index in np.random.default_rng(3).permutation(30)]
    images = resize_images(
        shuffled, SIZE, cache=tmp_path / "cache", progress=lambda done, total: told.append(done)
    )
    assert not decoded
    assert told[-1] == 30
    # Nor do the files have to be there to be read from the cache.
    os.rename(files[0].parent, tmp_path / "elsewhere")
    for place, file in enumerate(shuffled):
        np.testing.assert_array_equal(images[place], expected[files.index(file)])


def test_shards_are_numpy_files(files: list[Path], tmp_path: Path) -> None:
    resize_images(files, SIZE, cache=tmp_path)
    arrays = [np.load(path, mmap_mode="r") for path in (tmp_path / f"{SIZE}px").glob("*.npy")]
    assert 30 / 12 <= len(arrays) < 30
    assert sum(len(array) for array in arrays) == 30
    assert {array.shape[1:] for array in arrays} == {(SIZE, SIZE)}


def test_a_grown_or_changed_archive_redoes_its_shard_only(
    files: list[Path], tmp_path: Path, decoded: list[str]
) -> None:
    cache = tmp_path / "cache"
    resize_images(files, SIZE, cache=cache)
    before = whole_files(cache)
    for change in ("add in the middle", "add at the end", "change", "same size, other time"):
        decoded.clear()
        if change == "add in the middle":
            changed = files[0].parent / "0011a.png"
            Image.fromarray(np.full((9, 9), 77, np.uint8)).save(changed)
        if change == "add at the end":
            changed = write(files[0].parent, 99)
        if change == "change":
            changed = write(files[0].parent, 5, seed=1)
        if change == "same size, other time":
            changed = files[0].parent / "0020.png"
            stamp = changed.stat().st_mtime_ns
            os.utime(changed, ns=(stamp, stamp + 1))
        if changed not in files:
            files.append(changed)
        images = resize_images(files, SIZE, cache=cache)
        np.testing.assert_array_equal(images[:], direct(files))
        assert changed.name in decoded, change
        assert len(decoded) <= 12, change
        after = whole_files(cache)
        assert before.items() <= after.items()
        assert len(after) <= len(before) + 2
        before = after
    decoded.clear()
    resize_images(files, SIZE + 1, cache=cache)
    assert len(decoded) == len(files)


def work(
    paths: list[str], cache: str, barrier: object, results: object, die_after: int | None = None
) -> None:
    """One process of several: report the bytes of all images, and how many it decoded itself."""
    cut_small(setattr)
    count, lock = 0, threading.Lock()

    def slow(path: str) -> np.ndarray:
        nonlocal count
        with lock:
            count += 1
            if count == die_after:
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
        return read_image(path)

    shards.read_image = slow  # type: ignore[assignment]
    if barrier is not None:
        barrier.wait(60)  # type: ignore[attr-defined]
    images = resize_images(paths, SIZE, cache=cache, threads=2)
    results.put((images[:].tobytes(), count))  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [2, 4])
def test_processes_share_an_empty_cache(files: list[Path], tmp_path: Path, workers: int) -> None:
    barrier, results = SPAWN.Barrier(workers), SPAWN.Queue()
    # Each sees the images in an order of its own.
    orders = [np.random.default_rng(worker).permutation(30) for worker in range(workers)]
    processes = [
        SPAWN.Process(
            target=work,
            args=([os.fspath(files[i]) for i in order], str(tmp_path / "c"), barrier, results),
        )
        for order in orders
    ]
    for process in processes:
        process.start()
    reports = [results.get(timeout=100) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    expected = {direct([files[i] for i in order]).tobytes() for order in orders}
    assert {pixels for pixels, _ in reports} == expected
    counts = [count for _, count in reports]
    assert sum(counts) == 30  # each image once
    assert sum(count > 0 for count in counts) > 1  # and nobody waited for one to do it all
    whole_files(tmp_path / "c")


def test_threads_share_an_empty_cache(files: list[Path], tmp_path: Path, decoded: list[str]) -> None:
    found: list[np.ndarray] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(resize_images(files, SIZE, cache=tmp_path / "c")[:])
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(decoded) == 30
    assert len(found) == 4
    for pixels in found:
        np.testing.assert_array_equal(pixels, direct(files))


def test_a_killed_process_is_taken_over(files: list[Path], tmp_path: Path, decoded: list[str]) -> None:
    cache = tmp_path / "cache"
    results = SPAWN.Queue()
    process = SPAWN.Process(
        target=work, args=([os.fspath(f) for f in files], str(cache), None, results, 17)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    finished = [np.load(path) for path in cache.rglob("*.npy")]
    assert len(list(cache.rglob("*.part"))) == 1
    assert 0 < sum(map(len, finished)) < 17
    images = resize_images(files, SIZE, cache=cache)
    assert len(decoded) == 30 - sum(map(len, finished))
    np.testing.assert_array_equal(images[:], direct(files))
    whole_files(cache)


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "cut short":
        content = content[:-7]
    elif kind == "cut to nothing":
        content = bytearray()
    elif kind == "too long":
        content += b"\0"
    else:
        content[{"pixel": 128 + 100, "header": 60, "checksum": -2, "image's checksum": -6}[kind]] ^= 1
    path.write_bytes(content)


KINDS = ["cut short", "cut to nothing", "too long", "pixel", "header", "checksum", "image's checksum"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_damage_is_noticed_and_mended(
    files: list[Path], tmp_path: Path, decoded: list[str], kind: str, when: str
) -> None:
    """Between two runs, or while one goes on."""
    images = resize_images(files, SIZE, cache=tmp_path / "c")
    before = whole_files(tmp_path / "c")
    decoded.clear()
    victim = sorted((tmp_path / "c").rglob("*.npy"))[1]
    count = len(np.load(victim))
    damage(victim, kind)
    if when == "before":
        images = resize_images(files, SIZE, cache=tmp_path / "c")
    np.testing.assert_array_equal(images[:], direct(files))
    if when == "after" and kind in ("too long", "header"):
        return  # its images are as they were, and nothing else was read
    assert len(decoded) == count
    assert whole_files(tmp_path / "c") == before


def test_a_deleted_cache_is_made_again(files: list[Path], tmp_path: Path) -> None:
    images = resize_images(files, SIZE, cache=tmp_path / "c")
    os.rename(tmp_path / "c", tmp_path / "d")
    np.testing.assert_array_equal(images[4:9], direct(files[4:9]))
    # Of images that changed since, there is nothing right to give.
    os.rename(tmp_path / "c", tmp_path / "e")
    for file in files:
        os.utime(file, ns=(0, 0))
    with pytest.raises(ValueError, match="changed; start again"):
        images[4:9]
    assert not whole_files(tmp_path / "c")


@pytest.mark.parametrize("cached", [True, False])
def test_unreadable_images_are_named(files: list[Path], tmp_path: Path, cached: bool) -> None:
    cache = tmp_path / "cache" if cached else None
    content = files[3].read_bytes()
    files[3].write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cannot be read: .*truncated") as error:
        resize_images(files, SIZE, cache=cache)
    assert str(error.value).startswith(str(files[3]))
    files[3].write_bytes(content)
    np.testing.assert_array_equal(resize_images(files, SIZE, cache=cache)[:], direct(files))
    with pytest.raises(ValueError, match=r"absent\.png cannot be read: no such file"):
        resize_images([*files, tmp_path / "absent.png"], SIZE, cache=cache)


def test_refusals(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    twin = write(tmp_path / "other", 4)
    with pytest.raises(ValueError, match="distinct names") as error:
        resize_images([*files, twin], SIZE, cache=tmp_path / "c")
    assert str(twin) in str(error.value)
    for size, threads in ((0, 1), (8, 0)):
        with pytest.raises(ValueError, match="must be at least 1"):
            resize_images(files, size, threads=threads)
    (tmp_path / "a_file").write_text("")
    with pytest.raises(OSError, match="a_file"):
        resize_images(files, SIZE, cache=tmp_path / "a_file")


def refuse_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_a_full_disk(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shards.os, call, refuse_space)
        with pytest.raises(OSError, match=r"need \d+ more bytes .* No space left") as error:
            resize_images(files, SIZE, cache=tmp_path / "c")
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(tmp_path / "c" / f"{SIZE}px")
    assert not whole_files(tmp_path / "c")
    np.testing.assert_array_equal(resize_images(files, SIZE, cache=tmp_path / "c")[:], direct(files))


def test_a_disk_too_small_is_seen_before_the_work(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    class Disk:
        f_bavail, f_frsize = 30, SIZE * SIZE - 1

    monkeypatch.setattr(shards.os, "statvfs", lambda folder: Disk)
    with pytest.raises(OSError, match=f"{30 * (SIZE * SIZE - 1)} bytes are free"):
        resize_images(files, SIZE, cache=tmp_path / "c")
    assert not decoded
    Disk.f_bavail = 60
    resize_images(files, SIZE, cache=tmp_path / "c")


def under_a_limit(paths: list[str], cache: str, results: object) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    cut_small(setattr)
    try:
        resize_images(paths, SIZE, cache=cache)
    except OSError as error:
        results.put(str(error))  # type: ignore[attr-defined]


def test_a_limit_of_the_system(files: list[Path], tmp_path: Path) -> None:
    results = SPAWN.Queue()
    process = SPAWN.Process(
        target=under_a_limit, args=([os.fspath(f) for f in files], str(tmp_path / "c"), results)
    )
    process.start()
    message = results.get(timeout=60)
    process.join(60)
    assert "File too large" in message
    assert str(tmp_path / "c") in message
    assert not whole_files(tmp_path / "c")
