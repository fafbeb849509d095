"""Layouts for other programs, against what was put into the run and the readers they are for."""

from __future__ import annotations

import csv
import errno
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from written_run import Box, MinedImage, write_run

from cxr_fast.archive.chestxray14 import read_boxes
from cxr_fast.archive.convert import BoxFilter, Conversion, convert_run
from cxr_fast.archive.findings import RunFolderError, open_run
from cxr_fast.archive.sources import file_name, image_id_of
from cxr_fast.cli import main

CLASSES = ("Mass", "Infiltration", "Pleural_Thickening", 'Other, "odd"')
UGLY = (
    "plain.png",
    "new\nline\r.png",
    'a, "quoted".png',
    "=cmd|' /C calc'!A0.png",
    "../up/and away.png",
    "back\\slash.png",
    "Ünï/日本\u2028.png",
    os.fsdecode(b"caf\xe9.png"),
    "x=1/-1.png",
)


def run_of(path: Path, **options: Any) -> tuple[Path, list[MinedImage]]:
    """Nine images of ugly names, some without boxes, one unreadable, one mined for no class."""
    images = []
    for i, name in enumerate(UGLY):
        height, width = 700 + i, 511 + 2 * i
        boxes: list[Box] = [
            (width / 3, height / 7, float(width), float(height), 0.9),  # to the edges
            (0.0, 0.0, 0.1 + i, 1e-3 * (i + 1), 0.7),
        ]
        images.append(
            MinedImage(
                image_id_of(name),
                height,
                width,
                {"Infiltration": (0.7, boxes), "Mass": (0.25, boxes[1:]), CLASSES[3]: (0.01, ())},
            )
        )
    images.insert(3, MinedImage("broken.png", error="truncated PNG"))
    images.insert(5, MinedImage("without labels.png"))
    images.append(MinedImage("nothing found.png", 30, 20, {"Mass": (0.1, ())}))
    return write_run(path, images, CLASSES, **options), images


def coco(run: Path, out: Path, wanted: BoxFilter | None = None) -> dict[str, Any]:
    convert_run(run, out, "coco", wanted)
    document: dict[str, Any] = json.loads(out.read_bytes().decode("ascii"))
    return document


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


# --- COCO -----------------------------------------------------------------------------------------


def test_coco_holds_what_was_mined(tmp_path: Path) -> None:
    run, images = run_of(tmp_path / "run")
    done = convert_run(run, tmp_path / "out.json", "coco")
    assert done == Conversion(10, 27, unreadable=1, sizeless=1, renamed=1, outside=1, missing_shards=0)
    document = json.loads((tmp_path / "out.json").read_text())
    assert [(c["id"], c["name"]) for c in document["categories"]] == list(enumerate(CLASSES, 1))

    listed = {image["id"]: image for image in document["images"]}
    rows = {number: image for number, image in enumerate(images, 1) if image.mined}
    assert list(listed) == list(rows)
    for number, image in rows.items():
        entry = listed[number]
        assert set(entry) == {"id", "file_name", "height", "width"}
        assert (entry["height"], entry["width"]) == (image.height, image.width)
        name = file_name(image.image_id)
        is_text = "\udce9" not in name
        assert entry["file_name"] == (name if is_text else image.image_id)
        entry["file_name"].encode("utf-8")  # no lone surrogates, which strict readers refuse

    expected = [
        (number, CLASSES.index(name) + 1, rank, box, probability)
        for number, image in rows.items()
        for name, (probability, boxes) in image.mined.items()
        for rank, box in enumerate(boxes, 1)
    ]
    found = document["annotations"]
    assert [a["id"] for a in found] == list(range(1, len(expected) + 1))
    for annotation, (number, category, rank, box, probability) in zip(found, expected, strict=True):
        assert (annotation["image_id"], annotation["category_id"]) == (number, category)
        x, y, w, h = annotation["bbox"]
        assert np.allclose([x, y, x + w, y + h], box[:4], rtol=0, atol=1e-4)
        assert min(w, h) > 0
        assert round(x + w, 9) <= rows[number].width
        assert round(y + h, 9) <= rows[number].height
        assert [round(side, 4) for side in (x, y, w, h)] == [x, y, w, h]
        assert annotation["area"] == round(w * h, 4)
        assert (annotation["iscrowd"], annotation["segmentation"]) == (0, [])
        assert annotation["score"] == box[4]  # 0.9, not the 0.8999999761581421 that float32 makes of it
        assert annotation["attributes"] == {"rank": rank, "probability": probability}


