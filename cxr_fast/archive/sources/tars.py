"""Lists the images in tars, WebDataset's shards among them.

A tar is named for what is wrong with it by a row of its own: an image whose id is the tar's, which
nothing can read. The members before the damage are images like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cxr_fast.archive.decode import UnreadableImage
from cxr_fast.archive.sources.lists import TarList
from cxr_fast.archive.sources.names import image_id_of, is_image_member, member_id
from cxr_fast.archive.sources.store import OpenFile, Store
from cxr_fast.archive.sources.tar_headers import DamagedTarError, members

_COMPRESSED = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)


@dataclass
class _Index:
    """One tar's images. An offset below 0 is -1 - n for ``reasons[n]``."""

    image_ids: pa.LargeStringArray
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    reasons: list[str]


@dataclass
class _Found:
    """What is known of a tar so far."""

    tar_id: str
    image_ids: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)

    def add(self, image_id: str, offset: int, size: int, reason: str = "") -> None:
        if reason:
            offset, size = -1 - self.reasons.setdefault(reason, len(self.reasons)), -1
        self.image_ids.append(image_id)
        self.offsets.append(offset)
        self.sizes.append(size)


def list_tars(store: Store, root: str, tars: Sequence[tuple[str, str]], described: str) -> TarList:
    """Index tars, given as pairs (id, path), several at a time; images keep the order they have there.

    Raises ValueError if no tar holds a member that could be an image, with what is wrong if something
    is.
    """
    ids = {tar_id for tar_id, _ in tars}
    if len(ids) < len(tars) or any(tar_id.rpartition("/")[0] in ids for tar_id in ids):
        raise ValueError(
            f"{described} names a tar more than once, or a tar and a folder alike; rename one"
        )
    with ThreadPoolExecutor(store.threads) as pool:
        indices = list(pool.map(lambda tar: _index(store, *tar), tars))
    if not any((index.sizes >= 0).any() for index in indices):
        wrong = next((index.reasons[0] for index in indices if index.reasons), "")
        raise ValueError(
            f"no images: {described} holds no member that could be an image"
            + (f" ({wrong})" if wrong else "")
        )
    reasons: dict[str, int] = {}
    offsets = []
    for index in indices:
        codes = np.array([reasons.setdefault(r, len(reasons)) for r in index.reasons] or [0], np.int64)
        broken = index.offsets < 0
        offsets.append(
            np.where(broken, -1 - codes[np.where(broken, -1 - index.offsets, 0)], index.offsets)
        )
    counts = [len(index.offsets) for index in indices]
    rows = {
        "image_id": pa.concat_arrays([index.image_ids for index in indices]),
        "tar": np.repeat(np.arange(len(tars), dtype=np.int32), counts),
        "offset": np.concatenate(offsets),
        "size": np.concatenate([index.sizes for index in indices]),
    }
    paths = tuple(path for _, path in tars)
    return TarList(store, root, pa.record_batch(rows), paths, tuple(reasons))


def _index(store: Store, tar_id: str, path: str) -> _Index:
    found = _Found(tar_id)
    try:
        with store.opened(path) as file:
            _read_headers(found, file, store.window)
    except (UnreadableImage, DamagedTarError) as error:
        found.add(tar_id, 0, 0, str(error))
    return _Index(
        pa.array(found.image_ids, pa.large_string()),
        np.array(found.offsets, np.int64),
        np.array(found.sizes, np.int64),
        list(found.reasons),
    )


def _read_headers(found: _Found, file: OpenFile, window: int) -> None:
    end = file.size()
    start = file.read_at(0, min(6, end))
    if not start:
        raise UnreadableImage("empty file (0 bytes)")
    for signature, name in _COMPRESSED:
        if start.startswith(signature):
            raise UnreadableImage(f"a tar compressed with {name}, which cannot be read in parts")
    seen: set[str] = set()
    doubled = []
    try:
        for member in members(file.read_at, end, window):
            name = member_id(member.name)
            if not is_image_member(name):
                continue
            if name in seen:
                doubled.append(name)
                continue
            seen.add(name)
            found.add(f"{found.tar_id}/{name}", member.offset, member.size, member.reason)
    except DamagedTarError as error:
        found.add(found.tar_id, 0, 0, "; ".join([str(error), *_told(doubled)]))
    else:
        for told in _told(doubled):
            found.add(found.tar_id, 0, 0, told)


def _told(doubled: list[str]) -> list[str]:
    if not doubled:
        return []
    count = "a member has" if len(doubled) == 1 else f"{len(doubled)} members have"
    return [f"{count} the name of an earlier one, which is taken; the first is {doubled[0]!r}"]


def tar_of(store: Store, root: str, name: str) -> tuple[str, str]:
    """Return a tar's id and path, as ``list_tars`` takes them."""
    return image_id_of(name), store.join(root, name)
