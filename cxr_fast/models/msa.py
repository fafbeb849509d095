"""Multi-scale aggregation (Sec. 2.3 of the paper), and the classifiers built with or without it.

    X = [up(P_k X_k), P_{k-1} X_{k-1}]        logits = W GAP(X) + bias

P_k and P_{k-1} are 1x1 convolutions to 512 and 256 channels without bias and without ReLU, ``up``
doubles height and width. All of it is linear, so ``fold`` can pull W through.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxr_fast.models.card import Architecture, ModelCard
from cxr_fast.models.pooling import logits_of
from cxr_fast.models.resnet import ResNet, initialise
from cxr_fast.models.weights import copy_weights, read_state_dict
from cxr_fast.ops import cam


def upsample_bilinear(x_k: Tensor, size: tuple[int, int]) -> Tensor:
    """x_k [N, D, h, w] -> [N, D, *size], align_corners=False.

    The size of X_{k-1} is the target even where it is odd: 2h - 1, not 2h.
    """
    return F.interpolate(x_k, size=size, mode="bilinear", align_corners=False)


def upsample_deconv(x_k: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """x_k [N, D, h, w], weight [D, E, 3, 3] -> [N, E, *size]: stride 2, cropped to ``size``.

    The full result is [N, E, 2h, 2w]; where ``size`` is odd, its last row or column is left out.
    """
    doubled = F.conv_transpose2d(x_k, weight, stride=2, padding=1, output_padding=1)
    return doubled[..., : size[0], : size[1]]


class MultiScaleAggregation(nn.Module):
    """(X_k [N, D_k, h, w], X_{k-1} [N, D_{k-1}, H, W]) -> X [N, out_channels, H, W]."""

    def __init__(self, architecture: Architecture, last: int, penultimate: int) -> None:
        super().__init__()
        from_last, from_penultimate = architecture.channels(512), architecture.channels(256)
        self.from_last = from_last
        self.out_channels = from_last + from_penultimate
        self.reduce_k = nn.Conv2d(last, from_last, 1, bias=False)
        self.reduce_k_minus_1 = nn.Conv2d(penultimate, from_penultimate, 1, bias=False)
        self.deconv: nn.ConvTranspose2d | None = None
        if architecture.msa == "deconv":
            self.deconv = nn.ConvTranspose2d(
                from_last, from_last, 3, stride=2, padding=1, output_padding=1, bias=False
            )
        initialise(self)
        if self.deconv is not None:
            _interpolate(self.deconv)

    def forward(self, x_k: Tensor, x_k_minus_1: Tensor) -> Tensor:
        """Reduce, upsample, concatenate; the upsampled map is made as large as X_{k-1}."""
        size = (x_k_minus_1.shape[-2], x_k_minus_1.shape[-1])
        reduced = self.reduce_k(x_k)
        if self.deconv is None:
            reduced = upsample_bilinear(reduced, size)
        else:
            reduced = upsample_deconv(reduced, self.deconv.weight, size)
        return torch.cat((reduced, self.reduce_k_minus_1(x_k_minus_1)), 1)


@torch.no_grad()
def _interpolate(deconv: nn.ConvTranspose2d) -> None:
    """Begin as linear interpolation, channel by channel.

    Pixels of an upsampled map see one, two or four taps by their place, and behind global average
    pooling nothing draws these sums together: random kernels make a checkerboard, which cuts findings
    into cells (docs/evidence.md).
    """
    kernel = torch.tensor([0.5, 1.0, 0.5])
    deconv.weight.zero_()
    for channel in range(deconv.in_channels):
        deconv.weight[channel, channel] = kernel[:, None] * kernel


class Classifier(ResNet):
    """A ResNet, aggregation if its architecture has it, global average pooling, a linear layer.

    Without aggregation, and at width 1, its state_dict is that of torchvision's ResNet. ``fc`` has
    weight [C, D] and bias [C]. ValueError where ``num_classes`` (C) is not positive.
    """

    def __init__(self, architecture: Architecture, num_classes: int) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, but is {num_classes}.")
        super().__init__(architecture)
        self.msa: MultiScaleAggregation | None = None
        features = self.last_channels
        if architecture.msa != "none":
            self.msa = MultiScaleAggregation(
                architecture, self.last_channels, self.penultimate_channels
            )
            features = self.msa.out_channels
        self.fc = nn.Linear(features, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Images [N, 1 or 3, S, S] -> [N, D, H, W], the map that ``fc`` classifies.

        X at 1/16 of the images' size with aggregation, X_k at 1/32 without. Errors: ``stages``.
        """
        x_k, x_k_minus_1 = self.stages(images)
        return x_k if self.msa is None else cast(Tensor, self.msa(x_k, x_k_minus_1))

    def layers(self, images: Tensor) -> dict[str, Tensor]:
        """Collect what knowledge preservation (Eq. 4) may compare, of images [N, 1 or 3, S, S].

        ``bottleneck3`` and ``bottleneck4``, the outputs of layer3 and layer4 [N, D, H, W] (also
        where the blocks are no bottlenecks; one less each for a network of depth 3, and X_k behind its
        neck), ``msa`` [N, D, H, W] if the network has it, and ``logits`` [N, C]. Errors: ``stages``.
        """
        x_k, x_k_minus_1 = self.stages(images)
        depth = self.architecture.depth
        layers = {f"bottleneck{depth - 1}": x_k_minus_1, f"bottleneck{depth}": x_k}
        features = x_k
        if self.msa is not None:
            features = layers["msa"] = self.msa(x_k, x_k_minus_1)
        layers["logits"] = self._classify(features)
        return layers

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 1 or 3, S, S] -> logits [N, C] (Eq. 2 with nothing erased).

        Errors: ``stages``.
        """
        return self._classify(self.features(images))

    def _classify(self, features: Tensor) -> Tensor:
        pooling, sharpness = self.architecture.pooling, self.architecture.sharpness
        if pooling == "gap":  # the product with W after the mean, not before
            return cast(Tensor, self.fc(features.mean((2, 3))))
        return logits_of(cam(features, self.fc.weight), self.fc.bias, pooling, sharpness)[..., 0]


def build(
    description: Architecture | ModelCard,
    num_classes: int | None = None,
    *,
    imagenet: Path | None = None,
) -> Classifier:
    """Make a new classifier of that architecture, with random weights.

    ``num_classes`` may be left out where a model card names the classes. ``imagenet`` is a file
    with the state_dict of torchvision's ResNet of the same depth, or a checkpoint of this package
    with the same backbone (``.pth`` or ``.safetensors``, told by content): it initialises everything
    but aggregation, neck and classifier. Its first convolution is summed
    over the colours for a network with one channel, which gives a grey image the same response.
    ValueError where the numbers of classes or the weights do not fit.
    """
    if isinstance(description, ModelCard):
        architecture, named = description.architecture, len(description.class_names)
        if num_classes not in (None, named):
            raise ValueError(
                f"num_classes must be {named}, the number of the card's class names, but is "
                f"{num_classes}. Leave it out."
            )
        num_classes = named
    else:
        architecture = description
    if num_classes is None:
        raise ValueError("num_classes must be given with an Architecture; only a card knows it.")
    model = Classifier(architecture, num_classes)
    if imagenet is not None:
        _load_imagenet(model, imagenet)
    return model


def _load_imagenet(model: Classifier, path: Path) -> None:
    weights = read_state_dict(path)
    own = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith(("fc.", "msa.", "neck."))
    }
    if model.architecture.in_channels == 1 and "conv1.weight" in weights:
        weights["conv1.weight"] = weights["conv1.weight"].sum(1, keepdim=True)
    advice = f"Give the weights of torchvision's {model.architecture.backbone}, and width=1."
    copy_weights(own, weights, path, advice)
