"""Ground-truth boxes on ChestX-ray14's images, from the tables of those who drew them.

- ``BBox_List_2017`` of the release (Wang et al., CVPR 2017): image, finding, x, y, w, h.
- ChestX-Det (Liu et al., 2020): the release's JSON, a list of ``{"file_name", "syms", "boxes"}`` with
  corners, or a CSV ``image,label,x1,y1,x2,y2``. ChestX-Det10 uses NIH's file names; ChestX-Det uses
  numbers of its own (``36199.png``), which ``names`` may translate.
- RSNA Pneumonia Detection Challenge (Shih et al., 2019): Kaggle's CSV ``patientId,x,y,width,height,
  Target``, whose ids ``read_rsna_names`` translates, or the same with a column ``nih_image`` of
  NIH's names. A row with Target 0 says that the image holds no pneumonia.

All are in pixels of the 1024-pixel image. ``BBox_List_2017`` lies within it, from 5.4 to 1022.1;
the others are in whole pixels, and the parts of them that we hold lie within it, too. A box may end
on the edge; what sticks out by up to half a pixel, as rounding may leave it, is cut off, and more is
refused.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cxr_fast.archive.chestxray14 import Boxes, read_boxes
from cxr_fast.archive.tables import check_width, fail, image_name, plain, read_table, read_text
from cxr_fast.config import CHESTXRAY14_FINDINGS

_CHESTXDET = {
    "Atelectasis": "Atelectasis",
    "Calcification": None,
    "Cardiomegaly": "Cardiomegaly",
    "Consolidation": "Consolidation",
    "Diffuse Nodule": None,  # a box around a field of small ones; ChestX-ray14's nodules are single
    "Effusion": "Effusion",
    "Emphysema": "Emphysema",
    "Fibrosis": "Fibrosis",
    "Fracture": None,
    "Mass": "Mass",
    "Nodule": "Nodule",
    "Pleural Thickening": "Pleural_Thickening",
    "Pneumothorax": "Pneumothorax",
}
_RSNA = "Pneumonia"
_SLACK = 0.5


@dataclass(frozen=True)
class Truth(Boxes):
    """Boxes, and what else their table says.

    ``lines``, for JSON, are the numbers of the records, from 1. ``annotated_as_none``: images that
    the table says hold nothing of what it is about. ``left_out``: how many boxes there are of each
    class that is none of the ``findings`` asked for, by the table's own name.
    """

    annotated_as_none: tuple[str, ...]
    left_out: Mapping[str, int]


class _Row(NamedTuple):
    """One box of a table: where it stands, and its corners or sides as they stand there."""

    line: int
    image: str
    finding: str
    corners: tuple[float, float, float, float]


def read_truth(
    path: str | os.PathLike[str],
    findings: Sequence[str] = CHESTXRAY14_FINDINGS,
    *,
    image_size: int = 1024,
    names: Mapping[str, str] | None = None,
) -> Truth:
    """Read a table of boxes in any of the layouts above, told by its content.

    Boxes of ``findings`` are given, under these names; those of the table's other classes are
    counted in ``left_out``. ``image_size`` is the side, in pixels, of the images that the boxes were
    drawn on. ``names`` translates the table's names of images; an image without one is refused.

    Raises ValueError that names file and line (of JSON, the record): an unknown layout or class, too
    few fields, a number that is broken, a box without area or that sticks out of the image by more
    than half a pixel, an image with boxes that is annotated as none, or without a translation.
    OSError where the file can't be opened.
    """
    text = read_text(path)
    if text.lstrip()[:1] in ("[", "{"):
        rows, empty = _chestxdet_json(path, text)
        classes: Mapping[str, str | None] = _CHESTXDET
    else:
        header = [plain(name) for name in read_table(path)[0]]
        if {"x1", "y1", "x2", "y2"} <= set(header):
            rows, empty = _chestxdet_csv(path, header)
            classes = _CHESTXDET
        elif "target" in header:
            rows, empty = _rsna_csv(path, header)
            classes = {_RSNA: _RSNA}
        else:
            rows, empty = _bbox_list(path, findings)
            classes = {name: name for name in (*CHESTXRAY14_FINDINGS, *findings)}
    _check(path, rows, empty, image_size)
    for row in rows:
        if row.finding not in classes:
            fail(
                path,
                row.line,
                f"expected a class out of {', '.join(classes)}, got '{row.finding}'; mend the row",
            )
    kept = [row for row in rows if classes[row.finding] in findings]
    left_out = Counter(row.finding for row in rows if classes[row.finding] not in findings)
    corners = np.asarray([row.corners for row in kept], np.float64).reshape(-1, 4)
    return Truth(
        images=tuple(_translate(path, row.line, row.image, names) for row in kept),
        findings=tuple(str(classes[row.finding]) for row in kept),
        boxes=np.clip(corners, 0, image_size).astype(np.float32),
        path=os.fspath(path),
        lines=np.asarray([row.line for row in kept], np.int64),
        annotated_as_none=tuple(_translate(path, line, image, names) for image, line in empty.items()),
        left_out=dict(left_out),
    )


def read_rsna_names(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read RSNA's ``pneumonia-challenge-dataset-mappings_2018.json``: Kaggle's patientId to NIH's name.

    A list of records, of which ``subset_img_id`` and ``img_id`` are read. Raises ValueError for
    another layout, or an id with two names; OSError where the file can't be opened.
    """
    names: dict[str, str] = {}
    for number, record in enumerate(_json_list(path, read_text(path)), 1):
        if not isinstance(record, dict) or not all(
            isinstance(record.get(key), str) and record[key] for key in ("subset_img_id", "img_id")
        ):
            fail(path, number, "expected a record with the texts subset_img_id and img_id")
        if names.setdefault(record["subset_img_id"], record["img_id"]) != record["img_id"]:
            fail(
                path,
                number,
                f"expected one NIH image for {record['subset_img_id']}, got "
                f"{names[record['subset_img_id']]} and {record['img_id']}; remove one record",
            )
    return names


