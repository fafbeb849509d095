"""The model file: what is in its bytes, what comes back, and how damage is told."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from cxr_fast.config import MiningSettings
from cxr_fast.models import (
    Architecture,
    CheckpointError,
    Classifier,
    ModelCard,
    build,
    fold,
    load_checkpoint,
    save_checkpoint,
)

CARD = ModelCard(
    Architecture("resnet18", "deconv", 0.125, in_channels=1),
    ("Mass", "Nodule", "Pleural_Thickening"),
    input_size=224,
    mean=(0.47,),
    std=(0.23,),
    mining=MiningSettings(steps=2, thresholds=(0.4, 0.6, 0.8), select="peak", upsample=2),
    provenance="Drawn at random, for a test; größer als ASCII.",
)


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    model = build(CARD)
    model(torch.randn(4, 1, 64, 64))  # moves the running statistics
    return model


@pytest.fixture
def path(tmp_path: Path, model: Classifier) -> Path:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, CARD)
    return path


def header_of(path: Path) -> dict[str, Any]:
    """The JSON header, read by the safetensors specification: 8 bytes of length, then JSON."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    return header


def rewrite(
    path: Path,
    edit: Callable[[dict[str, Any]], object] = lambda header: None,
    edit_tensors: Callable[[dict[str, Tensor]], object] = lambda tensors: None,
) -> None:
    """Write the file again with its metadata object and its tensors edited."""
    tensors = safetensors.torch.load(path.read_bytes())
    ours = json.loads(header_of(path)["__metadata__"]["cxr_fast"])
    edit(ours)
    edit_tensors(tensors)
    path.write_bytes(safetensors.torch.save(tensors, {"cxr_fast": json.dumps(ours)}))


def test_round_trip_is_exact(path: Path, model: Classifier) -> None:
    loaded, card = load_checkpoint(path)
    assert card == CARD
    assert loaded.architecture == CARD.architecture
    assert not loaded.training
    assert model.training  # saving leaves the model as it is
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images), model.eval()(images))
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert fold(loaded)(images).shape == (2, 3, 4, 4)


def test_loaded_model_trains_and_survives_the_file(path: Path) -> None:
    loaded, _ = load_checkpoint(path)
    path.write_bytes(b"")
    loaded.train()(torch.randn(2, 1, 64, 64)).sum().backward()
    torch.optim.SGD(loaded.parameters(), 0.1).step()


def test_file_says_what_it_is(path: Path, model: Classifier) -> None:
    header = header_of(path)
    ours = json.loads(header.pop("__metadata__")["cxr_fast"])
    assert ours["format"] == "cxr_fast.classifier"
    assert ours["version"] == 2
    assert ours["card"] == {
        "architecture": {
            "backbone": "resnet18",
            "msa": "deconv",
            "width": 0.125,
            "in_channels": 1,
            "depth": 4,
            "last_stride": 2,
            "neck": 0,
            "bilateral": False,
            "pooling": "gap",
            "sharpness": 4.0,
        },
        "class_names": ["Mass", "Nodule", "Pleural_Thickening"],
        "input_size": 224,
        "mean": [0.47],
        "std": [0.23],
        "standardise": False,
        "mining": {
            "steps": 2,
            "cam_threshold": 0.5,
            "connectivity": 8,
            "mode": "normalized",
            "thresholds": [0.4, 0.6, 0.8],
            "select": "peak",
            "max_boxes": 3,
            "max_overlap": 0.5,
            "upsample": 2,
        },
        "provenance": CARD.provenance,
    }
    assert header.keys() == model.state_dict().keys()
    assert {entry["dtype"] for entry in header.values()} == {"F32", "I64"}


