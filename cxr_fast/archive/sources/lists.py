"""Lists of images: names, and what it takes to read each; small, picklable, cut into parts.

Ten million images are what they have to hold, so nothing about one image is a Python object: all of it
lies in the columns of an Arrow record batch, and a path is made when it is asked for.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cxr_fast.archive.decode import UnreadableImage
from cxr_fast.archive.sources.names import file_name
from cxr_fast.archive.sources.remote import is_uri, store_of
from cxr_fast.archive.sources.store import Store, refuse_large

_CHUNK = 65536
# Files that one thread asks for their sizes, one after the other.
_ASKED = 1024


class ImageIds(Sequence[str]):
    """A sequence of str over an Arrow array; equal to any sequence of the same str."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, array: pa.LargeStringArray) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> ImageIds: ...
    def __getitem__(self, index: int | slice) -> str | ImageIds:
        if isinstance(index, slice):
            return ImageIds(self.array[index])
        image_id: str = self.array[index].as_py()
        return image_id

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _CHUNK):
            yield from self.array.slice(first, _CHUNK).to_pylist()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ImageIds):
            return bool(self.array.equals(other.array))
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        few = ", ".join(map(repr, self[:3]))
        return f"ImageIds([{few}{', ...' if len(self) > 3 else ''}], {len(self)} in all)"

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        if type is None:
            return self.array
        # Copied first: Arrow refuses to make a few ids strings that lie behind 2 GiB of others.
        return pa.concat_arrays([self.array]).cast(type)