def _bbox_list(
    path: str | os.PathLike[str], findings: Sequence[str]
) -> tuple[list[_Row], dict[str, int]]:
    known = tuple(dict.fromkeys((*CHESTXRAY14_FINDINGS, *findings)))
    boxes = read_boxes(path, findings=known)
    columns = zip(boxes.lines.tolist(), boxes.images, boxes.findings, boxes.boxes.tolist(), strict=True)
    return [_Row(line, image, name, tuple(box)) for line, image, name, box in columns], {}


def _chestxdet_csv(
    path: str | os.PathLike[str], header: list[str]
) -> tuple[list[_Row], dict[str, int]]:
    image, label, *corners = _columns(path, header, ("image", "label", "x1", "y1", "x2", "y2"))
    rows = []
    for line, row in read_table(path)[1]:
        check_width(path, line, row, len(header))
        numbers = _numbers(path, line, [row[column] for column in corners])
        rows.append(_Row(line, image_name(path, line, row[image]), row[label].strip(), numbers))
    return rows, {}


def _chestxdet_json(path: str | os.PathLike[str], text: str) -> tuple[list[_Row], dict[str, int]]:
    rows: list[_Row] = []
    empty: dict[str, int] = {}
    for number, record in enumerate(_json_list(path, text), 1):
        fields = record if isinstance(record, dict) else {}
        image, syms, boxes = (fields.get(key) for key in ("file_name", "syms", "boxes"))
        if not isinstance(image, str) or not isinstance(syms, list) or not isinstance(boxes, list):
            fail(path, number, "expected a record with file_name, and lists syms and boxes")
        if len(syms) != len(boxes):
            fail(
                path,
                number,
                f"expected a box for each of the {len(syms)} syms of {image}, got {len(boxes)}",
            )
        for finding, box in zip(syms, boxes, strict=True):
            numbers = _numbers(path, number, box)
            rows.append(_Row(number, image_name(path, number, image), str(finding), numbers))
        if not boxes:
            empty[image_name(path, number, image)] = number
    return rows, empty


def _rsna_csv(path: str | os.PathLike[str], header: list[str]) -> tuple[list[_Row], dict[str, int]]:
    name = "nih_image" if "nihimage" in header else "patientId"
    image, *sides, target = _columns(path, header, (name, "x", "y", "width", "height", "Target"))
    rows: list[_Row] = []
    empty: dict[str, int] = {}
    for line, row in read_table(path)[1]:
        check_width(path, line, row, len(header))
        found = image_name(path, line, row[image])
        fields = [row[column].strip() for column in sides]
        if row[target].strip() == "0" and not any(fields):
            empty.setdefault(found, line)
        elif row[target].strip() == "1":
            x, y, width, height = _numbers(path, line, fields)
            rows.append(_Row(line, found, _RSNA, (x, y, x + width, y + height)))
        else:
            fail(
                path,
                line,
                f"expected Target 1 with a box, or 0 without, got {row[target]!r} with {fields}; mend "
                "the row",
            )
    return rows, empty


def _columns(path: str | os.PathLike[str], header: list[str], wanted: tuple[str, ...]) -> list[int]:
    for name in wanted:
        if header.count(plain(name)) != 1:
            fail(
                path, 1, f"expected one column '{name}' in the header, got {header}; rename the columns"
            )
    return [header.index(plain(name)) for name in wanted]


def _numbers(path: str | os.PathLike[str], line: int, fields: Any) -> tuple[float, float, float, float]:
    try:
        first, second, third, fourth = (float(field) for field in fields)
    except (TypeError, ValueError):
        fail(path, line, f"expected a box of four numbers, got {fields}; mend or remove it")
    return first, second, third, fourth


def _json_list(path: str | os.PathLike[str], text: str) -> list[Any]:
    try:
        records = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"{os.fspath(path)}: expected JSON, got text that is none ({error}); fetch it again"
        ) from error
    if not isinstance(records, list):
        fail(path, 1, f"expected a list of records, got a {type(records).__name__}")
    return records


def _check(
    path: str | os.PathLike[str], rows: list[_Row], empty: Mapping[str, int], image_size: int
) -> None:
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, but is {image_size}")
    for row in rows:
        if row.image in empty:
            fail(
                path,
                row.line,
                f"expected boxes, or none, for an image, but {row.image} is annotated as none on line "
                f"{empty[row.image]}; remove one of the rows",
            )
        x1, y1, x2, y2 = row.corners
        # Written so that a NaN fails; a box that is cut off at the edge must keep an area.
        if not (
            -_SLACK <= x1 < min(x2, image_size)
            and -_SLACK <= y1 < min(y2, image_size)
            and 0 < x2 <= image_size + _SLACK
            and 0 < y2 <= image_size + _SLACK
        ):
            fail(
                path,
                row.line,
                f"expected a box with an area, within the {image_size}-pixel image, got corners "
                f"{list(row.corners)}; mend or remove it, or say what image_size it was drawn on",
            )


def _translate(
    path: str | os.PathLike[str], line: int, image: str, names: Mapping[str, str] | None
) -> str:
    if names is None:
        return image
    if image not in names:
        fail(path, line, f"expected a translation of the name {image}, got none; complete the names")
    return names[image]
