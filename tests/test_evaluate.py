"""Judging a run's folder: what is matched, counted, left out and said."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from cxr_fast import metrics
from cxr_fast.archive.findings import open_run
from cxr_fast.archive.schemas import FINDINGS_SCHEMA
from cxr_fast.cli import main
from cxr_fast.evaluate import EvaluationOptions, document, evaluate_run

CLASSES = ("Mass", "Nodule", "Hernia")
SIDE = 200
HEADER = "Image Index,Finding Label,Bbox [x,y,w,h]\n"


class Run:
    """Twelve images in three shards, one of them unreadable; boxes on nine, and a few elsewhere."""

    def __init__(self, folder: Path, **change: Any) -> None:
        rng = np.random.default_rng(12)
        self.folder, self.out = folder, folder / "run"
        self.images = [f"p{i % 5}/{i:02d}.png" for i in range(12)]
        self.found: list[tuple[int, int, int, list[float]]] = []  # image, class, rank, box
        self.maps: list[tuple[int, int, float, Any, np.ndarray]] = []
        self.truth: list[tuple[int, int, list[float]]] = []
        for i in range(12):
            for c in range(3):
                box = rng.uniform(0, 100, 4)
                box[2:] += box[:2] + 1
                if c < 2 and i not in (3, 4, 5) and rng.random() < 0.8:
                    self.truth.append((i, c, box.tolist()))
                if i == 7:
                    continue
                heatmap = rng.integers(0, 256, (4, 5), dtype=np.uint8)
                peak = rng.uniform(0, SIDE, 2) if rng.random() < 0.9 else (None, None)
                self.maps.append((i, c, float(np.float32(rng.random())), peak, heatmap))
                for rank in range(1, int(rng.integers(1, 4))):
                    near = box + rng.normal(0, 20, 4)
                    near[2:] = np.maximum(near[2:], near[:2] + 1)
                    self.found.append((i, c, rank, near.astype(np.float32).tolist()))
        rng.shuffle(self.truth)
        settings = {"model": {"class_names": list(CLASSES)}, "classes": "all", **change}
        keep = settings.pop("keep", "heatmaps")
        with open_run(self.out, settings) as run:
            run.write_images(self.images)
            for shard in range(3):
                part = range(4 * shard, 4 * shard + 4)
                errors = [(self.images[7], "cut short")] if 7 in part else []
                run.write_shard(shard, self.boxes_of(part), errors, self.maps_of(part, keep))
            run.finish(3)
        self.boxes, self.labels = folder / "boxes.csv", folder / "labels.csv"
        lines = [
            f"{self.images[i][3:]},{CLASSES[c]},{b[0]!r},{b[1]!r},{b[2] - b[0]!r},{b[3] - b[1]!r}\n"
            for i, c, b in self.truth
        ]
        self.boxes.write_text(HEADER + "".join(lines))
        self.positive = rng.random((12, 3)) < 0.5
        rows = ["Image Index,Finding Labels,Patient ID\n"]
        for i, image in enumerate(self.images[:11]):  # one image has no labels
            named = "|".join(CLASSES[c] for c in np.flatnonzero(self.positive[i])) or "No Finding"
            rows.append(f"{image[3:]},{named},{i % 5}\n")
        self.labels.write_text("".join(rows))

    def boxes_of(self, images: range) -> dict[str, Any]:
        rows = [row for row in self.found if row[0] in images]
        return {
            "image_id": [self.images[i] for i, *_ in rows],
            "class": [CLASSES[c] for _, c, *_ in rows],
            "rank": [rank for _, _, rank, _ in rows],
            **{e: [box[k] for *_, box in rows] for k, e in enumerate(("x1", "y1", "x2", "y2"))},
            **{name: [0.5] * len(rows) for name in ("score", "probability")},
        }

    def maps_of(self, images: range, keep: str) -> dict[str, Any] | None:
        rows = [row for row in self.maps if row[0] in images]
        if keep == "none":
            return None
        columns: dict[str, Any] = {
            "image_id": [self.images[i] for i, *_ in rows],
            "class": [CLASSES[c] for _, c, *_ in rows],
            "probability": [p for _, _, p, *_ in rows],
            **{f"peak_{a}": [row[3][k] for row in rows] for k, a in enumerate("xy")},
            **{f"image_{side}": [SIDE] * len(rows) for side in ("height", "width")},
        }
        if keep == "heatmaps":
            columns |= {"height": [4] * len(rows), "width": [5] * len(rows)}
            columns["heatmap"] = [heatmap.tobytes() for *_, heatmap in rows]
            columns |= {name: [b""] * len(rows) for name in ("cam", "erased_at")}  # not judged
        return columns

    def arguments(self, order: list[int]) -> tuple[list[Any], ...]:
        """For localization_table, images numbered by their place in ``order``."""
        found = [(order.index(i), rank, c, box) for i, c, rank, box in self.found]
        truth = [(order.index(i), c, box) for i, c, box in self.truth]
        return (*map(list, zip(*found, strict=True)), *map(list, zip(*truth, strict=True)))


@pytest.fixture
def made(tmp_path: Path) -> Run:
    return Run(tmp_path)


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", *(str(a) for a in arguments)])


@pytest.mark.parametrize("order", ["truth", "run"])
@pytest.mark.parametrize("scope", ["class", "boxed", "all"])
@pytest.mark.parametrize("bounded", [False, True])
def test_localization_is_that_of_the_lists(made: Run, order: str, scope: str, bounded: bool) -> None:
    bounds: Any = "none"
    if bounded:
        bounds = made.folder / "bounds.csv"
        rows = [f"{c},{t},{0.4 + k * 0.3}\n" for c in CLASSES for k, t in enumerate((0.1, 0.3))]
        bounds.write_text("finding,iou_threshold,afp\n" + "".join(rows))
    options = EvaluationOptions(
        overlap_thresholds=(0.1, 0.3), overlap="iobb", afp_images=scope, afp_bounds=bounds,
        image_order=order, resamples=30,
    )  # fmt: skip
    got = evaluate_run(made.out, made.boxes, options=options)
    boxed = list(dict.fromkeys(i for i, *_ in made.truth))
    sequence = [*boxed, *(i for i in range(12) if i not in boxed)]
    columns = made.arguments(sequence if order == "truth" else list(range(12)))
    if scope == "boxed":
        keep = np.isin(columns[0], columns[4])
        columns = (*(np.array(c)[keep] for c in columns[:4]), *columns[4:])
    count = {"class": None, "boxed": len(boxed), "all": 12}[scope]
    rule: dict[str, Any] = {
        "findings": CLASSES, "overlap_thresholds": (0.1, 0.3), "overlap": "iobb",
        "images": "class" if scope == "class" else "all", "all_images": count,
        "afp_bounds": [[0.4, 0.7]] * 3 if bounded else None,
    }  # fmt: skip
    expected = metrics.localization_table(*columns, **rule)
    rows = [row for row in expected if row.finding in got.findings]
    assert got.findings == ("Mass", "Nodule")
    assert got.localization == rows
    assert sum(row.result.found for row in rows) > 5
    # Intervals hold the figure, as nearly all do.
    for c, k in np.ndindex(2, 2):
        low, high = got.intervals.acc[c, k]
        assert low <= got.localization[2 * c + k].result.acc <= high


def test_a_denominator_that_is_asked_for(made: Run) -> None:
    shared: dict[str, Any] = {"overlap_thresholds": (0.1,), "resamples": 40, "afp_images": "boxed"}
    own, asked = (
        evaluate_run(made.out, made.boxes, options=EvaluationOptions(**shared, afp_denominator=n))
        for n in (None, 40)
    )
    boxed = len({i for i, *_ in made.truth})
    for c in range(2):
        first, second = own.localization[c].result, asked.localization[c].result
        assert (first.images, second.images) == (boxed, 40)
        assert second.afp == first.false_positives / 40
    np.testing.assert_allclose(asked.intervals.afp, own.intervals.afp * boxed / 40)
    with pytest.raises(ValueError, match="choose AFP images 'boxed' or 'all'"):
        EvaluationOptions(afp_denominator=984)
    with pytest.raises(ValueError, match=f"at least the {boxed} images"):
        evaluate_run(made.out, made.boxes, options=EvaluationOptions(**shared, afp_denominator=2))


def test_auroc_and_heatmaps_are_those_of_the_tables(made: Run) -> None:
    got = evaluate_run(made.out, made.boxes, made.labels, EvaluationOptions(resamples=20))
    scored = [i for i in range(11) if i != 7]
    scores = np.full((12, 3), np.nan)
    for i, c, probability, *_ in made.maps:
        scores[i, c] = probability
    expected = metrics.auroc_interval(scores[scored], made.positive[scored])
    assert got.auroc is not None
    np.testing.assert_allclose(got.auroc.interval, expected)
    assert (got.auroc.findings, got.auroc.images) == (CLASSES, 10)
    assert "AUROC leaves out 2 images of the run that have no labels or no maps." in got.notes

    image, c, _, peak, heatmap = zip(*[row for row in made.maps if row[1] < 2], strict=True)
    drawn = tuple(map(list, zip(*made.truth, strict=True)))
    sizes = np.full((len(image), 2), SIDE)
    maps: Any = (np.stack(heatmap), image, c, sizes, *drawn)
    points = np.array([[np.nan if v is None else v for v in p] for p in peak])
    plain = {
        "pointing_game": metrics.pointing_game(points, image, c, *drawn, findings=CLASSES[:2]),
        "map_iou": metrics.map_iou(*maps, findings=CLASSES[:2], heatmap_threshold=127.5),
        "pixel_auc": metrics.pixel_auc(*maps, findings=CLASSES[:2]),
    }
    assert got.maps.keys() == plain.keys()
    assert not got.missing
    for name, scores_of in plain.items():
        np.testing.assert_allclose(got.maps[name].value, scores_of.value, atol=1e-12)
        np.testing.assert_array_equal(got.maps[name].images, scores_of.images)


def test_patients_are_drawn_whole(made: Run) -> None:
    text = made.labels.read_text().splitlines()
    made.labels.write_text("\n".join([text[0], *(line.rpartition(",")[0] + ",5" for line in text[1:])]))
    options = EvaluationOptions(resample="patients", resamples=20)
    lines = made.boxes.read_text().splitlines(keepends=True)
    # One patient only: the last image has no labels.
    made.boxes.write_text("".join(line for line in lines if not line.startswith("11")))
    got = evaluate_run(made.out, made.boxes, made.labels, options)
    np.testing.assert_array_equal(got.intervals.acc[..., 0], got.intervals.acc[..., 1])
    with pytest.raises(ValueError, match="give a label table, or draw images"):
        evaluate_run(made.out, made.boxes, None, options)


@pytest.mark.parametrize(
    ("change", "missing", "sentences"),
    [
        ({"keep": "none"}, {"auroc", "pointing_game"}, ["mine again, into a new folder"]),
        ({"keep": "peaks"}, {"map_iou"}, ["mine with --heatmaps"]),
        ({"classes": "labels 4711"}, {"auroc"}, ["--classes all", "of its label table only; other"]),
        ({"min_probability": 0.25}, set(), ["less probable than 0.25"]),
    ],
)
def test_what_a_run_lacks_is_said(
    tmp_path: Path, change: dict[str, Any], missing: set[str], sentences: list[str]
) -> None:
    made = Run(tmp_path, **change)
    result = cli(made.out, "--truth", made.boxes, "--labels", made.labels, "--resamples", 9)
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert all(sentence in words for sentence in sentences)
    told = json.loads(cli(made.out, "--truth", made.boxes, "--labels", made.labels,
                          "--resamples", 9, "--json").output)  # fmt: skip
    assert set(told["missing"]) == missing
    assert not missing & told.keys()
    assert "could not be read; their boxes count as missed" in words


def test_boxes_that_do_not_fit_are_said(made: Run) -> None:
    with made.boxes.open("a") as file:
        file.write("99.png,Mass,1,1,5,5\n98.png,Mass,1,1,5,5\n98.png,Mass,1,1,5,5\n")
        file.write("00.png,Mass,1,1,800,5\n00.png,Cardiomegaly,1,1,8,5\n")
    notes = " ".join(evaluate_run(made.out, made.boxes).notes)
    total = len(made.truth) + 5
    assert f"3 of {total} boxes are drawn on 2 images that the run is not about" in notes
    assert "1 of" in notes
    assert "(1, 1, 801, 6) on p0/00.png, which has 200 x 200 pixels" in notes
    assert "the model does not know them: Cardiomegaly" in notes


def test_refusals_of_tables(made: Run) -> None:
    made.boxes.write_text(HEADER + "99.png,Mass,1,1,5,5\n")
    result = cli(made.out, "--truth", made.boxes)
    assert result.exit_code == 1
    assert "give the box table of the same archive" in result.output
    made.boxes.write_text(HEADER + "00.png,Cardiomegaly,1,1,5,5\n")
    assert "a table of the model's findings" in cli(made.out, "--truth", made.boxes).output
    made.boxes.write_text(HEADER + "00.png,Mass,1,1,5,5\n")
    assert "must end in .csv or .json" in cli(made.out, "--truth", made.boxes, "--out", "a.txt").output
    shutil.rmtree(made.out / "maps")  # twice the same name, in a run of its own
    table = pq.read_table(made.out / "images.parquet").to_pydict()["image_id"]
    with open_run(made.folder / "twice", {"model": {"class_names": CLASSES}}) as run:
        run.write_images([*table, "other/00.png"])
    result = cli(made.folder / "twice", "--truth", made.boxes)
    assert "has several files of that name" in " ".join(result.output.split())


def test_a_run_without_rows_misses_everything(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", {"model": {"class_names": CLASSES}}) as run:
        run.write_images(["00.png"])
        run.finish(0)
    (tmp_path / "boxes.csv").write_text(HEADER + "00.png,Mass,1,1,5,5\n")
    result = cli(tmp_path / "run", "--truth", tmp_path / "boxes.csv", "--json", "--resamples", 5)
    assert result.exit_code == 0, result.output
    cell = json.loads(result.output)["localization"][0]
    assert (cell["acc"], cell["acc_high"], cell["afp"], cell["truths"]) == (0, 0, 0, 1)


def test_a_run_that_is_not_finished_is_not_judged(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", {"model": {"class_names": CLASSES}, "shard_size": 2}) as run:
        run.write_images(["00.png", "01.png", "02.png"])
        run.write_shard(0, {name: [] for name in FINDINGS_SCHEMA.names})
    (tmp_path / "boxes.csv").write_text(HEADER + "00.png,Mass,1,1,5,5\n")
    result = cli(tmp_path / "run", "--truth", tmp_path / "boxes.csv")
    assert result.exit_code == 1
    assert "is not finished, 1 of its shards" in " ".join(result.output.split())


def test_no_table_that_is_read_is_written_over(made: Run) -> None:
    before = made.boxes.read_text()
    result = cli(made.out, "--truth", made.boxes, "--out", made.boxes)
    assert result.exit_code == 1
    assert "is one of the tables that are read" in " ".join(result.output.split())
    assert made.boxes.read_text() == before


def test_patients_of_another_archive_and_thresholds_that_make_no_sense(made: Run) -> None:
    strange = made.folder / "other.csv"
    strange.write_text("Image Index,Finding Labels,Patient ID\n99.png,Mass,1\n")
    result = cli(made.out, "--truth", made.boxes, "--labels", strange, "--resample", "patients")
    assert "names none of the run's images" in " ".join(result.output.split())
    for value in ("2", "nan"):
        result = cli(made.out, "--truth", made.boxes, "--iou-threshold", value)
        assert "T(IoU) must be at least 0 and below 1" in result.output


def test_what_is_written_is_what_is_printed(made: Run) -> None:
    options = ("--truth", made.boxes, "--labels", made.labels, "--resamples", 25, "--seed", 2)
    for name in ("out.json", "out.csv"):
        assert cli(made.out, *options, "--out", made.folder / name).exit_code == 0
    printed = json.loads(cli(made.out, *options, "--json").output)
    assert json.loads((made.folder / "out.json").read_text()) == printed
    with (made.folder / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    accs = {(r["finding"], float(r["threshold"])): r for r in rows if r["measure"] == "acc"}
    for cell in printed["localization"]:
        row = accs[cell["finding"], cell["iou_threshold"]]
        assert [float(row[n]) for n in ("value", "low", "high", "part", "whole")] == [
            cell[n] for n in ("acc", "acc_low", "acc_high", "found", "truths")
        ]
    means = [cell["acc"] for cell in printed["localization"] if cell["iou_threshold"] == 0.3]
    mean = next(cell for cell in printed["mean"] if cell["iou_threshold"] == 0.3)
    assert mean["acc"] == pytest.approx(np.mean(means))
    assert mean["acc_low"] <= mean["acc"] <= mean["acc_high"]
    assert {r["measure"] for r in rows} == {
        "acc", "afp", "auroc", "pointing_game", "map_iou", "pixel_auc",
    }  # fmt: skip
    evaluation = evaluate_run(
        made.out, made.boxes, made.labels, EvaluationOptions(resamples=25, seed=2)
    )
    assert document(evaluation)["localization"] == printed["localization"]


def test_tables_fit_a_hundred_columns_and_say_what_they_count(made: Run) -> None:
    result = cli(made.out, "--truth", made.boxes, "--labels", made.labels, "--afp-images", "boxed",
                 "--afp-denominator", 984, "--resamples", 50, "--resample", "patients")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 100
    words = " ".join(result.output.split())
    assert "on images with any box, divided by 984, as asked for; no AFP bound" in words
    assert "50 resamples of patients" in words
    assert "…" not in words


def test_the_bound_falls_where_the_image_order_puts_it(tmp_path: Path) -> None:
    """a.png has a miss, b.png a hit; the table names b.png first, the run a.png."""
    box = {"x1": [5, 50], "y1": [5, 50], "x2": [9, 60], "y2": [9, 60]}
    rows = {"image_id": ["a.png", "b.png"], "class": ["Mass"] * 2, "rank": [1, 1], **box}
    with open_run(tmp_path / "run", {"model": {"class_names": CLASSES}}) as run:
        run.write_images(["a.png", "b.png"])
        run.write_shard(0, {**rows, "score": [1.0] * 2, "probability": [1.0] * 2})
    table, bounds = tmp_path / "boxes.csv", tmp_path / "bounds.csv"
    table.write_text(HEADER + "b.png,Mass,50,50,10,10\na.png,Mass,100,100,10,10\n")
    bounds.write_text("finding,iou_threshold,afp\nMass,0.1,0.5\n")
    for order, found in (("truth", 1), ("run", 0)):
        result = cli(tmp_path / "run", "--truth", table, "--afp-bounds", bounds, "--iou-threshold",
                     0.1, "--image-order", order, "--json", "--resamples", 3)  # fmt: skip
        assert result.exit_code == 0, result.output
        assert json.loads(result.output)["localization"][0]["found"] == found
