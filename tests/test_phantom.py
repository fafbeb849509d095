"""The phantom archive: reproducible, laid out like ChestX-ray14, and boxed where it was changed."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxr_fast.config import BOXED_FINDINGS
from cxr_fast.phantom import Phantom, PhantomSettings, render, study_of, write_archive
from cxr_fast.phantom.anatomy import Chest
from cxr_fast.phantom.findings import plant
from cxr_fast.phantom.planning import Planned

DATA = Path(__file__).parents[1].parent / "shared" / "data" / "nih"
BOX_TABLE = DATA / "BBox_List_2017.csv.gz"

# Median area of the released boxes, percent of the image.
MEDIAN_AREA = {
    "Atelectasis": 1.9,
    "Cardiomegaly": 17.1,
    "Effusion": 5.6,
    "Infiltration": 5.7,
    "Mass": 1.5,
    "Nodule": 0.46,
    "Pneumonia": 5.7,
    "Pneumothorax": 3.6,
}
# A hundred draws of areas whose logarithm deviates by 0.5 to 1 leave the median 10 to 12 percent.
AREA_TOLERANCE = 0.30
DRAWS = 100

SMALL = PhantomSettings(images=30, size=64, seed=4)


def only(finding: str, **changes: object) -> PhantomSettings:
    """Settings under which every image has this one finding, once."""
    weights = tuple(float(name == finding) for name in BOXED_FINDINGS)
    settings = PhantomSettings(
        images=DRAWS, size=256, seed=3, findings_per_image=(0, 1), prevalence=weights, second_box=0
    )
    return replace(settings, **changes)  # type: ignore[arg-type]


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def table(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "archive"
    write_archive(out, SMALL)
    return out


@pytest.fixture(scope="module")
def draws() -> dict[str, list[Phantom]]:
    return {
        finding: [render(index, only(finding)) for index in range(DRAWS)] for finding in BOXED_FINDINGS
    }


def test_bytes_do_not_depend_on_workers(archive: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_archive(
        tmp_path / "two", SMALL, workers=2, progress=lambda done, total: calls.append((done, total))
    )
    assert files_of(tmp_path / "two") == files_of(archive)
    assert calls == [(done, 30) for done in range(1, 31)]


@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted_run_continues_and_ends_the_same(
    archive: Path, tmp_path: Path, workers: int
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 11:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write_archive(out, SMALL, progress=interrupt, workers=workers)
    assert not (out / "Data_Entry_2017.csv").exists()
    journal = out / "phantom.rows.jsonl"
    finished = [out / "images" / json.loads(row)["name"] for row in journal.open()]
    with journal.open("a") as file:
        file.write('{"index": 12, "na')  # as a full disk or a kill leaves it
    kept = {path: path.stat().st_mtime_ns for path in finished}
    calls: list[int] = []
    write_archive(out, SMALL, progress=lambda done, _: calls.append(done), workers=workers)
    assert files_of(out) == files_of(archive)
    assert calls[0] == 12, "what was finished is not drawn again"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_finished_archive_is_left_alone_and_a_lost_image_drawn_again(
    archive: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(archive, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    write_archive(out, SMALL)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == before
    next(iter(before)).unlink()
    write_archive(out, SMALL)
    assert files_of(out) == files_of(archive)


def test_layout_is_that_of_the_release(archive: Path) -> None:
    labels, boxes = table(archive / "Data_Entry_2017.csv"), table(archive / "BBox_List_2017.csv")
    assert labels[0][:7] == [
        "Image Index",
        "Finding Labels",
        "Follow-up #",
        "Patient ID",
        "Patient Age",
        "Patient Gender",
        "View Position",
    ]
    assert ",".join(labels[0][7:]) == "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
    assert ",".join(boxes[0]) == "Image Index,Finding Label,Bbox [x,y,w,h],,,"
    assert {len(row) for row in labels} == {11}
    assert {len(row) for row in boxes[1:]} == {6}
    names = [row[0] for row in labels[1:]]
    assert names == sorted(names)
    assert len(set(names)) == 30
    assert sorted(path.name for path in (archive / "images").iterdir()) == names
    for row in labels[1:]:
        assert row[0] == f"{int(row[3]):08d}_{int(row[2]):03d}.png"
        assert row[5] in "MF"
        assert row[6] in ("PA", "AP")
    with Image.open(archive / "images" / names[0]) as picture:
        assert (picture.mode, picture.size, picture.format) == ("L", (64, 64), "PNG")
    assert json.loads((archive / "phantom.json").read_text())["seed"] == 4
    assert {path.name for path in archive.iterdir()} == {
        "images",
        "Data_Entry_2017.csv",
        "BBox_List_2017.csv",
        "train_val_list.txt",
        "test_list.txt",
        "phantom.json",
    }


def test_split_is_disjoint_by_patient(archive: Path) -> None:
    train = (archive / "train_val_list.txt").read_text().split()
    test = (archive / "test_list.txt").read_text().split()
    names = [row[0] for row in table(archive / "Data_Entry_2017.csv")[1:]]
    assert sorted(train + test) == names
    assert not {name[:8] for name in train} & {name[:8] for name in test}
    assert test
    many = replace(SMALL, images=1200)
    assert sum(study_of(index, many).test for index in range(1200)) / 1200 == pytest.approx(
        0.2, abs=0.06
    )


def test_labels_agree_with_boxes(archive: Path) -> None:
    boxed: dict[str, set[str]] = {}
    for name, finding, *box in table(archive / "BBox_List_2017.csv")[1:]:
        boxed.setdefault(name, set()).add(finding.replace("Infiltrate", "Infiltration"))
        x, y, w, h = (float(value) for value in box)
        assert min(x, y) >= 0
        assert min(w, h) > 0
        assert max(x + w, y + h) <= 64
    assert "Infiltration" not in (archive / "BBox_List_2017.csv").read_text()
    for row in table(archive / "Data_Entry_2017.csv")[1:]:
        labels = set() if row[1] == "No Finding" else set(row[1].split("|"))
        assert labels <= set(BOXED_FINDINGS)
        assert boxed.get(row[0], set()) == labels


def test_proportions_of_findings() -> None:
    settings = PhantomSettings(images=400, size=64, seed=9)
    drawn = [render(index, settings) for index in range(400)]
    counts = np.bincount([len(one.labels) for one in drawn], minlength=4) / 400
    np.testing.assert_allclose(counts, (0.30, 0.45, 0.20, 0.05), atol=0.08)
    repeated = sum(len(one.boxes) > len(one.labels) for one in drawn)
    assert 10 <= repeated <= 80
    assert {finding for one in drawn for finding in one.labels} == set(BOXED_FINDINGS)


@pytest.mark.parametrize("finding", BOXED_FINDINGS)
def test_changed_pixels_lie_in_the_box_and_fill_it(
    draws: dict[str, list[Phantom]], finding: str
) -> None:
    for index in range(0, 30, 2):
        planted = draws[finding][index]
        plain = render(index, only(finding), without=(finding,))
        assert plain.labels == ()
        assert plain.boxes == []
        change = np.abs(planted.image.astype(int) - plain.image)
        ((name, x, y, w, h),) = planted.boxes
        assert name == finding
        rows, columns = np.nonzero(change >= 5)
        assert len(rows), "a finding that nobody can see"
        assert x - 1 <= columns.min()
        assert columns.max() <= x + w
        assert y - 1 <= rows.min()
        assert rows.max() <= y + h
        rows, columns = np.nonzero(change >= 2)
        # A heart's lower edge lies on the diaphragm, where nothing can be seen of it.
        tall = 0.5 if finding == "Cardiomegaly" else 0.8
        assert np.ptp(columns) + 1 >= 0.8 * w - 2
        assert np.ptp(rows) + 1 >= tall * h - 2


@pytest.mark.parametrize("finding", BOXED_FINDINGS)
def test_median_area_is_that_of_the_released_boxes(
    draws: dict[str, list[Phantom]], finding: str
) -> None:
    areas = [w * h / 256**2 * 100 for one in draws[finding] for _, _, _, w, h in one.boxes]
    assert np.median(areas) == pytest.approx(MEDIAN_AREA[finding], rel=AREA_TOLERANCE)
    assert np.std(np.log(areas)) > 0.15, "sizes vary"


@pytest.mark.parametrize("finding", BOXED_FINDINGS)
def test_sizes_and_places_against_the_real_table(draws: dict[str, list[Phantom]], finding: str) -> None:
    if not BOX_TABLE.exists():
        pytest.skip("the released box table is not here")
    named = "Infiltrate" if finding == "Infiltration" else finding
    with gzip.open(BOX_TABLE, "rt", newline="") as file:
        real = np.array([row[2:6] for row in csv.reader(file) if row[1] == named], float) / 1024
    drawn = np.array([box[1:] for one in draws[finding] for box in one.boxes]) / 256
    for quantile in (0.25, 0.5, 0.75):
        ratio = np.quantile(drawn[:, 2] * drawn[:, 3], quantile) / np.quantile(
            real[:, 2] * real[:, 3], quantile
        )
        assert 0.55 < ratio < 1.8, f"area at quantile {quantile}"
    for side in (-1, 1):
        of_side = [boxes[side * (boxes[:, 0] + boxes[:, 2] / 2 - 0.5) > 0] for boxes in (drawn, real)]
        if min(len(boxes) for boxes in of_side) < 20:
            continue  # hearts have one side only
        drawn_centre, real_centre = (
            np.median(boxes[:, :2] + boxes[:, 2:] / 2, axis=0) for boxes in of_side
        )
        np.testing.assert_allclose(drawn_centre, real_centre, atol=0.12)


def test_lungs_are_darker_than_the_rest_of_the_body() -> None:
    settings = PhantomSettings(images=24, size=128, findings_per_image=(1,))
    mean = np.mean([render(index, settings).image for index in range(24)], axis=0)
    lungs = mean[40:60, 28:40].mean(), mean[40:60, 90:100].mean()
    flesh = mean[36:50, 6:12].mean(), mean[36:50, 116:122].mean()
    heart, belly = mean[68:76, 66:78].mean(), mean[105:120, 40:90].mean()
    assert mean[:4, :8].mean() + 20 < min(lungs)
    assert max(lungs) + 40 < min(flesh)
    assert max(flesh) + 20 < min(heart, belly)


def test_the_same_picture_at_every_size() -> None:
    for index in (0, 5, 17):
        settings = PhantomSettings(images=30, size=1024, seed=2)
        large, small = render(index, settings), render(index, replace(settings, size=256))
        reduced = np.asarray(Image.fromarray(large.image).reduce(4), float)
        assert np.abs(reduced - small.image).mean() < 2.5
        assert large.labels == small.labels
        for big, little in zip(large.boxes, small.boxes, strict=True):
            np.testing.assert_allclose(np.array(big[1:]) / 1024, np.array(little[1:]) / 256, atol=0.05)


def test_a_patient_keeps_an_anatomy() -> None:
    settings = PhantomSettings(images=48, size=64, findings_per_image=(1,))
    by_patient: dict[int, list[np.ndarray]] = {}
    for index in range(48):
        one = render(index, settings)
        # Ranks, because the exposure is another one each time.
        ranks = one.image[8:56, 8:56].ravel().argsort().argsort()
        by_patient.setdefault(one.patient_id, []).append(ranks)
    same = [np.corrcoef(a, b)[0, 1] for own in by_patient.values() for a, b in pairwise(own)]
    first = [own[0] for own in by_patient.values()]
    other = [np.corrcoef(a, b)[0, 1] for a, b in pairwise(first)]
    assert 1 - np.median(same) < 0.7 * (1 - np.median(other))


def test_the_seed_changes_everything_and_nothing_else_does() -> None:
    settings = PhantomSettings(images=24, size=64)
    first, second, again = (
        [render(index, replace(settings, seed=seed)) for index in range(24)] for seed in (0, 1, 0)
    )
    for one, other, same in zip(first, second, again, strict=True):
        assert not np.array_equal(one.image, other.image)
        assert np.array_equal(one.image, same.image)
        assert one.boxes == same.boxes
    assert [one.labels for one in first] != [other.labels for other in second]
    ages = [
        {one.patient_id: one.study.age for one in images if not one.study.follow_up}
        for images in (first, second)
    ]
    assert ages[0] != ages[1]


def test_findings_on_backgrounds(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    folder = tmp_path / "real"
    folder.mkdir()
    grey = generator.integers(60, 120, (90, 70), dtype=np.uint8)
    Image.fromarray(grey).save(folder / "a.png")
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(folder / "b.jpg")
    Image.fromarray(grey.astype(np.uint16) * 256).save(folder / "c.png")
    (folder / "d.png").write_bytes(b"not an image")
    for finding in BOXED_FINDINGS:
        settings = only(finding, backgrounds=folder, size=128)
        for index in range(8):
            planted = render(index, settings)
            plain = render(index, settings, without=(finding,))
            assert plain.image.shape == (128, 128)
            assert 50 < plain.image.mean() < 210, "16-bit files are scaled, not clipped"
            change = np.abs(planted.image.astype(int) - plain.image)
            ((_, x, y, w, h),) = planted.boxes
            rows, columns = np.nonzero(change >= 5)
            assert len(rows)
            assert x - 1 <= columns.min()
            assert columns.max() <= x + w
            assert y - 1 <= rows.min()
            assert rows.max() <= y + h


@pytest.mark.parametrize("finding", [name for name in BOXED_FINDINGS if name != "Cardiomegaly"])
def test_a_finding_beside_the_lung_is_seen_all_the_same(finding: str) -> None:
    nothing = np.zeros((128, 128), np.float32)
    chest = Chest(nothing + 0.5, (nothing, nothing), nothing, nothing)
    planned = Planned(finding, 1, (0.5, 0.4, 0.2, 0.1), 0.5, 7)
    changed, (x, y, w, h) = plant(chest, planned)
    assert np.abs(changed.attenuation - chest.attenuation).max() > 10 / 255
    assert x >= 0.5 - 1 / 128
    assert y >= 0.4 - 1 / 128
    assert x + w <= 0.7 + 1 / 128
    assert y + h <= 0.5 + 1 / 128
    assert min(w, h) > 0.05


@pytest.mark.skipif(not (DATA / "images").is_dir(), reason="the real images are not here")
def test_findings_on_real_images(tmp_path: Path) -> None:
    settings = PhantomSettings(images=4, size=256, backgrounds=DATA / "images")
    write_archive(tmp_path / "out", settings)
    assert len(list((tmp_path / "out" / "images").glob("*.png"))) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 63}, "size must be at least 64"),
        ({"images": -1}, "images must be 0 or more"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"second_box": 1.5}, "second_box is a chance"),
        ({"findings_per_image": (0.0, 0.0)}, "findings_per_image must be weights"),
        ({"findings_per_image": (-1.0, 2.0)}, "findings_per_image must be weights"),
        ({"prevalence": (1.0,) * 7}, "prevalence needs 8 weights"),
        ({"prevalence": (1.0,) + (0.0,) * 7}, "asks for 3 different findings"),
    ],
)
def test_settings_out_of_range(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(PhantomSettings(), **changes)  # type: ignore[arg-type]


def test_bad_folders(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a folder"):
        PhantomSettings(backgrounds=tmp_path / "none")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="at least one readable"):
        write_archive(tmp_path / "out", replace(SMALL, backgrounds=empty))
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileExistsError, match="holds other files"):
        write_archive(empty, SMALL)
    before = files_of(archive)
    with pytest.raises(FileExistsError, match="seed = 4 where 5 is asked for"):
        write_archive(archive, replace(SMALL, seed=5))
    assert files_of(archive) == before
    with pytest.raises(ValueError, match="workers must be 0 or more"):
        write_archive(tmp_path / "out", SMALL, workers=-1)
    with pytest.raises(IndexError, match="images 0 to 29"):
        render(30, SMALL)


def test_an_archive_of_no_images(tmp_path: Path) -> None:
    write_archive(tmp_path / "out", replace(SMALL, images=0))
    assert len(table(tmp_path / "out" / "Data_Entry_2017.csv")) == 1
