"""Files that are whole or not there, and folders that one process holds. Imports nothing of ours."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

_NO_LOCKS_HERE = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write that takes the name ``path`` when the block ends well, and vanishes if not.

    What had that name before stays until then: synced to the disk, then renamed.
    """
    # Hidden, and without the suffix: no reader of *.parquet takes it for a part.
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def saying_when_full(sentence: str) -> Iterator[None]:
    """Raise OSError with a sentence where the block finds the disk full."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(errno.ENOSPC, sentence) from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all; OSError names the file where the disk is full."""
    sentence = (
        f"the disk is full: {path} needs {len(content)} bytes; what it held before is unchanged. "
        "Make room, and give the same command again"
    )
    with saying_when_full(sentence), replacing(path) as file:
        file.write(content)


def sync_folder(path: Path) -> None:
    """Put what a folder lists on the disk, renames included."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:  # some network file systems know no such thing
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(folder)


def require_writable(out: Path) -> None:
    """Refuse a folder to write to before the minutes or hours of work whose results it is for.

    ValueError for what is a file, PermissionError where it, or what it would be made in, is read-only.
    """
    parent = out
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if parent == out and not out.is_dir():
        raise ValueError(f"--out must be a folder, but {out} is a file; name another")
    if not parent.is_dir():
        raise ValueError(f"--out must be a folder, but {parent} is a file; name another")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"--out cannot be written: no permission in {parent}; name another")


def require_new(out: Path) -> None:
    """Refuse a file to write that exists, or whose folder does not, before the work that it is for.

    FileExistsError, FileNotFoundError, PermissionError.
    """
    if os.path.lexists(out):
        raise FileExistsError(f"{out} exists and is not written over; name another file")
    require_writable(out.parent)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent} must be a folder to write to; make it first")


def take_lock(folder: Path) -> int:
    """Lock a folder against other processes until the descriptor is closed; a kill lets it go, too.

    Raises RuntimeError, which names the holder, if a live process has it. Where the file system knows
    no locks there is none, and a warning: of two processes each would do the other's work again.
    """
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(lock, 200, 0).decode("utf-8", "replace").strip()
        os.close(lock)
        raise RuntimeError(
            f"{folder} is in use by another run ({owner}); wait for it, or choose another folder"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            os.close(lock)
            raise
        warnings.warn(f"the file system of {folder} has no locks: start one run only", stacklevel=3)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return lock


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder while the block runs; see ``take_lock``."""
    lock = take_lock(folder)
    try:
        yield
    finally:
        os.close(lock)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Settings that differ, as ``name: old -> new`` in JSON; nested ones by dotted names."""
    before, after = dict(_flat(old)), dict(_flat(new))
    return [
        f"{name}: {before.get(name, '(absent)')} -> {after.get(name, '(absent)')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """List nested settings as pairs of a dotted name and the value's JSON."""
    if isinstance(value, Mapping) and (value or not name):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, json.dumps(value, ensure_ascii=False)
