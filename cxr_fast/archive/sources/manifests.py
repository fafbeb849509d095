"""Tables that name images: CSV, and Parquet in one file or in parts.

A cell is a path relative to the folder that the manifest was found in, an absolute path, or a URI.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from posixpath import basename

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxr_fast.archive.sources.names import image_id_of
from cxr_fast.archive.sources.remote import is_uri, store_of
from cxr_fast.archive.sources.store import Store

_COLUMNS = ("path", "uri", "image", "image index", "image_id")
_CHUNK = 65536
# Cells that are ids as they stand have none of these: characters to escape, blanks at an end, and parts
# that are empty, "." or ".." (an absolute path and a URI have an empty one).
_NOT_PLAIN = r"[\x00-\x1f\x7f-\x{9f}\\\x{2028}\x{2029}]|^[\s\pZ]|[\s\pZ]$|(?:^|/)\.{0,2}(?:/|$)"


class Manifest:
    """The images that the tables at ``paths`` of a store name, in their order."""

    def __init__(self, store: Store, root: str, paths: list[str]) -> None:
        self._store, self._root, self._paths = store, root, paths
        self._bases: set[str] = set()

    def image_ids(self) -> pa.LargeStringArray:
        """Read all rows.

        Raises ValueError, with file and row, for a row that names no image, and for a file that is no
        table or has no column of paths.
        """
        chunks = [chunk for path in self._paths for chunk in self._chunks(path)]
        return pa.concat_arrays(chunks) if chunks else pa.array([], pa.large_string())

    def places(self, image_id: str) -> list[str]:
        """Say which rows name an image, for a message."""
        found = []
        for path in self._paths:
            first = 0
            for chunk in self._chunks(path):
                same = pc.indices_nonzero(pc.equal(chunk, image_id)).to_pylist()
                found += [f"image {first + row + 1} of {basename(path)}" for row in same]
                first += len(chunk)
        return found

    def _chunks(self, path: str) -> Iterator[pa.LargeStringArray]:
        if self._store.split(path)[2].lower().endswith(".csv"):
            yield from self._csv_chunks(path)
        else:
            yield from self._parquet_chunks(path)

    def _csv_chunks(self, path: str) -> Iterator[pa.LargeStringArray]:
        shown = self._store.shown(path)
        ids = []
        for line, cell in self._csv_cells(path, shown):
            ids.append(self._image_id(cell, f"line {line} of {shown!r}"))
            if len(ids) == _CHUNK:
                yield pa.array(ids, pa.large_string())
                ids = []
        yield pa.array(ids, pa.large_string())

    def _csv_cells(self, path: str, shown: str) -> Iterator[tuple[int, str]]:
        with self._store.open(path) as binary:
            # surrogateescape: a table written on a system with other file names must not end the run.
            file = io.TextIOWrapper(binary, "utf-8-sig", "surrogateescape", newline="")
            rows = csv.reader(file)
            column, header = 0, False
            try:
                for number, row in enumerate(rows):
                    if number == 0:
                        column, header = self._csv_column(row)
                    if not any(cell.strip() for cell in row) or (number == 0 and header):
                        continue
                    yield rows.line_num, row[column] if column < len(row) else ""
            except csv.Error as error:
                raise ValueError(f"line {rows.line_num} of {shown!r} is not CSV: {error}") from error

    def _csv_column(self, first_row: list[str]) -> tuple[int, bool]:
        """Find the column that holds the paths, and whether the first row is a header."""
        if (found := _column_of(first_row)) is not None:
            return found, True
        first = first_row[0].strip() if first_row else ""
        if not first or "\0" in first:
            return 0, True
        if is_uri(first):
            return 0, False
        return 0, self._store.kind(self._store.join(self._root, first)) != "file"

    def _parquet_chunks(self, path: str) -> Iterator[pa.LargeStringArray]:
        shown = self._store.shown(path)
        first = 1
        for cells in self._parquet_cells(path, shown):
            yield self._ids_of(cells, first, shown)
            first += len(cells)

    def _parquet_cells(self, path: str, shown: str) -> Iterator[pa.Array]:
        with self._store.open(path) as binary:
            try:
                file = pq.ParquetFile(binary)
                names = file.schema_arrow.names
                if (column := _column_of(names)) is None:
                    raise ValueError(
                        f"expected a column {', '.join(_COLUMNS[:-1])} or {_COLUMNS[-1]} in {shown!r}, "
                        f"got {', '.join(names) or 'none'}"
                    )
                for batch in file.iter_batches(_CHUNK, columns=[names[column]]):
                    yield batch.column(0)
            except (pa.ArrowException, OSError) as error:  # OSError: data that do not unpack
                raise ValueError(f"{shown!r} is no Parquet file that can be read: {error}") from error

    def _ids_of(self, cells: pa.Array, first: int, shown: str) -> pa.LargeStringArray:
        if isinstance(cells, pa.DictionaryArray):
            cells = cells.dictionary_decode()
        if not (pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type)):
            raise ValueError(f"expected text in the column of paths of {shown!r}, got {cells.type}")
        cells = cells.cast(pa.large_string())
        odd = pc.fill_null(pc.match_substring_regex(cells, _NOT_PLAIN), True)
        if not pc.any(odd).as_py():
            return cells
        mended = [
            self._image_id(cells[row].as_py() or "", f"row {first + row} of {shown!r}")
            for row in pc.indices_nonzero(odd).to_pylist()
        ]
        return pc.replace_with_mask(cells, odd, pa.array(mended, pa.large_string()))

    def _image_id(self, cell: str, place: str) -> str:
        text = cell.strip()
        if not text:
            raise ValueError(f"{place} names no image")
        try:
            if not is_uri(text):
                return image_id_of(self._store.relative(self._root, text))
            store, path = self._checked(text)
            return image_id_of(text if store is None else store.relative(self._root, path))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error

    def _checked(self, uri: str) -> tuple[Store | None, str]:
        """Refuse a URI that nothing can read now, not a million images later.

        Where it is a file of this machine, and so are the manifest's, return what it is called then.
        """
        base = "/".join(uri.split("/", 3)[:3])
        if base in self._bases:
            return None, uri
        store, path = store_of(uri)
        if base.lower() == "file://" and store == self._store:
            return store, path
        self._bases.add(base)
        return None, uri


def _column_of(names: Iterable[str]) -> int | None:
    known = [name.strip().lower() for name in names]
    return next((known.index(wanted) for wanted in _COLUMNS if wanted in known), None)
