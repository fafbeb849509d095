"""The pipeline from files to rows, on pictures drawn here and a network with random weights."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cxr_fast import reference
from cxr_fast.archive import pipeline
from cxr_fast.archive.batches import Batch, RunOptions
from cxr_fast.archive.findings import RunFolder, map_parts, open_run, read_errors, read_findings
from cxr_fast.archive.images import list_images, read_image, to_input
from cxr_fast.archive.overlays import step_maps
from cxr_fast.archive.run import RunReport, TooManyErrorsError, mine_archive, run_settings
from cxr_fast.archive.stages import Stages
from cxr_fast.config import MiningSettings
from cxr_fast.mining import Mined, Miner
from cxr_fast.models import Architecture, ModelCard, build, fold

SETTINGS = MiningSettings()
CARD = ModelCard(Architecture("resnet18", "bilinear", 0.125, 1), ("A", "B", "C"), 64)


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    torch.manual_seed(0)
    return build(CARD).eval()


@pytest.fixture(scope="module")
def miner(classifier: torch.nn.Module) -> Miner:
    return Miner(fold(classifier), CARD, SETTINGS, torch.device("cpu"), torch.float32)


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Twenty-three pictures of different shapes, depths and modes."""
    images = tmp_path / "images"
    (images / "deeper").mkdir(parents=True)
    for i in range(23):
        shape = rng.integers(40, 130, 2)
        noise = rng.random((6, 5)).astype(np.float32)
        smooth = Image.fromarray(noise).resize((int(shape[1]), int(shape[0])), Image.Resampling.BICUBIC)
        values = np.clip(np.asarray(smooth), 0, 1)
        if i % 5 == 1:
            picture = Image.fromarray((values * 65535).astype(np.uint16))
        elif i % 5 == 2:
            picture = Image.fromarray((values * 255).astype(np.uint8)).convert("RGBA")
        else:
            picture = Image.fromarray((values * 255).astype(np.uint8))
        picture.save(images / ("deeper" if i % 3 == 0 else "") / f"{i:03d}.png")
    return images


def mine(folder: Path, out: Path, miner: Miner, threads: int = 2, **options: object) -> RunReport:
    images = list_images(folder)
    chosen = RunOptions(**{"batch_size": 4, "shard_size": 10, **options})
    with open_run(out, run_settings(images, miner.network, "model", chosen)) as run:
        return mine_archive(images, pipeline.LocalEngine((miner,), threads), run, chosen)


def test_settings_tell_images_and_classes_as_earlier_versions_did(folder: Path, miner: Miner) -> None:
    images = list_images(folder)
    wanted = {"b\u00e9.png": (2, 0), "a 'quoted'.png": (1,), "c.png": ()}
    for classes_of, text in (
        ({}, "[]"),
        (wanted, repr(sorted((k, sorted(v)) for k, v in wanted.items()))),
    ):
        options = RunOptions(classes_of=classes_of)
        settings = run_settings(images, miner.network, "model", options)
        assert settings["classes"] == "labels " + hashlib.sha256(text.encode()).hexdigest()
    told = hashlib.sha256()
    for image_id, path in zip(images.image_ids, images.paths, strict=True):
        told.update(f"{image_id}\0{Path(path).stat().st_size}\0".encode())
    assert settings["images"] == {"count": 23, "sha256_of_ids_and_sizes": told.hexdigest()}


