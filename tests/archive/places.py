"""What the tests of sources share: a folder, tars byte by byte, and what a list of images reads as."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from pictures import PNG_SIGNATURE

from cxr_fast.archive.images import ImageList, UnreadableImage

END = bytes(1024)  # of a tar
FILES = {
    "a.png": PNG_SIGNATURE + b"aa",
    "b/c d.png": PNG_SIGNATURE + b"c" * 2992,
    "b/deep/er/\u00e9%20.png": PNG_SIGNATURE + b"e",
    "no_suffix": PNG_SIGNATURE,
}


def grow_images(root: Path) -> Path:
    """Write ``FILES`` below a folder, and beside them notes and hidden files."""
    for name, data in {**FILES, "b/notes.txt": b"", ".git/x.png": b"", "b/.hid.png": b""}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def outcome(found: ImageList, index: int) -> bytes | str:
    try:
        return found.read(index)
    except UnreadableImage as error:
        return error.reason


def contents(found: ImageList) -> dict[str, bytes | str]:
    return {image_id: outcome(found, index) for index, image_id in enumerate(found.image_ids)}


def header(name: bytes, size: int = 0, kind: bytes = b"0", **fields: bytes) -> bytes:
    """A header of POSIX ustar from the standard's table; ``fields`` replace the octal ones."""
    block = bytearray(512)
    block[0 : len(name)] = name
    block[100:108] = b"0000644\0"
    block[124:136] = fields.get("octets", b"%011o\0" % size)
    block[156:157] = kind
    block[257:265] = fields.get("magic", b"ustar\x0000")
    prefix = fields.get("prefix", b"")
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b" " * 8
    block[148:156] = fields.get("checksum", b"%06o\0 " % sum(block))
    return bytes(block)


def member(name: bytes, data: bytes = b"", kind: bytes = b"0", **fields: bytes) -> bytes:
    return header(name, len(data), kind, **fields) + data + bytes(-len(data) % 512)


def pax(**records: bytes) -> bytes:
    content = b""
    for key, value in records.items():
        body = b" " + key.replace("__", ".").encode() + b"=" + value + b"\n"
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length += 1
        content += str(length).encode() + body
    return member(b"PaxHeader", content, b"x")


def shard(path: Path, files: dict[str, bytes], format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
