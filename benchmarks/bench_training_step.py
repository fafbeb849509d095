"""A training step with attention mining and knowledge preservation, and what mining adds to it.

The step: forward of the network in training and of the frozen one, loss, backward, optimizer. Its
peer makes the erased copies of Eq. 1. Two yardsticks: the same step without mining (both forward
passes and L_KP as before, but t = 1 on all images), and a plain step, without L_KP as well.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cxr_fast import reference
from cxr_fast.benchmarks.networks import Sizes
from cxr_fast.benchmarks.place import Place
from cxr_fast.benchmarks.racing import Case, Peer, Yardstick
from cxr_fast.losses import classification_loss, knowledge_preservation
from cxr_fast.models import Architecture, Classifier, build
from cxr_fast.training import MiningStepSettings, mining_step

CLASSES = 14


def wide(values: Tensor) -> Tensor:
    """At least float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


@dataclass(frozen=True)
class Step:
    """Two networks, their batch and an optimizer whose learning rate is 0: steps that repeat."""

    model: Classifier
    anchor: Classifier
    labels: Tensor
    optimizer: torch.optim.Optimizer
    half: bool

    def take(self, loss: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Forward, backward, optimizer; returns the loss."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.half):
            value = loss(images)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        self.optimizer.step()
        return value.detach()

    def mined(self, images: Tensor) -> Tensor:
        return mining_step(
            self.model.layers, self.model.fc, self.anchor.layers, images, self.labels
        ).total

    def plain(self, images: Tensor) -> Tensor:
        return classification_loss(self.model.layers(images)["logits"].float(), self.labels)

    def unmined(self, images: Tensor) -> Tensor:
        settings = MiningStepSettings()
        named = self.model.layers(images)
        loss = classification_loss(named["logits"].float(), self.labels)
        return loss + settings.preservation * self.preserved(named, images, settings)

    def literal(self, images: Tensor) -> Tensor:
        """Eq. 1-6 with a copy of the features for every class and step."""
        settings = MiningStepSettings()
        named = self.model.layers(images)
        n, steps = settings.erased_images(len(images)), settings.steps
        x = wide(named["msa"][:n])
        weight, bias = self.model.fc.weight, self.model.fc.bias
        rest = wide(named["logits"][n:])
        total = (len(images) - n) * classification_loss(rest, self.labels[n:])
        with torch.autocast(x.device.type, enabled=False):
            for c in range(CLASSES):
                erased_at = torch.zeros(n, 1, *x.shape[2:], dtype=torch.uint8, device=x.device)
                for t in range(1, steps + 1):
                    erased = x * (erased_at == 0)  # Eq. 1
                    logit = erased.mean((2, 3)) @ weight[c] + bias[c]  # Eq. 2
                    total = total + n / (CLASSES * steps) * classification_loss(
                        logit, self.labels[:n, c]
                    )
                    cam = (erased.detach() * weight[c, :, None, None].detach()).sum(1, keepdim=True)
                    erased_at = reference.mine_attention(
                        cam, 1, erased_at=erased_at, first_step=t
                    ).erased_at
        return total / len(images) + settings.preservation * self.preserved(named, images, settings)

    def preserved(
        self, named: dict[str, Tensor], images: Tensor, settings: MiningStepSettings
    ) -> Tensor:
        n = settings.erased_images(len(images))
        with torch.no_grad():
            before = self.anchor.layers(images[n:])
        return knowledge_preservation({k: v[n:] for k, v in named.items()}, before)


def training_step_cases(place: Place) -> list[Sizes]:
    if place.quick:
        return [Sizes(4, 64, 0.125)]
    return [Sizes(64, 512)] if place.cuda else [Sizes(8, 256, 0.25), Sizes(64, 128, 0.5)]


def made(of: Sizes, place: Place) -> tuple[Step, Tensor]:
    torch.manual_seed(0)
    model = build(Architecture("resnet50", "bilinear", of.width, 1), CLASSES)
    model.to(place.device, memory_format=torch.channels_last)
    anchor = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        for part in model.modules():  # as if some steps had been taken
            if isinstance(part, nn.Linear):
                part.weight.mul_(1.05)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(of.images, 1, of.side, of.side, generator=generator)
    labels = torch.randint(0, 2, (of.images, CLASSES), generator=generator).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    step = Step(model, anchor, labels.to(place.device), optimizer, half=place.cuda)
    return step, images.to(place.device).contiguous(memory_format=torch.channels_last)


def test_training_step(case: Sizes, race: Callable[[Case], None], place: Place) -> None:
    step, images = made(case, place)

    def same(ours: Tensor, theirs: Tensor) -> None:
        torch.testing.assert_close(theirs, ours, rtol=1e-2 if step.half else 1e-4, atol=0)

    peers = [Peer("literal, erased copies", lambda x: step.take(step.literal, x), same)]
    sticks = [
        Yardstick("the step without mining", lambda x: step.take(step.unmined, x)),
        Yardstick("a plain step, no frozen network", lambda x: step.take(step.plain, x)),
    ]
    precision = "autocast bfloat16" if step.half else "float32"
    name = f"training_step AM + KP, ResNet-50 MSA {case} {precision}"
    race(
        Case(
            name,
            (images,),
            lambda x: step.take(step.mined, x),
            peers,
            sticks,
            images=case.images,
            memory=True,
        )
    )
