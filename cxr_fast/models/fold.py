"""A classifier prepared for inference: images in, class activation maps out.

Two exact rewritings. Each BatchNorm (with its running statistics) goes into the convolution before
it. And since the aggregation and the classifier are linear, their product is taken once, ahead of
time: with the columns of W split into W_a and W_b,

    cam = up((W_a P_k) X_k) + (W_b P_{k-1}) X_{k-1}

so the 768-channel map never exists; C channels are upsampled, not 512. A deconvolution is folded
in the same way, into one transposed convolution from X_k to C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cxr_fast.models.card import Architecture
from cxr_fast.models.msa import Classifier, upsample_bilinear, upsample_deconv
from cxr_fast.models.pooling import logits_of
from cxr_fast.models.resnet import ResNet
from cxr_fast.ops import cam


class _CamWeights(nn.Module):
    """The folded classifier, float32 at least, even where the network is cast to half precision.

    A CAM rounded to 8 bits is full of ties, which mining resolves by position instead of evidence.
    """

    def __init__(self, last: Tensor, penultimate: Tensor | None, bias: Tensor) -> None:
        super().__init__()
        self.last: Tensor
        self.penultimate: Tensor | None
        self.bias: Tensor
        self.register_buffer("last", last)
        self.register_buffer("penultimate", penultimate)
        self.register_buffer("bias", bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # Module.to(), .half() and .bfloat16() all come through here.
        def apply(value: Tensor) -> Tensor:
            applied = fn(value)
            narrowed = applied.dtype in (torch.float16, torch.bfloat16)
            return value.to(applied.device) if narrowed else applied

        moved: nn.Module = super()._apply(apply, recurse)  # type: ignore[no-untyped-call]
        return moved


class FoldedClassifier(nn.Module):
    """images -> CAMs, made by ``fold``. For inference: no gradients, the same in train and eval.

    Cast it as a whole, ``folded.to(torch.bfloat16, memory_format=torch.channels_last)``; images
    are cast to its precision, CAMs stay float32 (float64 for a float64 network).
    """

    # Whose convolutions they are: others round otherwise.
    convolutions = "torch"

    def __init__(self, trunk: ResNet, weights: _CamWeights) -> None:
        super().__init__()
        self.trunk = trunk
        self.weights = weights

    @property
    def architecture(self) -> Architecture:
        """The architecture of the classifier that was folded."""
        return self.trunk.architecture

    def logits(self, cam: Tensor) -> Tensor:
        """Logits [N, C] of the CAMs [N, C, H, W], nothing erased, by the architecture's pooling."""
        architecture = self.architecture
        return logits_of(cam, self.bias, architecture.pooling, architecture.sharpness)[..., 0]

    @property
    def bias(self) -> Tensor:
        """[C] float32, of the classifier."""
        return self.weights.bias

    def taps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the maps that the classifier reads, (X_k, X_{k-1}), in the network's precision.

        images [N, 1 or 3, S, S], any floating point type. Shapes and errors: ``ResNet.stages``.
        """
        if images.is_floating_point():
            images = images.to(self.trunk.dtype)
        return self.trunk.stages(images)

    def cam_from_taps(self, x_k: Tensor, x_k_minus_1: Tensor) -> Tensor:
        """``x_k`` [N, D, h, w] and ``x_k_minus_1`` [N, E, H, W] -> cam [N, C, H, W] float32.

        The one place where features meet the classifier. [N, C, h, w] without aggregation, which
        leaves X_{k-1} unread.
        """
        weights = self.weights
        if weights.penultimate is None:
            return cam(x_k, weights.last)
        size = (x_k_minus_1.shape[-2], x_k_minus_1.shape[-1])
        if weights.last.dim() == 4:
            upsampled = upsample_deconv(x_k.to(weights.last.dtype), weights.last, size)
        else:
            upsampled = upsample_bilinear(cam(x_k, weights.last), size)
        return cam(x_k_minus_1, weights.penultimate) + upsampled

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 1 or 3, S, S] -> cam [N, C, H, W] float32. Errors: ``ResNet.stages``."""
        return self.cam_from_taps(*self.taps(images))


def fold(model: Classifier) -> FoldedClassifier:
    """Make the network that gives the CAMs of ``model.eval()``: ``fc`` applied to ``features``.

    The model is left as it is and shares no memory with the result. Products are taken in float64
    and rounded once, to the model's type. TypeError where it is no ``Classifier``.
    """
    if not isinstance(model, Classifier):
        raise TypeError(
            f"fold takes a cxr_fast Classifier, but got {type(model).__name__}. Pass the model "
            "itself, not a compiled, parallel or folded one."
        )
    with torch.no_grad():
        folded = FoldedClassifier(_fold_trunk(model), _fold_classifier(model))
    return folded.requires_grad_(False).eval()


def _fold_trunk(model: Classifier) -> ResNet:
    with torch.device("meta"):
        trunk = ResNet(model.architecture)
    layers = [
        (name, model.get_submodule(name))
        for name, part in trunk.named_modules()
        if isinstance(part, nn.Conv2d | nn.BatchNorm2d)
    ]
    # In order of registration, each normalisation follows its convolution.
    for (conv_name, conv), (norm_name, norm) in zip(layers[::2], layers[1::2], strict=True):
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        trunk.set_submodule(conv_name, _fold_norm(conv, norm))
        trunk.set_submodule(norm_name, nn.Identity())
    return trunk


def _fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Fold by gamma * (W x - mean) / sqrt(var + eps) + beta  =  (s W) x + (beta - s mean)."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    folded = copy.deepcopy(conv)
    weight = conv.weight.double() * scale[:, None, None, None]
    bias = norm.bias.double() - scale * norm.running_mean.double()
    folded.weight = nn.Parameter(weight.to(conv.weight.dtype))
    folded.bias = nn.Parameter(bias.to(conv.weight.dtype))
    return folded


def _fold_classifier(model: Classifier) -> _CamWeights:
    dtype = torch.promote_types(model.fc.weight.dtype, torch.float32)
    weight, bias = model.fc.weight.double(), model.fc.bias.to(dtype, copy=True)
    if model.msa is None:
        return _CamWeights(weight.to(dtype, copy=True), None, bias)
    weight_a, weight_b = weight.tensor_split([model.msa.from_last], 1)
    reduce_k = model.msa.reduce_k.weight.double().flatten(1)  # P_k [512, D_k]
    reduce_k_minus_1 = model.msa.reduce_k_minus_1.weight.double().flatten(1)
    if model.msa.deconv is None:
        last = weight_a @ reduce_k
    else:
        deconv = model.msa.deconv.weight.double()  # [512 in, 512 out, 3, 3]
        to_classes = torch.einsum("co,roij->rcij", weight_a, deconv)
        last = torch.einsum("rd,rcij->dcij", reduce_k, to_classes)
    return _CamWeights(last.to(dtype), (weight_b @ reduce_k_minus_1).to(dtype), bias)
