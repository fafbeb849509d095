"""Runs that are killed, told to end, or out of disk, and go on: as processes, over whole archives."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from runs import contents, write_noisy_archive

COUNT = 1000
SHARD = 10


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand pictures, one in fifty broken, and a small model."""
    folder = tmp_path_factory.mktemp("archive")
    write_noisy_archive(folder, COUNT, every=50)
    return folder


def start(archive: Path, out: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "cxr_fast.cli", "mine", archive / "images", "--model",
        archive / "model.safetensors", "--out", out, "--shard-size", str(SHARD), "--threads", "2",
        "--precision", "float32", "--device", "cpu",
    ]  # fmt: skip
    pipe = subprocess.PIPE
    return subprocess.Popen([str(part) for part in command], stdout=pipe, stderr=pipe, text=True)


def finish(archive: Path, out: Path) -> str:
    process = start(archive, out)
    told, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return told


@pytest.fixture(scope="module")
def undisturbed(archive: Path) -> Path:
    out = archive / "undisturbed"
    told = finish(archive, out)
    assert f"{COUNT} images mined" in told
    assert "20 of 1000 images unreadable" in told
    return out


def parts(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (out / "findings").glob("part-*.parquet")}


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(
    archive: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    chance = random.Random(5)
    kills = 0
    while kills < 20:
        before = parts(out)
        process = start(archive, out)
        try:
            # Anywhere from its first import to a few shards on.
            wanted = len(before) + chance.randrange(3)
            wait_until(lambda: len(parts(out)) >= wanted, process)  # noqa: B023
            time.sleep(chance.uniform(0, 0.06))
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run was over before it was killed"
        kills += 1
        after = parts(out)
        assert before.items() <= after.items(), "a finished part was written again"
        for path in after:
            pq.read_table(path)
    finish(archive, out)
    assert contents(out) == contents(undisturbed)


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not reached() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


def test_sigterm_ends_behind_a_whole_shard(archive: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(archive, out)
    wait_until(lambda: bool(parts(out)), process)
    process.send_signal(signal.SIGTERM)
    told, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "the same command goes on" in errors
    reached = len(parts(out))
    assert 1 <= reached < COUNT // SHARD
    assert f"{reached * SHARD} images mined" in told or f"{SHARD} images mined" in told
    finish(archive, out)
    assert contents(out) == contents(undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk takes root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(
    archive: Path, undisturbed: Path, small_disk: Path
) -> None:
    out = small_disk / "run"
    process = start(archive, out)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "No space left" in errors or "disk is full" in errors
    assert "Traceback" not in errors
    kept = parts(out)
    assert 0 < len(kept) < COUNT // SHARD
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    finish(archive, out)
    assert kept.items() <= parts(out).items(), "a finished part was written again"
    assert contents(out) == contents(undisturbed)
