"""What the libraries for filesystems are asked to do, and how pyarrow does it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import pyarrow.fs as pafs

from cxr_fast.archive.sources.store import FileKind, refuse_large

_KINDS: dict[pafs.FileType, FileKind] = {
    pafs.FileType.NotFound: "",
    pafs.FileType.Unknown: "file",
    pafs.FileType.File: "file",
    pafs.FileType.Directory: "folder",
}


class Handle(Protocol):
    """A filesystem of either library, under one set of names. Paths are its own, not URIs.

    What goes wrong is raised as the library does; ``RemoteStore`` tells whose fault it is.
    """

    prefix: str  # the path that the URI has which the filesystem was made from
    lists: bool  # whether folders can be listed

    def path_of(self, uri: str) -> str:
        """Return the path of a URI of the same scheme and authority; nothing in it is unquoted."""

    def normal(self, path: str) -> str:
        """Write a path as the paths of ``entries`` are written."""

    def info(self, path: str) -> tuple[FileKind, int]:
        """Return what a path is, and a file's bytes (-1: not known)."""

    def entries(self, folder: str, recursive: bool) -> Iterator[tuple[str, FileKind, int]]:
        """Yield what is in a folder: path, what it is, bytes."""

    def read(self, path: str, size: int) -> bytes:
        """Read an image's file whole; ``size`` is what is known of its bytes (-1: nothing)."""

    def read_at(self, path: str, offset: int, length: int) -> bytes:
        """Read a part of a file."""


class ArrowHandle:
    """A filesystem of pyarrow."""

    lists = True

    def __init__(self, filesystem: pafs.FileSystem, prefix: str) -> None:
        self._filesystem, self.prefix = filesystem, prefix.rstrip("/")
        # A file that is open saves asking for its length before every read.
        self._open = lru_cache(64)(filesystem.open_input_file)

    def path_of(self, uri: str) -> str:
        """See ``Handle``."""
        path = uri.partition("://")[2].partition("?")[0].partition("/")[2]
        return f"{self.prefix}/{path}".rstrip("/")

    def normal(self, path: str) -> str:
        """See ``Handle``."""
        normal: str = self._filesystem.normalize_path(path)
        return normal

    def info(self, path: str) -> tuple[FileKind, int]:
        """See ``Handle``."""
        info = self._filesystem.get_file_info(path)
        return _KINDS[info.type], -1 if info.size is None else info.size

    def entries(self, folder: str, recursive: bool) -> Iterator[tuple[str, FileKind, int]]:
        """See ``Handle``."""
        for info in self._filesystem.get_file_info(pafs.FileSelector(folder, recursive=recursive)):
            yield info.path, _KINDS[info.type], -1 if info.size is None else info.size

    def read(self, path: str, size: int) -> bytes:
        """See ``Handle``."""
        with self._filesystem.open_input_file(path) as file:
            refuse_large(file.size())
            whole: bytes = file.read()
            return whole

    def read_at(self, path: str, offset: int, length: int) -> bytes:
        """See ``Handle``."""
        try:
            part: bytes = self._open(path).read_at(length, offset)
        except Exception:
            self._open.cache_clear()  # the next try is not to meet the same lost connection
            raise
        return part
