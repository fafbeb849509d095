"""Filesystems of fsspec (the extra ``remote``): http, memory, and what others have written for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

try:
    import fsspec
    from fsspec.core import url_to_fs
except ImportError:  # the extra is not installed
    fsspec = None

from cxr_fast.archive.sources.store import FileKind, refuse_large


def handle_of_uri(base: str) -> FsspecHandle:
    """Return the filesystem that serves URIs beginning with ``base``.

    Raises ValueError where fsspec, or what it needs for this scheme, is not installed.
    """
    scheme = base.partition("://")[0]
    if fsspec is None:
        raise ValueError(
            f"{scheme}:// needs fsspec, which is not installed; install it with: "
            "pip install 'cxr_fast[remote]'"
        )
    try:
        filesystem, prefix = url_to_fs(base)
    except ImportError as error:
        raise ValueError(f"{scheme}:// needs a package that is not installed: {error}") from error
    except ValueError as error:  # no such protocol
        raise ValueError(
            f"{scheme}:// is no scheme that pyarrow or fsspec knows ({error}); use s3, gs, https, file "
            "or another that they do"
        ) from error
    return FsspecHandle(filesystem, prefix)


class FsspecHandle:
    """A filesystem of fsspec, under the names of ``Handle``."""

    def __init__(self, filesystem: Any, prefix: str) -> None:
        self._filesystem, self.prefix = filesystem, prefix
        protocol = filesystem.protocol
        protocols = (protocol,) if isinstance(protocol, str) else protocol
        self.lists = not {"http", "https"} & set(protocols)

    def path_of(self, uri: str) -> str:
        """See ``Handle``."""
        path: str = self._filesystem._strip_protocol(uri)
        return path

    def normal(self, path: str) -> str:
        """See ``Handle``."""
        return self.path_of(path)

    def info(self, path: str) -> tuple[FileKind, int]:
        """See ``Handle``."""
        try:
            info = self._filesystem.info(path)
        except FileNotFoundError as error:
            _raise_network(error)
            return "", -1
        return _entry(info)[1:]

    def entries(self, folder: str, recursive: bool) -> Iterator[tuple[str, FileKind, int]]:
        """See ``Handle``."""
        self._filesystem.invalidate_cache(folder)
        if recursive:
            found = self._filesystem.find(folder, detail=True).values()
        else:
            found = self._filesystem.ls(folder, detail=True)
        return map(_entry, found)

    def read(self, path: str, size: int) -> bytes:
        """See ``Handle``."""
        if size < 0:  # a request more, so that no file of terabytes fills the memory
            kind, size = self.info(path)
            if kind == "":
                raise FileNotFoundError(path)
            if kind == "folder":
                raise IsADirectoryError(path)
        refuse_large(size)
        whole: bytes = self._filesystem.cat_file(path)
        return whole

    def read_at(self, path: str, offset: int, length: int) -> bytes:
        """See ``Handle``."""
        part: bytes = self._filesystem.cat_file(path, start=offset, end=offset + length)
        return part


def _entry(info: dict[str, Any]) -> tuple[str, FileKind, int]:
    kind: FileKind = "folder" if info["type"] == "directory" else "file"
    return info["name"], kind, -1 if info.get("size") is None else int(info["size"])


def _raise_network(error: FileNotFoundError) -> None:
    """Raise what is behind a "not found" that came for want of an answer, as fsspec's http does."""
    cause = error.__cause__
    status = getattr(cause, "status", None)
    if isinstance(status, int):
        if status not in (404, 410):
            raise cause  # type: ignore[misc]
    elif isinstance(cause, (ConnectionError, TimeoutError)) or (
        cause is not None and type(cause).__module__.startswith("aiohttp")
    ):
        raise cause
