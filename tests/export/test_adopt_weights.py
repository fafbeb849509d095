"""``cxr-fast adopt`` of other libraries' ResNet weights, and mining by what was adopted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result
from others import ResNet, export, settled
from PIL import Image

from cxr_fast.archive.findings import read_errors, read_findings
from cxr_fast.cli import main
from cxr_fast.config import MiningSettings
from cxr_fast.models import load_checkpoint, normalise
from cxr_fast.models.adopt import TORCHXRAYVISION_FINDINGS, adopt_weights

SHAPES: dict[str, tuple[tuple[int, ...], bool]] = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
}
NAMES = ("A", "B", "C", "D")


def resnet(backbone: str = "resnet18", **rest: Any) -> ResNet:
    torch.manual_seed(len(backbone) + int(backbone[6:]))
    made: ResNet = settled(ResNet(*SHAPES[backbone], **rest))
    return made


@pytest.fixture(scope="module")
def small() -> ResNet:
    return resnet()


@pytest.fixture(scope="module")
def published() -> ResNet:
    """The network of torchxrayvision's resnet50-res512-all, of random weights."""
    return resnet("resnet50", channels=1, classes=18)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive") / "images"
    folder.mkdir()
    rng = np.random.default_rng(9)
    for i in range(6):
        noise = Image.fromarray(rng.integers(0, 256, (9, 8), np.uint8))
        noise.resize((90 + 10 * i, 100), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.mark.parametrize("backbone", SHAPES)
@pytest.mark.parametrize("kind", ["torch", "safetensors", "float16"])
def test_logits_and_maps_are_theirs(backbone: str, kind: str, tmp_path: Path) -> None:
    theirs = resnet(backbone)
    weights = theirs.state_dict()
    if kind == "float16":
        weights = {n: v.half() if v.is_floating_point() else v for n, v in weights.items()}
        theirs.load_state_dict(weights)
    file = tmp_path / "theirs.pth"
    if kind == "torch":
        torch.save(weights, file)
    else:
        safetensors.torch.save_file(weights, file)
    card = adopt_weights(file, tmp_path / "m", "torchvision", class_names=NAMES, size=64)
    model, read = load_checkpoint(tmp_path / "m")
    assert read == card
    assert card.architecture.backbone == backbone
    assert card.architecture.msa == "none"
    assert (card.class_names, card.input_size, card.mining) == (NAMES, 64, MiningSettings())
    assert card.mean == (0.485, 0.456, 0.406)
    assert card.std == (0.229, 0.224, 0.225)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(image), theirs(image), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.features(image), theirs.maps(image), rtol=1e-4, atol=1e-4)


def dropout_before(weights: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("fc.", "fc.1."): value for name, value in weights.items()}


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda w: {f"module.{name}": value for name, value in w.items()},
        lambda w: {f"model.{name}": value for name, value in w.items()} | {"op_threshs": torch.ones(4)},
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {n: v for n, v in w.items() if "num_batches_tracked" not in n},
        dropout_before,
    ],
    ids=["parallel", "torchxrayvision's own", "of a training program", "old", "dropout before"],
)
def test_wrappings(wrapped: Any, small: ResNet, tmp_path: Path) -> None:
    torch.save(wrapped(small.state_dict()), tmp_path / "w.pt")
    adopt_weights(tmp_path / "w.pt", tmp_path / "m", "timm", class_names=NAMES, size=64)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        got = load_checkpoint(tmp_path / "m")[0](image)
        torch.testing.assert_close(got, small(image), rtol=1e-4, atol=1e-4)


def without_fc(weights: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {n: v for n, v in weights.items() if not n.startswith("fc.")} | others


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: {**w, "conv1.0.weight": w["conv1.weight"]}, r"deep stem \(timm's resnet50d"),
        (lambda w: {**w, "layer2.0.downsample.2.weight": w["bn1.weight"]}, r"ResNet-D"),
        (lambda w: {**w, "layer1.0.se.fc1.weight": w["bn1.weight"]}, r"SE-ResNet"),
        (lambda w: {**w, "layer3.6.conv1.weight": w["conv1.weight"]}, r"deeper ResNet \(101 or 152\)"),
        (lambda w: {"features.denseblock1.denselayer1.conv1.weight": w["fc.weight"]}, r"a DenseNet"),
        (lambda w: {"blocks.0.attn.qkv.weight": w["fc.weight"]}, r"a transformer"),
        (
            lambda w: {"stem.weight": w["fc.weight"]},
            r"must hold the weights of a ResNet .*stem\.weight",
        ),
        (lambda w: {n: v for n, v in w.items() if "layer4.1." not in n}, r"of 7 residual blocks"),
        (lambda w: {**w, "layer1.0.conv1.weight": torch.ones(64, 2, 3, 3)}, r"have the shape .*ONNX"),
        (lambda w: {**w, "conv1.weight": torch.ones(64, 4, 7, 7)}, r"must be \[64, 1 or 3, 7, 7\]"),
        (
            lambda w: {f"model.{n}": v for n, v in w.items()} | {"head.weight": w["fc.weight"]},
            r"beside a ResNet under 'model\.' what may change its logits: head\.weight",
        ),
        (without_fc, r"but has nothing named fc"),
        (
            lambda w: without_fc(
                w,
                **{"fc.0.weight": torch.ones(9, 512), "fc.0.bias": torch.ones(9)},
                **{"fc.2.weight": torch.ones(4, 9), "fc.2.bias": torch.ones(4)},
            ),
            r"a hidden layer between features and logits",
        ),
    ],
)
def test_other_networks_are_refused(change: Any, said: str, small: ResNet, tmp_path: Path) -> None:
    torch.save(change(small.state_dict()), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=said):
        adopt_weights(tmp_path / "w.pt", tmp_path / "m", "timm", class_names=NAMES, size=64)
    assert not (tmp_path / "m").exists()


