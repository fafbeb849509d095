"""Regions as boxes, and the study of real X-rays on a small folder of drawn ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cxr_fast import metrics
from cxr_fast.cli import main
from cxr_fast.config import MiningSettings
from cxr_fast.mining import mine_regions
from cxr_fast.models import Architecture, ModelCard, build, save_checkpoint
from cxr_fast.reproduce import real, siim, summary
from cxr_fast.reproduce.judging import ranking, restricted
from cxr_fast.training import open_fabric


def test_regions_are_the_boxes_of_what_each_step_erases() -> None:
    torch.manual_seed(0)
    cam = torch.nn.functional.avg_pool2d(torch.randn(3, 2, 24, 24), 5, 1)
    settings = MiningSettings(steps=3, cam_threshold=0.7, select="regions", upsample=2)
    sizes = torch.tensor([[100.0, 200.0], [64, 64], [1024, 512]])
    result = mine_regions(cam, settings, sizes)
    assert result.cam.shape == (3, 2, 40, 40)
    for n, c, t in np.ndindex(3, 2, 3):
        y, x = np.nonzero(result.mined.erased_at[n, c].numpy() == t + 1)
        height, width = sizes[n].tolist()
        cell = np.array([width / 40, height / 40, width / 40, height / 40])
        expected = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) * cell
        np.testing.assert_allclose(result.found.boxes[n, c, t].numpy(), expected, rtol=1e-6)
    assert (result.found.counts == 3).all()
    scores = result.found.scores
    assert (scores[..., 0] == 1).all()
    assert (scores[..., 1:] <= scores[..., :-1]).all()


def test_logits_of_regions_have_the_bias_of_the_others() -> None:
    torch.manual_seed(0)
    cam, bias = torch.randn(2, 3, 8, 8), torch.tensor([1.0, -2.0, 0.5])
    sizes = torch.tensor([[8.0, 8.0]])
    settings = MiningSettings(steps=2, select="regions")
    with_bias = mine_regions(cam, settings, sizes, bias).logits
    torch.testing.assert_close(with_bias[..., 0], cam.mean((2, 3)) + bias)
    with pytest.raises(ValueError, match="at most 127 with select='regions'"):
        ModelCard(Architecture(), ("a",), mining=replace(settings, steps=128))


def test_a_map_without_evidence_has_no_region() -> None:
    cam = torch.zeros(1, 2, 8, 8)
    cam[0, 1, 2, 3] = float("nan")
    found = mine_regions(cam, MiningSettings(select="regions"), torch.tensor([[8.0, 8.0]])).found
    assert found.counts.tolist() == [[0, 0]]
    assert not found.boxes.any()
    assert not found.scores.any()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bright patch in one half of the noise or in both: opacity, with its boxes."""
    rng = np.random.default_rng(3)
    root = tmp_path_factory.mktemp("real")
    siim_folder, kermany = root / "siim_covid", root / "kermany"
    for folder in (siim_folder, kermany):
        (folder / "images").mkdir(parents=True)
    labels, boxes, pre = [], [], []
    for i in range(64):
        image = rng.integers(0, 90, (64, 64)).astype(np.uint8)
        shown = rng.random() < 0.6
        for side in np.flatnonzero(rng.random(2) < 0.7) if shown else ():
            x, y = int(6 + 32 * side), int(rng.integers(8, 40))
            image[y : y + 16, x : x + 14] = 220
            boxes.append(f"{i}.png,opacity,{x},{y},14,16")
        kind = rng.choice(["typical", "indeterminate", "atypical"]) if shown else "negative"
        ambiguous = int(i == 5)
        labels.append(f"{i}.png,p{i // 2},s{i},{kind},{int(shown)},1,{ambiguous},1,64,64")
        Image.fromarray(image).save(siim_folder / "images" / f"{i}.png")
        Image.fromarray(image).save(kermany / "images" / f"{i}.png")
        pre.append(
            f"{i}.png,p{i // 2},{int(shown)},{['bacteria', 'virus'][i % 2] if shown else 'normal'}"
        )
    head = "image,patient,study,study_class,opacity,n_boxes,ambiguous,images_in_study,orig_w,orig_h"
    (siim_folder / "labels.csv").write_text("\n".join([head, *labels]) + "\n")
    (siim_folder / "boxes.csv").write_text("\n".join(["image,class,x,y,w,h", *boxes]) + "\n")
    (kermany / "labels.csv").write_text("\n".join(["image,patient,pneumonia,type", *pre]) + "\n")
    return siim_folder, kermany


