"""``mine --model FILE.onnx``: the rows that torch gives, in processes that have none."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cxr_fast import runtime
from cxr_fast.archive.batches import RunOptions
from cxr_fast.archive.findings import open_run, read_errors, read_findings
from cxr_fast.archive.images import list_images
from cxr_fast.archive.pipeline import LocalEngine
from cxr_fast.archive.run import mine_archive, run_settings
from cxr_fast.cli import main
from cxr_fast.config import MiningSettings
from cxr_fast.export.command import export_model
from cxr_fast.mining import load_miner, mine_regions
from cxr_fast.models import Architecture, ModelCard, build, save_checkpoint
from cxr_fast.rows import BatchMiner

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from cxr_fast import onnx_miner  # noqa: E402
from cxr_fast.onnx_miner import load_onnx_miner  # noqa: E402

SMALL = Architecture("resnet18", "bilinear", 0.125, 1)
CARDS = {
    "components": ModelCard(SMALL, ("A", "B", "C"), 64),
    "peak, enlarged": ModelCard(
        SMALL, ("A", "B"), 64, mining=MiningSettings(select="peak", upsample=2, thresholds=(0.4,))
    ),
    "regions": ModelCard(
        replace(SMALL, pooling="lse"),
        ("A", "B"),
        64,
        mining=MiningSettings(select="regions", upsample=4),
    ),
    "raw": ModelCard(SMALL, ("A",), 64, mining=MiningSettings(mode="raw", steps=2, connectivity=4)),
    "standardised": ModelCard(SMALL, ("A", "B"), 64, standardise=True),
    "colour": ModelCard(
        replace(SMALL, in_channels=3),
        ("A", "B"),
        64,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive") / "images"
    folder.mkdir()
    rng = np.random.default_rng(8)
    for i in range(24):
        noise = Image.fromarray(rng.integers(0, 256, (7, 6), np.uint8))
        noise.resize(tuple(rng.integers(50, 120, 2)), Image.Resampling.BICUBIC).save(
            folder / f"{i:02d}.png"
        )
    Image.new("L", (60, 50), 7).save(folder / "constant.png")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    return folder


def exported(card: ModelCard, folder: Path, **rest: object) -> tuple[Path, Path]:
    torch.manual_seed(0)
    save_checkpoint(folder / "model.safetensors", build(card), card)
    options = {"form": "cam", **rest}
    export_model(folder / "model.safetensors", folder / "model.onnx", **options)  # type: ignore[arg-type]
    return folder / "model.safetensors", folder / "model.onnx"


def mine(images: Path, miner: BatchMiner, out: Path) -> None:
    listed, options = list_images(images), RunOptions(batch_size=4, shard_size=10, heatmaps=True)
    with open_run(out, run_settings(listed, miner.network, "model", options)) as run:
        mine_archive(listed, LocalEngine((miner,), 2), run, options)


@pytest.mark.parametrize("name", CARDS)
def test_the_rows_are_those_of_torch(name: str, images: Path, tmp_path: Path) -> None:
    checkpoint, file = exported(CARDS[name], tmp_path)
    mine(images, load_miner(checkpoint, precision="float32", device="cpu"), tmp_path / "torch")
    mine(images, load_onnx_miner(file, device="cpu"), tmp_path / "onnx")
    ours, theirs = (read_findings(tmp_path / n).to_pylist() for n in ("onnx", "torch"))
    assert read_errors(tmp_path / "onnx").equals(read_errors(tmp_path / "torch"))
    by_key = {(row["image_id"], row["class"], row["rank"]): row for row in theirs}
    assert len(theirs) > 25
    # CAMs differ by rounding, which moves a pixel over a threshold now and then.
    agreeing = 0
    for row in ours:
        other = by_key.get((row["image_id"], row["class"], row["rank"]))
        if other and all(abs(row[e] - other[e]) < 0.5 for e in ("x1", "y1", "x2", "y2")):
            agreeing += 1
            assert row["score"] == pytest.approx(other["score"], abs=1e-4)
            assert row["probability"] == pytest.approx(other["probability"], abs=1e-5)
    assert agreeing >= 0.99 * max(len(ours), len(theirs))


WITHOUT_TORCH = """
import sys
for name in ("torch", "safetensors", "onnx"):
    sys.modules[name] = None