def test_code_in_a_file_is_not_run(small: ResNet, tmp_path: Path) -> None:
    torch.save(small, tmp_path / "whole.pt")
    with pytest.raises(ValueError, match=r"a whole model, which is code.*state_dict\(\)") as told:
        adopt_weights(tmp_path / "whole.pt", tmp_path / "m", "timm", class_names=NAMES, size=64)
    assert "weights_only" not in str(told.value)


def test_what_weights_do_not_say_must_be_given(small: ResNet, tmp_path: Path) -> None:
    file, out = tmp_path / "w.pt", tmp_path / "m.safetensors"
    torch.save(small.state_dict(), file)
    common = ("adopt", file, "--out", out)
    for arguments, said in (
        ((), "--classes: the names of the logits"),
        (("--classes", "A,B,C,D"), "--size: the side in pixels"),
        (("--classes", "A,B,C,D", "--size", 64), "--mean and --std, or --range, or the library"),
        (
            ("--classes", "A,B", "--size", 64, "--from", "timm"),
            "--classes must be 4 names, but they are 2",
        ),
        (("--from", "torchxrayvision"), "takes 3 channels, where weights of torchxrayvision take 1"),
        (("--classes", "A,B,C,D", "--head", "fc"), "--head is of ONNX files"),
    ):
        refused = run(*common, *arguments)
        assert refused.exit_code == 1
        assert said in refused.output.replace("\n", " ")
    given = ("--classes", "A,B,C,D", "--size", 64, "--range", "0,255", "--mean", 127.5, "--std", 51)
    done = run(*common, *given, "--steps", 1, "--half")
    assert done.exit_code == 0, done.output
    _, card = load_checkpoint(out)
    assert (card.mean, card.std) == ((0.5,), (0.2,))
    assert card.mining == MiningSettings(steps=1)
    assert out.stat().st_size < 0.6 * file.stat().st_size
    again = run(*common, *given)
    assert again.exit_code == 1
    assert "exists and is not written over" in again.output


@pytest.mark.parametrize("wrapped", [False, True])
def test_torchxrayvision(wrapped: bool, published: ResNet, images: Path, tmp_path: Path) -> None:
    """Its published file holds torchvision's names; its model's own state_dict a prefix and more."""
    weights = published.state_dict()
    if wrapped:
        weights = {f"model.{n}": v for n, v in weights.items()} | {"op_threshs": torch.ones(18)}
    file = tmp_path / "pc-nih-rsna-siim-vin-resnet50-test512-e400-state.pt"
    torch.save(weights, file)
    out = tmp_path / "xrv.safetensors"
    done = run("adopt", file, "--from", "torchxrayvision", "--out", out)
    assert done.exit_code == 0, done.output
    model, card = load_checkpoint(out)
    assert card.class_names == TORCHXRAYVISION_FINDINGS
    assert card.input_size == 512
    grey = torch.rand(2, 1, 64, 64)
    with torch.no_grad():  # as torchxrayvision scales pixels
        torch.testing.assert_close(normalise(grey, card), (2 * grey - 1) * 1024, rtol=1e-5, atol=1e-3)
        expected = published((2 * grey - 1) * 1024)
        torch.testing.assert_close(model(normalise(grey, card)), expected, rtol=1e-3, atol=1e-3)
    if wrapped:
        return
    mined = run("mine", images, "--model", out, "--out", tmp_path / "run", "--batch-size", 2,
                "--precision", "float32")  # fmt: skip
    assert mined.exit_code == 0, mined.output
    rows = read_findings(tmp_path / "run").to_pylist()
    assert {row["class"] for row in rows} <= set(TORCHXRAYVISION_FINDINGS)
    assert {row["image_id"] for row in rows} == {f"{i}.png" for i in range(6)}
    assert read_errors(tmp_path / "run")["image_id"].to_pylist() == ["broken.png"]


def test_both_ways_give_the_same_rows(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    theirs = resnet(channels=1)
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    export(theirs, tmp_path / "theirs.onnx", side=128, channels=1)
    common = ("--classes", ",".join(NAMES), "--range", "-1,1", "--upsample", "2")
    for file, out, rest in (
        ("w.pt", "a.safetensors", ("--size", "128")),
        ("theirs.onnx", "b.onnx", ()),
    ):
        done = run("adopt", tmp_path / file, "--out", tmp_path / out, *common, *rest)
        assert done.exit_code == 0, done.output
        run_folder = tmp_path / out.split(".")[0]
        mined = run("mine", images, "--model", tmp_path / out, "--out", run_folder,
                    "--precision", "float32")  # fmt: skip
        assert mined.exit_code == 0, mined.output
    by_weights, by_onnx = (read_findings(tmp_path / name).to_pylist() for name in "ab")
    assert len(by_weights) >= 24
    assert len(by_onnx) == len(by_weights)
    for one, other in zip(by_weights, by_onnx, strict=True):
        for name, value in one.items():
            if isinstance(value, float):
                assert other[name] == pytest.approx(value, abs=1e-3 if name[0] in "xy" else 1e-4)
            else:
                assert other[name] == value
