"""Folding: the exact CAM in one network without normalisation, in any precision, exported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import ARCHITECTURES, VARIANTS, relative, trained
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cxr_fast.models import Architecture, Classifier, FoldedClassifier, fold


def cam_of(model: Classifier, images: Tensor) -> Tensor:
    """Eq. 7 on the unfolded network."""
    with torch.no_grad():
        return torch.einsum("cd,ndhw->nchw", model.fc.weight, model.features(images))


@pytest.mark.parametrize(
    "architecture", [*ARCHITECTURES, *VARIANTS, Architecture("resnet34", "bilinear", 0.1)]
)
@pytest.mark.parametrize("size", [(64, 64), (33, 47), (16, 1)])
def test_fold_is_exact(architecture: Architecture, size: tuple[int, int]) -> None:
    model = trained(architecture)
    images = torch.randn(2, 3, *size)
    folded = fold(model)
    cam = folded(images)
    assert cam.dtype == torch.float32
    assert cam.is_contiguous()
    assert relative(cam, cam_of(model, images)) < 1e-5
    with torch.no_grad():
        assert relative(folded.logits(cam), model(images)) < 1e-5
    double = trained(architecture).double()
    cam = fold(double)(images.double())
    assert relative(cam, cam_of(double, images.double())) < 1e-12


def test_fold_is_exact_on_the_papers_network() -> None:
    model = trained(Architecture(), classes=14)
    images = torch.randn(1, 1, 96, 96)
    assert relative(fold(model)(images), cam_of(model, images)) < 1e-5


@pytest.mark.parametrize("msa", ["none", "bilinear", "deconv"])
def test_fold_with_one_class_and_no_image(msa: Any) -> None:
    model = trained(Architecture("resnet18", msa, 0.25), classes=1)
    folded = fold(model)
    side = 3 if msa == "none" else 5
    assert folded(torch.zeros(0, 3, 65, 65)).shape == (0, 1, side, side)
    assert model(torch.zeros(0, 3, 65, 65)).shape == (0, 1)
    assert relative(folded(torch.ones(1, 1, 65, 65)), cam_of(model, torch.ones(1, 3, 65, 65))) < 1e-5


def test_fold_leaves_the_model_alone() -> None:
    model = trained(ARCHITECTURES[1]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = fold(model)
    images = torch.randn(1, 3, 32, 32)
    cam = folded(images)
    assert model.training
    assert not folded.training
    assert not any(p.requires_grad for p in folded.parameters())
    own = {p.data_ptr() for p in (*folded.parameters(), *folded.buffers())}
    assert not own & {value.data_ptr() for value in model.state_dict().values()}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(isinstance(p, torch.nn.BatchNorm2d) for p in folded.modules())
    assert torch.equal(cam, folded.train()(images))
    assert relative(cam, cam_of(model.eval(), images)) < 1e-5


@pytest.mark.parametrize("msa", ["bilinear", "deconv"])
def test_fold_never_builds_the_aggregated_map(msa: Any) -> None:
    architecture = Architecture("resnet50", msa, 0.125)  # aggregated: 64 + 32 = 96 channels
    folded = fold(trained(architecture, classes=7))
    seen: set[int] = set()

    class Channels(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.dim() == 4:
                seen.add(out.shape[1])
            return out

    with Channels():  # type: ignore[no-untyped-call]
        folded(torch.randn(1, 3, 64, 64))
    assert 7 in seen
    assert 128 in seen
    assert 96 not in seen


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_half_precision_keeps_the_cam_float32(architecture: Architecture) -> None:
    model = trained(architecture)
    images = torch.randn(2, 3, 64, 64)
    folded = fold(model)
    folded.to(torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert {p.dtype for p in folded.parameters()} == {torch.bfloat16}
    cam = folded(images)
    assert cam.dtype == folded.bias.dtype == torch.float32
    assert cam.is_contiguous()
    assert torch.equal(cam, folded(images.bfloat16()))
    assert relative(cam, cam_of(model, images)) < 0.1
    # More than bfloat16's 8 bits are left: few ties among the values of a map.
    assert not torch.equal(cam, cam.bfloat16().float())
    # What half precision costs is rounding of the features alone, not of the classifier.
    x_k, x_k_minus_1 = (tap.float() for tap in folded.taps(images))
    exact = fold(model)
    assert relative(cam, exact.cam_from_taps(x_k, x_k_minus_1)) < 1e-5
    assert torch.equal(folded.half().float().bias, model.fc.bias)


def test_float64_model_cast_down_is_float32() -> None:
    folded = fold(trained(ARCHITECTURES[1]).double())
    assert folded.bias.dtype == torch.float64
    assert folded.float()(torch.randn(1, 3, 32, 32)).dtype == torch.float32


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("msa", ["none", "bilinear", "deconv"])
def test_folded_exports_with_a_dynamic_batch(msa: Any, strict: bool) -> None:
    folded = fold(trained(Architecture("resnet18", msa, 0.125)))
    images = torch.randn(3, 1, 48, 48)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(folded, (images[:2],), dynamic_shapes=(batch,), strict=strict)
    torch.testing.assert_close(program.module()(images), folded(images))


def test_folded_compiles_without_graph_breaks() -> None:
    folded = fold(trained(ARCHITECTURES[1])).to(torch.bfloat16)
    images = torch.randn(2, 3, 48, 48)
    compiled = torch.compile(folded, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), folded(images))


def test_fold_refuses_other_models() -> None:
    folded = fold(Classifier(ARCHITECTURES[0], 2))
    assert isinstance(folded, FoldedClassifier)
    assert folded.architecture == ARCHITECTURES[0]
    with pytest.raises(TypeError, match="takes a cxr_fast Classifier, but got FoldedClassifier"):
        fold(folded)  # type: ignore[arg-type]