from cxr_fast.cli import main
main(sys.argv[1:])
"""


def test_a_process_without_torch_writes_the_same_bytes(images: Path, tmp_path: Path) -> None:
    _, file = exported(CARDS["components"], tmp_path)
    arguments = [
        "mine",
        str(images),
        "--model",
        str(file),
        "--threads",
        "2",
        "--overlays",
        "2",
        "--out",
    ]
    here = CliRunner().invoke(main, [*arguments, str(tmp_path / "here")])
    assert here.exit_code == 0, here.output
    assert "float32 on cpu (CPUExecutionProvider of onnxruntime" in here.output.replace("\n", "")
    elsewhere = [sys.executable, "-c", WITHOUT_TORCH, *arguments, str(tmp_path / "elsewhere")]
    subprocess.run(elsewhere, check=True, capture_output=True, timeout=300)
    for part in ("findings", "maps"):
        name = f"{part}/part-00000.parquet"
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "elsewhere" / name).read_bytes()
    assert len(list((tmp_path / "elsewhere" / "overlays").iterdir())) == 2


def test_numpy_regions_are_those_of_torch() -> None:
    torch.manual_seed(1)
    cam = torch.nn.functional.avg_pool2d(torch.randn(3, 4, 18, 26), 2)
    cam[0, 0], cam[0, 1, 2, 2] = 0.3, torch.nan
    sizes = torch.tensor([[100.0, 90.0], [1024.0, 1024.0], [37.0, 2000.0]], dtype=torch.float64)
    for upsample in (1, 2, 4):
        settings = MiningSettings(select="regions", upsample=upsample)
        bias = torch.randn(4)
        expected = mine_regions(cam.clone(), settings, sizes, bias)
        found = runtime.mine_regions(
            cam.numpy().copy(), bias.numpy(), image_size=sizes.numpy(), upsample=upsample
        )
        # How far a NaN spreads when its map is enlarged is nobody's business: nothing of it is mined.
        for result in (found, expected):
            assert np.isnan(np.asarray(result.mined.extent[0, 1])).all()
            result.cam[0, 1], result.heatmap[0, 1], result.logits[0, 1] = 0, 0, 0
        np.testing.assert_allclose(found.cam, expected.cam, atol=1e-6)
        np.testing.assert_array_equal(found.mined.erased_at, expected.mined.erased_at)
        np.testing.assert_array_equal(found.found.boxes, expected.found.boxes)
        np.testing.assert_array_equal(found.found.counts, expected.found.counts)
        np.testing.assert_allclose(found.found.scores, expected.found.scores, atol=1e-6)
        np.testing.assert_allclose(found.heatmap, expected.heatmap, atol=1e-6)
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"form": "end2end"}, r"--form end2end; export the model with --form cam alone"),
        ({"raw_input": True}, r"--form cam, --raw-input; export"),
        ({"size": "dynamic"}, r"--form cam, --size dynamic; export"),
    ],
)
def test_other_exports_are_refused(options: dict[str, object], said: str, tmp_path: Path) -> None:
    _, file = exported(CARDS["raw"], tmp_path, **options)
    with pytest.raises(ValueError, match=said):
        load_onnx_miner(file)


def test_files_and_devices_that_cannot_be(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, file = exported(CARDS["raw"], tmp_path)
    with pytest.raises(ValueError, match=r"exported in float32, but --precision is bfloat16"):
        load_onnx_miner(file, precision="bfloat16")
    with pytest.raises(ValueError, match=r"must be auto, tensorrt, cuda, openvino, cpu, but is"):
        load_onnx_miner(file, device="cuda:1")
    with pytest.raises(ValueError, match=r"the device tensorrt was asked for, but .* has .*cpu;"):
        load_onnx_miner(file, device="tensorrt")
    # A provider that onnxruntime has, but whose libraries this machine lacks, is never run silently.
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnx_miner, "_available", lambda: names)
    with pytest.raises(ValueError, match=r"none of the devices cuda could be begun here"):
        load_onnx_miner(file, device="cuda")
    assert load_onnx_miner(file).device == "cpu"
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "strange.onnx")
    with pytest.raises(ValueError, match=r"cxr-fast export did not write it"):
        load_onnx_miner(tmp_path / "strange.onnx")
    arguments = ["mine", str(images), "--model", str(file), "--out", str(tmp_path / "run")]
    told = CliRunner().invoke(main, [*arguments, "--engine", "ray"]).output
    assert "--engine ray takes a checkpoint" in told


@pytest.mark.parametrize(
    ("flags", "asked", "computed"),
    [
        ("fpu avx512_bf16 amx_tile", "auto", "bfloat16"),
        ("fpu amx_bf16", "auto", "bfloat16"),
        ("fpu avx512f", "auto", "float32"),
        ("fpu avx512_bf16", "float32", "float32"),
        ("fpu", "bfloat16", "bfloat16"),
        ("fpu", "float16", "float32"),  # which is then said to be another than what was asked for
    ],
)
def test_the_precision_of_openvino(
    flags: str, asked: str, computed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_miner, "_processor_flags", flags.split)
    assert onnx_miner.openvino_precision(asked) == computed


@pytest.mark.skipif(
    "OpenVINOExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="onnxruntime-openvino is not installed in onnxruntime's place",
)
def test_openvino_computes_the_same(images: Path, tmp_path: Path) -> None:
    _, file = exported(CARDS["components"], tmp_path)
    miner, own = load_onnx_miner(file, "float32", "openvino"), load_onnx_miner(file, device="cpu")
    assert "openvino (OpenVINOExecutionProvider of" in miner.where
    pixels = np.random.default_rng(3).random((8, 64, 64), np.float32)
    sizes = np.full((8, 2), 64.0)
    got, expected = (m.mine_batch(pixels, sizes, False).details() for m in (miner, own))
    np.testing.assert_allclose(got.cam, expected.cam, atol=1e-4)
    half = load_onnx_miner(file, "bfloat16", "openvino")
    assert half.network.precision == "bfloat16"
    rounded = half.mine_batch(pixels, sizes, False).details().cam
    assert 1e-4 < np.abs(rounded - expected.cam).max() / np.abs(expected.cam).max() < 0.1
    with pytest.raises(ValueError, match=r"--precision is float16"):
        load_onnx_miner(file, "float16", "openvino")


def _without_metadata(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def _fewer_classes(model: onnx.ModelProto) -> None:
    (entry,) = model.metadata_props
    entry.value = json.dumps(json.loads(entry.value) | {"class_names": ["A"]})


def _opset_of_the_future(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


def _unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[5].op_type = "Abacus"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without_metadata, r"cxr-fast export did not write it. Export the model again"),
        (_fewer_classes, r"names 1 classes.*logits \['batch', 3\].*export the model again"),
        (_opset_of_the_future, r"strange\.onnx is of an opset that .* \(its last is \d+\); upgrade"),
        (_unknown_operator, r"onnxruntime .* runs, but it says: .*Abacus.* Export the model again"),
    ],
)
def test_strange_files_are_refused(
    change: Callable[[onnx.ModelProto], None], said: str, tmp_path: Path
) -> None:
    _, file = exported(CARDS["components"], tmp_path)
    model = onnx.load(file)
    change(model)
    (tmp_path / "strange.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=said):
        load_onnx_miner(tmp_path / "strange.onnx")


@pytest.mark.parametrize("length", [0, 1, 5000, -1])
def test_damaged_files_are_refused(length: int, tmp_path: Path) -> None:
    _, file = exported(CARDS["raw"], tmp_path)
    (tmp_path / "cut.onnx").write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"cut\.onnx is no ONNX file, or a damaged one; copy it again"):
        load_onnx_miner(tmp_path / "cut.onnx")


@pytest.mark.parametrize("kept", [None, 3])
def test_weights_beside_the_file_are_asked_for(kept: int | None, tmp_path: Path) -> None:
    _, file = exported(CARDS["raw"], tmp_path)
    outside = tmp_path / "outside.onnx"
    onnx.save(onnx.load(file), outside, save_as_external_data=True, location="weights")
    beside = tmp_path / "weights"
    content = beside.read_bytes()
    beside.unlink()
    if kept is not None:
        beside.write_bytes(content[:kept])
    with pytest.raises(ValueError, match=r"outside\.onnx keeps weights in a file beside it.*put that"):
        load_onnx_miner(outside)
    beside.write_bytes(content)
    assert load_onnx_miner(outside).network.class_names == ("A",)
