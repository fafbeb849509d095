"""What a stage minimises, as modules: images and labels in, losses out.

Modules, because whatever spreads a model over processes or compiles it wraps a ``forward``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cxr_fast import ops
from cxr_fast.losses import classification_loss
from cxr_fast.models import Classifier
from cxr_fast.training.step import MiningStepSettings, mining_step


class Losses(NamedTuple):
    """Scalars: ``total`` is minimised, ``classification`` and ``preservation`` are its parts."""

    total: Tensor
    classification: Tensor
    preservation: Tensor


class ClassificationObjective(nn.Module):
    """Binary cross-entropy of image-level labels (Eq. 2-3), nothing erased."""

    frozen: tuple[Classifier, ...] = ()

    def __init__(self, model: Classifier, balance: str) -> None:
        super().__init__()
        self.model = model
        self.balance = balance

    def forward(self, images: Tensor, labels: Tensor) -> Losses:
        """Images [N, 1 or 3, S, S] and labels [N, C]."""
        loss = classification_loss(self.model(images).float(), labels, self.balance)
        return Losses(loss, loss, torch.zeros_like(loss))


class MiningObjective(nn.Module):
    """Attention mining with knowledge preservation (Eq. 6); see ``mining_step``.

    ``earlier`` are the networks of the staged schedule, whose masks this one learns on: network t
    made those of step t. Without them the network in training makes all masks.
    """

    def __init__(
        self,
        model: Classifier,
        anchor: Classifier,
        settings: MiningStepSettings,
        earlier: Sequence[Classifier] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        # In a tuple, so that they are no part of this module: not trained, saved or synchronised.
        self.frozen = (anchor, *earlier)
        for network in self.frozen:
            network.requires_grad_(False).eval()

    def forward(self, images: Tensor, labels: Tensor) -> Losses:
        """Images [N, 1 or 3, S, S], to be erased first, and labels [N, C]."""
        anchor, *earlier = self.frozen
        erased_at = None
        if earlier:
            erased = images[: self.settings.erased_images(len(images))]
            erased_at = _erase(erased, earlier, self.settings)
        loss = mining_step(
            self.model.layers, self.model.fc, anchor.layers, images, labels, self.settings, erased_at
        )
        return Losses(loss.total, loss.classification, loss.preservation)


@torch.no_grad()
def _erase(images: Tensor, networks: Sequence[Classifier], settings: MiningStepSettings) -> Tensor:
    """What the networks, one a step, erase of images [n, ...]: [n, C, H, W]."""
    erased_at = None
    for step, network in enumerate(networks, 1):
        cam = ops.cam(network.features(images), network.fc.weight)
        mined = ops.mine_attention(
            cam, 1, settings.cam_threshold, settings.connectivity, erased_at, step
        )
        erased_at = mined.erased_at
    assert erased_at is not None  # there is one network at least
    return erased_at
