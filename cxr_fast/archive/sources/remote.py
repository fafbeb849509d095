"""Files behind a URI: through pyarrow where it knows the scheme, else through fsspec.

Every request is tried five times. What is still wrong then is the network's fault and ends the run,
which can go on later; that a file is not there, or may not be read, is that image's, and known at once.
"""

from __future__ import annotations

import io
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from posixpath import normpath
from typing import Any, BinaryIO, ClassVar, TypeVar
from urllib.parse import unquote_to_bytes

import pyarrow as pa
import pyarrow.fs as pafs

from cxr_fast.archive.decode import UnreadableImage
from cxr_fast.archive.sources.handles import ArrowHandle, Handle
from cxr_fast.archive.sources.local import LocalStore
from cxr_fast.archive.sources.store import NOT_THE_IMAGE, FileKind, Store

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+)://([^/?]*)([^?]*)(\?.*)?", re.DOTALL)
# Seconds to wait before each further try, more or less.
_WAITS = (0.5, 1.0, 2.0, 4.0)
_LISTINGS_AT_ONCE = 16
# Statuses of HTTP from 400 to 499 say that the request is at fault; of these, too slow, early, often.
_NOT_FOUND, _AGAIN = (404, 410), (408, 425, 429)

Result = TypeVar("Result")


def is_uri(text: str) -> bool:
    """Tell whether a source, or an id of a manifest, is a URI and no path."""
    return _URI.match(text) is not None


def store_of(uri: str) -> tuple[Store, str]:
    """Return where a URI leads: a store, and the path in it.

    Raises ValueError for a URI that holds a password, or of a scheme that nothing here can read.
    """
    found = _URI.fullmatch(uri)
    if found is None:
        raise ValueError(f"expected a URI like s3://bucket/folder, got {uri!r}")
    scheme, authority, path, options = found.groups()
    if ":" in authority.rpartition("@")[0]:
        raise ValueError(
            f"expected no password in a URI, since ids and messages repeat it, got one in {scheme}://; "
            "give it in the environment or the configuration of the service"
        )
    if scheme.lower() == "file":
        return LocalStore(), os.fsdecode(unquote_to_bytes(path))
    if scheme.lower() in ("http", "https"):
        return RemoteStore(f"{scheme}://{authority}"), uri
    store = RemoteStore(f"{scheme}://{authority}/{options}" if options else f"{scheme}://{authority}")
    return store, store.path_of(f"{scheme}://{authority}{path}")


@dataclass(frozen=True)
class RemoteStore(Store):
    """A filesystem that is made from a URI in every process anew, or one that a caller gave."""

    window: ClassVar[int] = 65536
    threads: ClassVar[int] = 32

    base: str
    filesystem: Any = None  # of pyarrow or fsspec

    def __getstate__(self) -> dict[str, Any]:
        return {"base": self.base, "filesystem": self.filesystem}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @cached_property
    def _given(self) -> Handle:
        return _wrapped(self.filesystem)

    @property
    def _files(self) -> Handle:
        # Clients of the services do not survive a fork.
        return _handle(self.base, os.getpid()) if self.filesystem is None else self._given

    def path_of(self, uri: str) -> str:
        """Return the path that a URI has here."""
        return self._attempt(uri, lambda: self._files.path_of(uri))

    def kind(self, path: str) -> FileKind:
        """See ``Store``. On a web server the slash tells a folder."""
        if not self._files.lists and path.endswith("/"):
            return "folder"
        try:
            return self._attempt(path, lambda: self._files.info(path))[0]
        except FileNotFoundError:
            return ""

    def absolute(self, path: str) -> str:
        """See ``Store``."""
        return self._files.normal(path).rstrip("/") if self._files.lists else path

    def join(self, root: str, name: str) -> str:
        """See ``Store``."""
        root = root.rstrip("/")
        while name.startswith("../"):
            root, name = root.rpartition("/")[0], name[3:]
        return f"{root}/{name}" if root else name

    def split(self, path: str) -> tuple[str, str, str]:
        """See ``Store``."""
        if self._files.lists:
            root, _, name = path.rpartition("/")
            return root, name, name
        bare = path.partition("?")[0]
        cut = bare.rfind("/")
        return path[:cut], path[cut + 1 :], bare[cut + 1 :]

    def relative(self, root: str, cell: str) -> str:
        """See ``Store``."""
        name = normpath(cell)
        below = root.rstrip("/")[len(self._files.prefix) :].count("/")
        if name.startswith(("/", "../" * (below + 1))):
            raise ValueError(
                f"expected a path relative to {self.shown(root)!r} that stays in the bucket or on the "
                f"host, or a URI, got {cell!r}"
            )
        return name

    def walk(self, root: str, depth: int | None = None) -> Iterator[tuple[str, int]]:
        """See ``Store``. Folders of the first level are listed at once, each with all that is below it.

        A service lists a thousand files a request, however many folders they are in.
        """
        if not self._files.lists:
            raise ValueError(
                f"{self.shown(root)!r} cannot be listed: a web server knows no folders; "
                "name its files in a manifest"
            )

        def listed(folder: str, recursive: bool) -> list[tuple[str, FileKind, int]]:
            return self._attempt(folder, lambda: list(self._files.entries(folder, recursive)))

        top = listed(root, False)
        folders = [path for path, kind, _ in top if kind == "folder" and not _hidden(path, root)]
        yield from _files_of(top, root, depth)
        if depth == 1:
            return
        with ThreadPoolExecutor(_LISTINGS_AT_ONCE) as pool:
            for below in pool.map(lambda folder: listed(folder, True), folders):
                yield from _files_of(below, root, depth)

    def read(self, path: str, size: int = -1) -> bytes:
        """See ``Store``."""
        with _reasons():
            return self._attempt(path, lambda: self._files.read(path, size))

    @contextmanager
    def opened(self, path: str) -> Iterator[_OpenFile]:
        """See ``Store``."""
        with _reasons():
            yield _OpenFile(self, path)

    def holds(self, root: str) -> bool:
        """See ``Store``."""
        return True

    def size(self, path: str) -> int:
        """See ``Store``: not known, since it would take a request for each image."""
        return -1

    def open(self, path: str) -> BinaryIO:
        """See ``Store``: read whole, so that a lost connection can be mended."""

        def whole() -> bytes:
            length = self._files.info(path)[1]
            return self._files.read_at(path, 0, length) if length > 0 else b""

        return io.BytesIO(self._attempt(path, whole))

    def shown(self, path: str) -> str:
        """See ``Store``."""
        if self.filesystem is not None or is_uri(path):
            return path
        prefix = self._files.prefix
        rest = path[len(prefix) :] if path.startswith(prefix) else path
        base = self.base.partition("?")[0].rstrip("/")
        return f"{base}/{rest.lstrip('/')}"

    def _attempt(self, path: str, action: Callable[[], Result]) -> Result:
        """Do what takes a request, again where that may help."""
        for wait in (*_WAITS, None):
            try:
                return action()
            except (UnreadableImage, MemoryError, ValueError):
                raise  # ValueError: a package that is missing, a setting or a path that cannot be
            except Exception as error:
                if isinstance(error, OSError) and error.errno in NOT_THE_IMAGE:
                    raise
                if (fault := _fault_of(error)) is not None:
                    raise fault(f"{self.shown(path)!r}: {error}") from error
                if wait is None:
                    raise OSError(
                        f"{self.shown(path)!r} did not answer in {len(_WAITS) + 1} tries "
                        f"({type(error).__name__}: {error}); check the network and the credentials, "
                        "then give the same command again"
                    ) from error
            time.sleep(wait * random.uniform(0.75, 1.25))
        raise AssertionError  # the last try returns or raises