def test_rows_are_those_of_the_plain_network_and_the_reference(
    folder: Path, tmp_path: Path, miner: Miner, classifier: torch.nn.Module
) -> None:
    report = mine(folder, tmp_path / "run", miner)
    assert (report.images, report.total, report.unreadable) == (23, 23, 0)
    images = list_images(folder)
    expected = []
    for image_id, path in zip(images.image_ids, images.paths, strict=True):
        pixels = read_image(path)
        normalised = (torch.from_numpy(to_input(pixels, 64))[None, None] - 0.5) / 0.25
        with torch.no_grad():
            features = classifier.features(normalised)
        fc = classifier.fc
        result = reference.attention_mining(
            features,
            fc.weight,
            fc.bias,
            image_size=pixels.shape,
            thresholds=SETTINGS.thresholds,
            select=SETTINGS.select,
        )
        for c, name in enumerate(CARD.class_names):
            for k in range(int(result.found.counts[0, c])):
                expected.append(
                    (
                        image_id,
                        name,
                        k + 1,
                        result.found.boxes[0, c, k].tolist(),
                        float(result.found.scores[0, c, k]),
                        float(result.logits[0, c, 0].detach().sigmoid()),
                    )
                )
    rows = read_findings(tmp_path / "run").to_pylist()
    # The folded network's CAM differs by rounding, which can move a box by a cell now and then.
    assert abs(len(rows) - len(expected)) <= 0.01 * len(expected)
    by_key = {(r["image_id"], r["class"], r["rank"]): r for r in rows}
    agreeing = 0
    for image_id, name, rank, box, score, probability in expected:
        row = by_key.get((image_id, name, rank))
        if row and np.allclose([row[e] for e in ("x1", "y1", "x2", "y2")], box, atol=1e-3):
            agreeing += 1
            assert row["score"] == pytest.approx(score, abs=1e-4)
            assert row["probability"] == pytest.approx(probability, abs=1e-4)
    assert agreeing >= 0.99 * len(expected)
    assert len(rows) > 23