def test_the_study_runs_and_goes_on(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(real.TRAINING, epochs=1, batch_size=8, averaging=0.5)
    monkeypatch.setattr(real, "TRAINING", short)
    monkeypatch.setattr(real, "_PRETRAINING", short)
    monkeypatch.setattr(real, "_PRETRAINING_SIZE", 64)
    monkeypatch.setattr(real, "_MINING", replace(real._MINING, epochs=1, batch_size=8))
    monkeypatch.setattr(real, "_CUTS", (0.5, 0.7))
    monkeypatch.setattr(summary, "_RESAMPLES", 20)
    network = "LSE, fine, halves"
    arguments = [
        "reproduce",
        "siim",
        "--data",
        folders[0],
        "--out",
        tmp_path,
        "--seed",
        "0",
        "--threads",
        "1",
    ]
    asked = ["--network", network, "--network", f"{network}, mined"]
    first = CliRunner().invoke(main, [str(a) for a in (*arguments, *asked)], catch_exceptions=False)
    assert first.exit_code == 0, first.output
    made = json.loads((tmp_path / "siim.json").read_text())
    assert {row["network"] for row in made["rows"]} == {network, f"{network}, mined"}
    plain = next(row for row in made["rows"] if row["rule"] == "t = 1")
    assert plain["minus"] == [[0.0, 0.0, 0.0]] * 3
    assert "three random boxes of true sizes" in (tmp_path / "siim.md").read_text()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cells").iterdir()}
    again = CliRunner().invoke(main, [str(a) for a in (*arguments, *asked)], catch_exceptions=False)
    assert again.output.count("siim, seed 0") == 2
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cells").iterdir()} == before
    assert json.loads((tmp_path / "siim.json").read_text()) == made


def test_training_sees_no_box_and_no_patient_of_the_other_parts(folders: tuple[Path, Path]) -> None:
    archive = siim.read_siim(folders[0])
    assert "5.png" not in archive.names
    parts = siim.divide(archive)
    patients = [set(archive.patients[rows]) for rows in parts]
    assert not patients[0] & patients[1]
    assert not patients[0] & patients[2]
    assert not patients[1] & patients[2]
    assert sum(map(len, parts)) == len(archive.names)


def test_restricted_boxes_belong_to_the_same_images(folders: tuple[Path, Path]) -> None:
    archive = siim.read_siim(folders[0])
    truth = siim.read_siim_boxes(folders[0], archive, np.full((len(archive.names), 2), 64.0))
    rows = np.flatnonzero(archive.labels[:, 0])[::-2]
    some = restricted(truth, rows)
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(
            some.boxes[some.images == place], truth.boxes[truth.images == row]
        )


def test_fixed_boxes_hit_the_most() -> None:
    boxes = np.array(
        [[0, 0, 10, 10], [1, 0, 11, 10], [0, 1, 10, 11], [40, 40, 60, 60], [200, 0, 220, 9]]
    )
    truth = siim.Truth(
        np.arange(5), np.zeros(5, np.int64), boxes.astype(np.float32), np.ones((5, 2)) * 256
    )
    fixed = real._fixed_boxes(truth)
    assert (metrics.iou(boxes[:, None], fixed[None]) > 0.3).any(1).all()


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("labels.csv", "1.png,p0", "0.png,p0", "line 3: expected one row an image"),
        ("labels.csv", "patient,study,", "who,study,", "line 1: expected a column 'patient'"),
        ("labels.csv", "negative,0", "negative,2", "expected opacity 0 or 1"),
        ("boxes.csv", ",14,16", ",0,16", "line 2: expected a box inside the image of 64 x 64"),
        ("boxes.csv", ",14,16", ",14,99", "line 2: expected a box inside"),
    ],
)
def test_bad_tables_are_named(
    folders: tuple[Path, Path], tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    for name in ("labels.csv", "boxes.csv"):
        text = (folders[0] / name).read_text()
        (tmp_path / name).write_text(text.replace(old, new, 1) if name == file else text)
    sizes = np.full((64, 2), 64.0)
    with pytest.raises(ValueError, match=message):
        siim.read_siim_boxes(tmp_path, siim.read_siim(tmp_path), sizes)


def test_the_real_tables(shared_data: Path) -> None:
    archive = siim.read_siim(shared_data / "siim_covid")
    assert len(archive.names) == 3133
    sizes = np.full((len(archive.names), 2), 256.0)
    assert len(siim.read_siim_boxes(shared_data / "siim_covid", archive, sizes).boxes) == 4043
    assert len(siim.read_kermany(shared_data / "kermany").names) == 5856


def test_a_network_is_ranked_by_its_own_pooling(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Not by the mean of its CAM, which log-sum-exp is not."""
    torch.manual_seed(0)
    architecture = replace(
        real.NETWORKS["LSE, fine, halves"].architecture, width=0.125, neck=8, sharpness=30.0
    )
    model = build(architecture, 4).eval()
    card = ModelCard(architecture, siim.SIIM_CLASSES, 64)
    save_checkpoint(tmp_path / "model.safetensors", model, card)
    archive = siim.read_siim(folders[0])
    images = siim.labelled(archive, np.arange(len(archive.names)), 64, tmp_path / "cache", 1)
    got = ranking(tmp_path / "model.safetensors", images, open_fabric("float32"))
    pixels = torch.from_numpy(images.images[np.arange(len(archive.names))])[:, None].float() / 255
    with torch.no_grad():
        logits = model((pixels - 0.5) / 0.25)
    np.testing.assert_allclose(got, metrics.auroc(logits.numpy(), archive.labels), atol=0.01)
    with torch.no_grad():
        averaged = torch.einsum(
            "cd,nd->nc", model.fc.weight, model.features((pixels - 0.5) / 0.25).mean((2, 3))
        )
    assert not np.allclose(got, metrics.auroc(averaged.numpy(), archive.labels), atol=0.01)
