"""``cxr-fast export`` as a person meets it."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from graphs import card_of, outputs
from PIL import Image

from cxr_fast.cli import main
from cxr_fast.config import MiningSettings
from cxr_fast.export.metadata import KEY, from_properties, to_json
from cxr_fast.mining import load_miner
from cxr_fast.models import Architecture, build, normalise, save_checkpoint


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", *(str(a) for a in arguments)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    card = card_of(Architecture("resnet18", "bilinear", 0.125, 1), mining=MiningSettings(steps=2))
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_checkpoint(path, build(card), card)
    return path


def test_a_file_of_each_form(model: Path, tmp_path: Path) -> None:
    miner = load_miner(model, precision="float32", device="cpu")
    pixels = torch.rand(2, 64, 64)
    image = normalise(pixels[:, None], miner.card).numpy()
    sizes = np.array([[300, 200], [64, 64]])
    mined = miner.mine(pixels, torch.from_numpy(sizes))
    done = run(model, "--form", "cam", "--out", tmp_path / "cam.onnx")
    assert done.exit_code == 0, done.output
    assert "image    float32 [N, 1, 64, 64]\noutputs  logits, cam\n" in done.output
    got = outputs((tmp_path / "cam.onnx").read_bytes(), image=image)
    np.testing.assert_allclose(got["cam"], mined.result.cam.numpy(), atol=1e-4)
    done = run(model, "--out", tmp_path / "whole.onnx", "--erased-at", "--json")
    assert done.exit_code == 0, done.output
    contract = json.loads(done.output)
    assert contract["outputs"] == ["logits", "boxes", "scores", "counts", "erased_at"]
    assert contract["model_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    content = (tmp_path / "whole.onnx").read_bytes()
    got = outputs(content, image=image, image_size=sizes)
    np.testing.assert_allclose(got["boxes"], mined.result.found.boxes.numpy(), atol=0.5)
    np.testing.assert_array_equal(got["erased_at"], mined.result.mined.erased_at.numpy())
    onnx.checker.check_model(str(tmp_path / "whole.onnx"), full_check=True)
    properties = {p.key: p.value for p in onnx.load_from_string(content).metadata_props}
    assert json.loads(properties[KEY]) == contract
    assert to_json(from_properties(properties)) == properties[KEY]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cam.onnx", "whole.onnx"]  # one file each


def test_size_raw_input_and_type(model: Path, tmp_path: Path) -> None:
    for name, *options in (
        ("size", "--size", 96),
        ("dynamic", "--size", "dynamic", "--heatmap"),
        ("raw", "--raw-input", "--form", "cam"),
        ("half", "--dtype", "float16", "--opset", 20),
        ("bfloat16", "--dtype", "bfloat16"),
    ):
        out = tmp_path / f"{name}.onnx"
        done = run(model, "--out", out, *options)
        assert done.exit_code == 0, done.output
        onnx.checker.check_model(str(out), full_check=True)
    sides = {
        path.stem: [
            d.dim_param or d.dim_value
            for d in onnx.load(path).graph.input[0].type.tensor_type.shape.dim
        ]
        for path in tmp_path.iterdir()
    }
    assert sides["size"] == ["batch", 1, 96, 96]
    assert sides["dynamic"] == ["batch", 1, "height", "width"]
    assert sides["raw"] == ["batch", "rows", "columns"]
    assert sides["half"] == sides["bfloat16"] == ["batch", 1, 64, 64]


def test_the_same_command_writes_the_same_bytes(model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run(model, "--out", tmp_path / name).exit_code == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--size", "dynamic", "--raw-input"], "resizes them to one; give that one with --size"),
        (["--form", "cam", "--heatmap"], "are made by mining; give them with --form end2end"),
        (["--form", "cam", "--erased-at"], "are made by mining"),
        (["--to", "pt2", "--opset", "18"], "--opset is of ONNX files"),
        (["--to", "pt2", "--raw-input"], "--raw-input is for ONNX files"),
        (["--to", "pt2", "--size", "dynamic"], "--size dynamic is for ONNX files"),
        (["--opset", "16"], "--opset must be from 17 to 23, but is 16; leave it out for 18"),
        (["--opset", "99"], "--opset must be from 17 to 23, but is 99"),
        (["--opset", "18", "--dtype", "bfloat16"], "from 22 to 23, as ONNX has no bfloat16"),
        (["--size", "8"], "input_size of a model card must be an integer from 32"),
        (["--size", "big"], "'big' is neither a number of pixels nor 'dynamic'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals(model: Path, tmp_path: Path, options: list[str], sentence: str) -> None:
    done = run(model, "--out", tmp_path / "out.onnx", *options)
    assert done.exit_code != 0
    assert sentence in " ".join(done.output.split())
    assert not list(tmp_path.iterdir())


def test_files_are_not_written_over_nor_left_half_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.onnx"
    out.write_text("mine")
    done = run(model, "--out", out)
    assert "exists and is not written over" in done.output
    assert out.read_text() == "mine"
    done = run(model, "--out", tmp_path / "no" / "model.onnx")
    assert "must be a folder to write to" in done.output
    done = run(tmp_path / "absent", "--out", tmp_path / "new.onnx")
    assert "there is no such file" in done.output

    def no_room(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_room)
    done = run(model, "--out", tmp_path / "new.onnx")
    assert "the disk is full" in done.output
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_without_onnx_it_says_what_to_install(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("cxr_fast.export")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    done = run(model, "--out", tmp_path / "model.onnx")
    assert done.exit_code == 1
    assert "pip install 'cxr_fast[onnx]'" in done.output


def test_the_documented_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    assert run("demo", "--out", "demo.onnx").exit_code == 0
    pixels = np.random.default_rng(0).integers(0, 256, (90, 80), dtype=np.uint8)
    Image.fromarray(pixels).save("chest.png")
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["boxes"].shape == (1, 8, 3, 4)
    assert found["counts"].max() > 0
    assert (found["boxes"] <= [80, 90, 80, 90]).all()
