"""Networks to test on, as after training, and how far two results are apart."""

from __future__ import annotations

import torch
from torch import Tensor

from cxr_fast.models import Architecture, Classifier

ARCHITECTURES = [
    Architecture(backbone, msa, width=0.125)
    for backbone in ("resnet18", "resnet50")
    for msa in ("none", "bilinear", "deconv")
]

# What is not in the paper; all of it at once, and what goes with aggregation.
VARIANTS = [
    Architecture(
        "resnet18", "none", 0.125, depth=3, last_stride=1, neck=16, bilateral=True, pooling="lse"
    ),
    Architecture("resnet18", "bilinear", 0.125, last_stride=1, bilateral=True, pooling="lse"),
]


def trained(architecture: Architecture, classes: int = 5, seed: int = 0) -> Classifier:
    """A classifier whose normalisations are far from the identity, as after training."""
    torch.manual_seed(seed)
    model = Classifier(architecture, classes)
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.weight, 0.4, 1.2)
            torch.nn.init.normal_(part.bias, std=0.3)
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(std=0.3)
            part.running_var.uniform_(0.3, 3.0)
        if isinstance(part, torch.nn.ConvTranspose2d):  # begins as an interpolation
            with torch.no_grad():
                part.weight += 0.1 * torch.randn_like(part.weight)
    return model.eval()


def relative(got: Tensor, expected: Tensor) -> float:
    """The largest deviation, relative to the largest value."""
    assert got.shape == expected.shape
    return float((got.double() - expected.double()).abs().max() / expected.abs().max())
