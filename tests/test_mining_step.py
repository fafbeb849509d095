"""mining_step against the paper taken literally: erased copies of the features, and autograd."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cxr_fast import reference
from cxr_fast.models import Architecture, build
from cxr_fast.training import MiningStepSettings, mining_step

N, C, STEPS = 8, 3, 3


class SmallNetwork(nn.Module):
    """Somebody else's network: two convolutions and a linear head, no part of this package."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 7, 3, padding=1)
        self.head = nn.Linear(7, C, bias)

    def layers(self, images: Tensor) -> dict[str, Tensor]:
        early = self.first(images).relu()
        last = self.second(early).relu()
        return {"early": early, "last": last, "logits": self.head(last.mean((2, 3)))}


@pytest.fixture
def networks() -> tuple[SmallNetwork, SmallNetwork]:
    torch.manual_seed(1)
    current, anchor = SmallNetwork().double(), SmallNetwork().double()
    return current, anchor


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(N, 1, 12, 12, generator=generator, dtype=torch.float64)
    images = nn.functional.avg_pool2d(noise, 3, stride=1, padding=1)
    return images, torch.randint(0, 2, (N, C), generator=generator).double()


SETTINGS = {"features": "last", "preserved": ("early", "last", "logits"), "erased_share": 0.25}


def cross_entropy(logit: Tensor, label: Tensor) -> Tensor:
    p = logit.sigmoid()
    return -(label * p.log() + (1 - label) * (1 - p).log())


def literal_step(
    current: SmallNetwork,
    anchor: SmallNetwork,
    images: Tensor,
    labels: Tensor,
    erased: int,
    weight: float,
) -> Tensor:
    """Eq. 1-6 image by image, class by class, with a copy of the features for every erasure."""
    named, before = current.layers(images), anchor.layers(images)
    x, (w, b) = named["last"], (current.head.weight, current.head.bias)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(images)):
        for c in range(C):
            steps = STEPS if i < erased else 1
            alive = torch.ones_like(x[i, :1])
            for _ in range(steps):
                copied = x[i] * alive  # Eq. 1
                logit = copied.mean((1, 2)) @ w[c] + (0 if b is None else b[c])  # Eq. 2
                total = total + cross_entropy(logit, labels[i, c]) / (steps * C * len(images))
                cam = torch.einsum("dhw,d->hw", x[i], w[c])[None, None].detach()
                so_far = (alive == 0).to(torch.uint8)[None]
                mined = reference.mine_attention(cam, 1, erased_at=so_far, first_step=2)
                alive = (mined.erased_at[0] == 0).double()
    distances = []
    for name in SETTINGS["preserved"] if erased < len(images) else ():
        a, b = (side[name][erased:] for side in (before, named))
        g_a, g_b = (v.mean((2, 3)) if v.dim() == 4 else v for v in (a, b))
        distances.append((g_a.detach() - g_b).pow(2).sum(1).sqrt().mean())
    return total + weight * torch.stack(distances).mean() if weight else total


def gradients(loss: Tensor, network: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(network.parameters())))


