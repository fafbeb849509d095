"""One training step's loss of the stage ``mining``: attention mining with knowledge preservation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from cxr_fast import checks, ops
from cxr_fast.losses import PRESERVED_LAYERS, classification_loss, knowledge_preservation, pooled
from cxr_fast.models.card import Pooling
from cxr_fast.models.pooling import logits_of

# Images [N, ...] -> name of a layer -> its output, [N, D, H, W] or pooled [N, D].
Layers = Callable[[Tensor], Mapping[str, Tensor]]
Variant = Literal["kp", "kp-vanilla", "none"]


@dataclass(frozen=True)
class MiningStepSettings:
    """How a step of the stage ``mining`` is taken; the defaults are the paper's.

    ``variant``: ``"kp"`` erases ``erased_share`` (n/N) of the images and keeps the network near its
    start on the others, ``"kp-vanilla"`` erases as many and leaves L_KP out, ``"none"`` erases all.
    ``steps`` (T), ``cam_threshold`` and ``connectivity`` as in ``ops.mine_attention``.
    ``preservation`` is lambda of Eq. 6, ``preserved`` K of Eq. 5. ``features`` names the layer
    that the linear head reads, ``pooling`` and ``sharpness`` how CAMs become logits, as in
    ``models.Architecture``. ValueError for a value out of range.
    """

    variant: Variant = "kp"
    erased_share: float = 0.125
    steps: int = 3
    cam_threshold: float = 0.5
    connectivity: int = 8
    preservation: float = 0.5
    preserved: tuple[str, ...] = PRESERVED_LAYERS
    features: str = "msa"
    pooling: Pooling = "gap"
    sharpness: float = 4.0

    def __post_init__(self) -> None:
        checks.require_choice("variant", self.variant, ("kp", "kp-vanilla", "none"))
        checks.require_steps(self.steps)
        checks.require_threshold("cam_threshold", self.cam_threshold)
        checks.require_connectivity(self.connectivity)
        checks.require_choice("pooling", self.pooling, ("gap", "lse"))
        if not 0 < self.erased_share < 1 or not 0 <= self.preservation < math.inf:
            raise ValueError(
                "erased_share must be above 0 and below 1, and preservation at least 0, but are "
                f"{self.erased_share} and {self.preservation}"
            )

    def erased_images(self, images: int) -> int:
        """How many of a batch, the first ones, are erased. ValueError if none would be left."""
        if self.variant == "none":
            return images
        if images < 2:
            raise ValueError(
                f"variant {self.variant!r} needs two images or more, one to erase and one to keep, "
                f"but got {images}; give larger batches"
            )
        return min(max(1, round(self.erased_share * images)), images - 1)


class MiningLoss(NamedTuple):
    """``total`` (Eq. 6), ``classification`` and ``preservation`` (without its weight, 0 where the
    variant has none), each a scalar, and ``erased_at`` [n, C, H, W] uint8 of the first n images.
    """

    total: Tensor
    classification: Tensor
    preservation: Tensor
    erased_at: Tensor


def mining_step(
    current: Layers,
    head: nn.Linear,
    anchor: Layers | None,
    images: Tensor,
    labels: Tensor,
    settings: MiningStepSettings | None = None,
    erased_at: Tensor | None = None,
) -> MiningLoss:
    """The loss of one training step: L = L_cls + lambda * L_KP (Eq. 6), ready for ``backward``.

    The first n images are mined: L_cls takes the mean over t = 1..T of their losses, each on what
    the steps before t left of the features, and t = 1 (nothing erased) on the other N - n, which
    L_KP compares with the anchor. All T steps come from one forward pass; no erased copy of the
    features is made, and only n images have CAMs.

    With the networks of this package::

        loss = mining_step(model.layers, model.fc, anchor.layers, images, labels)

    Args:
        current: the network in training, called once with all images: layers by name, among them
            ``settings.features`` [N, D, H, W] and, for L_KP, ``settings.preserved``.
        head: the linear layer behind global average pooling: weight [C, D], bias [C] or None.
        anchor: the starting network in eval mode, called without gradients with the last N - n
            images; read by the variant ``"kp"`` alone. It may be None for the others.
        images: [N, ...], as both networks take them; those to mine come first.
        labels: [N, C] in {0, 1}.
        settings: the paper's by default.
        erased_at: [n, C, H, W] uint8, what earlier networks erased of the first n images at the steps
            1..T-1 (the staged schedule); None erases where this step's own CAMs say.

    Returns:
        ``MiningLoss``; ``total`` is differentiable in what ``current`` and ``head`` learn.

    Raises:
        ValueError: a layer that is not there, too few images, labels of another shape, no anchor.

    Source: Cai et al. 2018, Sec. 2.1-2.2.
    """
    settings = settings or MiningStepSettings()
    count = len(images)
    erased = settings.erased_images(count)
    if settings.variant == "kp" and anchor is None:
        raise ValueError("variant 'kp' needs the anchor; pass the starting network, or 'kp-vanilla'")
    checks.require_equal_shape("labels", labels.shape, "images and head", (count, head.out_features))
    before: dict[str, Tensor] | None = None
    if settings.variant == "kp" and anchor is not None and erased < count:
        # Ahead of the network in training: its activations are not held yet, and of the anchor's
        # nothing stays but the pooled layers.
        with torch.no_grad():
            outputs = anchor(images[erased:])
            before = {name: pooled(v) for name, v in outputs.items() if name in settings.preserved}
            del outputs
    named = current(images)
    if settings.features not in named:
        raise ValueError(
            f"current must give the layer {settings.features!r}, which head reads, but gives "
            f"{', '.join(named)}; name it in settings.features"
        )
    # Split, not sliced: the backward of a split writes the gradient of the features once.
    to_erase, to_keep = named[settings.features].split([erased, count - erased])
    logits, erased_at = _erased_logits(to_erase, head, settings, erased_at)
    labels = labels.to(logits.dtype)
    every_step = labels[:erased, :, None].expand_as(logits)
    classification = classification_loss(logits, every_step)
    preservation = torch.zeros_like(classification)
    if erased < count:
        kept = pooled(to_keep)
        rest = _logits(to_keep, kept, head, settings).to(logits.dtype)
        rest_loss = classification_loss(rest, labels[erased:])
        classification = (erased * classification + (count - erased) * rest_loss) / count
        if before is not None:
            # Pooled first: the gradient of a slice of [N, D] is small, that of a slice of maps is not.
            after = {
                name: kept if name == settings.features else pooled(named[name])[erased:]
                for name in settings.preserved
                if name in named
            }
            preservation = knowledge_preservation(after, before, settings.preserved)
    total = classification + settings.preservation * preservation
    return MiningLoss(total, classification, preservation, erased_at)


def _erased_logits(
    features: Tensor, head: nn.Linear, settings: MiningStepSettings, erased_at: Tensor | None
) -> tuple[Tensor, Tensor]:
    """[n, D, H, W] -> logits [n, C, T] of all steps, and erased_at [n, C, H, W]."""
    cam = ops.cam(features, head.weight)
    if erased_at is None:
        mined = ops.mine_attention(cam, settings.steps, settings.cam_threshold, settings.connectivity)
        erased_at = mined.erased_at
    checks.require_equal_shape("erased_at", erased_at.shape, "the CAMs", cam.shape)
    logits = logits_of(cam, head.bias, settings.pooling, settings.sharpness, erased_at, settings.steps)
    return logits, erased_at


def _logits(
    features: Tensor, features_pooled: Tensor, head: nn.Linear, settings: MiningStepSettings
) -> Tensor:
    """[n, D, H, W] -> logits [n, C], nothing erased."""
    if settings.pooling == "gap":  # no CAM is needed: W times the mean is the mean of the CAM
        logits: Tensor = head(features_pooled.to(head.weight.dtype))
        return logits
    cam = ops.cam(features, head.weight)
    return logits_of(cam, head.bias, settings.pooling, settings.sharpness)[..., 0]