@pytest.mark.parametrize(
    ("dtype", "code", "tolerance"),
    [(torch.float16, "F16", 2**-11), (torch.bfloat16, "BF16", 2**-8)],
)
def test_half_storage(
    tmp_path: Path, path: Path, model: Classifier, dtype: torch.dtype, code: str, tolerance: float
) -> None:
    half = tmp_path / "half.safetensors"
    model.bn1.running_var = torch.full_like(model.bn1.weight, 1e6)  # out of float16's range
    save_checkpoint(half, model, CARD, dtype=dtype)
    assert half.stat().st_size < 0.6 * path.stat().st_size
    for name, entry in header_of(half).items():
        if name != "__metadata__" and len(entry["shape"]) > 1:
            assert entry["dtype"] == code
    loaded, card = load_checkpoint(half)
    assert card == CARD
    for name, value in model.state_dict().items():
        got = loaded.state_dict()[name]
        assert got.dtype == value.dtype
        if value.dim() > 1:
            assert float((got - value).abs().max()) <= tolerance * float(value.abs().max())
        else:
            assert torch.equal(got, value), name
    again = tmp_path / "again.safetensors"
    save_checkpoint(again, loaded, CARD, dtype=dtype)
    assert again.read_bytes() == half.read_bytes()


def test_overflowing_weights_are_refused(path: Path, model: Classifier) -> None:
    before = path.read_bytes()
    with torch.no_grad():
        model.fc.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"must fit torch.float16, but fc.weight reaches 1e\+06"):
        save_checkpoint(path, model, CARD, dtype=torch.float16)
    assert path.read_bytes() == before
    save_checkpoint(path, model, CARD, dtype=torch.bfloat16)


def test_layout_and_precision_of_the_model_do_not_matter(path: Path, model: Classifier) -> None:
    other = path.with_name("other.safetensors")
    model.double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    save_checkpoint(other, model, CARD)
    assert other.read_bytes() == path.read_bytes()


def test_saving_is_all_or_nothing(
    path: Path, model: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    synced: list[int] = []

    def disk_full(descriptor: int) -> None:
        synced.append(descriptor)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="the disk is full"):
        save_checkpoint(path, model, CARD)
    assert synced
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_saved_file_has_ordinary_permissions(path: Path) -> None:
    ordinary = path.with_name("ordinary")
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode


def test_save_refuses_what_does_not_belong_together(tmp_path: Path, model: Classifier) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(TypeError, match="takes a cxr_fast Classifier, but got FoldedClassifier"):
        save_checkpoint(path, fold(model), CARD)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must name the model's 3 classes, but names 1"):
        save_checkpoint(path, model, ModelCard(CARD.architecture, ("Mass",)))
    with pytest.raises(ValueError, match=r"must describe the model, .*, but describes .*resnet50"):
        save_checkpoint(path, model, ModelCard(Architecture(), CARD.class_names))
    with pytest.raises(ValueError, match=r"dtype must be one of .*, but is torch.float64"):
        save_checkpoint(path, model, CARD, dtype=torch.float64)
    assert not path.exists()


def test_unknown_keys_are_ignored(path: Path) -> None:
    def add(ours: dict[str, Any]) -> None:
        ours["written_by"] = "a later version"
        ours["card"]["licence"] = "CC0"
        ours["card"]["mining"]["colour"] = [1, 2]
        ours["card"]["architecture"]["note"] = None

    rewrite(path, add)
    assert load_checkpoint(path)[1] == CARD


def test_foreign_metadata_beside_ours_is_ignored(path: Path) -> None:
    tensors = safetensors.torch.load(path.read_bytes())
    metadata = {**header_of(path)["__metadata__"], "format": "pt", "else": "{"}
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    assert load_checkpoint(path)[1] == CARD


def test_absent_optional_entries_take_their_defaults(path: Path) -> None:
    def drop(ours: dict[str, Any]) -> None:
        del ours["card"]["provenance"], ours["card"]["mining"]["upsample"]

    rewrite(path, drop)
    card = load_checkpoint(path)[1]
    assert card.provenance == ""
    assert card.mining.upsample == 1
    assert card.mining.steps == 2


def test_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no such file"):
            load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"version https://git-lfs", os.urandom(4096)])