def test_coco_says_where_it_came_from(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path / "run")
    info = coco(run, tmp_path / "out.json", BoxFilter(min_score=0.8, top=1))["info"]
    assert info["settings"] == json.loads((run / "run.json").read_text())["settings"]
    assert info["settings"]["model"]["sha256"] == "0123abcd"
    assert info["version"] == "0.1.0"
    assert info["filter"] == {"min_score": 0.8, "min_probability": 0.0, "classes": [], "top": 1}
    again = tmp_path / "again.json"
    coco(run, again, BoxFilter(min_score=0.8, top=1))
    assert again.read_bytes() == (tmp_path / "out.json").read_bytes()


def test_pycocotools_reads_and_judges_it(tmp_path: Path) -> None:
    run, images = run_of(tmp_path / "run")
    coco(run, tmp_path / "out.json")
    truth = COCO(str(tmp_path / "out.json"))
    assert len(truth.getImgIds()) == 10
    number = 1 + [image.image_id for image in images].index("plain.png")
    of_class = truth.getAnnIds(imgIds=[number], catIds=truth.getCatIds(catNms=["Infiltration"]))
    assert len(of_class) == 2
    detections = truth.loadRes([{k: a[k] for k in ("image_id", "category_id", "bbox", "score")}
                                for a in truth.dataset["annotations"]])  # fmt: skip
    judged = COCOeval(truth, detections, "bbox")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    assert judged.stats[0] == 1.0
    whole = truth.loadRes(truth.dataset["annotations"])
    assert len(whole.anns) == len(truth.anns)


@pytest.mark.parametrize(
    "wanted",
    [
        BoxFilter(min_score=0.7),  # a score of exactly that stays, though float32 rounds it down
        BoxFilter(min_score=0.71),
        BoxFilter(min_probability=0.7),
        BoxFilter(min_probability=0.71),
        BoxFilter(classes=("Mass", "Pleural_Thickening")),
        BoxFilter(top=1),
        BoxFilter(min_score=0.5, min_probability=0.2, classes=("Infiltration",), top=2),
        BoxFilter(min_score=1.0),
    ],
)
def test_filters(tmp_path: Path, wanted: BoxFilter) -> None:
    run, images = run_of(tmp_path / "run")
    expected = [
        (number, name, rank)
        for number, image in enumerate(images, 1)
        for name, (probability, boxes) in image.mined.items()
        for rank, box in enumerate(boxes, 1)
        if box[4] >= wanted.min_score
        and probability >= wanted.min_probability
        and (not wanted.classes or name in wanted.classes)
        and rank <= (wanted.top or 99)
    ]
    document = coco(run, tmp_path / "out.json", wanted)
    found = [
        (a["image_id"], CLASSES[a["category_id"] - 1], a["attributes"]["rank"])
        for a in document["annotations"]
    ]
    assert found == expected
    # What is filtered changes neither images nor categories.
    whole = coco(run, tmp_path / "whole.json")
    assert document["images"] == whole["images"]
    assert document["categories"] == whole["categories"]
    counts = convert_run(run, tmp_path / "out.csv", "bbox-list", wanted)
    assert counts[:2] == (len({row[0] for row in expected}), len(expected))


def test_runs_without_a_box_or_an_image(tmp_path: Path) -> None:
    empty = write_run(tmp_path / "empty", [], CLASSES)
    assert coco(empty, tmp_path / "empty.json")["images"] == []
    bad = write_run(tmp_path / "bad", [MinedImage("a.png", error="empty file")], CLASSES)
    document = coco(bad, tmp_path / "bad.json")
    assert (document["images"], document["annotations"]) == ([], [])
    none = write_run(tmp_path / "none", [MinedImage("a", 5, 6, {"Mass": (0.5, ())})], CLASSES)
    assert [i["file_name"] for i in coco(none, tmp_path / "none.json")["images"]] == ["a"]
    for run in (empty, bad, none):
        convert_run(run, run / "out.csv", "bbox-list")
        assert (run / "out.csv").read_text() == "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        assert read_boxes(run / "out.csv").images == ()


# --- BBox_List ------------------------------------------------------------------------------------


