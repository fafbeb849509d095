r"""Which images a source holds, and the name (``image_id``) each has in every table.

An ``image_id`` is the image's path relative to its source, with ``/`` between the parts and the
extension kept. It is always valid text on one line: a byte that is not UTF-8, a control character,
a line separator and the backslash are each written as ``\xNN``, one escape a byte, so every
backslash in an id starts an escape and ``file_name`` gives back the exact name.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from heapq import heappop, heappush
from pathlib import Path

# Files that sit beside images and never are one. Everything else is listed, so that a file that
# cannot be read ends as a row of the errors table, not in silence.
_NOT_IMAGES = (
    *(".csv", ".tsv", ".txt", ".json", ".jsonl", ".md", ".rst", ".yaml", ".yml", ".toml", ".xml"),
    *(".html", ".pdf", ".log", ".parquet", ".xlsx", ".py", ".sh", ".ipynb", ".gz", ".zip", ".tar"),
    *(".sha256", ".md5"),
)
_PATH_COLUMNS = ("path", "image", "image index")
_WILDCARD = re.compile(r"[*?\[]")
_TO_ESCAPE = re.compile(r"[\x00-\x1f\x7f-\x9f\\\u2028\u2029\ud800-\udfff]")
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")


def image_id_of(name: str) -> str:
    """Write a file name, as the operating system gives it, as valid text on one line."""
    if name.isascii() and _TO_ESCAPE.search(name) is None:
        return name
    # Through fsencode, so that an id does not depend on the locale that read the folder.
    text = os.fsencode(name).decode("utf-8", "surrogateescape")
    return _TO_ESCAPE.sub(
        lambda char: "".join(
            f"\\x{byte:02x}" for byte in char.group().encode("utf-8", "surrogateescape")
        ),
        text,
    )


def file_name(image_id: str) -> str:
    """Undo :func:`image_id_of`: return the name to open."""
    raw = image_id.encode("utf-8")
    return os.fsdecode(_ESCAPE.sub(lambda escape: bytes([int(escape.group(1), 16)]), raw))


@dataclass(frozen=True)
class ImageList:
    """The images of one source, in the order in which they are worked on.

    ``image_ids`` are unique. ``root`` is the absolute folder that they are relative to. Paths are
    made when asked for: ten million of them would cost more memory than the ids.
    """

    root: str
    image_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.image_ids)

    def path(self, index: int) -> str:
        """Return the absolute path of image ``index``."""
        return os.path.join(self.root, file_name(self.image_ids[index]))

    @property
    def paths(self) -> list[str]:
        """Return the absolute paths of all images, in the order of ``image_ids``."""
        return [self.path(index) for index in range(len(self))]


def list_images(source: str | Path) -> ImageList:
    """List the images of a folder, a glob pattern, a CSV file, or one image file.

    - A folder: every file below it, sorted by image_id. Left out are hidden files and folders, and
      names that end like a table or a note (.csv, .txt, .json, .md, ...). No file is opened here:
      its type is told by its content when it is read. Linked files and folders are followed; a
      folder that was walked already is not walked again, so links that form a loop end.
    - A pattern (``dir/**/*.png``; ``**`` is any number of folders): the same walk from the part
      before the first wildcard, which is also what the ids are relative to.
    - A CSV file (its name ends in .csv): the column ``path``, ``image`` or ``Image Index`` (in any
      case), else the first one, in the file's order; paths are relative to the CSV's folder. A
      file without one of these names in its first row has a header unless the first cell of that
      row is an existing file.
    - Any other file: that one image, whose id is its name.

    Raises FileNotFoundError if the source does not exist, ValueError if it holds no image, names
    one twice, or cannot be read as a CSV, and OSError if a folder cannot be listed.
    """
    text = os.fspath(source)
    if not text or "\0" in text:
        raise FileNotFoundError(f"no images: {text!r} is not the name of a folder or a file")
    if os.path.isdir(text):
        root = os.path.abspath(text)
        image_ids = sorted(map(image_id_of, walk_files(root)))
        described = f"the folder {text!r}"
    elif os.path.exists(text):
        root, name = os.path.split(os.path.abspath(text))
        if not name.lower().endswith(".csv"):
            return ImageList(root, (image_id_of(name),))
        image_ids = [image_id_of(path) for path in _csv_paths(text, root)]
        described = f"the CSV file {text!r}"
    elif _WILDCARD.search(text):
        root, pattern = _split_pattern(text)
        depth = None if "**" in pattern else len(pattern)
        found = (name for name in walk_files(root, depth) if _matches(name.split("/"), pattern))
        image_ids = sorted(map(image_id_of, found))
        described = f"the pattern {text!r}"
    else:
        raise FileNotFoundError(f"no images: {text!r} does not exist")
    if not image_ids:
        raise ValueError(f"no images: {described} names no file that could be an image")
    _refuse_duplicates(image_ids, described)
    return ImageList(root, tuple(image_ids))


def walk_files(root: str, depth: int | None = None) -> Iterator[str]:
    """Yield all files at most ``depth`` levels below ``root``, relative to it, in no order.

    What is left out, and how links are followed, is said at ``list_images``.
    """
    seen: set[tuple[int, int]] = set()
    # Linked folders wait until all real ones are walked: a folder reached both ways keeps its own
    # name, and the walk's result does not depend on the order in which entries come.
    real: list[str] = [""]
    linked: list[str] = []
    while real or linked:
        folder = real.pop() if real else heappop(linked)
        path = os.path.join(root, folder)
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        deeper = depth is None or folder.count("/") + 1 < depth
        with os.scandir(path) as entries:
            for entry in entries:
                name = folder + entry.name
                if entry.name.startswith("."):
                    continue
                if not _is_folder(entry):
                    # A pipe or a dead link too: reading it tells what is wrong with it.
                    if not entry.name.lower().endswith(_NOT_IMAGES):
                        yield name
                elif deeper and entry.is_symlink():
                    heappush(linked, name + "/")
                elif deeper:
                    real.append(name + "/")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _split_pattern(text: str) -> tuple[str, list[str]]:
    """Split off the folder before the first wildcard, made absolute."""
    parts = text.split("/")
    first = next(index for index, part in enumerate(parts) if _WILDCARD.search(part))
    folder = "/".join(parts[:first]) + ("/" if first else "")
    root = os.path.abspath(folder)
    if not os.path.isdir(root):
        raise FileNotFoundError(f"no images: the folder {folder!r} of {text!r} does not exist")
    pattern: list[str] = []
    for part in parts[first:]:
        # ``**/**`` says no more than ``**`` and would cost exponential time to match.
        if part not in ("", ".") and not (part == "**" and pattern and pattern[-1] == "**"):
            pattern.append(part)
    if pattern[-1] == "**":
        pattern.append("*")  # any folders, and a file in them
    return root, pattern


def _matches(parts: list[str], pattern: list[str]) -> bool:
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


def _csv_paths(csv_path: str, root: str) -> Iterator[str]:
    """Yield the paths that a CSV names, relative to ``root``, the folder it is in."""
    # surrogateescape: a table written on a system with other file names must not end the run.
    with open(csv_path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv.reader(file)
        column, header = 0, False
        try:
            for number, row in enumerate(rows):
                if number == 0:
                    column, header = _path_column(row, root)
                if not any(cell.strip() for cell in row) or (number == 0 and header):
                    continue
                cell = row[column].strip() if column < len(row) else ""
                if not cell:
                    raise ValueError(f"line {rows.line_num} of {csv_path!r} names no image")
                path = os.path.normpath(os.path.join(root, cell))
                yield os.path.relpath(path, root).replace(os.sep, "/")
        except csv.Error as error:
            raise ValueError(f"line {rows.line_num} of {csv_path!r} is not CSV: {error}") from error


def _path_column(first_row: list[str], root: str) -> tuple[int, bool]:
    """Find the column that holds the paths, and whether the first row is a header."""
    names = [cell.strip().lower() for cell in first_row]
    for wanted in _PATH_COLUMNS:
        if wanted in names:
            return names.index(wanted), True
    first = first_row[0].strip() if first_row else ""
    is_file = bool(first) and "\0" not in first and os.path.isfile(os.path.join(root, first))
    return 0, not is_file


def _refuse_duplicates(image_ids: Iterable[str], described: str) -> None:
    seen: set[str] = set()
    for image_id in image_ids:
        if image_id in seen:
            raise ValueError(f"{described} names {image_id!r} more than once; name each image once")
        seen.add(image_id)
