"""What a place that holds files can do, be it this machine's disks or something far away."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO, ClassVar, Literal, Protocol

from cxr_fast.archive.decode import MAX_PIXELS, UnreadableImage, most_bytes

MAX_BYTES = most_bytes(MAX_PIXELS)  # of a file or a tar's member
# The process is out of a resource: no fault of the image, and not to be booked as one.
NOT_THE_IMAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

FileKind = Literal["file", "folder", ""]


def refuse_large(size: int, limit: int = MAX_BYTES) -> None:
    """Raise UnreadableImage for more bytes than an image may have."""
    if size > limit:
        raise UnreadableImage(f"a file of {size} bytes, more than {limit}")


class OpenFile(Protocol):
    """A file whose bytes are asked for by their place; may be shared by threads."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``; fewer where the file ends."""

    def size(self) -> int:
        """Return the file's bytes."""


class Store(ABC):
    """Files by path. Equal stores hold the same files; a store can be pickled and shared by threads.

    What reads for an image raises UnreadableImage for a fault of the file; OSError means that the
    process or the network, not the file, is at fault. The other methods raise OSError.
    """

    # Bytes that one request reads ahead while a tar is indexed, and tars indexed at once.
    window: ClassVar[int]
    threads: ClassVar[int]

    @abstractmethod
    def kind(self, path: str) -> FileKind:
        """Tell what ``path`` is; empty for what does not exist."""

    @abstractmethod
    def absolute(self, path: str) -> str:
        """Write a path so that it depends on no working folder."""

    @abstractmethod
    def join(self, root: str, name: str) -> str:
        """Return the path of ``name``, which is relative to the folder ``root``."""

    @abstractmethod
    def split(self, path: str) -> tuple[str, str, str]:
        """Return the folder of an absolute path, the file's name, and the name that tells its kind."""

    @abstractmethod
    def relative(self, root: str, cell: str) -> str:
        """Write a manifest's path relative to ``root``; ValueError where it cannot be."""

    @abstractmethod
    def walk(self, root: str, depth: int | None = None) -> Iterator[tuple[str, int]]:
        """Yield files at most ``depth`` levels below a folder, and their bytes (-1: not known).

        Names are relative to ``root``; hidden files and what lies in hidden folders are left out.
        """

    @abstractmethod
    def read(self, path: str, size: int = -1) -> bytes:
        """Read a whole file for an image; ``size`` is what the listing said."""

    @abstractmethod
    def opened(self, path: str) -> AbstractContextManager[OpenFile]:
        """Open a file for an image or images in it; errors inside the block count as its too."""

    @abstractmethod
    def holds(self, root: str) -> bool:
        """Tell whether a folder is there; True where asking would take a request."""

    @abstractmethod
    def size(self, path: str) -> int:
        """Return a file's bytes; -1 if it has none, or asking would take a request each."""

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """Open a manifest."""

    @abstractmethod
    def shown(self, path: str) -> str:
        """Write a path for people: as a URI where it is one."""
