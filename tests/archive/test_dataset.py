"""cxr_fast.archive.dataset: what an archive holds, what is wrong with it, and that boxes stay shut."""

from __future__ import annotations

import csv
import gzip
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxr_fast.archive.chestxray14 import read_boxes, read_labels
from cxr_fast.archive.dataset import load_images, open_archive, split_by_patient
from cxr_fast.archive.images import read_image, to_input
from cxr_fast.config import BOXED_FINDINGS, CHESTXRAY14_FINDINGS
from cxr_fast.phantom import PhantomSettings, write_archive

# Image, findings, patient; d's patient has two images.
ROWS = (
    ("a.png", "Mass|Hernia", 1),
    ("b.jpg", "No Finding", 2),
    ("c.png", "Edema", 3),
    ("d1.png", "Nodule|Mass", 4),
    ("d2.png", "Nodule", 4),
)
TRAIN, TEST = ("d2.png", "d1.png", "a.png"), ("b.jpg", "c.png")

_opened: list[str] | None = None


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _opened is not None and event in ("open", "os.listdir", "os.scandir", "glob.glob"):
        _opened.append(str(arguments[0]))


sys.addaudithook(_watch)  # cannot be removed, so it looks only when asked to


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Every file that is opened and every folder that is listed, by any means, in this process."""
    global _opened
    _opened = []
    yield _opened
    _opened = None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images: two in a flat folder, the others as NIH's archives unpack."""
    root = tmp_path / "archive"
    lines = ["Image Index,Finding Labels,Patient ID", *(",".join(map(str, row)) for row in ROWS)]
    rng = np.random.default_rng(2)
    for number, (name, _, _) in enumerate(ROWS):
        place = root / ("images" if number < 2 else f"images_00{number}/images") / name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 20 + number), np.uint8)).save(place)
    (root / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")
    (root / "train_val_list.txt").write_text("\n".join(TRAIN) + "\n")
    (root / "test_list.txt").write_text("\n".join(TEST) + "\n")
    return root


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_an_archive(folder: Path) -> None:
    archive = open_archive(folder)
    assert archive.folder == folder
    assert archive.splits == {"train_val": TRAIN, "test": TEST}
    assert archive.split("test") == TEST
    assert archive.notes == ()
    assert {name: path.name for name, path in archive.files.items()} == {r[0]: r[0] for r in ROWS}
    assert archive.files["a.png"] == folder / "images" / "a.png"
    assert archive.files["c.png"] == folder / "images_002" / "images" / "c.png"
    assert archive.labels.images == tuple(row[0] for row in ROWS)
    assert archive.labels.findings == BOXED_FINDINGS
    assert archive.labels.patients.tolist() == [1, 2, 3, 4, 4]
    assert archive.labels.lines.tolist() == [2, 3, 4, 5, 6]
    assert archive.labels.matrix.tolist() == [
        [int(name in row[1].split("|")) for name in BOXED_FINDINGS] for row in ROWS
    ]


def test_columns_are_those_asked_for(folder: Path) -> None:
    replace(folder / "Data_Entry_2017.csv", "Edema", "Edema|Opacity")
    with pytest.raises(ValueError, match=r"line 4: .*got 'Edema\|Opacity'"):
        open_archive(folder)
    archive = open_archive(folder, ("Opacity", "Nodule", "Edema"))
    assert archive.labels.matrix.tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 1], [0, 1, 0], [0, 1, 0]]
    for wrong in ((), ("Mass", "Mass")):
        with pytest.raises(ValueError, match="findings must be distinct"):
            open_archive(folder, wrong)


def test_boxes_stay_shut(folder: Path, opened: list[str]) -> None:
    """Even if they cannot be read, and whatever they are called."""
    boxes = [folder / name for name in ("BBox_List_2017.csv", "bbox.csv.gz", "ChestX_Det_test.json")]
    for path in boxes:
        path.write_bytes(b"\xff no table")
    (folder / "boxes").mkdir()
    opened.clear()
    archive = open_archive(folder)
    load_images(archive, archive.split("train_val"), 8, cache=folder / "cache")[0][:]
    assert any("Data_Entry" in name for name in opened)  # the hook works
    assert any(name.endswith("d1.png") for name in opened)
    inside = [name.removeprefix(os.fspath(folder)) for name in opened]
    assert not [name for name in inside if "box" in name.lower() or "Det" in name]


