"""What the report's pages are given, against the run's own tables."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from mined_run import (
    CELLS,
    CLASSES,
    HEIGHT,
    HOSTILE,
    SETTINGS,
    WIDTH,
    columns,
    decoded,
    frame,
    read,
)
from PIL import Image

from cxr_fast.archive.findings import open_run
from cxr_fast.cli import main
from cxr_fast.files import held
from cxr_fast.report import write_report
from cxr_fast.report.scripts import column, script


def test_totals_are_those_of_the_tables(run: Path) -> None:
    report = write_report(run)
    found = frame(run)
    summary = read(run / "report", "summary")
    assert summary["counts"] == {
        "images": 50, "findings": len(found), "shown_images": found.image_id.nunique(),
        "shown": len(found), "errors": 1, "previews": 0,
    }  # fmt: skip
    assert summary["classes"] == list(CLASSES)
    assert summary["errors"] == {
        "total": 1,
        "reasons": [{"reason": "empty file", "count": 1}],
        "first": [{"image_id": "p0/000.png", "reason": "empty file"}],
    }
    for name, totals in zip(CLASSES, summary["per_class"], strict=True):
        own = found[found["class"] == name]
        assert totals["findings"] == len(own)
        assert totals["images"] == own.image_id.nunique()
        assert totals["mean_score"] == pytest.approx(own.score.mean(), rel=1e-6)
        of_images = own.drop_duplicates("image_id").probability
        assert totals["mean_probability"] == pytest.approx(of_images.mean(), rel=1e-6)
        expected, _ = np.histogram(own.score, np.linspace(0, 1, 21).astype(np.float32))
        assert totals["score_histogram"] == expected.tolist()
        percent = (own.x2 - own.x1) * (own.y2 - own.y1) / (HEIGHT * WIDTH) * 100
        sizes, _ = np.histogram(percent.clip(0.05, 99.99), summary["size_edges"])
        assert totals["size_histogram"] == sizes.tolist()
        assert sum(totals["size_histogram"]) == len(own)
        # Cell by cell, box by box: a cell counts where its centre lies in the box.
        x, y = (np.arange(32) + 0.5) / 32 * WIDTH, (np.arange(32) + 0.5) / 32 * HEIGHT
        position = sum(
            np.outer((y >= b.y1) & (y < b.y2), (x >= b.x1) & (x < b.x2)).astype(int)
            for b in own.itertuples()
        )
        assert totals["position_most"] == position.max()
        np.testing.assert_allclose(
            totals["position"].reshape(32, 32), position / position.max() * 255, atol=0.51
        )
    assert report.left_out == ("no pictures: give the folder that was mined with --images",)
    assert not summary["synthetic"]


def test_findings_and_maps_are_those_of_the_tables(run: Path) -> None:
    write_report(run)
    found, images = frame(run), read(run / "report", "images")
    named = {images["id"][int(number)]: note for number, note in images["note"].items()}
    assert named == {"p0/003.png": "first of 2 frames; no window", HOSTILE: "<b>first</b>"}
    got = read(run / "report", "findings")
    assert [images["id"][i] for i in got["image"]] == found.image_id.tolist()
    assert [CLASSES[c] for c in got["class"]] == found["class"].tolist()
    for name in ("rank", "x1", "y1", "x2", "y2", "score", "probability"):
        np.testing.assert_array_equal(got[name], found[name])
    assert np.isnan(got["iou"]).all()
    assert set(images["width"]) == {WIDTH}
    assert set(images["height"]) == {HEIGHT}
    maps = {
        (row["image_id"], row["class"]): row
        for row in ds.dataset(run / "maps", partitioning=None).to_table().to_pylist()
    }
    shown = set()
    for file in (run / "report" / "data").glob("layers-*.js"):
        for layer in read(run / "report", file.stem)["maps"]:
            assert file.stem == f"layers-{layer['image'] // 64:06d}"
            key = (images["id"][layer["image"]], CLASSES[layer["class"]])
            assert (layer["height"], layer["width"]) == CELLS
            for name in ("heatmap", "cam", "erased_at"):
                assert layer[name].tobytes() == maps[key][name]
            shown.add(key)
    assert shown == set(zip(found.image_id, found["class"], strict=True))


def test_the_most_probable_are_shown_and_all_are_counted(run: Path) -> None:
    report = write_report(run, findings=40)
    found = frame(run)
    by_class = found.sort_values("probability", ascending=False, kind="stable").groupby("class")
    # 13 of each of three classes, and the most probable of the fourteenth ones.
    best = pd.concat([by_class.head(13), by_class.nth(13).nlargest(1, "probability")]).sort_index()
    got, images = read(run / "report", "findings"), read(run / "report", "images")
    assert [images["id"][i] for i in got["image"]] == best.image_id.tolist()
    np.testing.assert_array_equal(got["score"], best.score)
    assert read(run / "report", "summary")["counts"]["findings"] == len(found) == report.findings
    assert f"40 of {len(found)} findings can be looked at" in report.left_out[0]


def test_a_rare_class_is_shown_whole_however_improbable(tmp_path: Path) -> None:
    """Ten shards, so that rows are dropped on the way; class B is in one of them, and never likely."""
    rng = np.random.default_rng(7)
    names = [f"{i:03d}.png" for i in range(200)]
    with open_run(tmp_path, SETTINGS) as opened:
        opened.write_images(names)
        for shard in range(10):
            rows = [
                (name, c, 1, 1, 1, 9, 9, 0.5, rng.choice([0.6, 0.7, 0.8]) if c != CLASSES[1] else 0.01)
                for name in names[20 * shard : 20 * shard + 20]
                for c in CLASSES
                if c != CLASSES[1] or shard == 4
            ]
            maps = [(*row[:2], row[8], 1, 1, HEIGHT, WIDTH) for row in rows]
            opened.write_shard(
                shard,
                columns(rows, "image_id class rank x1 y1 x2 y2 score probability"),
                (),
                columns(maps, "image_id class probability peak_x peak_y image_height image_width"),
            )
        opened.finish(10)
    write_report(tmp_path, findings=100)
    found, got = frame(tmp_path), read(tmp_path / "report", "findings")
    images = read(tmp_path / "report", "images")
    shown = {(images["id"][i], CLASSES[c]) for i, c in zip(got["image"], got["class"], strict=True)}
    expected = set()
    for name, count in ((CLASSES[0], 40), (CLASSES[1], 20), (CLASSES[2], 40)):
        own = found[found["class"] == name]
        likely = own.sort_values("probability", ascending=False, kind="stable").head(count)
        expected |= {(image, name) for image in likely.image_id}
    assert shown == expected


def test_random_ones_are_of_whole_images_and_the_same_again(run: Path) -> None:
    def drawn(count: int) -> list[str]:
        write_report(run, findings=count, choose="random")
        images, got = read(run / "report", "images"), read(run / "report", "findings")
        return [images["id"][i] for i in got["image"]]

    first, more = drawn(60), drawn(90)
    assert first == drawn(60)
    assert set(first) <= set(more)
    counts, all_counts = pd.Series(first).value_counts(), frame(run).image_id.value_counts()
    assert (counts == all_counts[counts.index]).sum() >= len(counts) - 1  # one may be cut at the end


def test_true_boxes_and_how_well_they_are_met(run: Path, tmp_path: Path) -> None:
    found = frame(run)
    hit = found[(found["class"] == "A") & found.image_id.str.startswith("p1/")].iloc[0]
    name = hit.image_id.rpartition("/")[2]
    table = tmp_path / "boxes.csv"
    box = [hit.x1 + 10, hit.y1, hit.x2 - hit.x1, hit.y2 - hit.y1]
    lines = ["Image Index,Finding Label,Bbox [x,y,w,h],,,"]
    lines += [
        ",".join(map(str, (name, "A", *box))),
        "elsewhere.png,A,1,1,5,5",
        f"{name},Hernia,1,1,5,5",
    ]
    header = "Image Index,Finding Label,Bbox [x,y,w,h]"
    lines[0] = "Image Index,Finding Label,x,y,w,h"
    assert header != lines[0]
    table.write_text("\n".join(lines) + "\n")
    write_report(run, truth=table)
    true, got = read(run / "report", "truth"), read(run / "report", "findings")
    images = read(run / "report", "images")
    assert [images["id"][i] for i in true["image"]] == [hit.image_id]
    assert true["x2"][0] == pytest.approx(box[0] + box[2])
    row = int(np.flatnonzero((got["x1"] == hit.x1) & (got["score"] == hit.score))[0])
    overlap = (hit.x2 - hit.x1 - 10) / (hit.x2 - hit.x1 + 10)
    assert got["iou"][row] == pytest.approx(max(overlap, 0), abs=1e-5)
    same = (got["image"] == got["image"][row]) & (got["class"] == got["class"][row])
    assert np.isfinite(got["iou"]).tolist() == same.tolist()
    assert read(run / "report", "summary")["truth"]


def test_pictures(run: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    archive, greys = tmp_path / "archive", dict[str, int]()
    names = frame(run).image_id.unique().tolist()
    for i, name in enumerate(n for n in names if n != HOSTILE):
        (archive / name).parent.mkdir(parents=True, exist_ok=True)
        # In turn of 8 bits, of 16, and of 12 stored in 16; half of each at least is used.
        grey, bits = int(rng.integers(128, 250)), (8, 16, 12)[i % 3]
        kind = np.uint8 if bits == 8 else np.uint16
        Image.fromarray(np.full((HEIGHT, WIDTH), grey << (bits - 8), kind)).save(archive / name)
        greys[name] = grey
    Image.fromarray(np.zeros((HEIGHT, WIDTH + 1), np.uint8)).save(archive / names[5])
    (archive / names[3]).write_bytes(b"\x89PNG")
    report = write_report(run, str(archive), preview_size=80)
    images = read(run / "report", "images")
    there = images["preview"]
    assert report.previews == there.sum() == len(names) - 3
    for number, name in enumerate(images["id"]):
        file = run / "report" / "previews" / "000" / f"{number:06d}.jpg"
        assert file.exists() == bool(there[number]) == (name not in (HOSTILE, names[3], names[5]))
        if there[number]:
            picture = Image.open(file)
            assert picture.size == (80, 50)
            assert np.asarray(picture).mean() == pytest.approx(greys[name], abs=2)
    mean = np.asarray(Image.open(run / "report" / "mean.jpg"))
    assert mean.shape == (128, 128)
    shown = [greys[name] for name in images["id"] if name in greys and name not in (names[3], names[5])]
    assert mean.mean() == pytest.approx(np.mean(shown), abs=2)
    assert f"2 of {len(names)} pictures are not in" in report.left_out[0]
    assert "1 pictures in" in report.left_out[1]
    assert "have another size than those that were mined" in report.left_out[1]


def test_nothing_of_a_name_is_markup(run: Path) -> None:
    write_report(run)
    for file in (run / "report" / "data").iterdir():
        text = file.read_bytes()
        assert not {*b"<>&"} & set(text)
        assert text.isascii()
    assert HOSTILE in read(run / "report", "images")["id"]


@pytest.mark.parametrize("value", ["\u2028</script>", "<!--", "\ud800", "é & ü"])
def test_scripts_give_back_any_text(value: str) -> None:
    text = script("x", value).decode("ascii")
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text[text.index("[") : text.rindex("]") + 1]) == ["x", value]


def test_columns_keep_their_type() -> None:
    assert decoded(column([1, 2, 70000], "uint32")).tolist() == [1, 2, 70000]
    assert np.isnan(decoded(column([np.nan], "float32"))).all()
    with pytest.raises(ValueError, match="must be of float32"):
        column([1], "int64")
    with pytest.raises(ValueError, match="not JSON compliant"):
        script("x", float("nan"))


def test_a_report_is_replaced_whole_or_not_at_all(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(run, findings=10)
    before = {p: p.read_bytes() for p in (run / "report").rglob("*") if p.is_file()}

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cxr_fast.report.summary.per_class", fails)
    with pytest.raises(OSError, match="the disk is full: a report in"):
        write_report(run, findings=20)
    assert {p: p.read_bytes() for p in (run / "report").rglob("*") if p.is_file()} == before
    assert not list(run.glob(".report*"))
    monkeypatch.undo()
    key = read(run / "report", "summary")["key"]
    write_report(run, findings=20)
    assert read(run / "report", "summary")["key"] == key  # a reader's marks are found again
    assert not list(run.glob(".report*"))


def test_what_kills_leave_behind_is_put_right(run: Path) -> None:
    write_report(run, findings=10)
    (run / "report").rename(run / ".report-old-00000000")  # killed between two renames
    (run / ".report-new-00000000" / "data").mkdir(parents=True)  # killed while it was written
    busy = run / ".report-new-11111111"  # another process is at it
    busy.mkdir()
    with held(busy), pytest.raises(ValueError, match=r"run\.json"):
        write_report(run, truth=run / "run.json")
    assert read(run / "report", "findings")["score"].size == 10
    assert [path.name for path in run.glob(".report*")] == [busy.name]
    write_report(run)
    assert not list(run.glob(".report*"))
    assert not list((run / "report").glob(".*"))


def test_what_is_no_report_is_left_alone(run: Path) -> None:
    (run / "report").mkdir()
    (run / "report" / "mine.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="is no report of this command"):
        write_report(run)
    assert (run / "report" / "mine.txt").read_text() == "years of work"


def test_runs_of_other_kinds(run: Path, tmp_path: Path) -> None:
    # One that is not finished.
    for folder in ("findings", "maps"):
        (run / folder / "part-00002.parquet").unlink()
    report = write_report(run)
    assert report.left_out[0] == "1 shards of the run are not mined yet, and not in the report"
    # One without heatmaps, and one whose heatmaps are of before steps were kept.
    for dropped, said in (
        (["cam", "erased_at"], "no attention of each step"),
        (["heatmap", "height", "width"], "no heatmaps: mine with --heatmaps"),
    ):
        for part in (run / "maps").iterdir():
            pq.write_table(pq.read_table(part, partitioning=None).drop_columns(dropped), part)
        assert write_report(run).left_out[-1].startswith(said)
    assert not list((run / "report" / "data").glob("layers-*"))
    with pytest.raises(RuntimeError, match="holds no mining run"):
        write_report(tmp_path)


def test_a_run_without_any_finding(tmp_path: Path) -> None:
    def none(names: str) -> dict[str, list[Any]]:
        return {name: [] for name in names.split()}

    with open_run(tmp_path / "run", SETTINGS) as opened:
        opened.write_images(["a.png"])
        opened.write_shard(
            0,
            none("image_id class rank x1 y1 x2 y2 score probability"),
            [("a.png", "cut")],
            none("image_id class probability peak_x peak_y image_height image_width"),
        )
        opened.finish(1)
    report = write_report(tmp_path / "run")
    assert (report.findings, report.shown, report.images) == (0, 0, 0)
    summary = read(tmp_path / "run" / "report", "summary")
    assert summary["errors"]["total"] == 1
    assert summary["per_class"][0]["mean_score"] is None
    assert read(tmp_path / "run" / "report", "findings")["score"].size == 0


def test_the_command(run: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["report", str(run), "--findings", "5"])
    assert done.exit_code == 0, done.output
    assert f"open  {run / 'report' / 'index.html'}" in done.output
    told = CliRunner().invoke(main, ["report", str(run), "--json"])
    assert json.loads(told.output)["findings"] == len(frame(run))
    refused = CliRunner().invoke(main, ["report", str(tmp_path / "nowhere")])
    assert refused.exit_code == 1
    assert "holds no mining run" in refused.output
    shutil.rmtree(run / "maps")
    missing = CliRunner().invoke(main, ["report", str(run)])
    assert missing.exit_code == 1
    assert "Traceback" not in missing.output
