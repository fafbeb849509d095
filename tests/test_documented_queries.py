"""Every query of docs/archives.md, run as it stands there, against what was put into the run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pytest
from written_run import MinedImage, heatmap, write_run

from cxr_fast.archive.convert import convert_run

PAGE = Path(__file__).parents[1] / "docs" / "archives.md"
CLASSES = ("Mass", "Nodule", "Infiltration")
BOXES = [(10.0, 20.0, 110.5, 60.25, 0.75), (1.0, 2.0, 3.0, 4.0, 0.5)]
IMAGES = [
    MinedImage("a/1.png", mined={"Mass": (0.875, BOXES), "Nodule": (0.25, BOXES[:1])}),
    MinedImage('a/2, "it\'s".png', mined={"Mass": (0.25, BOXES[1:]), "Infiltration": (0.5, BOXES)}),
    MinedImage("b/3.png", error="truncated PNG"),
    MinedImage("b/4.png", mined={"Mass": (0.75, ()), "Nodule": (0.5, BOXES[:1])}),
    MinedImage("b/5\\xff.png", mined={"Mass": (0.125, BOXES), "Nodule": (0.0, ())}),
    MinedImage("b/6.png", error="no such file"),
    MinedImage("b/7.png", error="truncated PNG"),
]
LABELS = """\
Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,\
OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],
1.png,Nodule|Mass,0,1,058Y,M,PA,2682,2749,0.143,0.143,
"2, ""it's"".png",No Finding,0,2,058Y,M,PA,2682,2749,0.143,0.143,
4.png,Mass,0,2,058Y,M,PA,2682,2749,0.143,0.143,
"""


class Block(NamedTuple):
    language: str
    text: str


def blocks() -> dict[str, Block]:
    """The code of each heading that has some."""
    sections = re.split(r"^### (.+)$", PAGE.read_text(), flags=re.MULTILINE)[1:]
    found = {}
    for heading, text in zip(sections[::2], sections[1::2], strict=True):
        for language, code in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            assert heading not in found, "one block a heading, so that each has its check"
            found[heading] = Block(language, code)
    return found


BLOCKS = blocks()
CHECKS: dict[str, Callable[[Any], None]] = {}


def check(heading: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    def add(function: Callable[[Any], None]) -> Callable[[Any], None]:
        CHECKS[heading] = function
        return function

    return add


def rows(rank: int | None = None) -> list[tuple[Any, ...]]:
    """image_id, class, probability, box of what was put in."""
    return [
        (image.image_id, name, probability, box)
        for image in IMAGES
        for name, (probability, boxes) in image.mined.items()
        for box in boxes[:rank]
    ]


@check("The best box of each image and class")
def _(found: list[tuple[Any, ...]]) -> None:
    expected = [(i, c, *box) for i, c, probability, box in rows(1) if probability >= 0.5]
    assert len(expected) == 3
    assert found == sorted(expected)


@check("Images of each class above a probability")
def _(found: list[tuple[Any, ...]]) -> None:
    assert found == [("Mass", 2), ("Infiltration", 1), ("Nodule", 1)]


@check("Boxes beside the archive's labels")
def _(found: list[tuple[Any, ...]]) -> None:
    labelled = {"a/1.png": {"Mass", "Nodule"}, IMAGES[1].image_id: set(), "b/4.png": {"Mass"}}
    expected = [(i, c, p, c in labelled[i]) for i, c, p, _ in rows(1) if i in labelled]
    assert found == sorted(expected)
    assert {row[3] for row in found} == {True, False}


@check("Images without findings")
def _(found: list[tuple[Any, ...]]) -> None:
    assert found == [("b/5\\xff.png",)]


@check("Errors by reason")
def _(found: list[tuple[Any, ...]]) -> None:
    assert found == [("truncated PNG", 2, "b/3.png"), ("no such file", 1, "b/6.png")]


@check("Where a part came from")
def _(found: list[tuple[Any, ...]]) -> None:
    assert found == [("0123abcd", "0.1.0")]


@check("The settings in Python")
def _(names: dict[str, Any]) -> None:
    assert names["settings"] == json.loads(Path("run/run.json").read_text())["settings"]
    assert names["class_names"] == list(CLASSES)


@check("One class in pandas")
def _(names: dict[str, Any]) -> None:
    expected = [(i, k, *box, p) for i, c, p, _ in rows(1) if (c, p) == ("Mass", 0.875)
                for k, box in enumerate(BOXES, 1)]  # fmt: skip
    assert [tuple(row) for row in names["masses"].itertuples(index=False)] == expected


@check("Probabilities as a matrix")
def _(names: dict[str, Any]) -> None:
    matrix = names["matrix"]
    assert matrix.shape == (4, 3)
    for image in IMAGES:
        for name in CLASSES if image.mined else ():
            value = matrix.loc[image.image_id, name]
            assert value == image.mined[name][0] if name in image.mined else np.isnan(value)


@check("An archive that does not fit into memory")
def _(names: dict[str, Any]) -> None:
    boxes = [box for _, name, _, box in rows() if name == "Mass"]
    assert names["boxes"] == len(boxes) == 5
    assert names["area"] == sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2, _ in boxes)


@check("Heatmaps as arrays")
def _(names: dict[str, Any]) -> None:
    heatmaps = names["heatmaps"]
    assert list(heatmaps) == [image.image_id for image in IMAGES if image.mined]
    for image_id, values in heatmaps.items():
        assert np.array_equal(values * 255, heatmap(image_id, "Mass"))


@check("Reading a converted file")
def _(names: dict[str, Any]) -> None:
    masses = [row for row in rows() if row[1] == "Mass"]
    assert [a["score"] for a in names["masses"]] == [box[4] for *_, box in masses]
    table = names["table"]
    assert table["finding"].tolist() == [name for _, name, *_ in rows()]
    assert table["w"].tolist() == [box[2] - box[0] for *_, box in rows()]


def test_every_query_has_a_check() -> None:
    assert set(BLOCKS) == set(CHECKS)
    assert {block.language for block in BLOCKS.values()} == {"sql", "python"}
    fences = len(re.findall(r"^```\w", PAGE.read_text(), re.MULTILINE))
    assert fences == len(BLOCKS)


@pytest.mark.parametrize("heading", BLOCKS)
def test_query(heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("run"), IMAGES, CLASSES, shard_size=3, with_heatmaps=True)
    Path("Data_Entry_2017.csv").write_text(LABELS)
    convert_run("run", "boxes.json", "coco")
    convert_run("run", "boxes.csv", "bbox-list")
    language, text = BLOCKS[heading]
    if language == "sql":
        with duckdb.connect() as connection:
            outcome: Any = connection.sql(text).fetchall()
    else:
        outcome = {}
        exec(text, outcome)
    CHECKS[heading](outcome)
