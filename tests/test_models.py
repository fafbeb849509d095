"""The networks: torchvision's names, the equations of the aggregation, and ImageNet weights.

Oracles are written from the definitions: a list of names and shapes, and a network in functional
form that reads a state_dict.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import scipy.ndimage
import torch
import torch.nn.functional as F
from networks import ARCHITECTURES, relative, trained
from torch import Tensor

from cxr_fast.models import Architecture, Classifier, ModelCard, build, fold
from cxr_fast.models.msa import upsample_deconv

BLOCKS = {"resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3], "resnet50": [3, 4, 6, 3]}


def torchvision_shapes(backbone: str, classes: int = 1000) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's state_dict, from the tables of the ResNet paper."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv_and_norm(conv: str, norm: str, shape: tuple[int, ...]) -> None:
        shapes[f"{conv}.weight"] = shape
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{name}"] = shape[:1]
        shapes[f"{norm}.num_batches_tracked"] = ()

    conv_and_norm("conv1", "bn1", (64, 3, 7, 7))
    channels = 64
    for stage, count in enumerate(BLOCKS[backbone], start=1):
        planes = {1: 64, 2: 128, 3: 256, 4: 512}[stage]
        out = planes * 4 if backbone == "resnet50" else planes
        for block in range(count):
            name = f"layer{stage}.{block}"
            if backbone == "resnet50":
                convs = [(planes, channels, 1, 1), (planes, planes, 3, 3), (out, planes, 1, 1)]
            else:
                convs = [(planes, channels, 3, 3), (planes, planes, 3, 3)]
            for i, shape in enumerate(convs, start=1):
                conv_and_norm(f"{name}.conv{i}", f"{name}.bn{i}", shape)
            if channels != out:
                shortcut = f"{name}.downsample"
                conv_and_norm(f"{shortcut}.0", f"{shortcut}.1", (out, channels, 1, 1))
            channels = out
    shapes["fc.weight"], shapes["fc.bias"] = (classes, channels), (classes,)
    return shapes


def functional_stages(state: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """layer3's and layer4's outputs, from a state_dict alone (eval mode)."""

    def conv_norm(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=(weight.shape[-1] - 1) // 2)
        mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return F.batch_norm(
            x, mean, var, state[f"{norm}.weight"], state[f"{norm}.bias"], False, 0.0, 1e-5
        )

    if images.shape[1] < state["conv1.weight"].shape[1]:
        images = torch.cat([images] * 3, 1)
    x = F.max_pool2d(conv_norm(images, "conv1", "bn1", 2).relu(), 3, 2, 1)
    outputs = []
    for stage in (1, 2, 3, 4):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            if f"{name}.conv3.weight" in state:
                y = conv_norm(x, f"{name}.conv1", f"{name}.bn1").relu()
                y = conv_norm(y, f"{name}.conv2", f"{name}.bn2", stride).relu()
                y = conv_norm(y, f"{name}.conv3", f"{name}.bn3")
            else:
                y = conv_norm(x, f"{name}.conv1", f"{name}.bn1", stride).relu()
                y = conv_norm(y, f"{name}.conv2", f"{name}.bn2")
            if f"{name}.downsample.0.weight" in state:
                x = conv_norm(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = (x + y).relu()
            block += 1
        outputs.append(x)
    return outputs[2], outputs[3]


def functional_features(msa: str, state: dict[str, Tensor], x3: Tensor, x4: Tensor) -> Tensor:
    """Sec. 2.3 of the paper, literally: reduce, upsample, concatenate."""
    if msa == "none":
        return x4
    height, width = x3.shape[-2:]
    reduced = torch.einsum("od,ndhw->nohw", state["msa.reduce_k.weight"][:, :, 0, 0], x4)
    if msa == "bilinear":
        up = F.interpolate(reduced, (height, width), mode="bilinear")
    else:
        # A transposed convolution spreads the input over a grid of zeros and convolves that.
        weight = state["msa.deconv.weight"].flip(2, 3).transpose(0, 1)
        spread = reduced.new_zeros(*reduced.shape[:2], x4.shape[-2] * 2 + 2, x4.shape[-1] * 2 + 2)
        spread[..., 1:-1:2, 1:-1:2] = reduced
        up = F.conv2d(spread, weight)[..., :height, :width]
    other = torch.einsum("od,ndhw->nohw", state["msa.reduce_k_minus_1.weight"][:, :, 0, 0], x3)
    return torch.cat([up, other], 1)


@pytest.mark.parametrize(
    ("backbone", "entries", "parameters"),
    [("resnet18", 122, 11_689_512), ("resnet34", 218, 21_797_672), ("resnet50", 320, 25_557_032)],
)
def test_state_dict_is_torchvisions(backbone: Any, entries: int, parameters: int) -> None:
    with torch.device("meta"):
        model = Classifier(Architecture(backbone, "none"), 1000)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == torchvision_shapes(backbone)
    assert list(shapes) == list(torchvision_shapes(backbone))
    assert len(shapes) == entries
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_paper_network_has_the_papers_channels() -> None:
    with torch.device("meta"):
        model = Classifier(Architecture(), 14)
        layers = model.layers(torch.zeros(2, 3, 512, 512))
    shapes = {name: tuple(value.shape) for name, value in layers.items()}
    assert shapes == {
        "bottleneck3": (2, 1024, 32, 32),
        "bottleneck4": (2, 2048, 16, 16),
        "msa": (2, 768, 32, 32),
        "logits": (2, 14),
    }
    assert model.fc.weight.shape == (14, 768)
    own = {name: tuple(v.shape) for name, v in model.state_dict().items() if "msa" in name}
    assert own == {
        "msa.reduce_k.weight": (512, 2048, 1, 1),
        "msa.reduce_k_minus_1.weight": (256, 1024, 1, 1),
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
@pytest.mark.parametrize("size", [(64, 64), (33, 47), (100, 17), (1, 1)])
def test_forward_equals_the_definition(architecture: Architecture, size: tuple[int, int]) -> None:
    model = trained(architecture).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    state = model.state_dict()
    x3, x4 = functional_stages(state, images)
    features = functional_features(architecture.msa, state, x3, x4)
    logits = features.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    with torch.no_grad():
        layers = model.layers(images)
        assert relative(model.features(images), features) < 1e-12
        assert relative(model(images), logits) < 1e-12
    assert ("msa" in layers) == (architecture.msa != "none")
    assert relative(layers["bottleneck3"], x3) < 1e-12
    assert relative(layers["bottleneck4"], x4) < 1e-12
    assert relative(layers["logits"], logits) < 1e-12
    assert relative(layers.get("msa", x4), features) < 1e-12


@pytest.mark.parametrize(
    ("width", "channels"),
    [(1.0, 64), (0.25, 16), (0.01, 8), (0.3, 16), (0.4, 24), (0.45, 32), (2.0, 128)],
)
def test_width_rounds_to_multiples_of_eight(width: float, channels: int) -> None:
    with torch.device("meta"):
        model = Classifier(Architecture("resnet18", "bilinear", width), 3)
    assert model.conv1.weight.shape[0] == channels
    assert all(p.shape[0] % 8 == 0 for n, p in model.named_parameters() if "fc" not in n)


def test_a_deconvolution_begins_as_linear_interpolation() -> None:
    """At the even places the pixels themselves, between them their means."""
    torch.manual_seed(0)
    model = Classifier(Architecture("resnet18", "deconv", 0.125), 3)
    assert model.msa is not None
    assert model.msa.deconv is not None
    x = torch.randn(2, model.msa.from_last, 5, 4)
    with torch.no_grad():
        up = upsample_deconv(x, model.msa.deconv.weight, (9, 7)).numpy()
    rows, columns = np.meshgrid(np.arange(9) / 2, np.arange(7) / 2, indexing="ij")
    for image, channel in np.ndindex(2, 8):
        expected = scipy.ndimage.map_coordinates(x[image, channel].numpy(), [rows, columns], order=1)
        np.testing.assert_allclose(up[image, channel], expected, atol=1e-6)


def test_width_scales_the_aggregation_too() -> None:
    with torch.device("meta"):
        model = Classifier(Architecture("resnet50", "deconv", 0.25), 3)
    assert model.msa is not None
    assert model.msa.deconv is not None
    assert model.msa.reduce_k.weight.shape == (128, 512, 1, 1)
    assert model.msa.reduce_k_minus_1.weight.shape == (64, 256, 1, 1)
    assert model.msa.deconv.weight.shape == (128, 128, 3, 3)


def test_grey_images_are_repeated() -> None:
    model = trained(ARCHITECTURES[1])
    grey = torch.randn(2, 1, 48, 48)
    torch.testing.assert_close(model(grey), model(grey.repeat(1, 3, 1, 1)))
    torch.testing.assert_close(fold(model)(grey), fold(model)(grey.repeat(1, 3, 1, 1)))
    one_channel = trained(Architecture("resnet18", "bilinear", 0.125, in_channels=1))
    assert one_channel(grey).shape == (2, 5)


@pytest.mark.parametrize(
    ("in_channels", "shape"),
    [(3, (3, 32, 32)), (3, (1, 2, 32, 32)), (1, (1, 3, 32, 32)), (3, (1, 3, 0, 32))],
)
def test_wrong_images_are_explained(in_channels: int, shape: tuple[int, ...]) -> None:
    model = Classifier(Architecture("resnet18", "bilinear", 0.125, in_channels), 2)
    for network in (model, fold(model)):
        with pytest.raises(ValueError, match=r"images must be \[N, .*but are \["):
            network(torch.zeros(shape))
        with pytest.raises(TypeError, match=r"must be floating point, but are torch.uint8"):
            network(torch.zeros(1, in_channels, 32, 32, dtype=torch.uint8))


def test_training_reaches_every_parameter() -> None:
    for msa in ("none", "bilinear", "deconv"):
        model = trained(Architecture("resnet18", msa, 0.125)).train()
        model(torch.randn(4, 3, 40, 40)).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


def test_convolutions_start_with_he_fan_out() -> None:
    torch.manual_seed(0)
    model = Classifier(Architecture("resnet18", "bilinear"), 4)
    for conv in (model.conv1, model.get_submodule("layer4.1.conv2")):
        weight = conv.weight.data
        assert isinstance(weight, Tensor)
        std = (2 / (weight.shape[0] * weight.shape[2] * weight.shape[3])) ** 0.5
        assert float(weight.std()) == pytest.approx(std, rel=0.05)
    assert model.msa is not None
    assert float(model.msa.reduce_k.weight.data.std()) == pytest.approx((2 / 512) ** 0.5, rel=0.05)


def test_build_counts_classes() -> None:
    architecture = Architecture("resnet18", width=0.125)
    card = ModelCard(architecture, ("Mass", "Nodule"))
    assert build(card).fc.out_features == build(card, 2).fc.out_features == 2
    assert build(architecture, 7).fc.out_features == 7
    with pytest.raises(ValueError, match=r"num_classes must be 2, .* but is 3"):
        build(card, 3)
    with pytest.raises(ValueError, match="num_classes must be given"):
        build(architecture)
    with pytest.raises(ValueError, match="num_classes must be at least 1, but is 0"):
        build(architecture, 0)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_imagenet_weights_fill_the_backbone(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(1)
    weights = {
        name: torch.rand(shape) if shape else torch.tensor(5)
        for name, shape in torchvision_shapes("resnet18").items()
    }
    path = tmp_path / "weights"
    if kind == "safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        if kind == "legacy":  # files of that age have no counters
            weights = {k: v for k, v in weights.items() if "num_batches" not in k}
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "zip")
    for in_channels in (1, 3):
        torch.manual_seed(2)
        fresh = build(Architecture("resnet18", "bilinear", in_channels=in_channels), 4)
        torch.manual_seed(2)
        model = build(fresh.architecture, 4, imagenet=path)
        for name, value in model.state_dict().items():
            if name.startswith(("fc.", "msa.")):
                assert torch.equal(value, fresh.state_dict()[name]), name
            elif name == "conv1.weight" and in_channels == 1:
                assert torch.equal(value[:, 0], weights[name].sum(1))
            elif name in weights:
                assert torch.equal(value, weights[name]), name


def test_imagenet_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(
        {name: torch.zeros(shape) for name, shape in torchvision_shapes("resnet18").items()}, path
    )
    with pytest.raises(ValueError, match=r"must have the shape .*but is absent.*resnet34"):
        build(Architecture("resnet34"), 4, imagenet=path)
    with pytest.raises(ValueError, match=r"must have the shape \[32, .*but has \[64, .*width=1"):
        build(Architecture("resnet18", width=0.5), 4, imagenet=path)
    for content in (b"not weights at all", b"", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read"):
            build(Architecture("resnet18"), 4, imagenet=path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds another"):
        build(Architecture("resnet18"), 4, imagenet=path)


def test_oracle_shapes_chain() -> None:
    """The list of names is itself consistent: each convolution reads what the last one wrote."""
    shapes = torchvision_shapes("resnet50")
    main = [s for n, s in shapes.items() if len(s) == 4 and "downsample" not in n]
    assert all(after[1] == before[0] for before, after in pairwise(main))