@pytest.mark.parametrize(
    ("variant", "erased", "weight"), [("kp", 2, 0.5), ("kp-vanilla", 2, 0.0), ("none", N, 0.0)]
)
def test_it_equals_the_literal_step(
    networks: Any, batch: Any, variant: Any, erased: int, weight: float
) -> None:
    current, anchor = networks
    settings = MiningStepSettings(variant=variant, **SETTINGS)
    given = anchor.layers if variant == "kp" else None
    loss = mining_step(current.layers, current.head, given, *batch, settings)
    expected = literal_step(current, anchor, *batch, erased, weight)
    torch.testing.assert_close(loss.total, expected)
    assert loss.erased_at.shape[0] == erased
    assert loss.erased_at.max() == STEPS, "nothing was erased: the test would show nothing"
    for ours, theirs in zip(gradients(loss.total, current), gradients(expected, current), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert (float(loss.preservation.detach()) > 0) == (variant == "kp")
    torch.testing.assert_close(loss.total, loss.classification + 0.5 * loss.preservation)


def test_one_step_is_the_ordinary_loss(networks: Any, batch: Any) -> None:
    current, _ = networks
    settings = MiningStepSettings(variant="none", features="last", steps=1)
    loss = mining_step(current.layers, current.head, None, *batch, settings)
    logits = current.layers(batch[0])["logits"]
    expected = nn.functional.binary_cross_entropy_with_logits(logits, batch[1])
    torch.testing.assert_close(loss.total, expected)


def test_where_both_networks_start_knowledge_preservation_does_not_pull(
    networks: Any, batch: Any
) -> None:
    current, _ = networks
    anchor = copy.deepcopy(current)
    with_kp, without = (
        mining_step(
            current.layers, current.head, anchor.layers, *batch,
            MiningStepSettings(variant=variant, **SETTINGS),
        )
        for variant in ("kp", "kp-vanilla")
    )  # fmt: skip
    assert float(with_kp.preservation.detach()) == 0
    for ours, theirs in zip(
        gradients(with_kp.total, current), gradients(without.total, current), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_anchor_sees_the_kept_images_only_and_gets_no_gradient(networks: Any, batch: Any) -> None:
    current, anchor = networks
    calls = []

    def watched(images: Tensor) -> dict[str, Tensor]:
        assert not torch.is_grad_enabled()
        calls.append(len(images))
        return anchor.layers(images)

    settings = MiningStepSettings(**SETTINGS)
    mining_step(current.layers, current.head, watched, *batch, settings).total.backward()
    assert calls == [6]
    assert all(parameter.grad is None for parameter in anchor.parameters())
    assert all(parameter.grad is not None for parameter in current.parameters())


def test_the_networks_of_this_package_learn_by_it() -> None:
    torch.manual_seed(3)
    model = build(Architecture("resnet18", "bilinear", 0.125, 1), C)
    anchor = copy.deepcopy(model).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    images, labels = torch.randn(N, 1, 64, 64), torch.randint(0, 2, (N, C))
    losses = []
    for _ in range(6):
        with torch.autocast("cpu", torch.bfloat16):
            loss = mining_step(model.layers, model.fc, anchor.layers, images, labels)
        assert loss.total.dtype == torch.float32
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(float(loss.classification.detach()))
    assert losses[-1] < losses[0]
    assert loss.erased_at.shape == (1, C, 4, 4)


@pytest.mark.parametrize(
    ("images", "share", "erased"), [(64, 0.125, 8), (32, 0.125, 4), (2, 0.125, 1), (3, 0.9, 2)]
)
def test_how_many_are_erased(images: int, share: float, erased: int) -> None:
    assert MiningStepSettings(erased_share=share).erased_images(images) == erased
    assert MiningStepSettings(variant="none", erased_share=share).erased_images(images) == images


def test_refusals(networks: Any, batch: Any) -> None:
    current, anchor = networks
    images, labels = batch
    settings = MiningStepSettings(**SETTINGS)
    with pytest.raises(ValueError, match="needs the anchor"):
        mining_step(current.layers, current.head, None, images, labels, settings)
    with pytest.raises(ValueError, match="two images or more"):
        mining_step(current.layers, current.head, anchor.layers, images[:1], labels[:1], settings)
    with pytest.raises(ValueError, match=r"labels must have shape \(8, 3\)"):
        mining_step(current.layers, current.head, anchor.layers, images, labels[:, :2], settings)
    with pytest.raises(
        ValueError, match="must give the layer 'msa', which head reads, but gives early"
    ):
        mining_step(current.layers, current.head, anchor.layers, images, labels)
    absent = MiningStepSettings(features="last", preserved=("msa",))
    with pytest.raises(ValueError, match="current must hold the layer 'msa'"):
        mining_step(current.layers, current.head, anchor.layers, images, labels, absent)
    for values in ({"variant": "vanilla"}, {"erased_share": 1.0}, {"preservation": -1.0}, {"steps": 0}):
        with pytest.raises(ValueError, match="must be"):
            MiningStepSettings(**values)  # type: ignore[arg-type]
