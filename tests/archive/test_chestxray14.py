"""cxr_fast.archive.chestxray14: the published layouts, their damage, and the real tables."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cxr_fast.archive import chestxray14
from cxr_fast.config import BOXED_FINDINGS, CHESTXRAY14_FINDINGS

COMMON = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender"
BRACKETS = "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
QUOTED = 'View Position,"OriginalImage[Width,Height]","OriginalImagePixelSpacing[x,y]"'
ORIGINAL = f"""{COMMON},{BRACKETS},
b_000.png,Mass|Nodule,0,12,058Y,M,PA,2682,2749,0.143,0.143,
a_000.png,No Finding,0,7,000D,F,AP,2500,2048,,,
"""
REVISED = f"""{COMMON},{BRACKETS}
b_000.png,Mass|Nodule,0,12,58,M,PA,2682,2749,0.143,0.143
a_000.png,No Finding,0,7,0,F,AP,2500,2048,,
"""
BOX_ROWS = """b_000.png,Infiltrate,10.5,20,30.25,40
a_000.png,Mass,1e2,200,3,4
"""
BOXES = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n" + BOX_ROWS

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(content: str | bytes) -> Path:
        path = tmp_path / "table.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return to_file


def disguises(text: str) -> list[bytes]:
    """One table as different editors, servers and spreadsheets leave it."""
    return [
        text.encode(),
        gzip.compress(text.encode(), mtime=0),
        text.encode("utf-8-sig"),
        text.replace("\n", "\r\n").encode(),
        text.rstrip("\n").encode(),
        f"{text}\n\n".encode(),
        f"{text},,,,,,,,,,,,\r\n".encode(),
        text.replace("\n", ",,,\n").encode(),
    ]


@pytest.mark.parametrize(
    "text",
    [
        ORIGINAL,
        REVISED,
        REVISED.replace(BRACKETS, QUOTED),
        REVISED.replace(BRACKETS, f"{BRACKETS},,"),
    ],
)
def test_labels_in_each_layout(write: Write, text: str) -> None:
    for content in disguises(text):
        labels = chestxray14.read_labels(write(content))
        assert labels.images == ("b_000.png", "a_000.png")
        assert labels.findings == CHESTXRAY14_FINDINGS
        assert labels.patients.tolist() == [12, 7]
        assert labels.patients.dtype == np.int64
        assert labels.matrix.dtype == np.uint8
        assert labels.matrix.tolist() == [
            [int(name in ("Mass", "Nodule")) for name in CHESTXRAY14_FINDINGS],
            [0] * 14,
        ]


def test_labels_of_another_archive_and_of_no_image(write: Write) -> None:
    table = write("patient_id,image index,FINDING LABELS\n3,x,Scar|Infiltrate\n3,y,Scar\n")
    labels = chestxray14.read_labels(table, findings=("Infiltration", "Edema", "Scar"))
    assert labels.matrix.tolist() == [[1, 0, 1], [0, 0, 1]]
    assert labels.patients.tolist() == [3, 3]
    empty = chestxray14.read_labels(write(f"{COMMON},{BRACKETS}\n"))
    assert (empty.images, empty.matrix.shape, empty.patients.shape) == ((), (0, 14), (0,))


@pytest.mark.parametrize(
    "header",
    [
        "Image Index,Finding Label,Bbox [x,y,w,h],,,",
        'Image Index,Finding Label,"Bbox [x,y,w,h]"',
        "Image Index,Finding Label,Bbox [x,y,w,h],Unnamed: 6,Unnamed: 7",
        "image,label,x,y,width,height",
        "Image_Index,Finding_Label,Bbox_X,Bbox_Y,Bbox_W,Bbox_H",
    ],
)
def test_boxes_in_each_variant(write: Write, header: str) -> None:
    for content in disguises(f"{header}\n{BOX_ROWS}"):
        boxes = chestxray14.read_boxes(write(content))
        assert boxes.images == ("b_000.png", "a_000.png")
        assert boxes.findings == ("Infiltration", "Mass")
        assert boxes.boxes.dtype == np.float32
        assert boxes.boxes.tolist() == [[10.5, 20, 40.75, 60], [100, 200, 103, 204]]


def test_corners_are_rounded_once(write: Write) -> None:
    boxes = chestxray14.read_boxes(write(BOXES.replace("10.5,20,30.25,40", "0.1,0.2,900.3,0.7")))
    assert boxes.boxes[0].tolist() == [np.float32(v) for v in (0.1, 0.2, 0.1 + 900.3, 0.2 + 0.7)]


def test_split(write: Write) -> None:
    for content in disguises("b_000.png\na_000.png\n"):
        assert chestxray14.read_split(write(content)) == ("b_000.png", "a_000.png")
    assert chestxray14.read_split(write("")) == ()


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("Patient ID", "Person", 1, "expected a column 'Patient ID'"),
        (COMMON, "", 1, "expected a column 'Image Index'"),
        (",M,PA,2682,2749,0.143,0.143", ",M,PA", 2, "expected 11 fields, got 7"),
        ("2682,2749", "2682,2749,9", 2, "expected 11 fields, got 12"),
        ("0,7,0", "0,seven,0", 3, "whole number as Patient ID, got 'seven'"),
        ("0,7,0", "0,7.5,0", 3, "whole number as Patient ID, got '7.5'"),
        ("0,7,0", "0,99999999999999999999,0", 3, "whole number as Patient ID"),
        ("a_000.png", "b_000.png", 3, "'b_000.png' is on line 2 too"),
        ("a_000.png", " ", 3, "expected an image name"),
        ("Mass|Nodule", "Mass|Nodul", 2, "got 'Mass|Nodul'"),
        ("Mass|Nodule", "", 2, "expected 'No Finding' alone"),
        ("Mass|Nodule", "Mass|No Finding", 2, "expected 'No Finding' alone"),
        ("\nb_000.png", '\n\n"b_000.png', 3, "look for a stray quote"),
    ],
)
def test_labels_refuse(write: Write, old: str, new: str, line: int, message: str) -> None:
    assert old in REVISED
    path = write(REVISED.replace(old, new))
    with pytest.raises(ValueError, match=message.replace("|", r"\|")) as error:
        chestxray14.read_labels(path)
    assert str(error.value).startswith(f"{path}, line {line}: expected")


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("Bbox [x,y,w,h],,,", "x1,y1,x2,y2", 1, "turn corners into x, y, w, h"),
        ("Image Index,Finding Label,Bbox [x,y,w,h],,,\n", "", 1, "expected a header like"),
        ("Bbox [x,y,w,h],,,", "Bbox", 1, "expected a header like"),
        ("30.25,40", "30.25", 2, "expected 6 fields, got 5"),
        ("30.25,40", "30.25,40,,1", 2, "expected 6 fields, got 8"),
        ("200,3,4", "200,three,4", 3, "expected x, y, w, h as numbers"),
        ("200,3,4", "200,nan,4", 3, "expected x, y, w, h as numbers"),
        ("200,3,4", "-inf,3,4", 3, "expected x, y, w, h as numbers"),
        ("200,3,4", "200,3,1e300", 3, "expected x, y, w, h as numbers"),
        ("200,3,4", "200,3,-4", 3, "w and h above 0"),
        ("200,3,4", "200,0,4", 3, "w and h above 0"),
        ("200,3,4", "200,,4", 3, "expected x, y, w, h as numbers"),
        ("Mass", "Masses", 3, "got 'Masses'"),
        ("Mass", "Mass|Nodule", 3, "expected one finding for the box"),
        ("Mass", "No Finding", 3, "expected one finding for the box"),
        ("\na_000.png", "\n", 3, "expected an image name"),
    ],
)
def test_boxes_refuse(write: Write, old: str, new: str, line: int, message: str) -> None:
    assert old in BOXES
    path = write(BOXES.replace(old, new))
    with pytest.raises(ValueError, match=message.replace("|", r"\|")) as error:
        chestxray14.read_boxes(path)
    assert str(error.value).startswith(f"{path}, line {line}: expected")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a.png\nb.png\na.png\n", "line 3: .* 'a.png' is on line 1 too"),
        (b"a.png\nb.png,Mass\n", "line 2: expected 1 fields, got 2"),
        (b"a.png\nb\xff.png\n", "line 2: expected UTF-8 text"),
        (gzip.compress(b"a.png\n" * 99, mtime=0)[:-9], "expected a whole gzip file"),
        (gzip.compress(b"a.png\n", mtime=0)[:-8] + bytes(8), "expected a whole gzip file"),
    ],
)
def test_split_refuses(write: Write, content: bytes, message: str) -> None:
    path = write(content)
    with pytest.raises(ValueError, match=message) as error:
        chestxray14.read_split(path)
    assert str(error.value).startswith(str(path))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        chestxray14.read_boxes(tmp_path / "absent.csv")


def test_published_labels_and_lists(shared_data: Path) -> None:
    nih = shared_data / "nih"
    labels = chestxray14.read_labels(nih / "Data_Entry_2017_v2020.csv.gz")
    assert labels.matrix.shape == (len(set(labels.images)), 14) == (112_120, 14)
    assert len(np.unique(labels.patients)) == 30_805
    # 60,361 images say "No Finding" in the revision of 2020.
    assert int((labels.matrix.sum(axis=1) == 0).sum()) == 60_361
    train_val = chestxray14.read_split(nih / "train_val_list.txt.gz")
    test = chestxray14.read_split(nih / "test_list.txt.gz")
    assert (len(train_val), len(test)) == (86_524, 25_596)
    assert set(train_val).isdisjoint(test)
    assert {*train_val, *test} == set(labels.images)
    patient = dict(zip(labels.images, labels.patients.tolist(), strict=True))
    assert {patient[i] for i in train_val}.isdisjoint({patient[i] for i in test})


def test_published_boxes(shared_data: Path) -> None:
    nih = shared_data / "nih"
    boxes = chestxray14.read_boxes(nih / "BBox_List_2017.csv.gz")
    assert boxes.boxes.shape == (984, 4)
    assert len(set(boxes.images)) == 880
    assert set(boxes.images) <= set(chestxray14.read_split(nih / "test_list.txt.gz"))
    counts = (180, 146, 153, 123, 85, 79, 120, 98)
    assert Counter(boxes.findings) == dict(zip(BOXED_FINDINGS, counts, strict=True))
    assert (boxes.boxes[:, 2:] > boxes.boxes[:, :2]).all()
    assert boxes.boxes.min() >= 0
    assert boxes.boxes.max() <= 1024
