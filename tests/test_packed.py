"""Packing: the folded network again, the same bits at every call, and where it cannot be."""

from __future__ import annotations

import copy
import hashlib
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from networks import ARCHITECTURES, VARIANTS, relative, trained
from torch import Tensor

from cxr_fast.archive.batches import RunOptions
from cxr_fast.archive.images import list_images
from cxr_fast.archive.run import run_settings
from cxr_fast.mining import load_miner
from cxr_fast.models import (
    Architecture,
    FoldedClassifier,
    ModelCard,
    PackedClassifier,
    can_pack,
    fold,
    pack,
    packed,
    save_checkpoint,
)

CASES = [
    *ARCHITECTURES,
    *VARIANTS,
    Architecture("resnet34", "bilinear", 0.1),
    Architecture("resnet50", "deconv", 0.3, in_channels=1),
    # A last stage that keeps size and channels: its shortcut is X_{k-1} itself.
    Architecture("resnet18", "bilinear", 0.002, last_stride=1),
]

needs_float32 = pytest.mark.skipif(not can_pack(torch.float32), reason="torch cannot pack here")
needs_bfloat16 = pytest.mark.skipif(not can_pack(torch.bfloat16), reason="no bfloat16 here")


def folded_in(dtype: torch.dtype, architecture: Architecture) -> FoldedClassifier:
    network = fold(trained(architecture)).to(dtype)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def pictures(architecture: Architecture, n: int, height: int, width: int) -> Tensor:
    return torch.randn(n, architecture.in_channels, height, width)


@needs_float32
@pytest.mark.parametrize("architecture", CASES, ids=str)
@pytest.mark.parametrize("size", [(64, 64), (96, 33), (33, 47), (16, 1), (1, 1)])
def test_packed_is_the_folded_network(architecture: Architecture, size: tuple[int, int]) -> None:
    model = trained(architecture)
    network = pack(fold(model), 64)
    exact = fold(model.double())
    images = pictures(architecture, 3, *size)
    before = images.clone()
    cam = network(images)
    assert cam.dtype == torch.float32
    assert cam.is_contiguous()
    assert relative(cam, exact(images.double())) < 1e-5
    assert relative(network.logits(cam), exact.logits(exact(images.double()))) < 1e-5
    for tap, expected in zip(network.taps(images), exact.taps(images.double()), strict=True):
        assert relative(tap, expected) < 1e-5
    assert torch.equal(images, before)
    assert network.architecture == architecture


@needs_float32
def test_packed_papers_network() -> None:
    model = trained(Architecture(), classes=14)
    images = torch.randn(2, 1, 160, 160)
    assert relative(pack(fold(model), 160)(images), fold(model.double())(images.double())) < 1e-5


@needs_float32
def test_packed_takes_grey_images_no_images_and_any_layout() -> None:
    network = pack(folded_in(torch.float32, ARCHITECTURES[1]), 64)
    grey = torch.randn(3, 1, 64, 64)
    rgb = grey.repeat(1, 3, 1, 1)
    cam = network(grey)
    assert torch.equal(cam, network(rgb))
    assert torch.equal(cam, network(rgb.contiguous(memory_format=torch.channels_last)))
    assert torch.equal(cam, network(rgb.transpose(2, 3).contiguous().transpose(2, 3)))
    assert torch.equal(cam.double(), network(grey.double()).double())
    assert network(grey[:0]).shape == (0, *cam.shape[1:])
    with pytest.raises(ValueError, match="images must be"):
        network(torch.zeros(1, 2, 64, 64))
    with pytest.raises(TypeError, match="must be floating point"):
        network(torch.zeros(1, 1, 64, 64, dtype=torch.uint8))


