"""Files of this machine."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import BinaryIO, ClassVar

from cxr_fast.archive.decode import HEAD_BYTES, UnreadableImage, check_type
from cxr_fast.archive.sources.store import MAX_BYTES, NOT_THE_IMAGE, FileKind, Store, refuse_large

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True)
class LocalStore(Store):
    """Files by the paths of the operating system."""

    window: ClassVar[int] = 4096
    threads: ClassVar[int] = 16

    def kind(self, path: str) -> FileKind:
        """See ``Store``. What is neither file nor folder (a pipe) counts as a file."""
        if os.path.isdir(path):
            return "folder"
        return "file" if os.path.exists(path) else ""

    def absolute(self, path: str) -> str:
        """See ``Store``."""
        return os.path.abspath(path)

    def join(self, root: str, name: str) -> str:
        """See ``Store``."""
        return os.path.join(root, name)

    def split(self, path: str) -> tuple[str, str, str]:
        """See ``Store``."""
        root, name = os.path.split(path)
        return root, name, name

    def relative(self, root: str, cell: str) -> str:
        """See ``Store``."""
        path = os.path.normpath(os.path.join(root, cell))
        return os.path.relpath(path, root).replace(os.sep, "/")

    def walk(self, root: str, depth: int | None = None) -> Iterator[tuple[str, int]]:
        """See ``Store`` and ``walk_files``; sizes are not known."""
        return ((name, -1) for name in walk_files(root, depth))

    def read(self, path: str, size: int = -1) -> bytes:
        """See ``Store``."""
        return read_file(path)

    @contextmanager
    def opened(self, path: str) -> Iterator[_OpenFile]:
        """See ``Store``."""
        with _reasons():
            handle, _ = _open(path)
            try:
                yield _OpenFile(handle)
            finally:
                os.close(handle)

    def holds(self, root: str) -> bool:
        """See ``Store``."""
        return os.path.isdir(root)

    def size(self, path: str) -> int:
        """See ``Store``."""
        try:
            return os.stat(path).st_size
        except (OSError, ValueError):
            return -1  # listed as an error when its turn comes

    def open(self, path: str) -> BinaryIO:
        """See ``Store``."""
        return open(path, "rb")

    def shown(self, path: str) -> str:
        """See ``Store``."""
        return path


class _OpenFile:
    def __init__(self, handle: int) -> None:
        self._handle = handle

    def read_at(self, offset: int, length: int) -> bytes:
        got = os.pread(self._handle, length, offset)
        if len(got) == length:
            return got
        pieces = [got]  # a read gives less at the end, on a signal, and above 2 GiB
        while got and (left := length - sum(map(len, pieces))):
            got = os.pread(self._handle, left, offset + length - left)
            pieces.append(got)
        return b"".join(pieces)

    def size(self) -> int:
        return os.fstat(self._handle).st_size


def read_file(path: str, limit: int = MAX_BYTES) -> bytes:
    """Read an image's file, of at most ``limit`` bytes.

    Its type is looked at first: of what is no image no more than that is read. Raises UnreadableImage
    for what is missing, may not be read, is no regular file, too large, or of another type.
    """
    with _reasons():
        handle, size = _open(path)
        with open(handle, "rb", 0) as file:
            head = file.read(HEAD_BYTES)
            check_type(head)
            refuse_large(size, limit)
            return head + file.readall()


def _open(path: str) -> tuple[int, int]:
    """Open a regular file: its handle and its bytes."""
    # Looked at before it is opened: opening a pipe waits, opening a device may act.
    status = os.stat(path)
    for is_kind, kind in _KINDS:
        if is_kind(status.st_mode):
            raise UnreadableImage(f"{kind}, not a file")
    # Without waiting, should it have become a pipe since.
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), status.st_size


@contextmanager
def _reasons() -> Iterator[None]:
    """Turn what the operating system says about a file into the reason of an UnreadableImage."""
    try:
        yield
    except ValueError as error:  # a NUL in the name, from a table
        raise UnreadableImage("no such file") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnreadableImage("no such file") from error
    except PermissionError as error:
        raise UnreadableImage("no permission to read it") from error
    except OSError as error:
        if error.errno in NOT_THE_IMAGE:
            raise
        raise UnreadableImage(f"cannot be read: {os.strerror(error.errno or 0)}") from error


def walk_files(root: str, depth: int | None = None) -> Iterator[str]:
    """Yield all files at most ``depth`` levels below ``root``, relative to it, in no order.

    Hidden files and folders are left out. Linked files and folders are followed; a folder that was
    walked already is not walked again, so links that form a loop end.
    """
    seen: set[tuple[int, int]] = set()
    # Linked folders wait until all real ones are walked: a folder reached both ways keeps its own
    # name, and the walk's result does not depend on the order in which entries come.
    real: list[str] = [""]
    linked: list[str] = []
    while real or linked:
        folder = real.pop() if real else heappop(linked)
        path = os.path.join(root, folder)
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        deeper = depth is None or folder.count("/") + 1 < depth
        with os.scandir(path) as entries:
            for entry in entries:
                name = folder + entry.name
                if entry.name.startswith("."):
                    continue
                if not _is_folder(entry):
                    yield name  # a pipe or a dead link too: reading it tells what is wrong with it
                elif deeper and entry.is_symlink():
                    heappush(linked, name + "/")
                elif deeper:
                    real.append(name + "/")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