def test_bbox_list_is_read_back(tmp_path: Path) -> None:
    run, images = run_of(tmp_path / "run")
    assert convert_run(run, tmp_path / "out.csv", "bbox-list")[:3] == (9, 27, 1)
    expected = [
        (image.image_id.rpartition("/")[2], name, box[:4])
        for image in images
        for name, (_, boxes) in image.mined.items()
        for box in boxes
    ]
    table = read_boxes(tmp_path / "out.csv", findings=CLASSES)
    assert list(zip(table.images, table.findings, strict=True)) == [row[:2] for row in expected]
    assert np.allclose(table.boxes, [row[2] for row in expected], rtol=0, atol=1.5e-4)

    frame = pd.read_csv(tmp_path / "out.csv")
    assert list(frame.columns[:6]) == ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"]
    assert frame["Image Index"].tolist() == [row[0] for row in expected]
    assert (frame["w"] > 0).all()
    assert frame.iloc[:, 6:].isna().all(axis=None)


def test_bbox_list_is_laid_out_as_the_published_one(tmp_path: Path, shared_data: Path) -> None:
    import gzip

    run, _ = run_of(tmp_path / "run")
    convert_run(run, tmp_path / "out.csv", "bbox-list")
    with gzip.open(shared_data / "nih" / "BBox_List_2017.csv.gz", "rt", newline="") as file:
        published = file.read().splitlines()
    written = (tmp_path / "out.csv").read_bytes().decode().splitlines()
    assert written[0] == published[0]
    assert {len(row) for row in csv.reader(written[1:])} == {len(published[1].split(","))}


def test_names_that_are_the_same_without_their_folders(tmp_path: Path) -> None:
    box = {"Mass": (0.5, [(1.0, 2.0, 3.0, 4.0, 0.5)])}
    images = [MinedImage(f"{folder}/00001.png", mined=box) for folder in "abc"]
    run = write_run(tmp_path / "run", images, CLASSES)
    result = cli(run, "--to", "bbox-list", "--out", tmp_path / "out.csv")
    assert result.exit_code == 1
    assert "a/00001.png and b/00001.png are both called 00001.png" in result.output
    assert not (tmp_path / "out.csv").exists()
    result = cli(run, "--to", "bbox-list", "--out", tmp_path / "out.csv", "--paths")
    assert result.exit_code == 0, result.output
    assert read_boxes(tmp_path / "out.csv").images == ("a/00001.png", "b/00001.png", "c/00001.png")
    result = cli(run, "--to", "coco", "--out", tmp_path / "out.json", "--paths")
    assert "--paths is for bbox-list" in result.output


# --- what is refused, and what a failure leaves ---------------------------------------------------


@pytest.mark.parametrize("layout", ["coco", "bbox-list"])
def test_nothing_is_written_over(tmp_path: Path, layout: Any) -> None:
    run, _ = run_of(tmp_path / "run")
    out = tmp_path / "out"
    out.write_text("drawn by hand")
    with pytest.raises(FileExistsError, match="exists and is not written over"):
        convert_run(run, out, layout)
    assert out.read_text() == "drawn by hand"
    late, dangling = tmp_path / "late", tmp_path / "link"

    def comes_meanwhile(done: int, total: int) -> None:
        late.write_text("sooner")

    with pytest.raises(FileExistsError):
        convert_run(run, late, layout, progress=comes_meanwhile)
    assert late.read_text() == "sooner"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        convert_run(run, dangling, layout)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["late", "link", "out", "run"]


