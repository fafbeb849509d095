"""cxr_fast.archive.truth: three makers' tables of boxes, told apart, and what is wrong with one."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cxr_fast.archive.truth import read_rsna_names, read_truth
from cxr_fast.config import BOXED_FINDINGS, CHESTXRAY14_FINDINGS

BBOX = """Image Index,Finding Label,Bbox [x,y,w,h],,,
a.png,Infiltrate,10.5,20,30.25,40
b.png,Mass,0,0,1024,1024
a.png,Hernia,1,2,3,4
"""
DET = """image,label,x1,y1,x2,y2,split
a.png,Pleural Thickening,10,20,30,60,train
a.png,Diffuse Nodule,1,2,3,4,train

b.png,Mass,0,0,1024,1024,test
c.png,Fracture,5,5,9,9,test
c.png,Diffuse Nodule,1,2,3,4,train
"""
DET_JSON = [
    {"file_name": "none.png", "syms": [], "boxes": [], "polygons": []},
    {
        "file_name": "a.png",
        "syms": ["Pleural Thickening", "Diffuse Nodule"],
        "boxes": [[10, 20, 30, 60], [1, 2, 3, 4]],
        "polygons": [[[10, 20]], [[1, 2]]],
    },
    {"file_name": "b.png", "syms": ["Mass"], "boxes": [[0, 0, 1024, 1024]]},
    {
        "file_name": "c.png",
        "syms": ["Fracture", "Diffuse Nodule"],
        "boxes": [[5, 5, 9, 9], [1, 2, 3, 4]],
    },
]
RSNA = """nih_image,x,y,width,height,Target,patientId,mse
a.png,218.0,667.0,258.0,324.0,1,01cad,0.7
a.png,756.0,556.0,225.0,441.0,1,01cad,0.7
b.png,,,,,0,139,1.6
"""
KAGGLE = """patientId,x,y,width,height,Target
01cad,218.0,667.0,258.0,324.0,1
139,,,,,0
01cad,756.0,556.0,225.0,441.0,1
"""


def save(folder: Path, content: str | bytes | list[object]) -> Path:
    path = folder / "table"
    if isinstance(content, list):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_each_layout_is_told_by_its_content(tmp_path: Path, packed: bool) -> None:
    def read(content: str) -> object:
        data = content.encode()
        truth = read_truth(save(tmp_path, gzip.compress(data) if packed else data))
        assert truth.path == str(tmp_path / "table")
        assert truth.boxes.dtype == np.float32
        assert truth.lines.dtype == np.int64
        rows = zip(truth.images, truth.findings, truth.lines.tolist(), strict=True)
        return list(rows), truth.boxes.tolist(), truth.annotated_as_none, truth.left_out

    whole = [0, 0, 1024, 1024]
    assert read(BBOX) == (
        [("a.png", "Infiltration", 2), ("b.png", "Mass", 3), ("a.png", "Hernia", 4)],
        [[10.5, 20, 40.75, 60], whole, [1, 2, 4, 6]],
        (),
        {},
    )
    boxes, left_out = [[10, 20, 30, 60], whole], {"Diffuse Nodule": 2, "Fracture": 1}
    names = [("a.png", "Pleural_Thickening", 2), ("b.png", "Mass", 5)]
    assert read(DET) == (names, boxes, (), left_out)
    names = [("a.png", "Pleural_Thickening", 2), ("b.png", "Mass", 3)]
    for indent in (None, 1):
        content = json.dumps(DET_JSON, indent=indent)
        assert read(content) == (names, boxes, ("none.png",), left_out)
    boxes = [[218, 667, 476, 991], [756, 556, 981, 997]]
    names = [("a.png", "Pneumonia", 2), ("a.png", "Pneumonia", 3)]
    assert read(RSNA) == (names, boxes, ("b.png",), {})
    names = [("01cad", "Pneumonia", 2), ("01cad", "Pneumonia", 4)]
    assert read(KAGGLE) == (names, boxes, ("139",), {})


def test_findings_not_asked_for_are_counted(tmp_path: Path) -> None:
    truth = read_truth(save(tmp_path, BBOX), ("Mass",))
    assert (truth.findings, truth.left_out) == (("Mass",), {"Infiltration": 1, "Hernia": 1})
    truth = read_truth(save(tmp_path, DET), ("Effusion",))
    assert truth.boxes.shape == (0, 4)
    assert truth.left_out == {"Pleural Thickening": 1, "Mass": 1, "Fracture": 1, "Diffuse Nodule": 2}
    truth = read_truth(save(tmp_path, RSNA), ("Mass",))
    assert (truth.images, truth.left_out) == ((), {"Pneumonia": 2})
    own = "image,label,x,y,w,h\na,Opacity,1,2,3,4\n"
    assert read_truth(save(tmp_path, own), ("Opacity",)).findings == ("Opacity",)
    assert read_truth(save(tmp_path, "image,label,x,y,w,h\n")).boxes.shape == (0, 4)
    assert read_truth(save(tmp_path, [])).images == ()


def test_names_are_translated(tmp_path: Path) -> None:
    mapping = tmp_path / "mapping.json"
    records = [
        {"subset_img_id": "01cad", "img_id": "00000820_000.png", "orig_labels": ["Mass"]},
        {"subset_img_id": "139", "img_id": "00017562_000.png", "StudyInstanceUID": "1.2"},
    ]
    mapping.write_text(json.dumps(records))
    names = read_rsna_names(mapping)
    assert names == {"01cad": "00000820_000.png", "139": "00017562_000.png"}
    truth = read_truth(save(tmp_path, KAGGLE), names=names)
    assert truth.images == ("00000820_000.png",) * 2
    assert truth.annotated_as_none == ("00017562_000.png",)
    for lost, line in (("01cad", 2), ("139", 3)):
        some = {key: value for key, value in names.items() if key != lost}
        with pytest.raises(ValueError, match=f"line {line}: .*translation of the name {lost}"):
            read_truth(save(tmp_path, KAGGLE), names=some)
    for wrong, message in (
        ([*records, {"subset_img_id": "139", "img_id": "x.png"}], "line 3: expected one NIH image"),
        ([{"img_id": "x.png"}], "line 1: expected a record with the texts subset_img_id"),
        ({}, "expected a list of records"),
    ):
        mapping.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message):
            read_rsna_names(mapping)


def sides(*box: float) -> str:
    return "image,label,x,y,w,h\nok,Mass,1,1,1,1\na,Mass," + ",".join(map(str, box)) + "\n"


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((0, 0, 512, 512), (0, 0, 512, 512)),
        ((-0.5, 0, 512.9, 512.5), (0, 0, 512, 512)),
        ((511.75, 511.75, 0.75, 0.25), (511.75, 511.75, 512, 512)),
        ((-0.51, 0, 9, 9), None),
        ((0, -0.51, 9, 9), None),
        ((0, 0, 512.51, 9), None),
        ((0, 0, 9, 512.51), None),
        ((512, 0, 0.5, 9), None),  # nothing of it is left
        ((0, -0.5, 9, 0.5), None),
        ((600, 600, 9, 9), None),
        ((5, 5, 0, 9), None),
        ((5, 5, 9, -9), None),
    ],
)
def test_boxes_stay_within_the_image(
    tmp_path: Path, box: tuple[float, ...], kept: tuple[float, ...] | None
) -> None:
    path = save(tmp_path, sides(*box))
    if kept:
        assert read_truth(path, image_size=512).boxes[1].tolist() == list(kept)
        return
    with pytest.raises(ValueError, match="expected") as error:
        read_truth(path, image_size=512)
    assert str(error.value).startswith(f"{path}, line 3: expected")


@pytest.mark.parametrize(
    ("content", "old", "new", "message"),
    [
        (DET, "10,20,30,60", "30,20,30,60", "line 2: expected a box with an area"),
        (DET, "10,20,30,60", "30,20,10,60", "line 2: expected a box with an area"),
        (DET, "10,20,30,60", "10,20,30,2000", "line 2: expected a box with an area, within the 1024"),
        (DET, "1,2,3,4,train\n\n", "1,2,3,1025,train\n\n", "line 3: expected a box with an area"),
        (DET, "10,20,30,60", "10,nan,30,60", "line 2: expected a box with an area"),
        (DET, "10,20,30,60", "10,,30,60", "line 2: expected a box of four numbers"),
        (DET, "Mass", "Masses", "line 5: expected a class out of .*got 'Masses'"),
        (DET, ",train", "", "line 2: expected 7 fields, got 6"),
        (DET, "label", "class", "line 1: expected one column 'label'"),
        (DET, "b.png", "", "line 5: expected an image name"),
        (BBOX, "Mass", "Masses", "line 3: .*got 'Masses'"),
        (BBOX, "Bbox [x,y,w,h],,,", "Box", "line 1: expected a header like"),
        (RSNA, "b.png,", "a.png,", "line 2: .*a.png is annotated as none on line 4"),
        (RSNA, ",0,139", ",1,139", "line 4: expected a box of four numbers"),
        (RSNA, ",1,01cad", ",0,01cad", "line 2: expected Target 1 with a box, or 0 without"),
        (RSNA, ",1,01cad", ",2,01cad", "line 2: expected Target 1 with a box, or 0 without"),
        (RSNA, "324.0", "400.0", "line 2: expected a box with an area"),
        (RSNA, "width", "w", "line 1: expected one column 'width'"),
        (json.dumps(DET_JSON), '"Mass"', '"Masses"', "line 3: expected a class .*got 'Masses'"),
        (
            json.dumps(DET_JSON),
            '"Mass"]',
            '"Mass", "Mass"]',
            "line 3: expected a box for each of the 2",
        ),
        (json.dumps(DET_JSON), "1024]", "1025]", "line 3: expected a box with an area"),
        (json.dumps(DET_JSON), ", 1024]", "]", "line 3: expected a box of four numbers"),
        (json.dumps(DET_JSON), '"none.png"', '"b.png"', "line 3: .*annotated as none on line 1"),
        (json.dumps(DET_JSON), '"b.png"', "7", "line 3: expected a record with file_name"),
        (json.dumps(DET_JSON), "}]", "}", "expected JSON"),
        (json.dumps(DET_JSON[0]), "none", "one", "expected a list of records, got a dict"),
    ],
)
def test_refusals(tmp_path: Path, content: str, old: str, new: str, message: str) -> None:
    assert old in content
    path = save(tmp_path, content.replace(old, new, 1 if content == RSNA else -1))
    with pytest.raises(ValueError, match=message) as error:
        read_truth(path)
    assert str(error.value).startswith(str(path))
    with pytest.raises(ValueError, match="image_size must be"):
        read_truth(save(tmp_path, BBOX), image_size=0)


def test_the_real_tables(shared_data: Path) -> None:
    nih = shared_data / "nih"
    truth = read_truth(nih / "BBox_List_2017.csv.gz", BOXED_FINDINGS)
    assert truth.boxes.shape == (984, 4)
    assert len(set(truth.images)) == 880
    counts = (180, 146, 153, 123, 85, 79, 120, 98)
    assert Counter(truth.findings) == dict(zip(BOXED_FINDINGS, counts, strict=True))
    assert truth.lines.tolist() == list(range(2, 986))
    tested = set(gzip.decompress((nih / "test_list.txt.gz").read_bytes()).decode().split())
    assert set(truth.images) <= tested

    def rows(name: str) -> list[dict[str, str]]:
        with open(nih / name, newline="") as file:
            return list(csv.DictReader(file))

    drawn = rows("boxes_chestxdet_shared.csv")
    truth = read_truth(nih / "boxes_chestxdet_shared.csv")
    assert truth.left_out == {"Calcification": 1, "Diffuse Nodule": 3}
    assert len(truth.boxes) + 4 == len(drawn) == 43
    assert set(truth.findings) <= set(CHESTXRAY14_FINDINGS)
    for line, image, finding, box in zip(
        truth.lines, truth.images, truth.findings, truth.boxes, strict=True
    ):
        row = drawn[line - 2]
        assert (image, finding) == (row["image"], row["label"].replace(" ", "_"))
        assert box.tolist() == [float(row[key]) for key in ("x1", "y1", "x2", "y2")]

    drawn = rows("boxes_rsna_shared.csv")
    truth = read_truth(nih / "boxes_rsna_shared.csv")
    assert Counter(truth.images) == Counter(r["nih_image"] for r in drawn if r["Target"] == "1")
    assert set(truth.annotated_as_none) == {r["nih_image"] for r in drawn if r["Target"] == "0"}
    assert (len(truth.boxes), len(truth.annotated_as_none)) == (23, 83)
    assert set(truth.findings) == {"Pneumonia"}
    for line, box in zip(truth.lines, truth.boxes, strict=True):
        x, y, w, h = (float(drawn[line - 2][key]) for key in ("x", "y", "width", "height"))
        assert box.tolist() == [x, y, x + w, y + h]