def test_rows_do_not_depend_on_threads_or_interruption(
    folder: Path, tmp_path: Path, miner: Miner, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine(folder, tmp_path / "one", miner, threads=1)
    mine(folder, tmp_path / "many", miner, threads=5)
    undisturbed = read_findings(tmp_path / "one")
    assert undisturbed.equals(read_findings(tmp_path / "many"))

    written = RunFolder.write_shard

    def full_disk(run: RunFolder, shard: int, *rest: object) -> None:
        if shard == 1:
            raise OSError(28, "No space left on device")
        written(run, shard, *rest)

    monkeypatch.setattr(RunFolder, "write_shard", full_disk)
    with pytest.raises(OSError, match="No space left"):
        mine(folder, tmp_path / "broken", miner)
    first = tmp_path / "broken" / "findings" / "part-00000.parquet"
    before = first.stat().st_mtime_ns
    monkeypatch.setattr(RunFolder, "write_shard", written)
    report = mine(folder, tmp_path / "broken", miner)
    assert report.images == 13, "the finished shard was mined again"
    assert first.stat().st_mtime_ns == before
    assert undisturbed.equals(read_findings(tmp_path / "broken"))
    assert maps_in(tmp_path / "broken") == maps_in(tmp_path / "one")
    assert mine(folder, tmp_path / "broken", miner).images == 0


def test_unreadable_images_are_listed_and_their_neighbours_mined(
    folder: Path, tmp_path: Path, miner: Miner
) -> None:
    whole = read_findings_after(mine(folder, tmp_path / "whole", miner), tmp_path / "whole")
    (folder / "002.png").write_bytes(b"")
    (folder / "004.png").write_bytes((folder / "004.png").read_bytes()[:200])
    (folder / "005.png").write_text("not a picture")
    report = mine(folder, tmp_path / "run", miner)
    assert report.unreadable == 3
    errors = {row["image_id"]: row["reason"] for row in read_errors(tmp_path / "run").to_pylist()}
    assert sorted(errors) == ["002.png", "004.png", "005.png"]
    assert all(errors.values())
    kept = [row for row in whole if row["image_id"] not in errors]
    assert read_findings(tmp_path / "run").to_pylist() == kept


def read_findings_after(report: RunReport, run: Path) -> list[dict[str, object]]:
    assert report.boxes == read_findings(run).num_rows
    return read_findings(run).to_pylist()


def test_an_image_whose_cam_overflows_is_an_error_not_a_silence(
    folder: Path, tmp_path: Path, miner: Miner, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_findings_after(mine(folder, tmp_path / "whole", miner), tmp_path / "whole")
    network = miner.model.forward

    def overflowing(images: torch.Tensor) -> torch.Tensor:
        cam = network(images)
        cam[1] = torch.inf
        return cam

    monkeypatch.setattr(miner.model, "forward", overflowing)
    report = mine(folder, tmp_path / "run", miner)
    errors = read_errors(tmp_path / "run").to_pylist()
    # The second picture of each batch of four; shards of ten end in a batch of two, the last of three.
    assert report.unreadable == len(errors) == 7
    assert all("not finite" in row["reason"] for row in errors)
    broken = {row["image_id"] for row in errors}
    assert read_findings(tmp_path / "run").to_pylist() == [
        r for r in whole if r["image_id"] not in broken
    ]


def test_classes_of_and_min_probability_leave_rows_out(
    folder: Path, tmp_path: Path, miner: Miner
) -> None:
    everything = read_findings_after(mine(folder, tmp_path / "all", miner), tmp_path / "all")
    mine(folder, tmp_path / "some", miner, classes_of={"001.png": (0, 2), "002.png": (1,)})
    some = read_findings(tmp_path / "some").to_pylist()
    wanted = {("001.png", "A"), ("001.png", "C"), ("002.png", "B")}
    assert some == [row for row in everything if (row["image_id"], row["class"]) in wanted]
    middle = float(np.median([row["probability"] for row in everything]))
    mine(folder, tmp_path / "likely", miner, min_probability=middle)
    likely = read_findings(tmp_path / "likely").to_pylist()
    assert likely == [row for row in everything if row["probability"] >= np.float32(middle)]
    assert 0 < len(likely) < len(everything)


def maps_in(run: Path) -> list[dict[str, object]]:
    return [
        row for part in map_parts(run) for row in pq.read_table(part, partitioning=None).to_pylist()
    ]


def _kept_steps(row: dict[str, Any], steps: int) -> np.ndarray:
    """Each step's attention [T, H, W] from what a run keeps, NaN where it was erased before."""
    shape = (row["height"], row["width"])
    cam, erased_at = (
        np.frombuffer(row[name], np.uint8).reshape(shape).astype(int) for name in ("cam", "erased_at")
    )
    maps = []
    for t in range(1, steps + 1):
        alive = (erased_at == 0) | (erased_at >= t)
        lo, hi = cam[alive].min(), cam[alive].max()
        maps.append(np.where(alive, (cam - lo) / max(hi - lo, 1), np.nan))
    return np.stack(maps)


def test_maps_are_those_of_the_plain_network(
    folder: Path, tmp_path: Path, miner: Miner, classifier: torch.nn.Module
) -> None:
    mine(folder, tmp_path / "run", miner, heatmaps=True, min_probability=0.9)
    rows = maps_in(tmp_path / "run")
    images = list_images(folder)
    # Every class of every image, in order, however improbable.
    assert [(r["image_id"], r["class"]) for r in rows] == [
        (image_id, name) for image_id in images.image_ids for name in CARD.class_names
    ]
    agreeing = 0
    for i, path in enumerate(images.paths):
        pixels = read_image(path)
        normalised = (torch.from_numpy(to_input(pixels, 64))[None, None] - 0.5) / 0.25
        with torch.no_grad():
            features = classifier.features(normalised)
        fc, box_rule = classifier.fc, {"thresholds": SETTINGS.thresholds, "select": SETTINGS.select}
        result = reference.attention_mining(
            features, fc.weight, fc.bias, image_size=pixels.shape, **box_rule
        )
        for c, row in enumerate(rows[3 * i : 3 * i + 3]):
            heatmap = result.heatmap[0, c].detach().numpy()
            expected = float(result.logits[0, c, 0].detach().sigmoid())
            assert row["probability"] == pytest.approx(expected, abs=1e-4)
            assert (row["image_height"], row["image_width"]) == pixels.shape
            assert (row["height"], row["width"]) == heatmap.shape
            kept = np.frombuffer(row["heatmap"], np.uint8).reshape(heatmap.shape)
            y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
            peak = ((x + 0.5) / heatmap.shape[1] * pixels.shape[1],
                    (y + 0.5) / heatmap.shape[0] * pixels.shape[0])  # fmt: skip
            same_peak = np.allclose((row["peak_x"], row["peak_y"]), peak, atol=1e-3)
            same_map = np.abs(kept / 255.0 - heatmap).max() < 0.004
            expected_steps = step_maps(
                *(part[0, c].detach().numpy() for part in (result.cam, *result.mined))
            )
            same_steps = np.abs(_kept_steps(row, SETTINGS.steps) - expected_steps)
            # A level is 1/255 of the whole map's range, and a step's range is a part of that.
            agreeing += same_peak and same_map and np.nanmax(same_steps) < 0.02
    # The folded network's CAM differs by rounding, which can move a peak or an erased pixel.
    assert agreeing >= 0.97 * len(rows)


def test_maps_of_wanted_classes_and_of_maps_that_show_nothing(
    folder: Path, tmp_path: Path, miner: Miner, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = miner.model.forward

    def odd(images: torch.Tensor) -> torch.Tensor:
        cam = network(images)
        cam[0] = 0.25  # constant: no box
        cam[1] = torch.inf  # an error
        return cam

    monkeypatch.setattr(miner.model, "forward", odd)
    first, second, third = list_images(folder).image_ids[:3]
    wanted = {first: (0,), second: (1,), third: (0, 2)}
    mine(folder, tmp_path / "run", miner, classes_of=wanted)
    rows = maps_in(tmp_path / "run")
    assert [(r["image_id"], r["class"]) for r in rows] == [(first, "A"), (third, "A"), (third, "C")]
    assert rows[0]["peak_x"] is rows[0]["peak_y"] is None
    assert None not in rows[1].values()
    assert not {"heatmap", "cam", "erased_at"} & set(rows[0])
    assert first not in read_findings(tmp_path / "run")["image_id"].to_pylist()


def test_only_so_many_batches_are_under_way() -> None:
    from concurrent.futures import ThreadPoolExecutor

    started = []
    batches = [Batch(0, i, i + 1) for i in range(40)]
    with ThreadPoolExecutor(4) as pool:
        work = lambda batch: (started.append(batch), batch.first)[1]  # noqa: E731
        outcomes = pipeline._in_order(lambda batch: pool.submit(work, batch), batches, ahead=3)
        for done, (batch, value) in enumerate(outcomes):
            assert batch.first == value == done
            assert len(started) <= done + 4
    assert len(started) == 40


def test_several_devices_share_the_batches_and_change_no_row(
    folder: Path, tmp_path: Path, miner: Miner
) -> None:
    mine(folder, tmp_path / "one", miner)
    seen = set()

    class Device(Miner):
        reads_inline = False

        def mine(self, images: torch.Tensor, image_sizes: torch.Tensor) -> Mined:
            seen.add((id(self), threading.get_ident()))
            time.sleep(0.02)  # long enough for the other to take the next batch
            return super().mine(images, image_sizes)

    devices = tuple(Device(**vars(miner)) for _ in range(2))
    images = list_images(folder)
    options = RunOptions(batch_size=4, shard_size=10)
    with open_run(tmp_path / "two", run_settings(images, miner.network, "model", options)) as run:
        report = mine_archive(images, pipeline.LocalEngine(devices, 2), run, options)
    assert read_findings(tmp_path / "two").equals(read_findings(tmp_path / "one"))
    assert {device for device, _ in seen} == {id(device) for device in devices}
    assert len(seen) == 2, "a device was used by two threads"
    assert set(report.stages.profile()["stages"]) == {
        "read", "decode", "resize", "network", "rows", "write",
    }  # fmt: skip


def test_a_run_that_is_asked_to_stop_ends_behind_a_shard_and_goes_on(
    folder: Path, tmp_path: Path, miner: Miner
) -> None:
    mine(folder, tmp_path / "whole", miner)
    images = list_images(folder)
    options = RunOptions(batch_size=4, shard_size=10)
    settings = run_settings(images, miner.network, "model", options)
    stop = threading.Event()

    def ask(done: int, total: int, stages: object) -> None:
        if done >= 12:  # in the second shard of three
            stop.set()

    with open_run(tmp_path / "run", settings) as run:
        report = mine_archive(images, pipeline.LocalEngine((miner,), 2), run, options, ask, stop=stop)
        assert report.stopped
        assert run.finished_shards() == {0, 1}
    assert not (tmp_path / "run" / "errors.parquet").exists()
    report = mine(folder, tmp_path / "run", miner)
    assert (report.stopped, report.images) == (False, 3)
    assert read_findings(tmp_path / "run").equals(read_findings(tmp_path / "whole"))


def test_a_folder_that_goes_away_is_no_fault_of_its_images(
    folder: Path, tmp_path: Path, miner: Miner
) -> None:
    mine(folder, tmp_path / "whole", miner)
    images = list_images(folder)
    options = RunOptions(batch_size=4, shard_size=10)
    settings = run_settings(images, miner.network, "model", options)

    def take_away(done: int, total: int, stages: object) -> None:
        if done == 10:
            folder.rename(tmp_path / "away")

    engine = pipeline.LocalEngine((miner,), 1)
    with open_run(tmp_path / "run", settings) as run:
        with pytest.raises(OSError, match=r"the folder of the images, .* is not there any more"):
            mine_archive(images, engine, run, options, take_away)
        assert run.finished_shards() == {0}
        assert run.count_errors() == 0
    (tmp_path / "away").rename(folder)
    mine(folder, tmp_path / "run", miner)
    assert read_findings(tmp_path / "run").equals(read_findings(tmp_path / "whole"))


def test_too_many_unreadable_images_end_the_run_and_keep_what_was_mined(
    folder: Path, tmp_path: Path, miner: Miner
) -> None:
    for name in ("001.png", "002.png", "deeper/018.png"):
        (folder / name).write_bytes(b"")
    images = list_images(folder)
    options = RunOptions(batch_size=4, shard_size=10)
    with (
        open_run(tmp_path / "run", run_settings(images, miner.network, "model", options)) as run,
        pytest.raises(TooManyErrorsError, match=r"2 images .* more than the 1 that"),
    ):
        mine_archive(images, pipeline.LocalEngine((miner,), 2), run, options, max_errors=1)
    kept = read_findings(tmp_path / "run")
    assert kept.num_rows
    with (
        open_run(tmp_path / "run", run_settings(images, miner.network, "model", options)) as run,
        pytest.raises(TooManyErrorsError),
    ):
        mine_archive(images, pipeline.LocalEngine((miner,), 2), run, options, max_errors=1)
    assert read_findings(tmp_path / "run").equals(kept), "work was done that is known to be in vain"
    with open_run(tmp_path / "run", run_settings(images, miner.network, "model", options)) as run:
        report = mine_archive(images, pipeline.LocalEngine((miner,), 2), run, options, max_errors=3)
    assert report.unreadable == 3, "errors of the earlier go were not counted"
    assert read_findings(tmp_path / "run").slice(0, kept.num_rows).equals(kept)


def test_the_stage_that_limits_is_of_the_crew_that_rests_least() -> None:
    stages = Stages(readers=4, devices=1)
    stages.add("decode", 3.0)
    stages.add("network", 1.0)
    assert stages.limit() == "the network (100% of its threads' time)"
    stages.add("decode", 3.0)
    stages.add("read", 2.0)
    assert stages.limit() == "decoding (75% of its threads' time)"
    alone = Stages(readers=2)
    alone.add("decode", 1.0)
    alone.add("network", 3.0)
    assert alone.limit() == "the network (75% of its threads' time)"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": 0}, "batch_size"), ({"min_probability": 1.5}, "from 0 to 1")],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunOptions(**options)