@needs_bfloat16
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_bfloat16_packed_is_no_worse_than_eager(backbone: str) -> None:
    """Against float64. Of sums that are rounded once instead of twice the mean error is less."""
    errors = []
    for seed in range(4):
        model = trained(Architecture(backbone, "bilinear", 0.25), seed=seed)  # type: ignore[arg-type]
        eager = fold(model).to(torch.bfloat16)
        eager.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.randn(4, 3, 96, 96)
        expected = fold(model.double())(images.double())
        errors.append(
            [(n(images) - expected).norm() / expected.norm() for n in (eager, pack(eager, 96))]
        )
    eager_error, packed_error = torch.tensor(errors).mean(0).tolist()
    assert packed_error < 1.02 * eager_error
    assert packed_error < 0.02


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, marks=needs_float32),
        pytest.param(torch.bfloat16, marks=needs_bfloat16),
    ],
)
def test_the_same_bits_in_every_call_thread_and_process(dtype: torch.dtype, tmp_path: Path) -> None:
    architecture = Architecture("resnet18", "bilinear", 0.25, in_channels=1)
    network = pack(folded_in(dtype, architecture), 96)
    images = pictures(architecture, 4, 96, 96)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cam = network(images)
        assert torch.equal(cam, network(images))
        with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            assert all(torch.equal(cam, other) for other in pool.map(network, [images] * 32))
        # Another packing, by a driver that has another number of threads.
        torch.set_num_threads(3)
        again = pack(folded_in(dtype, architecture), 96)
        assert torch.get_num_threads() == 3
        torch.set_num_threads(1)
        assert torch.equal(cam, again(images))
    finally:
        torch.set_num_threads(threads)
    torch.save(images, tmp_path / "images.pt")
    script = (
        "import hashlib, sys, torch; sys.path.insert(0, sys.argv[1]); import test_packed as t;"
        "from cxr_fast.models import Architecture, pack; torch.set_num_threads(1);"
        "a = Architecture('resnet18', 'bilinear', 0.25, in_channels=1);"
        "n = pack(t.folded_in(getattr(torch, sys.argv[2]), a), 96); i = torch.load(sys.argv[3]);"
        "print(hashlib.sha256(n(i).numpy().tobytes()).hexdigest())"
    )
    name = str(dtype).removeprefix("torch.")
    command = [sys.executable, "-c", script, str(Path(__file__).parent), name]
    done = subprocess.run(
        [*command, str(tmp_path / "images.pt")], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == hashlib.sha256(cam.numpy().tobytes()).hexdigest()


@needs_float32
def test_images_pass_a_few_at_a_time_and_do_not_see_each_other() -> None:
    small = pack(folded_in(torch.float32, ARCHITECTURES[1]), 64)
    assert small.images_together == 256  # 32 * 32 * 8 floats an image, of 8 MiB
    network = pack(folded_in(torch.float32, ARCHITECTURES[1]), 512)
    assert network.images_together == 4
    assert pack(folded_in(torch.float32, Architecture(in_channels=1)), 512).images_together == 1
    images = torch.randn(8, 1, 512, 512)
    cam = network(images)
    assert torch.equal(cam[4:], network(images[4:]))
    assert torch.equal(cam.flip(0), network(torch.cat([images[4:].flip(0), images[:4].flip(0)])))
    assert relative(network(images[:3]), cam[:3]) < 1e-5


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, marks=needs_float32),
        pytest.param(torch.bfloat16, marks=needs_bfloat16),
    ],
)
@pytest.mark.parametrize("architecture", CASES, ids=str)
def test_what_overflows_is_not_finite(dtype: torch.dtype, architecture: Architecture) -> None:
    """Where torch's convolutions give NaN or infinity, an image has no finite map left."""
    names = [n for n, _ in fold(trained(architecture)).trunk.named_modules() if n.endswith("conv2")]
    for name in ("", "conv1", names[0], names[-1], names[-1].replace("conv2", "conv1")):
        network = folded_in(dtype, architecture)
        images = pictures(architecture, 2, 64, 64)
        if name:
            # Finite weights, infinite products, of both signs.
            conv = network.trunk.get_submodule(name)
            assert isinstance(conv, torch.nn.Conv2d)
            conv.weight.data.sign_().mul_(3e38)
            images *= 100
        else:
            images[0, :, 20, 20] = torch.nan
        eager = network(images).isfinite().flatten(2).all(2).all(1)
        cam = pack(network, 64)(images)
        got = cam.isfinite().flatten(2).all(2).any(1)
        assert not (got & ~eager).any()
        if not name:
            assert got.tolist() == [False, True]


@needs_float32
def test_packed_network_stays_where_it_is() -> None:
    network = pack(folded_in(torch.float32, ARCHITECTURES[0]), 64)
    for move in (
        lambda: network.to(torch.float64),
        network.bfloat16,
        lambda: network.trunk.to("meta"),
    ):
        with pytest.raises(TypeError, match="stays on its processor in its precision"):
            move()
    for send in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="load the model there"):
            send(network)
    with pytest.raises(TypeError, match="packed already"):
        pack(network, 64)
    assert not list(network.parameters())  # no second copy of the weights


def test_what_cannot_be_packed_is_refused() -> None:
    assert not can_pack(torch.float64)
    assert not can_pack(torch.float16)
    network = fold(trained(ARCHITECTURES[0]))
    for other in (fold(trained(ARCHITECTURES[0]).double()), network.to("meta")):
        with pytest.raises(ValueError, match="use it as it is"):
            pack(other, 64)


@pytest.mark.parametrize("missing", ["oneDNN", "operator", "arguments", "x86"])
def test_without_the_operators_mining_runs_on_torch(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    card = ModelCard(Architecture("resnet18", "bilinear", 0.125, 1), ("A", "B"), 64)
    model = trained(card.architecture, classes=2)
    save_checkpoint(tmp_path / "model.safetensors", model, card)
    usual = load_miner(tmp_path / "model.safetensors", precision="float32", device="cpu")
    assert isinstance(usual.model, PackedClassifier) == can_pack(torch.float32)
    assert (usual.model.convolutions == "packed by oneDNN") == can_pack(torch.float32)
    if missing == "oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    elif missing == "operator":
        monkeypatch.setitem(packed._ARGUMENTS, "_convolution_of_another_torch", ("X",))
    elif missing == "arguments":
        monkeypatch.setitem(packed._ARGUMENTS, "_convolution_pointwise", ("X", "W", "B"))
    else:
        monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert not can_pack(torch.float32)
    assert not can_pack(torch.bfloat16)
    miner = load_miner(tmp_path / "model.safetensors", precision="float32", device="cpu")
    assert type(miner.model) is FoldedClassifier
    images, sizes = torch.rand(3, 64, 64), torch.full((3, 2), 64.0)
    expected = fold(model.double())(usual.prepare(images).double())
    for one in (usual, miner):
        assert relative(one.mine(images, sizes).result.cam, expected) < 1e-5
    # Rows of the one are not rows of the other: a run tells which it was.
    picture = tmp_path / "images" / "picture.png"
    picture.parent.mkdir()
    picture.write_bytes(b"not read")
    listed = list_images(picture.parent)
    recorded = [
        run_settings(listed, one.network, "", RunOptions())["convolutions"] for one in (usual, miner)
    ]
    assert recorded == [usual.model.convolutions, "torch"]
