"""The tables of ChestX-ray14 (Wang et al., CVPR 2017), and of any archive in their layout.

Three kinds of file, each in any dress that ``tables.py`` knows:

- ``Data_Entry_2017``: one row an image, findings separated by ``|``. The original ends each line
  with a comma and writes ages as ``058Y``, the 2020 one does neither.
- ``BBox_List_2017``: image, finding, x, y, w, h in pixels of the 1024-pixel image. It says
  ``Infiltrate`` where the labels say ``Infiltration``; both become ``Infiltration`` here.
- ``train_val_list``, ``test_list``: one image name a line.

Headers such as ``OriginalImage[Width,Height]`` and ``Bbox [x,y,w,h]`` hold commas, without quotes
on most copies and with them on others. Splitting at *every* comma of the header, quoted or not,
puts each name above its column.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxr_fast.archive.tables import (
    check_width,
    fail,
    image_name,
    plain,
    read_table,
    read_text,
    split_rows,
)
from cxr_fast.config import CHESTXRAY14_FINDINGS

_NO_FINDING = "No Finding"
_PUBLISHED_NAMES = {"Infiltrate": "Infiltration"}
_BOX_HEADER = "Image Index, Finding Label, Bbox [x, y, w, h]"
_LARGEST = 1e6  # pixels; keeps float32 corners finite and apart
_BOX_COLUMNS = tuple(re.compile(p) for p in (".*x", ".*y", ".*w(idth)?", ".*h(eight)?"))


@dataclass(frozen=True)
class Labels:
    """Image-level labels, one row an image, in the order of the file.

    ``images``: n distinct names. ``findings``: the C names of the columns. ``matrix``: uint8
    ``[n, C]``, 1 where the finding is named. ``patients``: int64 ``[n]``. ``path``: the file;
    ``lines``: int64 ``[n]``, where in it each row stands, so that later checks can say so.
    """

    images: tuple[str, ...]
    findings: tuple[str, ...]
    matrix: npt.NDArray[np.uint8]
    patients: npt.NDArray[np.int64]
    path: str
    lines: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Boxes:
    """Ground-truth boxes, one row a box, in the order of the file.

    ``images`` and ``findings``: G names each, of the box's image and finding. ``boxes``: float32
    ``[G, 4]``, x1, y1, x2, y2, half-open, in pixels of the image that the table was drawn on.
    ``path``: the file; ``lines``: int64 ``[G]``, where in it each box stands.
    """

    images: tuple[str, ...]
    findings: tuple[str, ...]
    boxes: npt.NDArray[np.float32]
    path: str
    lines: npt.NDArray[np.int64]


def read_labels(
    path: str | os.PathLike[str], *, findings: Sequence[str] = CHESTXRAY14_FINDINGS
) -> Labels:
    """Read a label table in either layout of ``Data_Entry_2017``.

    Columns are found by the header names ``Image Index``, ``Finding Labels`` and ``Patient ID``
    (case, blanks and punctuation aside); the others are not interpreted. ``findings`` names the
    columns of the result, in order; ``No Finding`` is a row of zeros.

    Raises ValueError that names file and line: a missing column, a row shorter or longer than the
    header, an empty or repeated image name, a patient that is no whole number, a finding that is
    not in ``findings``, or ``No Finding`` beside another. OSError where the file can't be opened.
    """
    header, rows = read_table(path)
    names = [plain(name) for name in header]
    columns = []
    for column in ("Image Index", "Finding Labels", "Patient ID"):
        if plain(column) not in names:
            fail(
                path,
                1,
                f"expected a column '{column}' in the header, got {header}; rename the column, or "
                "pass a table in the layout of Data_Entry_2017",
            )
        columns.append(names.index(plain(column)))
    image_column, finding_column, patient_column = columns

    index = {name: position for position, name in enumerate(findings)}
    known: dict[str, int] = {}  # 836 combinations in ChestX-ray14: each is read once
    codes: list[int] = []
    lines: dict[str, int] = {}
    patients: list[np.int64] = []
    for line, row in rows:
        if len(row) != len(header):
            check_width(path, line, row, len(header))
        image = image_name(path, line, row[image_column])
        if image in lines:
            fail(
                path,
                line,
                f"expected one row an image, but '{image}' is on line {lines[image]} too; remove "
                "one of them",
            )
        lines[image] = line
        text = row[finding_column]
        if text not in known:
            _positions(path, line, text, index)
            known[text] = len(known)
        codes.append(known[text])
        try:
            patients.append(np.int64(int(row[patient_column])))
        except (ValueError, OverflowError):
            fail(
                path,
                line,
                f"expected a whole number as Patient ID, got '{row[patient_column]}'; mend the "
                "row, or number the patients",
            )

    combinations = np.zeros((len(known), len(findings)), dtype=np.uint8)
    for text, code in known.items():
        combinations[code, _positions(path, 0, text, index)] = 1
    matrix = combinations[np.asarray(codes, dtype=np.int64)]
    return Labels(
        tuple(lines),
        tuple(findings),
        matrix,
        np.asarray(patients, dtype=np.int64),
        os.fspath(path),
        np.asarray(list(lines.values()), dtype=np.int64),
    )


def read_boxes(
    path: str | os.PathLike[str], *, findings: Sequence[str] = CHESTXRAY14_FINDINGS
) -> Boxes:
    """Read ground-truth boxes in any variant of ``BBox_List_2017``.

    Columns go by position: image, finding, x, y, w, h. The header's wording is free, but its last
    four names must end in x, y, w (or width) and h (or height): a table of corners is refused, not
    misread. Empty fields after the sixth are ignored.

    Raises ValueError that names file and line: another header, too few or too many fields, a
    number that is broken, not finite or beyond a million pixels, a box without width or height, or
    a finding that is not in ``findings``. OSError where the file can't be opened.
    """
    header, rows = read_table(path)
    ends = zip(_BOX_COLUMNS, header[2:], strict=False)
    if len(header) < 6 or not all(pattern.fullmatch(plain(name)) for pattern, name in ends):
        fail(
            path,
            1,
            f"expected a header like {_BOX_HEADER}, got {header}; put the columns in that order, "
            "and turn corners into x, y, w, h",
        )
    index = {name: position for position, name in enumerate(findings)}
    images: list[str] = []
    labels: list[str] = []
    sides: list[list[float]] = []
    lines: list[int] = []
    for line, row in rows:
        check_width(path, line, row, 6)
        images.append(image_name(path, line, row[0]))
        named = _positions(path, line, row[1], index)
        if len(named) != 1:
            fail(
                path,
                line,
                f"expected one finding for the box, got '{row[1]}'; write one row for each",
            )
        labels.append(findings[named[0]])
        try:
            box = [float(field) for field in row[2:6]]
        except ValueError:
            box = []
        if not (box and all(abs(side) < _LARGEST for side in box) and min(box[2:]) > 0):
            fail(
                path,
                line,
                f"expected x, y, w, h as numbers below {_LARGEST:.0f} with w and h above 0, got "
                f"{row[2:6]}; mend or remove the row",
            )
        sides.append(box)
        lines.append(line)
    # Corners are summed before they are rounded to float32.
    corners = np.asarray(sides, dtype=np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return Boxes(
        tuple(images),
        tuple(labels),
        corners.astype(np.float32),
        os.fspath(path),
        np.asarray(lines, dtype=np.int64),
    )


def read_split(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read a list of image names, one a line and without a header, in the order of the file.

    Raises ValueError that names file and line: a repeated name, or a line with several fields.
    OSError where the file can't be opened.
    """
    return tuple(read_split_lines(path))


def read_split_lines(path: str | os.PathLike[str]) -> dict[str, int]:
    """Read a list as ``read_split`` does; give the line that each image stands on."""
    lines: dict[str, int] = {}
    for line, row in split_rows(path, read_text(path), 0):
        check_width(path, line, row, 1)
        image = image_name(path, line, row[0])
        if image in lines:
            fail(
                path,
                line,
                f"expected each image once, but '{image}' is on line {lines[image]} too; remove "
                "one of them",
            )
        lines[image] = line
    return lines


def _positions(path: str | os.PathLike[str], line: int, text: str, index: dict[str, int]) -> list[int]:
    """Columns of the findings in a cell such as ``Mass|Nodule``; none for ``No Finding``."""
    names = [_PUBLISHED_NAMES.get(name.strip(), name.strip()) for name in text.split("|")]
    if names == [_NO_FINDING]:
        return []
    for name in names:
        if name not in index:
            fail(
                path,
                line,
                f"expected '{_NO_FINDING}' alone, or findings out of {', '.join(index)}, got "
                f"'{text}'; mend the row, or pass the archive's own names as findings",
            )
    return [index[name] for name in names]
