"""Architectures beyond the paper: log-sum-exp pooling, halves of the image alone, fine maps."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import VARIANTS, relative, trained
from torch import nn

from cxr_fast.losses import classification_loss
from cxr_fast.models import Architecture, ModelCard, build, load_checkpoint, save_checkpoint
from cxr_fast.models.pooling import logits_of
from cxr_fast.training import MiningStepSettings, mining_step


def literal(cam: np.ndarray, erased_at: np.ndarray, steps: int, r: float) -> np.ndarray:
    """log(mean(exp(r * cam))) / r over what each step sees, pixel by pixel."""
    logits = np.zeros((*cam.shape[:2], steps))
    for n, c, t in np.ndindex(*logits.shape):
        seen = [
            cam[n, c, y, x]
            for y, x in np.ndindex(*cam.shape[2:])
            if erased_at[n, c, y, x] == 0 or erased_at[n, c, y, x] > t
        ]
        if seen:
            logits[n, c, t] = math.log(math.fsum(math.exp(r * v) for v in seen) / len(seen)) / r
    return logits


def test_log_sum_exp_of_what_is_left(rng: np.random.Generator) -> None:
    cam = rng.normal(0, 2, (2, 3, 5, 4))
    erased_at = rng.integers(0, 4, cam.shape).astype(np.uint8)
    erased_at[1, 2] = 1  # nothing is left at the steps after the first
    bias = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    got = logits_of(torch.from_numpy(cam), bias, "lse", 3.0, torch.from_numpy(erased_at), 3)
    expected = literal(cam, erased_at, 3, 3.0) + bias.numpy()[:, None]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)
    assert got[1, 2, 1:].tolist() == [2.0, 2.0]


def test_its_gradient() -> None:
    cam = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    erased_at = torch.randint(0, 3, cam.shape, dtype=torch.uint8)
    erased_at[0, 0] = 1
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, b: logits_of(x, b, "lse", 2.0, erased_at, 2), (cam, bias))


def test_between_the_mean_and_the_maximum() -> None:
    cam = torch.randn(1, 1, 6, 6, dtype=torch.float64)
    blunt, sharp = (float(logits_of(cam, None, "lse", r)) for r in (1e-4, 80.0))
    assert blunt == pytest.approx(float(cam.mean()), abs=1e-3)
    assert sharp == pytest.approx(float(cam.max()), abs=0.05)
    assert float(logits_of(cam, None)) == pytest.approx(float(cam.mean()))


@pytest.mark.parametrize("architecture", VARIANTS, ids=str)
def test_a_bilateral_network_looks_at_each_half_alone(architecture: Architecture) -> None:
    model = trained(architecture)
    images = torch.randn(2, 1, 64, 64)
    other = images.clone()
    other[..., 32:] = torch.randn(2, 1, 64, 32)
    with torch.no_grad():
        x_k, before = model.stages(images)
        changed, changed_before = model.stages(other)
        mirrored, _ = model.stages(images.flip(3))
    for ours, theirs in ((x_k, changed), (before, changed_before)):
        middle = ours.shape[3] // 2
        assert torch.equal(ours[..., :middle], theirs[..., :middle])
        assert not torch.equal(ours[..., middle:], theirs[..., middle:])
    assert relative(mirrored.flip(3), x_k) < 1e-6


def test_fine_maps() -> None:
    images = torch.randn(1, 1, 64, 64)
    for depth, stride, side in ((4, 2, 2), (4, 1, 4), (3, 2, 4), (3, 1, 8)):
        model = trained(Architecture("resnet18", "none", 0.125, depth=depth, last_stride=stride))
        assert model.features(images).shape[2:] == (side, side)
    assert set(model.layers(images)) == {"bottleneck2", "bottleneck3", "logits"}


def test_a_variant_is_what_it_was_after_a_way_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "variant.safetensors"
    model = trained(VARIANTS[0], classes=2)
    save_checkpoint(path, model, ModelCard(VARIANTS[0], ("left", "right"), 64))
    again, card = load_checkpoint(path)
    assert card.architecture == VARIANTS[0]
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    # Its backbone is a start for a network with other classes.
    grown = build(VARIANTS[0], 7, imagenet=path)
    assert torch.equal(
        grown.state_dict()["layer3.0.conv1.weight"], model.state_dict()["layer3.0.conv1.weight"]
    )


def test_a_mining_step_with_log_sum_exp() -> None:
    """Against autograd through a literal masked log-sum-exp."""
    torch.manual_seed(1)
    features = torch.randn(4, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    head = nn.Linear(6, 2).double()
    labels = torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0]], dtype=torch.float64)
    settings = MiningStepSettings(
        variant="kp-vanilla", erased_share=0.5, steps=2, features="x", pooling="lse", sharpness=3.0
    )
    loss = mining_step(lambda images: {"x": features}, head, None, torch.zeros(4, 1), labels, settings)
    cam = torch.einsum("cd,ndhw->nchw", head.weight, features)
    terms = []
    for n in range(4):
        for t in (1, 2) if n < 2 else (1,):
            for c in range(2):
                seen = torch.ones(5, 5, dtype=torch.bool) if n > 1 else loss.erased_at[n, c] != t - 1
                seen = seen if t > 1 else torch.ones(5, 5, dtype=torch.bool)
                z = (3.0 * cam[n, c][seen]).exp().mean().log() / 3.0 + head.bias[c]
                weight = 0.5 if n < 2 else 1.0
                terms.append(weight * classification_loss(z[None], labels[n, c][None]) / 8)
    expected = torch.stack(terms).sum()
    torch.testing.assert_close(loss.total, expected)
    ours, theirs = (
        torch.autograd.grad(v, features, retain_graph=True)[0] for v in (loss.total, expected)
    )
    torch.testing.assert_close(ours, theirs)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="neck of an architecture must be 0 with"):
        Architecture(neck=8)
    with pytest.raises(ValueError, match="depth of an architecture must be 3 or 4"):
        Architecture(depth=2)
    with pytest.raises(ValueError, match="pooling must be 'gap' or 'lse'"):
        MiningStepSettings(pooling="max")  # type: ignore[arg-type]
