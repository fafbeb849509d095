"""Text tables of an archive: lines and fields, as editors, servers and spreadsheets leave them.

Plain or gzip-compressed (told by the content), UTF-8 with or without BOM, LF or CRLF; blank lines
and trailing commas are ignored. Whatever is wrong is a ValueError that names file and line.
"""

from __future__ import annotations

import csv
import gzip
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn


def read_table(
    path: str | os.PathLike[str],
) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Split the header at every comma, drop its empty end, and leave the rows below it to come."""
    first, _, body = read_text(path).partition("\n")
    header = [name.strip() for name in first.split(",")]
    while header and not header[-1]:
        header.pop()
    return header, split_rows(path, body, 1)


def split_rows(
    path: str | os.PathLike[str], body: str, lines_above: int
) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the line and its fields, for each line that is not blank."""
    reader = csv.reader(_lines_of(body), strict=True)
    line = lines_above + 1  # where the record starts: a stray quote swallows the lines after it
    try:
        for row in reader:
            if any(row):
                yield line, row
            line = lines_above + 1 + reader.line_num
    except csv.Error as error:
        fail(
            path,
            line,
            f"expected comma-separated fields, got a line that can't be split ({error}); look for "
            "a stray quote",
        )


def _lines_of(body: str) -> Iterator[str]:
    """The lines of a text as ``split`` gives them, but not millions of them at a time."""
    start = 0
    while (end := body.find("\n", start)) >= 0:
        yield body[start:end]
        start = end + 1
    yield body[start:]


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a text file, gzip-compressed or not; OSError where it can't be opened."""
    content = Path(path).read_bytes()
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{os.fspath(path)}: expected a whole gzip file, got a broken one ({error}); fetch it again"
        ) from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        fail(path, line, f"expected UTF-8 text, got byte {error.start} ({error.reason}); convert")


def check_width(path: str | os.PathLike[str], line: int, row: list[str], width: int) -> None:
    """Refuse a row with fewer than ``width`` fields, or with something beyond them."""
    if len(row) < width or any(row[width:]):
        fail(
            path,
            line,
            f"expected {width} fields, got {len(row)}: {row}; was the file cut short, or is a "
            "comma out of place?",
        )


def image_name(path: str | os.PathLike[str], line: int, field: str) -> str:
    """Give the image that a field names; refuse an empty one."""
    name = field.strip()
    if not name:
        fail(path, line, "expected an image name, got an empty field; mend or remove the row")
    return name


def plain(name: str) -> str:
    """Reduce a column's name to its letters and digits, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def fail(path: str | os.PathLike[str], line: int, message: str) -> NoReturn:
    """Raise the ValueError of a table: where, then the sentence."""
    raise ValueError(f"{os.fspath(path)}, line {line}: {message}")
