"""A folded classifier in a graph: images to CAMs and logits.

Written operator by operator and not by ``torch.onnx.export``: what ``fold`` leaves of a network is
convolutions, ReLUs, one pooling and sums, so that a translation by hand is shorter than the translation
tables of the registered operators would be, has the names of the network's own layers, needs neither
onnxscript nor a trace, and gives the same file for the same model with any torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from cxr_fast.export.graph import BFLOAT16, FLOAT, FLOAT16, Graph, Value
from cxr_fast.models import FoldedClassifier

Size = tuple[int, int] | None  # None: not known when the graph is written

TYPES = {torch.float32: FLOAT, torch.float16: FLOAT16, torch.bfloat16: BFLOAT16}
_TO_THE_END = 2**62


class Maps(NamedTuple):
    """Maps [N, D, H, W] in the graph; ``size`` is (H, W) where it is fixed."""

    value: Value
    size: Size


def cam_of(g: Graph, model: FoldedClassifier, images: Maps, channels: int) -> Maps:
    """Normalised images [N, channels, H, W] -> cam [N, C, H', W'], all float32.

    The network runs in the type of its weights, the classifier in float32. ``channels`` is 1 or what
    the network takes; grey images of a network of three channels meet the sum of its first weights,
    which is what repeating them comes to.
    """
    kind = TYPES[model.trunk.conv1.weight.dtype]
    x = images if kind == FLOAT else images._replace(value=g.cast(images.value, kind))
    with g.scope("network"):
        last, penultimate = _taps(g, model, x, channels)
    with g.scope("classifier"):
        return _classified(g, model, last, penultimate, kind)


def logits_of(g: Graph, model: FoldedClassifier, cam: Maps) -> Value:
    """[N, C] of cam [N, C, H, W] as ``FoldedClassifier.logits``."""
    architecture = model.architecture
    if architecture.pooling == "gap":
        pooled = g.reduce("ReduceMean", cam.value, 2, 3, keepdims=False)
    else:  # log(mean(exp(r * cam))) / r, the greatest taken out before exp
        scaled = g.op("Mul", cam.value, g.floats(architecture.sharpness))
        most = g.reduce("ReduceMax", scaled, 2, 3)
        mean = g.reduce("ReduceMean", g.op("Exp", g.op("Sub", scaled, most)), 2, 3)
        log = g.op("Squeeze", g.op("Add", g.op("Log", mean), most), g.ints([2, 3]))
        pooled = g.op("Div", log, g.floats(architecture.sharpness))
    logits: Value = g.op("Add", pooled, _weights(g, model.bias))
    return logits


def _taps(g: Graph, model: FoldedClassifier, x: Maps, channels: int) -> tuple[Maps, Maps]:
    """What ``ResNet.stages`` gives: the maps of the last stage and of the one before."""
    if not model.architecture.bilateral:
        return _stages(g, model, x, channels)
    # Left halves, then right ones mirrored, as one batch; with an odd width they share a column.
    if x.size:
        half = (x.size[1] + 1) // 2
        left_end, right_end = g.ints([half]), g.ints([-half - 1])
    else:
        half_side = g.op("Div", g.op("Add", _side(g, x.value, 3), g.ints([1])), g.ints([2]))
        left_end, right_end = half_side, g.op("Sub", g.ints([-1]), half_side)
    three = g.ints([3])
    left = g.op("Slice", x.value, g.ints([0]), left_end, three)
    right = g.op("Slice", x.value, g.ints([-1]), right_end, three, g.ints([-1]))
    size = (x.size[0], half) if x.size else None
    halves = Maps(g.op("Concat", left, right, axis=0), size)
    count = _side(g, x.value, 0)
    last, penultimate = _stages(g, model, halves, channels)
    return _joined(g, last, count), _joined(g, penultimate, count)


def _joined(g: Graph, halves: Maps, count: Value) -> Maps:
    left = g.op("Slice", halves.value, g.ints([0]), count, g.ints([0]))
    right = g.op("Slice", halves.value, count, g.ints([_TO_THE_END]), g.ints([0]))
    backwards = (g.ints([-1]), g.ints([-_TO_THE_END]), g.ints([3]), g.ints([-1]))
    size = (halves.size[0], 2 * halves.size[1]) if halves.size else None
    return Maps(g.op("Concat", left, g.op("Slice", right, *backwards), axis=3), size)


def _stages(g: Graph, model: FoldedClassifier, x: Maps, channels: int) -> tuple[Maps, Maps]:
    trunk = model.trunk
    with g.scope("conv1"):
        first = trunk.conv1
        weight = first.weight
        if channels == 1:
            weight = weight.double().sum(1, keepdim=True).to(weight.dtype)
        x = _relu(g, _convolved(g, x, first, weight))
    with g.scope("maxpool"):
        pooled = g.op("MaxPool", x.value, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        x = Maps(pooled, _reduced(x.size, 3, 2, 1))
    outputs = []
    for stage in range(1, model.architecture.depth + 1):
        layer = cast(nn.Sequential, trunk.get_submodule(f"layer{stage}"))
        for i, block in enumerate(layer):
            with g.scope(f"layer{stage}.{i}"):
                x = _block(g, x, block)
        outputs.append(x)
    penultimate, last = outputs[-2:]
    if trunk.neck is not None:
        with g.scope("neck"):
            last = _relu(g, _convolved(g, last, cast(nn.Conv2d, trunk.neck[0])))
    return last, penultimate


def _block(g: Graph, x: Maps, block: nn.Module) -> Maps:
    """A residual block: its convolutions in order, each but the last with a ReLU."""
    shortcut = x
    downsample = block.downsample
    if downsample is not None:
        shortcut = _convolved(g, x, cast(nn.Conv2d, cast(nn.Sequential, downsample)[0]))
    convolutions = [part for part in block.children() if isinstance(part, nn.Conv2d)]
    for conv in convolutions[:-1]:
        x = _relu(g, _convolved(g, x, conv))
    x = _convolved(g, x, convolutions[-1])
    return _relu(g, Maps(g.op("Add", x.value, shortcut.value), x.size))


def _convolved(g: Graph, x: Maps, conv: nn.Conv2d, weight: Tensor | None = None) -> Maps:
    weight = conv.weight if weight is None else weight
    assert conv.bias is not None
    kernel, stride, pad = conv.kernel_size[0], conv.stride[0], cast(int, conv.padding[0])
    value = g.op(
        "Conv",
        x.value,
        _weights(g, weight),
        _weights(g, conv.bias),
        kernel_shape=[kernel, kernel],
        strides=[stride, stride],
        pads=[pad] * 4,
    )
    return Maps(value, _reduced(x.size, kernel, stride, pad))


def _relu(g: Graph, x: Maps) -> Maps:
    return Maps(g.op("Relu", x.value), x.size)


def _reduced(size: Size, kernel: int, stride: int, pad: int) -> Size:
    """What a convolution or pooling makes of H and W."""
    if size is None:
        return None
    height, width = ((side + 2 * pad - kernel) // stride + 1 for side in size)
    return height, width


def _classified(g: Graph, model: FoldedClassifier, last: Maps, penultimate: Maps, kind: int) -> Maps:
    """``FoldedClassifier.cam_from_taps``."""
    weights = model.weights

    def classes(x: Maps, weight: Tensor) -> Value:
        value = x.value if kind == FLOAT else g.cast(x.value, FLOAT)
        product: Value = g.op("Conv", value, _weights(g, weight[:, :, None, None]), kernel_shape=[1, 1])
        return product

    if weights.penultimate is None:
        return Maps(classes(last, weights.last), last.size)
    fine = classes(penultimate, weights.penultimate)
    sides = g.op("Slice", g.op("Shape", fine), g.ints([2]), g.ints([4]), g.ints([0]))
    if weights.last.dim() == 4:
        coarse = last.value if kind == FLOAT else g.cast(last.value, FLOAT)
        doubled = g.op(
            "ConvTranspose",
            coarse,
            _weights(g, weights.last),
            kernel_shape=[3, 3],
            strides=[2, 2],
            pads=[1, 1, 1, 1],
            output_padding=[1, 1],
        )
        upsampled = g.op("Slice", doubled, g.ints([0, 0]), sides, g.ints([2, 3]))
    else:
        coarse = classes(last, weights.last)
        channels = g.op("Slice", g.op("Shape", coarse), g.ints([0]), g.ints([2]), g.ints([0]))
        upsampled = resized(g, coarse, g.op("Concat", channels, sides, axis=0))
    return Maps(g.op("Add", fine, upsampled), penultimate.size)


def resized(g: Graph, x: Value, sizes: Value) -> Value:
    """Bilinear, half-pixel centres (align_corners=False), to sizes [4] int64."""
    result: Value = g.op(
        "Resize", x, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel"
    )
    return result


def _side(g: Graph, x: Value, axis: int) -> Value:
    """The size of an axis, int64 [1]."""
    side: Value = g.op("Gather", g.op("Shape", x), g.ints([axis]), axis=0)
    return side


def _weights(g: Graph, tensor: Tensor) -> Value:
    tensor = tensor.detach().cpu().contiguous()
    shape: Sequence[int] = tensor.shape
    raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return g.constant_of(raw, TYPES[tensor.dtype], shape)