@dataclass(frozen=True)
class ImageList(ABC):
    """The images of one source, in the order in which they are worked on. Made by ``list_images``.

    ``root`` is the folder that ids are relative to. ``rows`` has the column ``image_id`` (large_string,
    unique) and what a kind of source keeps beside it. A list may be shared by threads, and pickled:
    a worker elsewhere is sent its ``part``, and needs the same files under the same paths.
    """

    store: Store
    root: str
    rows: pa.RecordBatch

    @cached_property
    def image_ids(self) -> ImageIds:
        """The images' names, in order."""
        return ImageIds(self.rows.column("image_id"))

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Read the file of image ``index``.

        Raises UnreadableImage for whatever is wrong with the file, with a reason that is the same on
        every run. OSError (out of handles, a network that does not answer) is no fault of the image.
        """

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Blame no image for being unreadable where the whole folder went away: OSError."""
        try:
            yield
        except UnreadableImage as error:
            if self.store.holds(self.root):
                raise
            raise OSError(
                f"the folder of the images, {self.root}, is not there any more; bring it back, and the "
                "same command goes on"
            ) from error

    @abstractmethod
    def sizes(self, first: int, last: int) -> pa.Int64Array:
        """Return the bytes of the images at positions [first, last); -1 where they are not known."""

    def size(self, index: int) -> int:
        """Return the bytes of image ``index``; -1 if they are not known."""
        return int(self.sizes(index, index + 1)[0].as_py())

    def digest(self) -> str:
        """Return the SHA-256 of all ids and sizes, in order: what a run knows its images by.

        It is that of id, NUL, size, NUL for each image, in UTF-8.
        """
        digest = hashlib.sha256()
        for first in range(0, len(self), _CHUNK):
            last = min(first + _CHUNK, len(self))
            ids = self.rows.column("image_id").slice(first, last - first)
            sizes = self.sizes(first, last).cast(pa.large_string())
            end = pa.scalar("", pa.large_string())
            joined = pc.binary_join_element_wise(ids, sizes, end, pa.scalar("\0", pa.large_string()))
            digest.update(_text_of(joined))
        return digest.hexdigest()

    def part(self, first: int, last: int) -> Self:
        """Return the images at positions [first, last) as a list of their own."""
        return replace(self, rows=self.rows.slice(first, max(last - first, 0)))

    def __getstate__(self) -> dict[str, Any]:
        # The stream holds the rows of a part alone; Arrow's own pickle would take those around it too.
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.rows.schema) as writer:
            writer.write_batch(self.rows)
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return fields | {"rows": sink.getvalue().to_pybytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        with pa.ipc.open_stream(state["rows"]) as reader:
            rows = reader.read_next_batch()
        self.__dict__.update(state | {"rows": rows})


@dataclass(frozen=True)
class FileList(ImageList):
    """Images that are files of their own: relative to ``root``, or a URI where a manifest has one.

    ``rows`` may have a column ``size`` (int64).
    """

    def read(self, index: int) -> bytes:
        """See ``ImageList``."""
        store, path = self._place(index)
        with self._whole():
            return store.read(path, self._known_size(index))

    def sizes(self, first: int, last: int) -> pa.Int64Array:
        """See ``ImageList``. This machine's files are asked for theirs, others are not."""
        if "size" in self.rows.schema.names:
            return self.rows.column("size").slice(first, last - first)
        asked = range(first, last, _ASKED)
        # Side by side, because each waits for an answer where files lie behind a network.
        with ThreadPoolExecutor(self.store.threads) as pool:
            found = pool.map(lambda start: self._asked(start, min(start + _ASKED, last)), asked)
            return pa.array([size for sizes in found for size in sizes], pa.int64())

    def _asked(self, first: int, last: int) -> list[int]:
        places = map(self._place_of, self.image_ids[first:last])
        return [store.size(path) for store, path in places]

    def path(self, index: int) -> str:
        """Return the absolute path of image ``index``, or its URI."""
        store, path = self._place(index)
        return store.shown(path)

    @property
    def paths(self) -> list[str]:
        """The paths of all images, in the order of ``image_ids``."""
        return [self.path(index) for index in range(len(self))]

    def _place(self, index: int) -> tuple[Store, str]:
        return self._place_of(self.image_ids[index])

    def _place_of(self, image_id: str) -> tuple[Store, str]:
        name = file_name(image_id)
        return store_of(name) if is_uri(name) else (self.store, self.store.join(self.root, name))

    def _known_size(self, index: int) -> int:
        if "size" not in self.rows.schema.names:
            return -1
        return int(self.rows.column("size")[index].as_py())


@dataclass(frozen=True)
class TarList(ImageList):
    """Images that are members of tars.

    ``rows`` has the columns ``tar`` (int32, which of ``tars``), ``offset`` and ``size`` (int64) of the
    member's data. An offset below 0 is ``-1 - n``: nothing is to be read there, for ``reasons[n]``.
    """

    tars: tuple[str, ...]
    reasons: tuple[str, ...] = ()

    def read(self, index: int) -> bytes:
        """See ``ImageList``: one read, nothing is unpacked."""
        tar, offset, size = (
            self.rows.column(name)[index].as_py() for name in ("tar", "offset", "size")
        )
        if offset < 0:
            raise UnreadableImage(self.reasons[-1 - offset])
        refuse_large(size)
        with self._whole(), self.store.opened(self.tars[tar]) as file:
            data = file.read_at(offset, size)
        if len(data) < size:
            raise UnreadableImage("the tar became shorter since it was listed")
        return data

    def sizes(self, first: int, last: int) -> pa.Int64Array:
        """See ``ImageList``."""
        return self.rows.column("size").slice(first, last - first)

    def part(self, first: int, last: int) -> Self:
        """See ``ImageList``: with no more tars than it needs."""
        rows = self.rows.slice(first, max(last - first, 0))
        if not len(rows):
            return replace(self, rows=rows, tars=(), reasons=())
        # Members of a tar follow each other, so the tars of a part do too.
        ends = pc.min_max(rows.column("tar")).as_py()
        tar = pc.subtract(rows.column("tar"), pa.scalar(ends["min"], pa.int32()))
        offset = rows.column("offset")
        broken = offset.filter(pc.less(offset, 0)).unique().to_pylist()
        codes = {code: -1 - n for n, code in enumerate(broken)}
        if broken:
            renumbered = [codes.get(o, o) for o in offset.to_pylist()]
            offset = pa.array(renumbered, pa.int64())
        columns = {"image_id": rows.column("image_id"), "tar": tar, "offset": offset}
        batch = pa.record_batch({**columns, "size": rows.column("size")})
        reasons = tuple(self.reasons[-1 - code] for code in broken)
        return replace(self, rows=batch, tars=self.tars[ends["min"] : ends["max"] + 1], reasons=reasons)


def _text_of(array: pa.LargeStringArray) -> memoryview:
    """The text of all of an array's entries, one behind the other, without a copy."""
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int64)[[array.offset, array.offset + len(array)]]
    return memoryview(data)[ends[0] : ends[1]]
