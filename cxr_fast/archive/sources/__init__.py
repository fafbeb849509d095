"""Where images come from: folders, patterns, tables, tars, here or behind a URI.

``list_images`` makes an ``ImageList`` of any of them. docs/archives.md says what counts as an image.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cxr_fast.archive.sources.lists import FileList, ImageIds, ImageList, TarList
from cxr_fast.archive.sources.local import LocalStore, walk_files
from cxr_fast.archive.sources.manifests import Manifest
from cxr_fast.archive.sources.names import (
    Kind,
    expand_braces,
    file_name,
    has_wildcard,
    image_id_of,
    kind_of,
    matches,
    split_braces,
    split_pattern,
)
from cxr_fast.archive.sources.remote import RemoteStore, is_uri, store_of
from cxr_fast.archive.sources.store import Store
from cxr_fast.archive.sources.tars import list_tars, tar_of

__all__ = [
    "FileList",
    "ImageIds",
    "ImageList",
    "TarList",
    "file_name",
    "image_id_of",
    "list_images",
    "walk_files",
]

_CHUNK = 65536


def list_images(source: str | Path, *, filesystem: Any = None) -> ImageList:
    """List the images of a folder, a pattern, a manifest, tars, or one image file.

    ``source`` is a path, or a URI (``s3://bucket/folder``, ``https://host/list.csv``); with
    ``filesystem``, of pyarrow or fsspec, a path in that.

    - A folder: every file below it, sorted by image_id. Left out are hidden files and folders, and
      names that end like a table or a note (.csv, .txt, .json, .md, ...). No file is opened here:
      its type is told by its content when it is read. Linked files and folders are followed; a
      folder that was walked already is not walked again, so links that form a loop end.
      A folder without such files is one of tars, if it has any, else of a Parquet manifest's parts.
    - A pattern (``dir/**/*.png``; ``**`` is any number of folders): the same walk from the part
      before the first wildcard, which is also what the ids are relative to.
    - A manifest, .csv or .parquet: the column ``path``, ``uri``, ``image``, ``Image Index`` or
      ``image_id`` (in any case), in the table's order; paths are relative to the manifest's folder. A
      CSV without such a column has the paths in its first one, and a header unless the first cell is
      an existing file.
    - A tar, a pattern of tars, or ``shards-{000..099}.tar``: their members, in order, as ids
      ``<the tar's id>/<member>``.
    - Any other file: that one image, whose id is its name.

    Raises FileNotFoundError if the source does not exist, ValueError if it holds no image, names
    one twice, mixes tars with other images, or cannot be read as a table, and OSError if a folder
    cannot be listed.
    """
    text = os.fspath(source)
    if not text or "\0" in text:
        raise FileNotFoundError(f"no images: {text!r} is not the name of a folder or a file")
    store: Store = LocalStore() if filesystem is None else RemoteStore("", filesystem)
    path = text
    if filesystem is None and is_uri(text):
        store, path = store_of(text)
    kind = store.kind(path)
    if kind == "folder":
        root = store.absolute(path)
        return _list_found(store, root, store.walk(root), f"the folder {text!r}")
    if kind == "file":
        return _list_file(store, store.absolute(path), text)
    if (braces := split_braces(path)) is not None and path.lower().endswith(".tar"):
        return _list_braces(store, store.absolute(braces[0]), expand_braces(braces[1]), text)
    if not has_wildcard(path):
        raise FileNotFoundError(f"no images: {text!r} does not exist")
    folder, pattern = split_pattern(path)
    root = store.absolute(folder)
    if store.kind(root) != "folder":
        raise FileNotFoundError(f"no images: the folder {folder!r} of {text!r} does not exist")
    walked = store.walk(root, None if "**" in pattern else len(pattern))
    found = ((name, size) for name, size in walked if matches(name.split("/"), pattern))
    return _list_found(store, root, found, f"the pattern {text!r}")


def _list_file(store: Store, path: str, text: str) -> ImageList:
    root, name, bare = store.split(path)
    kind: Kind = kind_of(bare)
    if kind == "tar":
        return list_tars(store, root, [(image_id_of(bare), path)], f"the tar {text!r}")
    if kind == "compressed tar":
        raise _compressed(f"the file {text!r}")
    if kind == "parquet" or bare.lower().endswith(".csv"):
        told = "CSV file" if kind == "note" else "Parquet file"
        return _list_manifest(store, root, [path], f"the {told} {text!r}")
    return FileList(store, root, _rows([image_id_of(name)], [-1]))


def _list_braces(store: Store, root: str, names: list[str], text: str) -> ImageList:
    tars = [tar_of(store, root, name) for name in names]
    with ThreadPoolExecutor(store.threads) as pool:
        kinds = pool.map(store.kind, [path for _, path in tars])
        missing = [name for name, kind in zip(names, kinds, strict=True) if kind != "file"]
    if missing:
        others = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileNotFoundError(f"no images: {missing[0]!r} of {text!r} does not exist{others}")
    return list_tars(store, root, tars, f"the pattern {text!r}")


def _list_found(store: Store, root: str, found: Iterable[tuple[str, int]], described: str) -> ImageList:
    """List what a walk found: images, else tars, else the parts of a manifest."""
    images = _Gathered()
    others: dict[Kind, list[str]] = {"tar": [], "parquet": [], "compressed tar": []}
    for name, size in found:
        kind = kind_of(name[name.rfind("/") + 1 :])
        if kind == "image":
            images.add(image_id_of(name), size)
        elif kind in others:
            others[kind].append(name)
    rows = images.rows()
    tars, parts = sorted(set(others["tar"])), sorted(set(others["parquet"]))
    if len(rows) and tars:
        raise ValueError(
            f"{described} holds both tars ({len(tars)}, as {tars[0]!r}) and other files that could be "
            f"images ({len(rows)}, as {rows.column('image_id')[0].as_py()!r}), which may be the same "
            "images; name one kind with a pattern such as 'folder/**/*.tar'"
        )
    if tars:
        return list_tars(store, root, [tar_of(store, root, name) for name in tars], described)
    if len(rows):
        return FileList(store, root, rows)
    if parts:
        return _list_manifest(store, root, [store.join(root, name) for name in parts], described)
    if others["compressed tar"]:
        raise _compressed(described)
    raise _nothing(described)


def _list_manifest(store: Store, root: str, paths: list[str], described: str) -> ImageList:
    manifest = Manifest(store, root, paths)
    image_ids = manifest.image_ids()
    if not len(image_ids):
        raise _nothing(described)
    in_order = image_ids.take(pc.sort_indices(image_ids))
    if pc.any(again := _repeats(in_order)).as_py():
        doubled = in_order.filter(again)[0].as_py()
        places = " and ".join(manifest.places(doubled)[:2])
        raise ValueError(
            f"{described} names {doubled!r} more than once ({places}); name each image once"
        )
    return FileList(store, root, pa.record_batch({"image_id": image_ids}))


class _Gathered:
    """Names and sizes on their way into Arrow: ten million of them never are Python objects at once."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._sizes: list[int] = []
        self._batches: list[pa.RecordBatch] = []

    def add(self, image_id: str, size: int) -> None:
        self._ids.append(image_id)
        self._sizes.append(size)
        if len(self._ids) == _CHUNK:
            self._batches.append(_rows(self._ids, self._sizes))
            self._ids, self._sizes = [], []

    def rows(self) -> pa.RecordBatch:
        """Return all of it, sorted by id; without sizes if none is known.

        A service that lists a file twice, as some do when a name has an empty part, has it once here.
        """
        batches = [*self._batches, _rows(self._ids, self._sizes)]
        ids = pa.concat_arrays([batch.column("image_id") for batch in batches])
        order = pc.sort_indices(ids)
        columns = {"image_id": ids.take(order)}
        if any("size" in batch.schema.names for batch in batches):
            sizes = [
                batch.column("size")
                if "size" in batch.schema.names
                else pa.array(np.full(len(batch), -1, np.int64))
                for batch in batches
            ]
            columns["size"] = pa.concat_arrays(sizes).take(order)
        rows = pa.record_batch(columns)
        again = _repeats(rows.column("image_id"))
        return rows.filter(pc.invert(again)) if pc.any(again).as_py() else rows


def _repeats(in_order: pa.Array) -> pa.BooleanArray:
    """Mark the ids that are equal to the one before."""
    if not len(in_order):
        return pa.array([], pa.bool_())
    return pa.concat_arrays([pa.array([False]), pc.equal(in_order[1:], in_order[:-1])])


def _rows(image_ids: list[str], sizes: list[int]) -> pa.RecordBatch:
    columns = {"image_id": pa.array(image_ids, pa.large_string())}
    if max(sizes, default=-1) >= 0:
        columns["size"] = pa.array(sizes, pa.int64())
    return pa.record_batch(columns)


def _nothing(described: str) -> ValueError:
    return ValueError(f"no images: {described} names no file that could be an image")


def _compressed(described: str) -> ValueError:
    return ValueError(
        f"no images: {described} is or holds compressed tars, in which no member can be read without "
        "all before it; unpack them into plain .tar files (gunzip, zstd -d, ...)"
    )