def test_other_files(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="must be a safetensors file"):
        load_checkpoint(path)


def test_pickles_are_never_opened(path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(path.with_name("executed")),)

    torch.save({"fc.weight": Trap()}, path)
    with pytest.raises(CheckpointError, match=r"torch\.save"):
        load_checkpoint(path)
    assert not path.with_name("executed").exists()


@pytest.mark.parametrize("kept", [4, 100, -1])
def test_truncated_files(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="must be a safetensors file"):
        load_checkpoint(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_of_others(path: Path, model: Classifier, metadata: dict[str, str] | None) -> None:
    path.write_bytes(safetensors.torch.save(model.state_dict(), metadata))
    with pytest.raises(CheckpointError, match="was not written by cxr_fast"):
        load_checkpoint(path)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_damaged_json(path: Path, text: str) -> None:
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}, {"cxr_fast": text}))
    with pytest.raises(CheckpointError, match="as JSON, but that is damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, "is of version 3: a newer cxr_fast wrote it. Upgrade"),
        ({"version": 0}, "version 1 to 2, but says 'cxr_fast.classifier', version 0"),
        ({"version": "1"}, "but says 'cxr_fast.classifier', version '1'"),
        ({"format": "cxr_fast.other"}, "must be of the format 'cxr_fast.classifier'.*'cxr_fast.o"),
        ({"card": None}, "the model card must be a JSON object"),
        ({"card": {"class_names": ["a"]}}, "model card must have the entry 'architecture'"),
    ],
)
def test_wrong_header(path: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(path, lambda ours: ours.update(changes))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_header_that_is_no_object(path: Path) -> None:
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}, {"cxr_fast": "[1]"}))
    with pytest.raises(CheckpointError, match="but says None, version None"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("mining", {"steps": 0}, "steps must be"),
        ("mining", {"thresholds": []}, "thresholds must"),
        ("mining", {"mode": 3}, "mode must be 'normalized' or 'raw'"),
        ("mining", [], "the mining settings must be a JSON object, but is"),
        ("architecture", {"width": 1e12}, "width of an architecture must be a number above 0"),
        ("architecture", {"backbone": "vit"}, "backbone of an architecture must be 'resnet18'"),
        ("class_names", "Mass", "class_names of a model card must be"),
        ("class_names", [["Mass"]], "class_names of a model card must be"),
        ("std", [0], "std of a model card must be a tuple"),
        ("input_size", True, "input_size of a model card must be an integer"),
    ],
)
def test_wrong_card(path: Path, entry: str, value: Any, message: str) -> None:
    def change(ours: dict[str, Any]) -> None:
        ours["card"][entry] = value

    rewrite(path, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("fc.bias"), "lacks fc.bias and has beyond them none"),
        (lambda t: t.update(extra=torch.zeros(1)), "lacks none and has beyond them extra"),
        (
            lambda t: [t.pop(name) for name in list(t) if name.startswith("layer4.0")],
            r"lacks layer4.0.bn1.bias, .* and \d+ more and has",
        ),
        (
            lambda t: t.update({"fc.weight": torch.zeros(4, 96)}),
            r"fc.weight in .* must be torch.float32 \[3, 96\] by the card, but is .* \[4, 96\]",
        ),
        (
            lambda t: t.update({"fc.bias": torch.zeros(3, dtype=torch.int64)}),
            r"fc.bias in .* must be torch.float32 \[3\] by the card, but is torch.int64 \[3\]",
        ),
    ],
)
def test_wrong_tensors(path: Path, change: Callable[[Any], object], message: str) -> None:
    rewrite(path, edit_tensors=change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_one_class_more_on_the_card_than_in_the_weights(path: Path) -> None:
    rewrite(path, lambda ours: ours["card"]["class_names"].append("Mass2"))
    with pytest.raises(CheckpointError, match=r"fc.bias in .* must be torch.float32 \[4\]|fc.weig"):
        load_checkpoint(path)