def test_gzip_and_lists_that_are_not_there(folder: Path) -> None:
    for name in ("Data_Entry_2017.csv", "train_val_list.txt"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        with pytest.raises(ValueError, match=f"must hold one .*{name}, {name}.gz; move away"):
            open_archive(folder)
        (folder / name).unlink()
    (folder / "test_list.txt").unlink()
    archive = open_archive(folder)
    assert archive.splits == {"train_val": TRAIN}
    assert archive.notes == (f"2 images are in no split; the first is {folder / 'images' / 'b.jpg'}.",)
    with pytest.raises(FileNotFoundError, match=r"has no test_list\.txt"):
        archive.split("test")
    with pytest.raises(FileNotFoundError, match=r"one of train_val_list\.txt, test_list\.txt"):
        archive.split("validation")
    (folder / "train_val_list.txt.gz").unlink()
    assert (open_archive(folder).splits, open_archive(folder).notes) == ({}, ())
    (folder / "Data_Entry_2017.csv.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"must hold a Data_Entry\*\.csv"):
        open_archive(folder)


def test_an_image_of_a_split_is_missing(folder: Path) -> None:
    (folder / "images_003/images/d1.png").unlink()
    (folder / "images/b.jpg").unlink()
    listed, table = folder / "train_val_list.txt", folder / "Data_Entry_2017.csv"
    with pytest.raises(ValueError, match="missing='skip'") as error:
        open_archive(folder)
    assert str(error.value).startswith(f"{listed}, line 2: expected each image")
    assert f"d1.png ({table}, line 5) is not, and 1 of 3 are not" in str(error.value)
    archive = open_archive(folder, missing="skip")
    assert archive.splits == {"train_val": ("d2.png", "a.png"), "test": ("c.png",)}
    assert archive.notes == (
        f"1 of 3 images of {listed} are not in the folder and are left out; the first is d1.png "
        f"(line 2; {table}, line 5).",
        f"1 of 2 images of {folder / 'test_list.txt'} are not in the folder and are left out; the "
        f"first is b.jpg (line 1; {table}, line 3).",
    )
    with pytest.raises(ValueError, match=r"d1\.png has no file"):
        load_images(archive, ["d1.png"], 8)
    with pytest.raises(ValueError, match="missing must be"):
        open_archive(folder, missing="ignore")  # type: ignore[arg-type]


def test_what_no_split_names_is_reported(folder: Path) -> None:
    table = folder / "Data_Entry_2017.csv"
    table.write_text(table.read_text() + "gone.png,Mass,9\nspare.png,Mass,9\n")
    shutil.copy(folder / "images/a.png", folder / "images/stranger.PNG")
    shutil.copy(folder / "images/a.png", folder / "images/spare.png")
    (folder / "images" / "._a.png").write_bytes(b"")  # as macOS leaves them
    (folder / "images" / "README.txt").write_text("")
    (folder / "images_note.png").write_text("")  # no folder
    archive = open_archive(folder)
    assert archive.splits == {"train_val": TRAIN, "test": TEST}
    assert archive.notes == (
        f"1 rows of {table} have no image in the folder, and are in no split; the first is gone.png "
        "(line 7).",
        f"1 images have no row in {table}; the first is {folder / 'images' / 'stranger.PNG'}.",
        f"1 images are in no split; the first is {folder / 'images' / 'spare.png'}.",
    )
    assert "._a.png" not in archive.files


@pytest.mark.parametrize("missing", ["refuse", "skip"])
@pytest.mark.parametrize(
    ("file", "old", "new", "start", "message"),
    [
        ("train_val_list.txt", "d1.png", "x.png", "line 2", r"x\.png has no row there, and 1 of 3"),
        ("test_list.txt", "c.png", "c.png\na.png", "line 3", r"a\.png is on line 3 of .*train_val"),
        (
            "Data_Entry_2017.csv",
            "c.png,Edema,3",
            "c.png,Edema,4",
            None,
            r"test_list\.txt, line 2: .* c\.png is of patient 4 \(.*\.csv, line 4\), as is d2\.png on "
            r"line 1 of .*train_val_list\.txt",
        ),
        ("Data_Entry_2017.csv", "Edema", "Oedema", "line 4", "got 'Oedema'"),
        ("Data_Entry_2017.csv", "d2.png", "d1.png", "line 6", "'d1.png' is on line 5 too"),
        ("test_list.txt", "c.png", "b.jpg", "line 2", "'b.jpg' is on line 1 too"),
    ],
)
def test_refusals(
    folder: Path, missing: str, file: str, old: str, new: str, start: str | None, message: str
) -> None:
    replace(folder / file, old, new)
    with pytest.raises(ValueError, match=message) as error:
        open_archive(folder, missing=missing)  # type: ignore[arg-type]
    if start:
        assert str(error.value).startswith(f"{folder / file}, {start}: expected")


def test_two_files_of_one_name(folder: Path) -> None:
    shutil.copy(folder / "images/a.png", folder / "images_004/images/a.png")
    with pytest.raises(ValueError, match=r"images/a\.png and .*images_004/images/a\.png; remove one"):
        open_archive(folder)


@pytest.mark.parametrize("cached", [True, False])
def test_load_images(folder: Path, tmp_path: Path, cached: bool) -> None:
    archive = open_archive(folder, ("Mass", "Edema"))
    names = ("c.png", "d1.png", "a.png")
    told: list[tuple[int, int]] = []
    data = load_images(
        archive,
        names,
        16,
        cache=tmp_path / "c" if cached else None,
        progress=lambda *counts: told.append(counts),
    )
    assert data.names == names
    assert data.patients.tolist() == [3, 4, 1]
    assert data.patients.dtype == np.int64
    assert data.labels.tolist() == [[0, 1], [1, 0], [1, 0]]
    assert data.labels.dtype == np.float32
    assert data.images.shape == (3, 16, 16)
    assert told[-1] == (3, 3)
    for place, name in enumerate(names):
        pixels = to_input(read_image(archive.files[name]), 16) * 255
        np.testing.assert_array_equal(data.images[np.array([place])][0], np.rint(pixels))
    with pytest.raises(ValueError, match=r"x\.png has no row in .*Data_Entry"):
        load_images(archive, ["x.png"], 16)


def test_split_by_patient() -> None:
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 40, 300) * 1_000_003 - 7
    train, held = split_by_patient(patients, 0.25, 3)
    assert sorted([*train, *held]) == list(range(300))
    assert set(patients[train]).isdisjoint(patients[held])
    assert len(set(patients[held])) == round(0.25 * len(set(patients)))
    assert train.dtype == held.dtype == np.int64
    # The same patients, whatever the order and however often each comes.
    order = rng.permutation(300)
    for shuffled in (order, np.concatenate([order, order])):
        _, again = split_by_patient(patients[shuffled], 0.25, 3)
        assert set(patients[shuffled][again]) == set(patients[held])
    assert set(patients[split_by_patient(patients, 0.25, 4)[1]]) != set(patients[held])
    # Nobody is favoured for his number: over many seeds each is held back about as often.
    few = np.arange(10)
    counts = sum(np.bincount(split_by_patient(few, 0.3, seed)[1], minlength=10) for seed in range(400))
    assert counts.sum() == 400 * 3
    assert counts.min() > 80
    assert counts.max() < 160
    # Fixed for good: a run can be told apart from another by its seed alone.
    assert split_by_patient(few, 0.3, 0)[1].tolist() == [2, 4, 6]


def test_split_by_patient_refuses() -> None:
    patients = np.array([5, 5, 5, 8])
    train, held = split_by_patient(patients, 0, 1)
    assert (train.tolist(), held.tolist()) == ([0, 1, 2, 3], [])
    assert len(split_by_patient(np.array([], np.int64), 0, 1)[0]) == 0
    for share, message in (
        (0.1, "none to hold back"),
        (0.9, "none to train on"),
        (1.0, r"in \[0, 1\)"),
        (-0.1, r"in \[0, 1\)"),
        (float("nan"), r"in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            split_by_patient(patients, share, 1)
    with pytest.raises(ValueError, match="none to hold back"):
        split_by_patient(np.array([7, 7]), 0.4, 1)


def test_phantoms(tmp_path: Path) -> None:
    write_archive(tmp_path, PhantomSettings(images=24, size=64, seed=3))
    archive = open_archive(tmp_path, CHESTXRAY14_FINDINGS)
    assert archive.notes == ()
    with open(tmp_path / "Data_Entry_2017.csv", newline="") as file:
        rows = {row[0]: set(row[1].split("|")) for row in csv.reader(file)}
    for name, path in (("train_val", "train_val_list.txt"), ("test", "test_list.txt")):
        assert archive.split(name) == tuple((tmp_path / path).read_text().split())
        data = load_images(archive, archive.split(name), 32)
        assert data.images.shape == (len(archive.split(name)), 32, 32)
        for image, row in zip(data.names, data.labels, strict=True):
            named = {f for f, value in zip(CHESTXRAY14_FINDINGS, row, strict=True) if value}
            assert named == rows[image] - {"No Finding"}
    assert sum(map(len, archive.splits.values())) == 24


def lay_out(nih: Path, root: Path, table: bytes) -> None:
    root.mkdir()
    (root / "Data_Entry_2017.csv").write_bytes(table)
    for name in ("train_val_list.txt.gz", "test_list.txt.gz"):
        (root / name).symlink_to(nih / name)
    (root / "images_001").mkdir()
    (root / "images_001" / "images").symlink_to(nih / "images")


def layout_of_2017(table: bytes) -> bytes:
    """The first release's form: ages such as 058Y, every line ended by a comma."""
    lines = table.decode().splitlines()
    rows = (line.split(",") for line in lines[1:])
    changed = (",".join([*r[:4], f"{int(r[4]):03d}Y", *r[5:], ""]) for r in rows)
    return "\n".join([lines[0] + ",", *changed, ""]).encode()


def test_the_real_archive(shared_data: Path, tmp_path: Path) -> None:
    """All of the tables, in both layouts, with the 255 images that are here."""
    nih = shared_data / "nih"
    table = gzip.decompress((nih / "Data_Entry_2017_v2020.csv.gz").read_bytes())
    lay_out(nih, tmp_path / "v2020", table)
    archive = open_archive(tmp_path / "v2020", CHESTXRAY14_FINDINGS, missing="skip")
    labels = archive.labels
    assert len(set(labels.images)) == len(labels.images) == 112_120
    assert len(np.unique(labels.patients)) == 30_805
    assert len(archive.files) == 255
    counts = [re.search(r"(\d+) of (\d+) images of .*(train_val|test)_list", n) for n in archive.notes]
    left_out = {match[3]: (int(match[1]), int(match[2])) for match in counts if match}
    assert {name: n for name, (_, n) in left_out.items()} == {"train_val": 86_524, "test": 25_596}
    sizes = {name: n - absent for name, (absent, n) in left_out.items()}
    assert sizes == {name: len(images) for name, images in archive.splits.items()}
    assert sum(sizes.values()) == 255
    assert len(archive.notes) == 2

    old = tmp_path / "Data_Entry_2017.csv"
    old.write_bytes(layout_of_2017(table))
    assert b",058Y," in old.read_bytes()
    again = read_labels(old)
    assert (again.images, again.findings) == (labels.images, labels.findings)
    np.testing.assert_array_equal(again.matrix, labels.matrix)
    np.testing.assert_array_equal(again.patients, labels.patients)

    some = archive.split("test")[:3]
    data = load_images(archive, some, 64)
    assert data.images[:].std(axis=(1, 2)).min() > 5
    boxes = read_boxes(nih / "BBox_List_2017.csv.gz")
    assert not set(boxes.images) & set(archive.split("train_val"))
