r"""The name (``image_id``) that an image has in every table, and what a file's name says.

An ``image_id`` is the image's path relative to its source, with ``/`` between the parts and the
extension kept; a member of a tar has the tar's id before it. It is always valid text on one line: a
byte that is not UTF-8, a control character, a line separator and the backslash are each written as
``\xNN``, one escape a byte, so every backslash in an id starts an escape and ``file_name`` gives back
the exact name.
"""

from __future__ import annotations

import os
import re
from fnmatch import fnmatchcase
from itertools import product
from math import prod
from typing import Literal

Kind = Literal["image", "tar", "parquet", "compressed tar", "note", "hidden"]

# Files that sit beside images and never are one. Everything else is listed, so that a file that
# cannot be read ends as a row of the errors table, not in silence.
_NOTES = (
    *(".csv", ".tsv", ".txt", ".json", ".jsonl", ".md", ".rst", ".yaml", ".yml", ".toml", ".xml"),
    *(".html", ".pdf", ".log", ".xlsx", ".py", ".sh", ".ipynb", ".gz", ".zip", ".sha256", ".md5"),
)
# What lies beside an image of the same key in a tar of WebDataset's layout.
_SIDECARS = (
    *(".cls", ".cls2", ".class", ".count", ".index", ".inx", ".id", ".text", ".transcript", ".jsn"),
    *(".pyd", ".pickle", ".pth", ".ten", ".tb", ".mp", ".msg", ".cbor", ".npy", ".npz"),
)
_COMPRESSED_TARS = (
    *(".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4", ".tar.z"),
)
_WILDCARD = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")
_MOST_NAMES = 1_000_000  # of one brace notation
_TO_ESCAPE = re.compile(r"[\x00-\x1f\x7f-\x9f\\\u2028\u2029\ud800-\udfff]")
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")
_NO_PLAIN_MEMBER = re.compile(rb"[^\x20-\x5b\x5d-\x7e]|(?:^|/)\.{0,2}(?:/|$)")


def image_id_of(name: str) -> str:
    """Write a file name, as the operating system gives it, as valid text on one line."""
    if name.isascii() and _TO_ESCAPE.search(name) is None:
        return name
    # Through fsencode, so that an id does not depend on the locale that read the folder.
    return _escaped(os.fsencode(name))


def file_name(image_id: str) -> str:
    """Undo :func:`image_id_of`: return the name to open."""
    if "\\" not in image_id and image_id.isascii():
        return image_id
    raw = image_id.encode("utf-8")
    return os.fsdecode(_ESCAPE.sub(lambda escape: bytes([int(escape.group(1), 16)]), raw))


def member_id(name: bytes) -> str:
    r"""Write a tar member's name as an id that stays inside whatever folder it is appended to.

    Empty parts and ``.`` go, as they do where a tar is unpacked; ``..`` is written
    ``\x2e\x2e`` and a leading slash ``\x2f``.
    """
    if _NO_PLAIN_MEMBER.search(name) is None:
        return name.decode("ascii")
    parts = [_escaped(part) for part in name.split(b"/") if part not in (b"", b".")]
    path = "/".join(r"\x2e\x2e" if part == ".." else part for part in parts)
    return r"\x2f" + path if name.startswith(b"/") else path


def _escaped(name: bytes) -> str:
    text = name.decode("utf-8", "surrogateescape")
    return _TO_ESCAPE.sub(
        lambda char: "".join(
            f"\\x{byte:02x}" for byte in char.group().encode("utf-8", "surrogateescape")
        ),
        text,
    )


def kind_of(name: str) -> Kind:
    """Tell by the last part of a path what a file is taken for."""
    lowered = name.lower()
    if name.startswith("."):
        return "hidden"
    if lowered.endswith(".tar"):
        return "tar"
    if lowered.endswith(".parquet"):
        return "parquet"
    if lowered.endswith(_COMPRESSED_TARS):
        return "compressed tar"
    return "note" if lowered.endswith(_NOTES) else "image"


def is_image_member(member: str) -> bool:
    """Tell whether a tar member could be an image: it is not hidden, no note and no sidecar."""
    if member.startswith(".") or "/." in member:
        return False
    name = member[member.rfind("/") + 1 :]
    return kind_of(name) == "image" and not name.lower().endswith(_SIDECARS)


def has_wildcard(text: str) -> bool:
    """Tell whether a name is a pattern."""
    return _WILDCARD.search(text) is not None


def split_pattern(text: str) -> tuple[str, list[str]]:
    """Cut a pattern before the first part with a wildcard: the folder (it may be empty), the parts."""
    parts = text.split("/")
    first = next(index for index, part in enumerate(parts) if has_wildcard(part))
    folder = "/".join(parts[:first]) + ("/" if first else "")
    pattern: list[str] = []
    for part in parts[first:]:
        # ``**/**`` says no more than ``**`` and would cost exponential time to match.
        if part not in ("", ".") and not (part == "**" and pattern and pattern[-1] == "**"):
            pattern.append(part)
    if pattern[-1] == "**":
        pattern.append("*")  # any folders, and a file in them
    return folder, pattern


def matches(parts: list[str], pattern: list[str]) -> bool:
    """Tell whether a path matches a pattern, both given as parts; ``**`` stands for any folders."""
    # Row i of the table "the first i parts match the first j of the pattern": no backtracking.
    row = [True] + [False] * len(pattern)
    for j, piece in enumerate(pattern):
        row[j + 1] = row[j] and piece == "**"
    for part in parts:
        above, row = row, [False] * (len(pattern) + 1)
        for j, piece in enumerate(pattern):
            if piece == "**":
                row[j + 1] = row[j] or above[j + 1]
            else:
                row[j + 1] = above[j] and fnmatchcase(part, piece)
    return row[-1]


def split_braces(text: str) -> tuple[str, str] | None:
    """Cut a name with braces before the part that has the first: folder, rest; None without braces."""
    found = next((b for b in _BRACES.finditer(text) if _choices(b[1]) != [b[0]]), None)
    if found is None:
        return None
    start = text.rfind("/", 0, found.start()) + 1
    return text[:start], text[start:]


def expand_braces(text: str) -> list[str]:
    """Write out ``shards-{000..099}.tar`` and ``{train,val}.tar``; a text without braces is itself.

    Zeros in front of either end of a range are kept, and it may run downwards. Raises ValueError for
    more than a million names.
    """
    pieces = _BRACES.split(text)  # fixed, choice, fixed, choice, ..., fixed
    choices = [_choices(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    _refuse_many(prod(map(len, choices)), text)
    return ["".join(parts) for parts in product(*choices)]


def _choices(inside: str) -> list[str]:
    if (ends := _RANGE.fullmatch(inside)) is None:
        return inside.split(",") if "," in inside else ["{" + inside + "}"]
    first, last = int(ends[1]), int(ends[2])
    _refuse_many(abs(last - first) + 1, "{" + inside + "}")
    padded = any(end.startswith("0") and len(end) > 1 for end in ends.groups())
    width = max(map(len, ends.groups())) if padded else 0
    step = 1 if last >= first else -1
    return [f"{number:0{width}d}" for number in range(first, last + step, step)]


def _refuse_many(count: int, text: str) -> None:
    if count > _MOST_NAMES:
        raise ValueError(
            f"expected at most {_MOST_NAMES} names, got {count} from {text!r}; name fewer, or a folder"
        )