class _OpenFile:
    def __init__(self, store: RemoteStore, path: str) -> None:
        self._store, self._path = store, path

    def read_at(self, offset: int, length: int) -> bytes:
        files = self._store._files
        got = self._store._attempt(self._path, lambda: files.read_at(self._path, offset, length))
        if len(got) > length:
            raise OSError(
                f"{self._store.shown(self._path)!r} is on a server that does not answer requests for a "
                "part of a file, which a tar needs; copy it here, or serve it otherwise"
            )
        return got

    def size(self) -> int:
        kind, size = self._store._attempt(self._path, lambda: self._store._files.info(self._path))
        if kind != "file":
            raise IsADirectoryError(self._path) if kind else FileNotFoundError(self._path)
        if size < 0:
            raise OSError(
                f"{self._store.shown(self._path)!r} is on a server that does not say how long it is, "
                "which a tar needs; copy it here, or serve it otherwise"
            )
        return size


@lru_cache(64)
def _handle(base: str, process: int) -> Handle:
    try:
        return ArrowHandle(*pafs.FileSystem.from_uri(base))
    except pa.ArrowNotImplementedError:  # pyarrow built without this service
        pass
    except pa.ArrowInvalid as error:
        if "Unrecognized filesystem" not in str(error):
            raise ValueError(f"{base!r} is no place to read from: {error}") from error
    from cxr_fast.archive.sources.fsspec_files import handle_of_uri

    return handle_of_uri(base)


def _wrapped(filesystem: Any) -> Handle:
    if isinstance(filesystem, pafs.FileSystem):
        return ArrowHandle(filesystem, "")
    from cxr_fast.archive.sources.fsspec_files import FsspecHandle

    return FsspecHandle(filesystem, "")


@contextmanager
def _reasons() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise UnreadableImage("no such file") from error
    except IsADirectoryError as error:
        raise UnreadableImage("a folder, not a file") from error
    except PermissionError as error:
        raise UnreadableImage("no permission to read it") from error
    except ValueError as error:  # no path of this filesystem
        raise UnreadableImage("no such file") from error


def _fault_of(error: BaseException) -> type[OSError] | None:
    """Tell errors of the file from those of the way to it, for which it is None."""
    status = getattr(error, "status", None)  # of an answer over HTTP
    if isinstance(status, int):
        if status < 400 or status >= 500 or status in _AGAIN:
            return None
        return FileNotFoundError if status in _NOT_FOUND else PermissionError
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return FileNotFoundError
    if isinstance(error, PermissionError) or "ACCESS_DENIED" in str(error):
        return PermissionError
    return IsADirectoryError if isinstance(error, IsADirectoryError) else None


def _hidden(path: str, root: str) -> bool:
    name = path[len(root) :]
    return "/." in name or (not root and name.startswith("."))


def _files_of(
    entries: list[tuple[str, FileKind, int]], root: str, depth: int | None
) -> Iterator[tuple[str, int]]:
    for path, kind, size in entries:
        # One slash: a service's names may have an empty part.
        name = path[len(root) :].removeprefix("/")
        # A service may list a folder among what is in it.
        if (
            kind == "file"
            and name
            and not _hidden(path, root)
            and (depth is None or name.count("/") < depth)
        ):
            yield name, size