@pytest.mark.parametrize("layout", ["coco", "bbox-list"])
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Any
) -> None:
    run, _ = run_of(tmp_path / "run")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"the disk is full and .*out was not written"):
        convert_run(run, tmp_path / "out", layout)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_an_unfinished_run_only_when_asked_for(tmp_path: Path) -> None:
    run, images = run_of(tmp_path / "run", left_out={1, 5})
    out = tmp_path / "new" / "out.json"
    result = cli(run, "--to", "coco", "--out", out)
    assert result.exit_code == 1
    assert "2 of 6 shards are missing" in result.output
    assert not out.parent.exists()
    done = cli(run, "--to", "coco", "--out", out, "--partial", "--json")
    assert json.loads(done.output) == {
        "images": 7, "boxes": 21, "unreadable": 0, "sizeless": 1, "renamed": 1, "outside": 1,
        "missing_shards": 2,
    }  # fmt: skip
    document = json.loads(out.read_text())
    mined = [n for n, i in enumerate(images, 1) if i.mined and (n - 1) // 2 not in (1, 5)]
    assert [image["id"] for image in document["images"]] == mined
    assert document["info"]["missing_shards"] == 2
    text = cli(run, "--to", "bbox-list", "--out", tmp_path / "out.csv", "--partial").output
    assert "2 shards are not mined yet" in text


def test_folders_that_are_no_whole_run(tmp_path: Path) -> None:
    box = (0.5, [(1.0, 2.0, 3.0, 4.0, 0.5)])
    image = MinedImage("a.png", mined={"Mass": box})

    def refused(run: Path, message: str, layout: Any = "coco") -> None:
        with pytest.raises(RunFolderError, match=message):
            convert_run(run, tmp_path / "out", layout)
        assert not (tmp_path / "out").exists()

    refused(tmp_path / "nowhere", "holds no mining run")
    with open_run(tmp_path / "other", {"model": {"class_names": CLASSES}, "shard_size": 2}):
        pass
    refused(tmp_path / "other", "has not begun")
    with open_run(tmp_path / "nameless", {"shard_size": 2}) as run:
        run.write_images(["a.png"])
    refused(tmp_path / "nameless", "does not say the model's class names")
    refused(write_run(tmp_path / "old", [image], CLASSES, with_maps=False), "sizes of its images")
    convert_run(tmp_path / "old", tmp_path / "old.csv", "bbox-list")

    strange = write_run(tmp_path / "class", [image], ["Nodule"])
    refused(strange, "class that the run's model does not know", "bbox-list")
    many = write_run(tmp_path / "many", [image], CLASSES)
    (many / "findings" / "part-00007.parquet").write_bytes(
        (many / "findings" / "part-00000.parquet").read_bytes()
    )
    refused(many, "one too many")
    foreign = write_run(tmp_path / "foreign", [MinedImage("b.png", mined={"Mass": box})], CLASSES)
    for kind, message in (("findings", "boxes of an image that"), ("maps", "at its place")):
        mixed = write_run(tmp_path / f"mixed {kind}", [image], CLASSES)
        part = mixed / kind / "part-00000.parquet"
        part.write_bytes((foreign / kind / "part-00000.parquet").read_bytes())
        refused(mixed, message)


def test_a_part_that_is_damaged_leaves_nothing(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path / "run")
    part = run / "findings" / "part-00004.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    for layout in ("coco", "bbox-list"):
        result = cli(run, "--to", layout, "--out", tmp_path / "out")
        assert result.exit_code == 1
        assert "Traceback" not in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_filters_that_make_no_sense(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path / "run")
    with pytest.raises(ValueError, match="knows no class 'mass'; choose of Mass, Infiltration"):
        convert_run(run, tmp_path / "out", "coco", BoxFilter(classes=("mass",)))
    with pytest.raises(ValueError, match="min_score must be from 0 to 1"):
        BoxFilter(min_score=float("nan"))
    with pytest.raises(ValueError, match="top must be at least 1"):
        BoxFilter(top=0)


def test_the_report_counts_what_is_left_out(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path / "run")
    result = cli(run, "--to", "coco", "--out", tmp_path / "out.json", "--class", "Mass", "--class",
                 "Infiltration", "--top", 1, "--min-score", 0.8)  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == f"10 images, 9 boxes -> {tmp_path / 'out.json'}"
    assert [line.split()[0] for line in lines[1:]] == ["1"] * 4
    assert "unreadable" in lines[1]
    assert "mined for no class" in lines[2]
    assert "not UTF-8" in lines[3]
    assert "which CVAT refuses" in lines[4]


def test_memory_holds_one_shard(tmp_path: Path) -> None:
    boxes: list[Box] = [(1.5, 2.5, 30.25, 40.75, 0.5)] * 3
    peaks = []
    for shards in (3, 60):
        images = [
            MinedImage(f"{i:07d}.png", mined=dict.fromkeys(CLASSES, (0.5, boxes)))
            for i in range(40 * shards)
        ]
        run = write_run(tmp_path / str(shards), images, CLASSES, shard_size=40)
        del images
        for layout in ("coco", "bbox-list"):
            tracemalloc.start()
            convert_run(run, run / layout, layout)  # type: ignore[arg-type]
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    # 20 times the boxes, 28800 of them; ids are read a block at a time, here all 2400.
    assert peaks[2] < 2 * peaks[0]
    assert peaks[3] < 2 * peaks[1]
