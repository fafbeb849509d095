"""What mining costs behind the network that makes its features.

Nothing here computes the same as anything else: ours is the network with all of attention mining
behind it, and the yardstick is that network alone, so that 1.03 of it means 3% on top.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cxr_fast import ops
from cxr_fast.benchmarks import networks
from cxr_fast.benchmarks.place import Place
from cxr_fast.benchmarks.racing import Case, Yardstick
from cxr_fast.models import fold
from cxr_fast.reference import MiningResult


def backbone_cases(place: Place) -> list[str]:
    """As it was trained, and folded for inference, as ``cxr-fast mine`` runs it."""
    return ["trained", "folded"]


def test_backbone(case: str, race: Callable[[Case], None], place: Place) -> None:
    of = networks.sizes(place)
    model = networks.resnet50(place, of)
    dtype = model.fc.weight.dtype
    images = networks.pictures(place, of, dtype)
    if case == "folded":
        folded = fold(model).to(memory_format=torch.channels_last)
        alone = folded

        def mining(images: Tensor) -> MiningResult:
            return ops.mine_cam(folded(images), folded.bias)
    else:
        # Compiled on a GPU, with both ways on from the features.
        features = torch.compile(model.features) if place.cuda else model.features

        def alone(images: Tensor) -> Tensor:
            return model.fc(features(images).mean((2, 3)))

        def mining(images: Tensor) -> MiningResult:
            return ops.attention_mining(features(images), model.fc.weight, model.fc.bias)

    def forward(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return alone(images)

    def ours(images: Tensor) -> MiningResult:
        with torch.inference_mode():
            return mining(images)

    output = "CAMs" if case == "folded" else "logits"
    stick = Yardstick(f"the network alone, images to {output}", forward)
    name = f"backbone ResNet-50 MSA {of} {str(dtype).removeprefix('torch.')} {case} + mining"
    race(Case(name, (images,), ours, yardsticks=[stick], images=of.images))
