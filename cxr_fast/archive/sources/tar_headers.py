"""The members of a tar, from its headers alone: nothing is unpacked, data are skipped.

Read are POSIX.1-2001 pax and ustar (the pax page of IEEE Std 1003.1), GNU tar's own format (long
names, sizes in base 256) and the V7 format before them. Every header is 512 bytes with a checksum, and
the data behind it are padded to 512; two blocks of zeros end the archive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple
from zlib import adler32

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_MOST_EXTENDED = 2**20  # bytes of a name or of a pax header; more is damage
_LOOKED_AT = 2**16  # bytes after the end mark
# Types of members that have no data behind them, whatever their size field says.
_WITHOUT_DATA = b"123456"
_TYPES = {
    ord("1"): "a link in a tar, not a file",
    ord("2"): "a link in a tar, not a file",
    ord("3"): "a device, not a file",
    ord("4"): "a device, not a file",
    ord("6"): "a pipe, not a file",
    ord("S"): "a sparse member of a tar is not supported",
    ord("M"): "a member in several tars is not supported",
}
_SPARSE = _TYPES[ord("S")]
# Folders, volume labels and GNU's lists of folders: names without an image.
_NO_FILES = b"5VD"


class Member(NamedTuple):
    """A file in a tar: its name, where its data are, and why they cannot be had, if so."""

    name: bytes
    offset: int
    size: int
    reason: str


class DamagedTarError(Exception):
    """A tar that cannot be read on; the message is a short reason."""


def members(read_at: Callable[[int, int], bytes], end: int, window: int) -> Iterator[Member]:
    """Yield the files of a tar of ``end`` bytes, in order; folders are left out.

    ``read_at(offset, length)`` gives bytes of the tar, ``window`` is how many are asked for at least.
    Raises DamagedTarError, after what comes before the damage, if the tar ends without its end mark,
    or there is something that is no header where one must be.
    """
    blocks = _Blocks(read_at, end, window)
    everywhere: dict[bytes, bytes] = {}
    here: dict[bytes, bytes] = {}
    at = 0
    while True:
        header = blocks.at(at)
        if header == _ZEROS:
            _look_behind_the_end(blocks, at, end)
            return
        kind = header[156]
        size = _checked_size(header, at)
        data = at + _BLOCK
        if kind in b"xXgLK":
            if size > _MOST_EXTENDED:
                raise DamagedTarError(f"damaged tar: an extended header of {size} bytes at byte {at}")
            content = blocks.bytes(data, size)
            if kind == ord("g"):
                everywhere.update(_records(content, at))
            elif kind == ord("L"):
                here[b"path"] = content.partition(b"\0")[0]
            elif kind != ord("K"):
                here.update(_records(content, at))
            at = data + _padded(size)
            continue
        records = {**everywhere, **here} if everywhere else here
        reason = _TYPES.get(kind, "")
        if kind == ord("S"):
            data = _behind_the_map(blocks, header, data)
        if records:
            size = _number(records.get(b"size"), size, at)
            if any(key.startswith(b"GNU.sparse.") for key in records):
                reason = _SPARSE
        name = records.get(b"GNU.sparse.name") or records.get(b"path") or _name(header)
        here = {}
        at = data if kind in _WITHOUT_DATA else data + _padded(size)
        # The V7 format knows folders by their slash alone.
        if kind in _NO_FILES or (kind in b"\0" and name.endswith(b"/")):
            continue
        if not reason and data + size > end:
            reason = "it ends beyond the end of its tar"
        yield Member(name, data, size, reason)


class _Blocks:
    """Bytes of a tar, a window of them kept: small members lie closer than a request is long."""

    def __init__(self, read_at: Callable[[int, int], bytes], end: int, window: int) -> None:
        self._read_at, self._end, self._window = read_at, end, window
        self._kept, self._start = b"", 0

    def at(self, offset: int) -> bytes:
        return self.bytes(offset, _BLOCK)

    def bytes(self, offset: int, length: int) -> bytes:
        first = offset - self._start
        if first < 0 or first + length > len(self._kept):
            wanted = min(max(length, self._window), self._end - offset)
            self._kept = self._read_at(offset, wanted) if wanted > 0 else b""
            self._start, first = offset, 0
        got = self._kept[first : first + length]
        if len(got) < length:
            raise DamagedTarError(f"truncated tar: no end mark in its {self._end} bytes")
        return got


def _checked_size(header: bytes, at: int) -> int:
    stored = _octal(header[148:156])
    if stored is None or not _is_sum(stored, header):
        raise DamagedTarError(f"damaged tar: no header at byte {at}, so no member after it is read")
    field = header[124:136]
    size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else _octal(field)
    if size is None:
        raise DamagedTarError(f"damaged tar: no size in the header at byte {at}")
    return size


def _is_sum(stored: int, header: bytes) -> bool:
    blanked = header[:148] + b"        " + header[156:]
    # The lower half of an Adler-32 is the sum and 1, modulo 65521: quicker than adding in Python.
    if (stored + 1) % 65521 == adler32(blanked) & 0xFFFF:
        return True
    # Some old programs summed signed characters.
    return stored == sum(blanked) - 256 * sum(byte >= 128 for byte in blanked)


def _octal(field: bytes) -> int | None:
    digits = field.partition(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    # int() would take signs, underscores and a prefix too.
    return int(digits, 8) if not digits.strip(b"01234567") else None


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _records(content: bytes, at: int) -> dict[bytes, bytes]:
    """Cut a pax header into records ``length key=value`` and a line feed, ``length`` bytes each."""
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(content) and content[start : start + 1] != b"\0":
        digits, space, _ = content[start : start + 20].partition(b" ")
        stop = start + int(digits) if space and digits.isdigit() else 0
        key, equals, value = content[start + len(digits) + 1 : stop - 1].partition(b"=")
        if stop > len(content) or not equals or content[stop - 1 : stop] != b"\n":
            raise DamagedTarError(f"damaged tar: the extended header at byte {at}")
        records[key] = value
        start = stop
    return records


def _number(digits: bytes | None, otherwise: int, at: int) -> int:
    if not digits:
        return otherwise
    if not digits.isdigit() or len(digits) > 18:
        raise DamagedTarError(f"damaged tar: the extended header before byte {at}")
    return int(digits)


def _behind_the_map(blocks: _Blocks, header: bytes, data: int) -> int:
    """Skip the blocks that go on with the map of GNU's old sparse format."""
    more = header[482]
    while more:
        more = blocks.at(data)[504]
        data += _BLOCK
    return data


def _look_behind_the_end(blocks: _Blocks, at: int, end: int) -> None:
    """Refuse to stay silent on tars that were written one behind the other."""
    rest = blocks.bytes(at, min(_LOOKED_AT, end - at))
    if rest.strip(b"\0"):
        raise DamagedTarError(f"more data after the end mark at byte {at}; it is not read")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
